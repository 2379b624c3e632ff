"""One door to attention: what may attend to what, and how it is computed.

Two descriptions of visibility: `Causal` (by position in the row, within segments) and `Dense` (any
boolean mask, as backspace packing needs). With a cache, `Causal` means all slots up to the query's.
Positions play no part here: RoPE has been applied before.
"""

from __future__ import annotations

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
    """Query i sees key j where `mask[b, i, j]`; S is the number of keys (cache slots, if any)."""

    mask: Bool[Array, "B T S"]


def visibility(
    description: Causal | Dense,
    query_slots: Int[Array, "B T"],
    n_keys: int,
    cached: bool,
) -> Bool[Array, "B T S"]:
    """The boolean mask [B, T, S] of a description. `query_slots` are the queries' key indices."""
    if isinstance(description, Dense):
        return description.mask
    mask = query_slots[:, :, None] >= jnp.arange(n_keys)[None, None, :]
    if description.segments is None:
        return mask
    if cached:
        raise ValueError("segments cannot be combined with a cache; use attention.Dense")
    return mask & (description.segments[:, :, None] == description.segments[:, None, :])


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    return_weights: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"] | None]:
    """Scaled dot-product attention with grouped queries; the softmax is in float32.

    `return_weights` also gives the attention probabilities (float32), computed explicitly.
    """
    if not return_weights:
        # The mask needs its head axis: a three-dimensional mask would be read as [N, T, S].
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None]), None
    groups = query.shape[2] // key.shape[2]
    spec: Any = sharding.axis_of(query, 0), None, sharding.axis_of(query, 2), None
    key, value = (
        jnp.repeat(x, groups, axis=2, **_out_sharding(spec)) if groups > 1 else x
        for x in (key, value)
    )
    scores = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * query.shape[-1] ** -0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)
    return mixed, weights


def _out_sharding(spec: Any) -> dict[str, Any]:
    return {"out_sharding": sharding.P(*spec)} if sharding.has_mesh() else {}
