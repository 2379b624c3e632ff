"""Actions: which there are in a state, their distribution, and what an environment makes of them.

The log-probability of an executed action is that of the distribution it was drawn from, computed by
`action_log_probs`, which training uses too. No loop is here, and no cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.vocab import Vocab

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Low enough that exp underflows to 0 in float32, finite so that 0 * log p stays 0.
FORBIDDEN = -1e30
# Below this temperature logits are divided from their maximum on.
_COLD = 1e-3
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ActionIds:
    """The ids that the sampler must know: `<eos>`, `<backspace>` (or None), and never-drawn ids.

    Unless `floor_masked`, a backspace at the floor is an action too, which changes nothing.
    """

    eos: int
    backspace: int | None
    never: tuple[int, ...] = ()
    floor_masked: bool = True

    @staticmethod
    def of(vocab: Vocab, floor_masked: bool = True) -> ActionIds:
        never = tuple(vocab.unsampled_ids())
        return ActionIds(vocab.eos_id, vocab.backspace_id, never, floor_masked)


@dataclass(frozen=True)
class Noise:
    """An environment that errs: with `rate`, a chosen token or <eos> is replaced by another of
    `ids` (sorted, unique), drawn uniformly. `<backspace>` is never replaced.
    """

    rate: float
    ids: tuple[int, ...]


@struct.dataclass
class Completions:
    """What was executed, and what is left standing.

    `actions`, `log_probs`, `forced` [B, A] are aligned; the first `length[b]` count. `tokens`
    [B, S] is prompt plus visible text (with <eos> if reached), `token_count` [B] its length.
    `forced` marks an <eos> put there by a limit (its log-probability is still the policy's).
    `chosen` is what the policy drew, where a limit or noise put another action in its place.
    `backspace` is the probability of `<backspace>` before each action, in the plain softmax over
    all rows of the vocabulary (0 where there is none).
    """

    actions: Int[Array, "B A"]
    chosen: Int[Array, "B A"]
    backspace: Float[Array, "B A"]
    log_probs: Float[Array, "B A"]
    forced: Bool[Array, "B A"]
    length: Int[Array, " B"]
    tokens: Int[Array, "B S"]
    token_count: Int[Array, " B"]


def action_log_probs(
    logits: Float[Array, "... V"], allowed: Bool[Array, "... V"], sampling: SamplingConfig
) -> Float[Array, "... V"]:
    """log of the sampling distribution: disallowed actions out, then temperature, top-k, min-p and
    top-p in this order, then normalised. Temperature 0 gives the distribution at temperature 1.

    Each filter keeps all actions at or above a value, so actions that tie at the border of top-k or
    top-p are all kept, and the most probable action always is. The vocabulary may be split over
    devices; a row of logits is gathered for top-k and top-p only.
    """
    z = jnp.where(allowed, logits.astype(jnp.float32), FORBIDDEN)
    if sampling.temperature > 0:
        if sampling.temperature < _COLD:
            # Divided as they are, logits would leave float32 or fall below FORBIDDEN.
            z = z - z.max(-1, keepdims=True)
        z = jnp.where(allowed, z / max(sampling.temperature, _TINY), FORBIDDEN)
    if 0 < sampling.top_k < z.shape[-1]:
        row = sharding.whole(z)
        z = jnp.where(
            z >= _border(row, jnp.ones_like(row, jnp.int32), sampling.top_k), z, FORBIDDEN
        )
    if sampling.min_p > 0:
        z = jnp.where(z >= z.max(-1, keepdims=True) + np.log(sampling.min_p), z, FORBIDDEN)
    if sampling.top_p < 1:
        row = sharding.whole(z)
        weight = jnp.exp(row - row.max(-1, keepdims=True))
        z = jnp.where(z >= _border(row, weight, sampling.top_p * weight.sum(-1)), z, FORBIDDEN)
    return jnp.where(z > FORBIDDEN, jax.nn.log_softmax(z, axis=-1), FORBIDDEN)


def _border(
    z: Float[Array, "... V"], weight: Float[Array, "... V"], bound: Any
) -> Float[Array, "... 1"]:
    """The lowest value above which the entries of `z` weigh less than `bound` together; at most the
    maximum of `z`.

    Found by halving: 32 sums over the row, which take a tenth of the time of sorting it on a CPU.
    """
    # Integers in the order of the floats that they are the bits of.
    bits = lax.bitcast_convert_type(z, jnp.int32)
    place = bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)
        above = jnp.where(place > middle[..., None], weight, 0).sum(-1)
        return jnp.where(above < bound, low, middle + 1), jnp.where(above < bound, middle, high)

    _, found = lax.fori_loop(0, 32, halve, (place.min(-1), place.max(-1)))
    return lax.bitcast_convert_type(found ^ ((found >> 31) & 0x7FFFFFFF), z.dtype)[..., None]


def allowed_actions(
    ids: ActionIds, vocab_size: int, depth: Int[Array, " B"], floor: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """Which actions a state has: everything but the never-drawn ids; no backspace at the floor."""
    ordinary = np.ones(vocab_size, bool)
    ordinary[list(ids.never)] = False
    allowed = jnp.asarray(ordinary)[None, :]
    if ids.backspace is not None and ids.floor_masked:
        is_backspace = jnp.arange(vocab_size)[None, :] == ids.backspace
        allowed = allowed & ~(is_backspace & (depth <= floor)[:, None])
    return jnp.broadcast_to(allowed, (depth.shape[0], vocab_size))


def replaced(keys: jax.Array, chosen: jax.Array, noise: Noise) -> jax.Array:
    """`chosen` [B], or with probability `noise.rate` another of `noise.ids`."""
    candidates = jnp.asarray(noise.ids)

    def one(key: jax.Array, chosen: jax.Array) -> jax.Array:
        same = candidates == chosen
        others = len(noise.ids) - same.any()
        happens, which = jax.random.uniform(key, (2,))
        place = jnp.minimum(jnp.floor(which * others).astype(jnp.int32), others - 1)
        place = place + (same.any() & (place >= jnp.argmax(same)))
        # No indexing: the rows may be split over devices.
        other = jnp.where(jnp.arange(len(noise.ids)) == place, candidates, 0).sum()
        return jnp.where((happens < noise.rate) & (others > 0), other, chosen)

    return jax.vmap(one)(keys, chosen)
