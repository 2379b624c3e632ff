"""Attention by kernels that others keep: cuDNN through `jax.nn`, and splash attention on TPUs.

Kernels know nothing of meshes: each device calls them on its own rows and heads. Only columns that
see each other alone are handled. Which path is taken is decided in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError, ModelConfig
from reasoning_jax.model.blockwise import SAVED
from reasoning_jax.model.visibility import Causal, Description, visibility

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Splash attention works on blocks of at least so many columns (a TPU's lanes).
LANES = 128
BLOCKS = (512, 256, LANES)


def jax_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    description: Description,
    implementation: str,
) -> Float[Array, "B T N H"]:
    """`jax.nn.dot_product_attention`. A mask [B, 1, T, T] is made unless rows are one segment."""
    if isinstance(description, Causal) and description.segments is None:
        masks, causal = (), True
    else:
        # The mask needs its head axis: a three-dimensional mask would be read as [N, T, S].
        masks, causal = (visibility(description, query)[:, None],), False

    def attend(query: Any, key: Any, value: Any, mask: Any = None) -> jax.Array:
        given: Any = {"mask": mask, "is_causal": causal, "implementation": implementation}
        return jax.nn.dot_product_attention(query, key, value, **given)

    return _on_each_device(attend, query, key, value, *masks)


def cudnn_lacks(config: ModelConfig) -> str:
    """What the GPUs here or the model lack for cuDNN's flash attention; "" if nothing."""
    if config.compute_dtype not in ("bfloat16", "float16"):
        return f'model.compute_dtype="bfloat16" or "float16", got "{config.compute_dtype}"'
    if config.head_dim % 8 or config.head_dim > 128:
        return f"a multiple of 8 up to 128 as model.head_dim, got {config.head_dim}"
    # GPUs of other makers have none. The kernels are for Ampere and later.
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if "cuda" not in jax.local_devices()[0].client.platform_version or capability is None:
        return "an NVIDIA GPU"
    if int(capability.split(".")[0]) < 8:
        return f"a GPU of compute capability 8.0 or later, this one has {capability}"
    return ""


def splash_can(description: Description, columns: int) -> bool:
    """Whether splash attention takes such rows."""
    return isinstance(description, Causal) and columns % LANES == 0


def check_splash(description: Description, columns: int) -> None:
    """Raises ConfigError if splash attention does not take such rows."""
    if splash_can(description, columns):
        return
    nearest = max(1, round(columns / LANES)) * LANES
    why = f"rows of a multiple of {LANES} columns, got {columns}; the nearest is {nearest}"
    if columns % LANES == 0:
        why = "causal masks, and backspace packing has another"
    raise ConfigError(f'model.attention="splash" needs {why}; or set model.attention="auto"')


def splash(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    description: Description,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Splash attention (Pallas); the mask is never an array. `interpret` runs it on a CPU."""
    # Importing the kernels takes a second, which other platforms need not wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernel

    assert isinstance(description, Causal)
    T = query.shape[1]
    size = next(size for size in BLOCKS if T % size == 0)
    sizes = kernel.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
        block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip

    def attend(query: Any, key: Any, value: Any, segments: Any = None) -> jax.Array:
        N, H = query.shape[2:]
        run = kernel.make_splash_mha(
            kernel.MultiHeadMask([kernel.CausalMask((T, T))] * N),
            block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
            residual_checkpoint_name=SAVED[0],
        )  # fmt: skip
        scaled = query * jnp.asarray(H**-0.5, query.dtype)
        ids = None if segments is None else kernel.SegmentIds(segments, segments)
        heads_first = (x.swapaxes(1, 2) for x in (scaled, key, value))
        out: Any = jax.vmap(run)(*heads_first, ids)
        return out.swapaxes(1, 2).astype(query.dtype)

    segments = () if description.segments is None else (description.segments,)
    return _on_each_device(attend, query, key, value, *segments)


def _on_each_device(
    f: Callable[..., jax.Array],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *rest: Array,
) -> Float[Array, "B T N H"]:
    """`f` on each device's own rows and heads; `rest` has rows alone."""
    if not sharding.has_mesh():
        return f(query, key, value, *rest)
    rows, heads = sharding.axis_of(query, 0), sharding.axis_of(query, 2)
    whole = sharding.P(rows, None, heads, None)
    others = tuple(sharding.P(rows, *[None] * (x.ndim - 1)) for x in rest)
    # What a kernel returns says nothing of the axes over which it is equal, hence no check.
    each = jax.shard_map(
        f, in_specs=(whole, whole, whole, *others), out_specs=whole, check_vma=False
    )
    return each(query, key, value, *rest)
