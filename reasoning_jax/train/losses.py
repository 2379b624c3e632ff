"""Losses: a forward pass of the model bound to the mathematics of an objective. Pure.

A loss is `loss(params, lora, batch) -> (Sum, metrics)`; every metric is a `Sum` too. What differs
between objectives is which packing turns actions into states, and what is computed there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasoning_jax import backspace
from reasoning_jax.config import ConfigError, ModelConfig, ObjectiveConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.model import attention, readout, transformer
from reasoning_jax.objectives.likelihood import cross_entropy
from reasoning_jax.objectives.masked import Sum, masked_sum

Metrics = dict[str, Sum]
Loss = Callable[[Any, Any, Batch], tuple[Sum, Metrics]]


def causal_positions(segments: jax.Array) -> jax.Array:
    """Position of each token within its segment, [B, T], for rows without backspaces."""
    row = jnp.arange(segments.shape[1])[None, :]
    previous = jnp.concatenate([jnp.zeros_like(segments[:, :1]), segments[:, :-1]], axis=1)
    starts = jnp.where(segments != previous, row, 0)
    return row - jax.lax.cummax(starts, axis=1)


def hidden_states(
    params: Any,
    lora: Any,
    config: ModelConfig,
    batch: Batch,
    *,
    layout: str,
    backspace_id: int | None,
    rows: int,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """The hidden state [B, T, D] of every state of the batch, through the chosen packing, and the
    loss weights [B, T]: those of the batch, 0 where P2 had no row left ("p2_lost" is their share).

    layout "causal" is for rows without backspaces; "p1" and "p2" as in `backspace.py`.
    """
    if layout == "causal":
        out = transformer.apply(
            params, config, batch.actions,
            positions=causal_positions(batch.segments),
            attention=attention.Causal(batch.segments), lora=lora,
        )  # fmt: skip
        return out.hidden, batch.weights, {}
    assert backspace_id is not None
    arguments = (batch.actions, batch.segments, batch.floor, backspace_id)
    if layout == "p1":
        packed = backspace.pack(*arguments)
        out = transformer.apply(
            params, config, packed.tokens,
            positions=packed.positions, attention=attention.Dense(packed.mask), lora=lora,
        )  # fmt: skip
        return out.hidden, batch.weights, {}
    dedup = backspace.deduplicate(*arguments, rows)
    out = transformer.apply(
        params, config, dedup.tokens,
        positions=dedup.positions, attention=attention.Dense(dedup.mask), lora=lora,
    )  # fmt: skip
    pointer = jnp.minimum(dedup.pointer, rows - 1)
    hidden = jnp.take_along_axis(out.hidden, pointer[..., None], axis=1)
    # A state whose row did not fit has no logits: it must not be scored with another's.
    lost = dedup.pointer >= rows
    metrics = {"p2_lost": masked_sum(lost.astype(jnp.float32), batch.weights)}
    return hidden, jnp.where(lost, 0.0, batch.weights), metrics


def make_loss(config: ModelConfig, objective: ObjectiveConfig, backspace_id: int | None) -> Loss:
    """The loss of a supervised objective.

    mle: cross-entropy of clean data. bc: the same on backspace-augmented data, whose labels include
    `<backspace>` (behavioural cloning, the first phase of SequenceMatch). Metrics also split bc's
    accuracy into states with and without a wrong last token.

    Raises:
      ConfigError: bc with a vocabulary that has no backspace.
    """
    if objective.name == "bc" and backspace_id is None:
        raise ConfigError('objective.name="bc" needs a vocabulary with <backspace>')
    layout = "causal" if objective.name == "mle" else objective.layout

    def loss(params: Any, lora: Any, batch: Batch) -> tuple[Sum, Metrics]:
        hidden, weights, metrics = hidden_states(
            params, lora, config, batch,
            layout=layout, backspace_id=backspace_id,
            rows=objective.p2_rows or batch.actions.shape[1],
        )  # fmt: skip
        scores = readout.score_labels(params, config, hidden, batch.labels)
        total = cross_entropy(scores.log_prob, weights)
        correct = scores.correct.astype(jnp.float32)
        metrics["accuracy"] = masked_sum(correct, weights)
        if objective.name == "bc":
            metrics["accuracy_noised"] = masked_sum(correct, weights * batch.noised)
        return total, metrics

    return loss
