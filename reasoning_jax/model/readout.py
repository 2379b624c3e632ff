"""From hidden states to logits, log-probabilities and cross-entropy, without a [B, T, V] array.

The vocabulary product is done for a chunk of positions at a time and recomputed in the backward
pass, so at most `chunk` positions' logits exist at once. Log-probabilities are float32 whatever the
compute dtype. Sampling and training read the same `logits`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig
from reasoning_jax.model.spec import Params

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Automatic chunking keeps a chunk of logits at about this many elements (64 MiB in float32).
_CHUNK_ELEMENTS = 1 << 24
# Finite, and exp of it is 0: no gradient and no NaN comes from a banned action.
_BANNED = -1e30


@struct.dataclass
class LabelScores:
    """Per position: log p(label), whether the label is the argmax, and the logsumexp."""

    log_prob: Float[Array, "B T"]
    correct: Bool[Array, "B T"]
    logsumexp: Float[Array, "B T"]


@struct.dataclass
class ActionScores:
    """Per position: log p(label), whether the label is the argmax, its raw logit, V(s) over the
    state's own actions, and the probability of `<backspace>` (0 where there is none).
    """

    log_prob: Float[Array, "B T"]
    correct: Bool[Array, "B T"]
    logit: Float[Array, "B T"]
    value: Float[Array, "B T"]
    backspace: Float[Array, "B T"]


def logits(params: Params, config: ModelConfig, hidden: Float[Array, "... D"]) -> jax.Array:
    """float32 logits [..., V] of hidden states taken after the final norm."""
    weight = _unembedding(params, config).astype(hidden.dtype)
    return sharding.linear(hidden, weight, dtype=jnp.float32)


def _unembedding(params: Params, config: ModelConfig) -> Float[Array, "D V"]:
    if config.tied_embeddings:
        return sharding.gather_fsdp(params["embedding"]["tokens"]).T
    return sharding.gather_fsdp(params["unembedding"])


def chunk_length(config: ModelConfig, batch: int, length: int) -> int:
    """Positions of a row whose logits are made at once: all, or a divisor-free chunk size."""
    if config.loss_chunk_tokens:
        return min(length, max(1, config.loss_chunk_tokens // batch))
    return min(length, max(1, _CHUNK_ELEMENTS // (batch * config.vocab_size)))


def score_labels(
    params: Params,
    config: ModelConfig,
    hidden: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
) -> LabelScores:
    """Score one label a position, chunked along T. Labels must be valid ids, masked ones too."""

    def score(hidden: jax.Array, labels: jax.Array) -> LabelScores:
        return label_scores(logits(params, config, hidden), labels)

    return in_chunks(score, config, hidden, labels)


def label_loss(
    params: Params,
    config: ModelConfig,
    hidden: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], LabelScores]:
    """-sum of weights * log p(label), and the scores, through which no gradient flows.

    As `score_labels`, but since the weights of the sum are known, on one device the forward pass of
    a chunk makes its gradient too, while its logits exist: three vocabulary products in place of
    four. It is kept until the backward pass asks for it, [D, V] and as many numbers as `hidden`.
    Over several devices every chunk's gradient would be summed between them: there `score_labels`
    does it. No gradient flows through the weights of the sum.
    """
    weights = lax.stop_gradient(weights)
    if not sharding.one_device():
        scores = score_labels(params, config, hidden, labels)
        return _weighted(scores, weights), lax.stop_gradient(scores)
    chunk = chunk_length(config, *hidden.shape[:2])
    weight = _unembedding(params, config)
    return _label_loss(chunk, hidden, weight, labels, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _label_loss(
    chunk: int, hidden: jax.Array, weight: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, LabelScores]:
    def score(hidden: jax.Array, labels: jax.Array) -> LabelScores:
        z = sharding.linear(hidden, weight.astype(hidden.dtype), dtype=jnp.float32)
        return label_scores(z, labels)

    scores = _map_chunks(score, chunk, (hidden, labels))
    return _weighted(scores, weights), scores


def _weighted(scores: LabelScores, weights: jax.Array) -> jax.Array:
    return -jnp.where(weights != 0, scores.log_prob * weights, 0.0).sum()


def _label_loss_forward(
    chunk: int, hidden: jax.Array, weight: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[Any, Any]:
    cast = weight.astype(hidden.dtype)
    product = functools.partial(sharding.linear, dtype=jnp.float32)

    def add(
        total: jax.Array, xs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[LabelScores, jax.Array]]:
        hidden, labels, weights = xs
        z = product(hidden, cast)
        scores = label_scores(z, labels)
        is_label = jnp.arange(z.shape[-1]) == labels[..., None]
        d_z = (jnp.exp(z - scores.logsumexp[..., None]) - is_label) * weights[..., None]
        d_z = jnp.where(weights[..., None] != 0, d_z, 0.0).astype(hidden.dtype)
        d_hidden = product(d_z, cast.T).astype(hidden.dtype)
        rows = math.prod(hidden.shape[:-1])
        flat = (sharding.reshape(x, (rows, x.shape[-1])) for x in (hidden, d_z))
        total = total + jnp.einsum("rd,rv->dv", *flat, preferred_element_type=jnp.float32)
        return total, (scores, d_hidden)

    start = jnp.zeros_like(weight, jnp.float32)
    chunks, join = _split(chunk, (hidden, labels, weights))
    if chunks is None:
        d_weight, (scores, d_hidden) = add(start, (hidden, labels, weights))
    else:
        d_weight, out = lax.scan(add, start, chunks)
        scores, d_hidden = jax.tree.map(join, out)
    gradients = d_hidden, d_weight.astype(weight.dtype)
    return (_weighted(scores, weights), scores), (gradients, labels, weights)


def _label_loss_backward(chunk: int, residuals: Any, cotangent: Any) -> Any:
    del chunk
    (d_hidden, d_weight), labels, weights = residuals
    scale = cotangent[0]
    nothing = np.zeros(labels.shape, jax.dtypes.float0)
    scaled = tuple((g * scale).astype(g.dtype) for g in (d_hidden, d_weight))
    return *scaled, nothing, jnp.zeros_like(weights)


_label_loss.defvjp(_label_loss_forward, _label_loss_backward)


def label_scores(z: Float[Array, "B C V"], labels: Int[Array, "B C"]) -> LabelScores:
    """The scores of given float32 logits."""
    total, top = _logsumexp(z)
    label_logit = _pick(z, labels)
    return LabelScores(label_logit - total, label_logit >= top, total)


def score_actions(
    params: Params,
    config: ModelConfig,
    hidden: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
    at_floor: Bool[Array, "B T"],
    *,
    never: tuple[int, ...] = (),
    backspace_id: int | None = None,
) -> ActionScores:
    """Score one action a position, and V(s) over the actions that its state has.

    `never` are ids that are no action anywhere; `backspace_id` is none `at_floor`. log_prob and
    `backspace` are of the plain softmax over all rows of the vocabulary.
    """
    no_action = np.zeros(config.vocab_size, bool)
    no_action[list(never)] = True

    def score(hidden: jax.Array, labels: jax.Array, at_floor: jax.Array) -> ActionScores:
        z = logits(params, config, hidden)
        total, top = _logsumexp(z)
        label_logit = _pick(z, labels)
        banned = jnp.asarray(no_action)
        backspace = jnp.zeros_like(total)
        if backspace_id is not None:
            is_backspace = jnp.arange(config.vocab_size) == backspace_id
            banned = banned | (is_backspace & at_floor[..., None])
            backspace = jnp.exp(jnp.where(is_backspace, z, 0.0).sum(-1) - total)
        value, _ = _logsumexp(jnp.where(banned, _BANNED, z))
        return ActionScores(label_logit - total, label_logit >= top, label_logit, value, backspace)

    return in_chunks(score, config, hidden, labels, at_floor)


def in_chunks(
    score: Callable[..., Any], config: ModelConfig, hidden: Float[Array, "B T D"], *rest: jax.Array
) -> Any:
    """`score(hidden, *rest)` for chunks of positions, recomputed in the backward pass.

    Everything has axes [B, T, ...], what comes out too. Padding positions are zeros.
    """
    chunk = chunk_length(config, *hidden.shape[:2])
    if chunk < hidden.shape[1]:
        score = jax.checkpoint(score)
    return _map_chunks(score, chunk, (hidden, *rest))


def _map_chunks(score: Callable[..., Any], chunk: int, arrays: tuple[jax.Array, ...]) -> Any:
    """`score` of every chunk; all at once where one is enough."""
    chunks, join = _split(chunk, arrays)
    if chunks is None:
        return score(*arrays)
    return jax.tree.map(join, lax.map(lambda xs: score(*xs), chunks))


def _split(
    chunk: int, arrays: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...] | None, Callable[[jax.Array], jax.Array]]:
    """Arrays [B, T, ...] as [parts, B, chunk, ...], or None if that is one; and the inverse."""
    B, T = arrays[0].shape[:2]
    parts = -(-T // chunk)

    def split(x: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, parts * chunk - T), *[(0, 0)] * (x.ndim - 2))
        x = jnp.pad(x, padding)
        return x.reshape(B, parts, chunk, *x.shape[2:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(B, parts * chunk, *x.shape[3:])[:, :T]

    return (None if parts == 1 else tuple(map(split, arrays))), join


def _logsumexp(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logsumexp, maximum) over the last axis, which may be split over devices."""
    top = lax.stop_gradient(z.max(-1))
    return jnp.log(jnp.exp(z - top[..., None]).sum(-1)) + top, top


def _pick(z: jax.Array, labels: jax.Array) -> jax.Array:
    """z[..., label], without a gather over an axis that may be split."""
    return jnp.where(jnp.arange(z.shape[-1]) == labels[..., None], z, 0.0).sum(-1)
