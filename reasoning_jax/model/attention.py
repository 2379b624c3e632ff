"""One door to attention: what may attend to what, and how it is computed.

Two descriptions of visibility: `Causal` (by position in the row, within segments) and `Dense` (any
boolean mask, as backspace packing needs). With a cache, `Causal` means all slots up to the query's.
Keys and values of earlier passes can stand before the new ones (`KeyValues`): they are read, never
copied or written. Positions play no part here: RoPE has been applied before.
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


@struct.dataclass
class KeyValues:
    """Keys and values of columns that went before, for all layers; every query sees those that are
    `visible`. Inside a layer the layer axis is gone.
    """

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    visible: Bool[Array, "B S"]

    @staticmethod
    def of(
        keys: Float[Array, "L B S K H"], values: Float[Array, "L B S K H"], visible: Any
    ) -> KeyValues:
        """Of columns as `transformer.apply` returns them. The heads go in front, so that a loop
        that attends to them many times need not bring them there each time.
        """
        return KeyValues(keys.swapaxes(2, 3), values.swapaxes(2, 3), visible)


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
    before: tuple[KeyValues, ...] = (),
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"] | None]:
    """Scaled dot-product attention with grouped queries; the softmax is in float32.

    `return_weights` also gives the attention probabilities (float32), computed explicitly; over the
    columns of `before` first, where there are any. Scores are put side by side, keys are not: what
    stands before is read where it is. On CPUs all is computed that way: the gradient of JAX's own
    attention takes longer there.
    """
    explicit = return_weights or before or jax.default_backend() == "cpu"
    if not explicit:
        # The mask needs its head axis: a three-dimensional mask would be read as [N, T, S].
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None]), None
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    parts = [(p.keys, p.values, p.visible[:, None, None]) for p in before]
    parts.append((key, value, mask[:, None]))
    N, H = query.shape[1], query.shape[3]
    groups = N // key.shape[1]
    if groups > 1:
        out: dict[str, Any] = {}
        if sharding.has_mesh():
            rows, heads = sharding.axis_of(query, 0), sharding.axis_of(query, 1)
            out["out_sharding"] = sharding.P(rows, heads, None, None)
        parts = [
            (jnp.repeat(k, groups, axis=1, **out), jnp.repeat(v, groups, axis=1, **out), visible)
            for k, v, visible in parts
        ]
    scores = [
        jnp.where(
            visible,
            jnp.einsum("bnth,bnsh->bnts", query, k, preferred_element_type=jnp.float32) * H**-0.5,
            MASKED,
        )
        for k, _, visible in parts
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    mixed, begin = 0.0, 0
    for k, v, _ in parts:
        some = weights[..., begin : begin + k.shape[2]].astype(v.dtype)
        mixed = mixed + jnp.einsum("bnts,bnsh->bnth", some, v)
        begin += k.shape[2]
    return jnp.asarray(mixed).swapaxes(1, 2), weights if return_weights else None
