"""One door to attention: what may attend to what, and how it is computed.

Two descriptions of what the columns of a pass see of each other: `Causal` (by position in the row,
within segments) and `Dense` (any boolean mask, as backspace packing needs). Keys and values of
earlier passes can stand before them (`KeyValues`), a cache's among them: they are read where they
are, never copied or written. Positions play no part here: RoPE has been applied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Finite, so that a query that sees nothing averages its values instead of making NaN.
MASKED = -1e30


@struct.dataclass
class Causal:
    """Query i sees key j <= i; with `segments` [B, T] (0 is padding) only inside its segment."""

    segments: Int[Array, "B T"] | None = None


@struct.dataclass
class Dense:
    """Query i sees key j where `mask[b, i, j]`."""

    mask: Bool[Array, "B T T"]


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


def visibility(description: Causal | Dense, columns: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """The boolean mask [B, T, T] of a description. `columns` count a row's tokens from 0."""
    if isinstance(description, Dense):
        return description.mask
    mask = columns[:, :, None] >= columns[:, None, :]
    if description.segments is None:
        return mask
    return mask & (description.segments[:, :, None] == description.segments[:, None, :])


def attend(
    query: Float[Array, "B T N H"], parts: Sequence[KeyValues], return_weights: bool = False
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"] | None]:
    """Scaled dot-product attention with grouped queries; the softmax is in float32.

    The parts' scores are put side by side, their keys are not: these are read where they are.
    `return_weights` also gives the attention probabilities (float32), over the parts in order. On
    CPUs all is computed explicitly: the gradient of JAX's own attention takes longer there.
    """
    explicit = return_weights or len(parts) > 1 or jax.default_backend() == "cpu"
    masks = [p.visible if p.visible.ndim == 3 else p.visible[:, None] for p in parts]
    B, T, N, H = query.shape
    if not explicit:
        (part,), (mask,) = parts, masks
        key, value = part.keys.swapaxes(1, 2), part.values.swapaxes(1, 2)
        # The mask needs its head axis: a three-dimensional mask would be read as [N, T, S].
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None]), None
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
