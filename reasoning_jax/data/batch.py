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

    from reasoning_jax.data.ngram import NgramNoise


class RowError(ConfigError):
    """An example that does not fit a row; `reason` in a few words, `needs` positions."""

    def __init__(self, reason: str, question: str, needs: int, key: str = "data.seq_len") -> None:
        super().__init__(f"an example {reason}: {question[:80]!r}; raise {key} or narrow the task")
        self.reason, self.needs, self.key = reason, needs, key


@struct.dataclass
class Batch:
    """Global arrays [B, T].

    `actions`: the action that led to the state of this position (at a segment's first position,
    its start token). `labels`: the action wanted at this state. `weights`: its loss weight, 0 on
    prompts and padding. `segments`: 1, 2, ... within a row, 0 for padding. `floor`: depth below
    which this segment cannot be deleted. `noised`: 1 at states whose last token is noise.

    `model`: a batch of the same shape of the model's own trajectories, for objectives that learn
    from them; there `labels` are the actions that it chose and `weights` is 1 where it chose.
    `age` [B]: how many steps ago these were sampled.
    `token_rows` (static): rows that hold the written tokens of every row of the batch, for P2;
    0 where nobody counted.

    `prefix`, `thoughts` (static): with a prefix, rows are padded on the left too, so that what
    follows the prompt, at most `thoughts` latent thoughts first, begins in that column. `accept`
    [B, K]: where the label is one of several, all of them, filled up with -1.
    """

    actions: Int[Array, "B T"]
    labels: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    segments: Int[Array, "B T"]
    floor: Int[Array, "B T"]
    noised: Int[Array, "B T"]
    model: Batch | None = None
    age: Int[Array, " B"] | None = None
    token_rows: int = struct.field(pytree_node=False, default=0)
    accept: Int[Array, "B K"] | None = None
    prefix: int = struct.field(pytree_node=False, default=0)
    thoughts: int = struct.field(pytree_node=False, default=0)


@dataclass(frozen=True)
class Encoder:
    """Turns examples into action sequences: prompt, response with noise, <eos>.

    With `terminal_row` a sequence also holds the state after <eos>, and always ends there: one that
    is too long keeps its true next label, but the action executed last is <eos>. With `cut` clean
    sequences may be too long as well (text); otherwise they are refused.
    """

    vocab: Vocab
    data: DataConfig
    noise: NoiseConfig
    noise_ids: tuple[int, ...] = ()
    ngrams: NgramNoise | None = None
    terminal_row: bool = False
    cut: bool = False

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
        return [*self.vocab.encode_output(response), self.vocab.eos_id]

    def split_ids(self, example: Example) -> tuple[list[int], list[int]]:
        """The example's ids as (prompt, response without <eos>).

        Text has no prompt: in a vocabulary without <bos> its first token is given.
        """
        prompt, response = self.render(example)
        rest = self.vocab.encode_output(response)
        if self.cut and not prompt and rest and self.vocab.bos_id is None:
            return rest[:1], rest[1:]
        return self.prompt_ids(prompt), rest

    def fitting_ids(self, example: Example) -> tuple[list[int], list[int]]:
        """The example's ids as (prompt, response with its <eos>), if a row holds them.

        Raises:
          VocabError: it cannot be encoded.
          RowError: the clean sequence does not fit.
        """
        prompt, response = self.split_ids(example)
        if example.ends or not response:
            response = [*response, self.vocab.eos_id]
        T, p, needs = self.data.seq_len, len(prompt), self.positions(len(prompt), len(response))
        if p + self.terminal_row > T or (needs > T and not self.cut):
            raise RowError(
                f"needs {needs} positions, data.seq_len is {T}", self.render(example)[0], needs
            )
        return prompt, response

    def positions(self, prompt: int, response: int) -> int:
        """How many positions so many ids of a prompt and of a response (with <eos>) take."""
        return prompt + response - 1 + self.terminal_row

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
        next label; so does one whose text goes on (`Example.ends`), which has no <eos>. Raises
        VocabError, or RowError when the clean sequence does not fit.
        """
        prompt, response = self.fitting_ids(example)
        clean = np.array(response)
        T, p, extra = self.data.seq_len, len(prompt), int(self.terminal_row)
        executed, labels = self._with_noise(clean[:T], prompt[-1], rng)
        # Row p - 1 + i is the state in which response action i is chosen.
        n = p + len(executed) - 1 + extra
        rows = min(T, n)
        actions = np.concatenate([prompt, executed])[:rows]
        all_labels = np.concatenate([prompt[1:], labels, [self.vocab.eos_id]])[:rows]
        # Pairs of words are read and never wanted; they are in the prompt, whose weight is 0.
        all_labels = np.where(all_labels < self.vocab.size, all_labels, self.vocab.pad_id)
        weights = np.zeros(rows, np.float32)
        weights[p - 1 :] = 1.0
        at_noise = np.zeros(rows, np.int32)
        if self.noise.rate > 0:
            at_noise = (all_labels == self.vocab.backspace_id).astype(np.int32)
        if self.terminal_row:
            weights[-1] = at_noise[-1] = 0
            actions[-1] = all_labels[-1] = self.vocab.eos_id
        return {
            "actions": actions.astype(np.int32),
            "labels": all_labels.astype(np.int32),
            "weights": weights,
            "floor": np.full(rows, p - 1, np.int32),
            "noised": at_noise,
        }

    def _with_noise(
        self, clean: np.ndarray, previous: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(executed, labels): the clean tokens with runs of noise and what takes them back."""
        rate, run = self.noise.rate, self.noise.run_length
        if rate == 0:
            return clean, clean
        if self.ngrams is not None:
            from reasoning_jax.data.ngram import draw_ngram_noise

            noised, noise = draw_ngram_noise(rng, clean, rate, run, self.ngrams, previous)
        else:
            noised, noise = backspace.draw_noise(rng, clean, rate, run, np.array(self.noise_ids))
        if not noised.any():
            return clean, clean
        assert self.vocab.backspace_id is not None
        executed, labels, n = backspace.insert_noise(
            clean, len(clean), noised, noise, self.vocab.backspace_id, np
        )
        return executed[:n], labels[:n]


def noise_ids(vocab: Vocab, noise: NoiseConfig, units: tuple[str, ...]) -> tuple[int, ...]:
    """The ids that noise is drawn from: all text ids, or the task's units.

    Raises:
      ConfigError: the task has no units, or one that is not a single token of the vocabulary.
    """
    if noise.rate == 0:
        return ()
    if noise.source in ("random", "ngram"):
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
