"""One feature vector a text: the hidden state of its last token, as MAUVE takes it.

The state is the one after the final norm (what the unembedding reads), at the last token of the
sequence, which is where the reference implementation of MAUVE reads its GPT-2. Any of our models
can be the feature model; which one it is decides what the features mean. Tokenizes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.decoding.rows import padded_batches
from reasoning_jax.model import transformer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def text_features(
    params: Any,
    lora: Any,
    config: ModelConfig,
    sequences: Sequence[Sequence[int]],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
) -> Float[np.ndarray, "n D"]:
    """Final hidden states of the sequences' last tokens, in float32 and in the order given.

    Neither padding nor the other sequences of a batch change a row beyond float rounding.

    Raises:
      ValueError: a sequence without tokens, an id that the model has no row for, or with learned
        positions a sequence longer than `config.max_positions`.
    """
    if not sequences:
        return np.zeros((0, config.d_model), np.float32)
    for i, sequence in enumerate(sequences):
        _check(i, sequence, config)
    features: list[np.ndarray] = []
    for batch in padded_batches(sequences, batch_rows, mesh):
        last = jax.device_get(_last_hidden(params, lora, batch.ids, batch.length, config=config))
        features.append(np.asarray(last[: batch.count]))
    return np.concatenate(features)


def _last_hidden_impl(
    params: Any,
    lora: Any,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> Float[Array, "B D"]:
    # Padding stands behind the last token, so no text sees it.
    positions = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[1])[None, :]
    hidden = transformer.apply(params, config, tokens, positions=positions, lora=lora).hidden
    is_last = positions == lengths[:, None] - 1
    return jnp.where(is_last[..., None], hidden, 0).sum(1, dtype=jnp.float32)


_last_hidden = jax.jit(_last_hidden_impl, static_argnames="config")


def _check(index: int, sequence: Sequence[int], config: ModelConfig) -> None:
    if not len(sequence):
        raise ValueError(f"sequence {index} has no tokens, so no last one; leave it out")
    low, high = min(sequence), max(sequence)
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"sequence {index} has ids from {low} to {high}; the model has rows for 0 to "
            f"{config.vocab_size - 1}; encode it with the feature model's own tokenizer"
        )
    if config.position == "learned" and len(sequence) > config.max_positions:
        raise ValueError(
            f"sequence {index} has {len(sequence)} tokens; the model has {config.max_positions} "
            "positions; shorten it to that"
        )
