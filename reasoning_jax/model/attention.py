"""One door to attention: how it is computed, chosen here for each platform.

`attend_within` is for the columns of a pass that see each other alone, as a description says
(`visibility.py`); it has several paths (`choose`). `attend` is for columns that have others before
them: keys and values of earlier passes (`KeyValues`), a cache's among them, are read where they
are, never copied or written. Positions play no part here: RoPE has been applied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError, ModelConfig
from reasoning_jax.model import blockwise, kernels
from reasoning_jax.model.blockwise import MASKED
from reasoning_jax.model.visibility import Causal, Dense, Description, visibility

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "Causal",
    "Dense",
    "Description",
    "KeyValues",
    "attend",
    "attend_within",
    "check",
    "choose",
]

# The platform that a path runs on, where that is not any.
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}


@struct.dataclass
class KeyValues:
    """Keys and values of some columns, and which of them a query sees: [B, S], or [B, T, S] if not
    all T queries see the same. With a leading layer axis (which has no part in `visible`) outside
    the layers.
    """

    keys: Float[Array, "*L B K S H"]
    values: Float[Array, "*L B K S H"]
    visible: Bool[Array, "B S"] | Bool[Array, "B T S"]

    @staticmethod
    def of(
        keys: Float[Array, "*L B S K H"], values: Float[Array, "*L B S K H"], visible: Any
    ) -> KeyValues:
        """Of columns as the projections make them. The heads go in front, so that a loop that
        attends to them many times need not bring them there each time.
        """
        return KeyValues(keys.swapaxes(-3, -2), values.swapaxes(-3, -2), visible)


def check(config: ModelConfig) -> None:
    """Raises ConfigError if `model.attention` cannot run here; starts a backend to know where."""
    name, here = config.attention, jax.default_backend()
    if name not in PLATFORMS:
        return
    if here != PLATFORMS[name]:
        raise ConfigError(
            f'model.attention="{name}" runs on a {PLATFORMS[name]}, and this is a {here}; set '
            '"auto", which takes what each platform has'
        )
    if name == "cudnn" and (missing := kernels.cudnn_lacks(config)):
        raise ConfigError(f'model.attention="cudnn" needs {missing}; or set "auto"')


def choose(config: ModelConfig, description: Description, columns: int) -> str:
    """The path of `attend_within`: that of the config, or with "auto" the platform's own.

    CPU: in blocks. GPU: cuDNN for causal masks in half precision. TPU: the splash kernel for causal
    masks of rows that its blocks divide. In blocks otherwise: it is the one path on which the mask
    of an edited sequence (`backspace.Live`) costs no array of [T, T].

    Raises:
      ConfigError: the config's path cannot run on this platform, or not for such rows.
    """
    check(config)
    if config.attention != "auto":
        if config.attention == "splash":
            kernels.check_splash(description, columns)
        return config.attention
    platform = jax.default_backend()
    if platform == "gpu" and isinstance(description, Causal) and columns % 2 == 0:
        return "blockwise" if kernels.cudnn_lacks(config) else "cudnn"
    if platform == "tpu" and kernels.splash_can(description, columns):
        return "splash"
    return "blockwise"


def attend_within(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    description: Description,
    path: str,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of columns to each other, with grouped queries."""
    if path == "blockwise":
        return blockwise.attend(query, key, value, description)
    if path == "splash":
        return kernels.splash(query, key, value, description)
    if path in ("xla", "cudnn"):
        return kernels.jax_attention(query, key, value, description, path)
    assert path == "explicit", path
    return attend(query, [KeyValues.of(key, value, visibility(description, query))])[0]


def attend(
    query: Float[Array, "B T N H"], parts: Sequence[KeyValues], return_weights: bool = False
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"] | None]:
    """Scaled dot-product attention with grouped queries; the softmax is in float32.

    The parts' scores are put side by side, their keys are not: these are read where they are.
    `return_weights` also gives the attention probabilities (float32), over the parts in order.
    """
    masks = [p.visible if p.visible.ndim == 3 else p.visible[:, None] for p in parts]
    B, T, N, H = query.shape
    # Keys are not repeated for the queries that share them: those stand in one row of queries.
    K = parts[0].keys.shape[1]
    split = (sharding.axis_of(query, 0), sharding.axis_of(query, 2))

    def shaped(x: jax.Array, *shape: int) -> jax.Array:
        return sharding.reshape(x, shape, sharding.P(*split, *[None] * (len(shape) - 2)))

    query = shaped(query.swapaxes(1, 2), B, K, N // K * T, H)
    scores = [
        jnp.where(
            jnp.tile(mask[:, None], (1, 1, N // K, 1)) if mask.shape[1] > 1 else mask[:, None],
            jnp.einsum("bkth,bksh->bkts", query, part.keys, preferred_element_type=jnp.float32)
            * H**-0.5,
            MASKED,
        )
        for part, mask in zip(parts, masks)
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    mixed, begin = 0.0, 0
    for part in parts:
        some = weights[..., begin : begin + part.keys.shape[2]].astype(part.values.dtype)
        mixed = mixed + jnp.einsum("bkts,bksh->bkth", some, part.values)
        begin += part.keys.shape[2]
    out = shaped(jnp.asarray(mixed), B, N, T, H).swapaxes(1, 2)
    return out, shaped(weights, B, N, T, weights.shape[-1]) if return_weights else None
