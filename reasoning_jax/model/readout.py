"""From hidden states to logits, log-probabilities and cross-entropy, without a [B, T, V] array.

The vocabulary product is done for a chunk of positions at a time and recomputed in the backward
pass, so at most `chunk` positions' logits exist at once. Log-probabilities are float32 whatever the
compute dtype. Sampling and training read the same `logits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig
from reasoning_jax.model.spec import Params

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Automatic chunking keeps a chunk of logits at about this many elements (64 MiB in float32).
_CHUNK_ELEMENTS = 1 << 24


@struct.dataclass
class LabelScores:
    """Per position: log p(label), whether the label is the argmax, and the logsumexp V(s)."""

    log_prob: Float[Array, "B T"]
    correct: Bool[Array, "B T"]
    logsumexp: Float[Array, "B T"]


def logits(params: Params, config: ModelConfig, hidden: Float[Array, "... D"]) -> jax.Array:
    """float32 logits [..., V] of hidden states taken after the final norm."""
    if config.tied_embeddings:
        table = params["embedding"]["tokens"]
        weight = sharding.gather_fsdp(table).astype(hidden.dtype).T
    else:
        weight = sharding.gather_fsdp(params["unembedding"]).astype(hidden.dtype)
    return sharding.linear(hidden, weight, dtype=jnp.float32)


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
    B, T, D = hidden.shape
    chunk = chunk_length(config, B, T)

    def score(hidden: jax.Array, labels: jax.Array) -> LabelScores:
        z = logits(params, config, hidden)
        top = lax.stop_gradient(z.max(-1))
        logsumexp = jnp.log(jnp.exp(z - top[..., None]).sum(-1)) + top
        is_label = jnp.arange(z.shape[-1]) == labels[..., None]
        label_logit = jnp.where(is_label, z, 0.0).sum(-1)
        return LabelScores(label_logit - logsumexp, label_logit >= top, logsumexp)

    if chunk >= T:
        return score(hidden, labels)
    parts = -(-T // chunk)
    padding = parts * chunk - T
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)))
    chunks = (
        hidden.reshape(B, parts, chunk, D).swapaxes(0, 1),
        labels.reshape(B, parts, chunk).swapaxes(0, 1),
    )
    scores = lax.map(lambda xs: jax.checkpoint(score)(*xs), chunks)
    return jax.tree.map(lambda s: s.swapaxes(0, 1).reshape(B, parts * chunk)[:, :T], scores)
