"""Evaluation on text: how it is continued, and how probable it is.

Windows of held-out text are cut after some tokens and continued; the continuations are measured by
themselves and against the true ones (`text_metrics`, `mauve`). Perplexity is of the windows as they
are, with the mass of `<backspace>` in the softmax and renormalised without it. A string's own
probability under a model with backspaces would need a sum over ways to write it, which is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding.rows import padded_batches
from reasoning_jax.evaluate.accuracy import (
    Evaluation,
    EvaluationItem,
    Measure,
    sample_record,
    visited_backspace,
)
from reasoning_jax.evaluate.completions import Completion, Prompt, complete
from reasoning_jax.evaluate.features import text_features
from reasoning_jax.evaluate.mauve import mauve
from reasoning_jax.evaluate.text_metrics import Perplexity, measure_texts, perplexity
from reasoning_jax.model import readout, transformer
from reasoning_jax.vocab import Vocab


@dataclass(frozen=True)
class FeatureModel:
    """The model whose hidden states compare texts for MAUVE, with its own vocabulary.

    Numbers of different feature models do not compare; `name` says which one it was.
    """

    params: Any
    lora: Any
    config: ModelConfig
    vocab: Vocab
    name: str


@dataclass
class Pooled(Measure):
    """One number of `n` texts together, which is no mean over them."""

    value: float = 0.0
    stderr: float | None = None
    n: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "stderr": self.stderr, "n": self.n}


def evaluate_text(
    params: Any,
    lora: Any,
    config: ModelConfig,
    vocab: Vocab,
    sampling: SamplingConfig,
    windows: Sequence[Sequence[int]],
    *,
    prompt_tokens: int,
    batch_rows: int,
    saved_samples: int,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
    floor_masked: bool = True,
    features: FeatureModel | None = None,
) -> Evaluation:
    """Perplexity of the windows, and measures of their continuations.

    windows: ids of held-out text, <bos> first where there is one, without <eos>. Each is continued
    after its start token and `prompt_tokens` tokens; those without more than that are only scored.
    With `features`, MAUVE compares the texts of the continuations with the true ones, cut to what
    a continuation may at most hold.
    """
    result = Evaluation({}, {}, [])

    def record(name: str, value: float | None, n: int, stderr: float | None = None) -> None:
        if value is not None:
            result.metrics[name] = Pooled(value=value, stderr=stderr, n=n)

    measured = window_perplexity(params, lora, config, vocab, windows, batch_rows, mesh)
    scored = sum(len(w) > 1 for w in windows)
    record("perplexity", measured.value, scored, measured.stderr)
    without = measured.without_backspace
    record("perplexity_without_backspace", without, scored, measured.without_backspace_stderr)

    start = 0 if vocab.bos_id is None else 1
    cut = max(1, start + prompt_tokens)
    # The last action is <eos>, if need be by force.
    longest = min(sampling.max_actions - 1, sampling.max_new_tokens or sampling.max_actions)
    long = [list(w) for w in windows if len(w) > cut]
    prompts = [Prompt(tuple(w[:cut]), cut - 1) for w in long]
    truth = [w[cut : cut + longest] for w in long]
    completions = complete(
        params, lora, config, vocab, sampling, prompts, key, batch_rows, mesh, floor_masked
    )
    written = [standing(c, vocab) for c in completions]
    for name, measure in measure_texts(written).items():
        record(name, measure.pooled, measure.n)
    for name, measure in measure_texts(truth).items():
        record(f"human_{name}", measure.pooled, measure.n)
    for c, w in zip(completions, written):
        _append(result, "tokens_per_completion", len(w))
        _append(result, "truncated", float(c.truncated))
        if vocab.backspace_id is not None:
            erased = sum(a == vocab.backspace_id for a in c.actions)
            _append(result, "backspaces_per_completion", erased)
            visited = [p for p, _ in visited_backspace(c, (), vocab)]
            if visited and sampling.method == "sample":
                _append(result, "backspace_model", sum(visited) / len(visited))
    if features is not None:
        _compare(result, features, vocab, written, truth, batch_rows, mesh)
    for c, w, prompt in list(zip(completions, truth, prompts))[:saved_samples]:
        result.samples.append(_sample(c, w, prompt, vocab))
    return result


def window_perplexity(
    params: Any,
    lora: Any,
    config: ModelConfig,
    vocab: Vocab,
    windows: Sequence[Sequence[int]],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
) -> Perplexity:
    """Perplexity of every token after a window's first, with and without `<backspace>`'s mass."""
    log_probs, weights, backspaces = [], [], []
    for batch in padded_batches(windows, batch_rows, mesh):
        log_prob, backspace = jax.device_get(
            _next_log_prob(params, lora, batch.ids, backspace_id=vocab.backspace_id, config=config)
        )
        lengths = [len(w) for w in windows[batch.begin : batch.begin + batch.count]]
        column = np.arange(log_prob.shape[1])
        log_probs.append(log_prob[: batch.count])
        weights.append((column[None, :] < np.array(lengths)[:, None] - 1).astype(np.float32))
        backspaces.append(backspace[: batch.count])
    stacked = np.concatenate(backspaces) if vocab.backspace_id is not None else None
    return perplexity(np.concatenate(log_probs), np.concatenate(weights), stacked)


def _next_log_prob_impl(
    params: Any, lora: Any, tokens: jax.Array, *, backspace_id: int | None, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    positions = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[1])[None, :]
    out = transformer.apply(params, config, tokens, positions=positions, lora=lora)
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    deleting = (
        jnp.zeros_like(tokens) if backspace_id is None else jnp.full_like(tokens, backspace_id)
    )

    def score(hidden: jax.Array, *labels: jax.Array) -> tuple[jax.Array, ...]:
        z = readout.logits(params, config, hidden)
        return tuple(readout.label_scores(z, each).log_prob for each in labels)

    return readout.in_chunks(score, config, out.hidden, labels, deleting)


_next_log_prob = jax.jit(_next_log_prob_impl, static_argnames=("backspace_id", "config"))


def standing(completion: Completion, vocab: Vocab) -> list[int]:
    """The tokens that a completion left standing behind its prompt, without <eos>."""
    left: list[int] = []
    for action in completion.actions:
        if action != vocab.backspace_id:
            left.append(action)
        elif left:
            left.pop()
    return left[:-1] if left and left[-1] == vocab.eos_id else left


def _compare(
    result: Evaluation,
    features: FeatureModel,
    vocab: Vocab,
    written: Sequence[Sequence[int]],
    truth: Sequence[Sequence[int]],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
) -> None:
    """MAUVE of the texts; those of which nothing is left are represented by the start alone.

    Of texts that are too few or too much alike to be clustered there is none ("mauve_defined" 0).
    """

    def encode(tokens: Sequence[int]) -> list[int]:
        other = features.vocab
        start = [] if other.bos_id is None else [other.bos_id]
        ids = start + other.encode(vocab.decode(tokens))
        ids = ids[: features.config.max_positions]
        return ids or [other.eos_id]

    matrices = [
        text_features(
            features.params, features.lora, features.config, [encode(t) for t in texts],
            batch_rows, mesh,
        )
        for texts in (truth, written)
    ]  # fmt: skip
    n = len(truth)
    try:
        value = mauve(*matrices)
    except ValueError:
        result.metrics["mauve_defined"] = Pooled(value=0.0, n=n)
        return
    result.metrics["mauve_defined"] = Pooled(value=1.0, n=n)
    result.metrics["mauve"] = Pooled(value=value.value, n=n)
    result.metrics["mauve_star"] = Pooled(value=value.star, n=n)


def _append(result: Evaluation, name: str, value: float) -> None:
    result.metrics.setdefault(name, Measure()).values.append(value)


def _sample(c: Completion, truth: Sequence[int], prompt: Prompt, vocab: Vocab) -> dict[str, Any]:
    """A continuation as the report's trace viewer reads it; nothing is right or wrong here."""
    item = EvaluationItem(prompt.ids, (*truth, vocab.eos_id), "", lambda text: False)
    return {**sample_record(c, False, item, "clean", vocab), "correct": None}
