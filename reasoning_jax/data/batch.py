"""What a training step receives, and how an example becomes rows of it.

A row of length T holds one or several sequences (segments). Everything is an action sequence: row
position i carries the action that led to this state, and the label is the action wanted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import struct

from reasoning_jax import backspace
from reasoning_jax.config import ConfigError, DataConfig, NoiseConfig
from reasoning_jax.data.examples import Example, render
from reasoning_jax.vocab import Vocab, VocabError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@struct.dataclass
class Batch:
    """Global arrays [B, T].

    `actions`: the action that led to the state of this position (at a segment's first position,
    its start token). `labels`: the action wanted at this state. `weights`: its loss weight, 0 on
    prompts and padding. `segments`: 1, 2, ... within a row, 0 for padding. `floor`: depth below
    which this segment cannot be deleted. `noised`: 1 at states whose last token is noise.
    """

    actions: Int[Array, "B T"]
    labels: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    segments: Int[Array, "B T"]
    floor: Int[Array, "B T"]
    noised: Int[Array, "B T"]


@dataclass(frozen=True)
class Encoder:
    """Turns examples into action sequences: prompt, response with noise, <eos>."""

    vocab: Vocab
    data: DataConfig
    noise: NoiseConfig
    noise_ids: tuple[int, ...] = ()

    def prompt_ids(self, prompt: str) -> list[int]:
        """<bos> (where there is one) and the prompt's tokens; at least one id.

        Raises:
          VocabError: an empty prompt in a vocabulary without <bos>.
        """
        start = [] if self.vocab.bos_id is None else [self.vocab.bos_id]
        ids = start + self.vocab.encode(prompt)
        if not ids:
            raise VocabError("the prompt is empty and the vocabulary has no <bos> to start from")
        return ids

    def response_ids(self, response: str) -> list[int]:
        """The response's tokens and <eos>."""
        return [*self.vocab.encode(response), self.vocab.eos_id]

    def render(self, example: Example) -> tuple[str, str]:
        """The example's (prompt, response) text; without its steps if `data.with_steps` is off."""
        if not self.data.with_steps:
            example = replace(example, steps=())
        return render(
            example, self.data.question_suffix, self.data.step_suffix, self.data.answer_prefix
        )

    def encode(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One example as arrays of equal length n <= seq_len, with noise drawn from `rng`.

        A sequence that noise makes longer than seq_len is cut, its last position keeping the true
        next label. Raises VocabError, or ConfigError when the clean sequence does not fit.
        """
        prompt_text, response_text = self.render(example)
        prompt = self.prompt_ids(prompt_text)
        clean = np.array(self.response_ids(response_text))
        T = self.data.seq_len
        if len(prompt) + len(clean) - 1 > T:
            raise ConfigError(
                f"an example needs {len(prompt) + len(clean) - 1} positions, data.seq_len is {T}: "
                f"{prompt_text[:80]!r}; raise data.seq_len or narrow the task"
            )
        executed, labels = clean, clean
        if self.noise.rate > 0:
            noised, noise = backspace.draw_noise(
                rng, clean, self.noise.rate, self.noise.run_length, np.array(self.noise_ids)
            )
            if noised.any():
                assert self.vocab.backspace_id is not None
                executed, labels, n = backspace.insert_noise(
                    clean, len(clean), noised, noise, self.vocab.backspace_id, np
                )
                executed, labels = executed[:n], labels[:n]
        # Position p - 1 + i is the state in which response action i is chosen.
        p = len(prompt)
        rows = min(T, p + len(executed) - 1)
        actions = np.concatenate([prompt, executed])[:rows]
        all_labels = np.concatenate([np.zeros(p - 1, np.int64), labels])[:rows]
        at_noise = np.zeros(rows, np.int32)
        if self.noise.rate > 0:
            at_noise = (all_labels == self.vocab.backspace_id).astype(np.int32)
        weights = np.zeros(rows, np.float32)
        weights[p - 1 :] = 1.0
        return {
            "actions": actions.astype(np.int32),
            "labels": all_labels.astype(np.int32),
            "weights": weights,
            "floor": np.full(rows, p - 1, np.int32),
            "noised": at_noise,
        }


def noise_ids(vocab: Vocab, noise: NoiseConfig, units: tuple[str, ...]) -> tuple[int, ...]:
    """The ids that noise is drawn from: all text ids, or the task's units.

    Raises:
      ConfigError: the task has no units, or one that is not a single token of the vocabulary.
    """
    if noise.rate == 0:
        return ()
    if noise.source == "random":
        return tuple(vocab.text_ids())
    if not units:
        raise ConfigError('noise.source="task": this task has no noise units; use "random"')
    ids = []
    for unit in units:
        encoded = vocab.encode(unit)
        if len(encoded) != 1:
            raise ConfigError(
                f'noise.source="task": unit {unit!r} is {len(encoded)} tokens in this vocabulary, '
                'one is needed; use noise.source="random"'
            )
        ids.append(encoded[0])
    return tuple(ids)


def padded(sequences: Sequence[dict[str, np.ndarray]], rows: int, length: int) -> dict[str, Any]:
    """Encoded examples as the arrays [rows, length] of a Batch, one a row, each its segment 1.

    Rows beyond the examples are padding.
    """
    names = ("actions", "labels", "weights", "floor", "noised", "segments")
    batch = {
        name: np.zeros((rows, length), np.float32 if name == "weights" else np.int32)
        for name in names
    }
    for i, sequence in enumerate(sequences):
        n = len(sequence["actions"])
        for name, values in sequence.items():
            batch[name][i, :n] = values
        batch["segments"][i, :n] = 1
    return batch
