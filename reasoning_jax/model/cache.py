"""The rewindable KV cache: one slot a position, and a length for each row.

Slots at or beyond a row's length are stale: never attended, overwritten later. So taking back the
last tokens of a row is writing a smaller integer (`rewind`), and rows of one batch may differ.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@struct.dataclass
class Cache:
    """Keys and values [L, B, S, K, H] in the compute dtype; `length` [B] counts live slots."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    length: Int[Array, " B"]

    @property
    def slots(self) -> int:
        return self.keys.shape[2]


def init_cache(config: ModelConfig, batch: int, slots: int, batch_axis: Any = None) -> Cache:
    """An empty cache; `batch_axis` is the mesh axis (or axes) that splits the batch, if any."""
    shape = (config.n_layers, batch, slots, config.n_kv_heads, config.head_dim)
    dtype = jnp.dtype(config.compute_dtype)
    kwargs, length_kwargs = {}, {}
    if sharding.has_mesh():
        spec = sharding.P(None, batch_axis, None, "tensor", None)
        kwargs = {"out_sharding": spec}
        length_kwargs = {"out_sharding": sharding.P(batch_axis)}
    return Cache(
        jnp.zeros(shape, dtype, **kwargs),
        jnp.zeros(shape, dtype, **kwargs),
        jnp.zeros((batch,), jnp.int32, **length_kwargs),
    )


def rewind(cache: Cache, length: Int[Array, " B"]) -> Cache:
    """The cache with its rows cut to `length` [B] slots; nothing is moved."""
    return dataclasses.replace(cache, length=length)


def write_layer(
    stacked: Float[Array, "L B S K H"],
    layer: Any,
    start: Int[Array, " B"],
    new: Float[Array, "B T K H"],
) -> tuple[Float[Array, "L B S K H"], Float[Array, "B S K H"]]:
    """Write T slots from `start[b]` on into one layer; returns the stack and that layer.

    Rows whose slots would end beyond S are clamped by XLA: callers bound `start` themselves.
    """
    one = lax.dynamic_index_in_dim(stacked, layer, axis=0, keepdims=False)
    one = jax.vmap(lambda c, n, s: lax.dynamic_update_slice(c, n, (s, 0, 0)))(one, new, start)
    return lax.dynamic_update_index_in_dim(stacked, one, layer, axis=0), one
