"""Token-level unlikelihood: what a row already holds, and is not wanted next, made less probable.

Welleck et al. 2019, arXiv 1908.04319, section 5.1, with candidates from the previous context:

    L_UL(t) = - sum over c in C_t of log(1 - p(c | x_<t)),    C_t = {x_1, ..., x_(t-1)} \\ {x_t}

This is the unlikelihood term alone: it neither adds the likelihood nor weighs or averages, and the
sequence-level loss of section 5.2 is not here.

What counts as x_1, ..., x_(t-1): all that the state of position t has read in its own segment,
prompt and start token included, each different token once. Ids in `excluded` never count: give it
the specials that are no text, such as <bos> (also where <bos> and <eos> are one id).

Deviations: the authors' code takes 1 - p to be at least 1e-5, whose gradient is zero just where a
repeat is all but certain. Here log(1 - p) is exact: for the most probable token it is the
logsumexp of all other logits less that of all, and any other token has p <= 1/2; so the gradient in
the logits is within [-1, 1] for each candidate. Their code also leaves a row's first token out of
C_t, as it only looks at earlier targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def candidate_mask(
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    labels: Int[Array, "B C"],
    *,
    start: int | Int[Array, ""] = 0,
    excluded: tuple[int, ...] = (),
) -> Bool[Array, "B C T"]:
    """Which of a row's tokens are the candidates C_t of positions start, ..., start + C - 1.

    True at (b, c, j) where, with t = start + c: j <= t, both in one segment (0 is padding and has
    none), `tokens[b, j]` is neither `labels[b, c]` nor in `excluded`, and is not earlier in the
    segment. `tokens[b, t]` is the last token read at position t and `labels[b, c]` the one wanted
    there. `start` may be traced; positions from T on have no candidates.

    Needs rows without backspaces: a token that was taken back would count as read.
    """
    T, C = tokens.shape[1], labels.shape[1]
    row = jnp.arange(T)
    same = (tokens[:, :, None] == tokens[:, None, :]) & (
        segments[:, :, None] == segments[:, None, :]
    )
    repeated = (same & (row[None, :] < row[:, None])[None]).any(-1)
    usable = ~repeated & (segments > 0)
    for special in excluded:
        usable = usable & (tokens != special)
    # Padded, so that a slice that reaches beyond T is not moved back.
    wanted = lax.dynamic_slice_in_dim(jnp.pad(segments, ((0, 0), (0, C))), start, C, axis=1)
    read = row[None, :] <= (start + jnp.arange(C))[:, None]
    here = wanted[:, :, None] == segments[:, None, :]
    return here & read[None] & usable[:, None] & (tokens[:, None, :] != labels[:, :, None])


def unlikelihood(
    logits: Float[Array, "B C V"],
    context: Int[Array, "B T"],
    candidates: Bool[Array, "B C T"],
) -> Float[Array, "B C"]:
    """-sum of log(1 - p(candidate)) at each position, in nats, float32; 0 without candidates.

    `candidates` says which of the row's tokens `context` are meant at each position, from
    `candidate_mask`; C may be all of the T positions or a slice of them. A token that is marked
    twice counts twice.
    """
    z = logits.astype(jnp.float32)
    C, V = z.shape[1:]
    top = jnp.argmax(z, axis=-1)
    is_top = jnp.arange(V) == top[..., None]
    highest = lax.stop_gradient(z.max(-1, keepdims=True))
    unnormalised = jnp.exp(z - highest)
    log_sum = jnp.log(unnormalised.sum(-1, keepdims=True)) + highest
    # The other logits have a maximum of their own: far below the top one they must not vanish.
    second = lax.stop_gradient(jnp.where(is_top, -jnp.inf, z).max(-1, keepdims=True))
    others = jnp.where(is_top, 0.0, jnp.exp(jnp.where(is_top, second, z) - second))
    log_sum_others = jnp.log(others.sum(-1, keepdims=True)) + second

    # Tokens are looked up along the vocabulary, which must then be whole on each device.
    z = sharding.whole(z)
    index = context[:, None, :] + jnp.zeros((1, C, 1), context.dtype)
    log_p = jnp.take_along_axis(z, index, axis=-1) - log_sum
    context_is_top = index == top[..., None]
    # Both branches of a where are differentiated: keep the unused one away from log(0).
    safe = jnp.where(context_is_top, -1.0, log_p)
    log_not = jnp.where(context_is_top, log_sum_others - log_sum, jnp.log1p(-jnp.exp(safe)))
    return -jnp.where(candidates, log_not, 0.0).sum(-1)
