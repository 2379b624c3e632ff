"""Coconut's curriculum: which steps of a row are thoughts at which stage, and the row that results.

A row reads `prompt | <bot> thoughts <eot> | remaining steps | answer <eos>` (arXiv 2412.06769,
section 3 and its public code); loss falls on what stands behind the thoughts. `Curriculum` decides
how many steps are removed and how many thoughts stand for them, in training and in evaluation by
the same rule (the public code differs between the two where thoughts are not padded to the
maximum). `StagedEncoder` makes the ids. Steps and answer are tokenized one by one, as in that code.

The baselines are rows of the same curriculum (`MODES`). Nothing here knows a model or draws a
batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reasoning_jax.config import ConfigError, LatentConfig
from reasoning_jax.data.batch import Encoder, RowError
from reasoning_jax.data.examples import Example
from reasoning_jax.vocab import BOT, EOT, LATENT


class Mode(NamedTuple):
    """What a mode removes ("stages": the steps of the stage; "all", "none", or "tokens"), whether
    its stage is always the "last", and what stands in the slots ("thought", "pause", or nothing).
    """

    removes: str
    fixed: str = ""
    slots: str = ""


MODES = {
    "coconut": Mode("stages", "", "thought"),
    "no_curriculum": Mode("stages", "last", "thought"),
    "no_thought": Mode("stages"),
    "pause_as_thought": Mode("stages", "", "pause"),
    "pause": Mode("stages", "last", "pause"),
    "cot": Mode("none", "first"),
    "no_cot": Mode("all", "first"),
    "icot": Mode("tokens"),
}


class RowPlan(NamedTuple):
    """A row's curriculum: `drop` steps are removed, `drop_tokens` tokens of the rest (iCoT), and
    `slots` columns stand for them. `final` if only the answer is left.
    """

    drop: int
    slots: int
    final: bool
    drop_tokens: int = 0


@dataclass(frozen=True)
class Curriculum:
    """Stages by training step (of `batch_rows` out of `examples`), and what a stage makes of a row.

    Stages are counted from 0; the last one, `max_latent_stage + 1`, removes every step. For iCoT a
    stage is the number of removed tokens.
    """

    config: LatentConfig
    examples: int
    batch_rows: int

    @property
    def mode(self) -> Mode:
        return MODES[self.config.mode]

    @property
    def last(self) -> int:
        """The last stage."""
        c = self.config
        return c.icot_remove_all_from if self.mode.removes == "tokens" else c.max_latent_stage + 1

    @property
    def first(self) -> int:
        """The stage of the first step."""
        fixed = {"last": self.last, "first": 0}
        return fixed.get(self.mode.fixed, min(self.config.start_stage, self.last))

    def epoch(self, step: int) -> int:
        """How often all examples have been seen when batch `step` (from 0) begins."""
        return step * self.batch_rows // self.examples

    def steps_of_stage(self, stage: int) -> int | None:
        """How many training steps a stage takes at most; None for as long as there are."""
        c = self.config
        if self.mode.fixed or stage >= self.last:
            return None
        if self.mode.removes == "tokens":
            per_token = self.examples / (self.batch_rows * c.icot_tokens_per_epoch)
            # Differences of one rounded schedule, so that rounding does not add up.
            return max(1, round((stage + 1) * per_token) - round(stage * per_token))
        place = stage - self.first
        if c.stage_steps:
            return c.stage_steps[place] if place < len(c.stage_steps) - 1 else None
        # A stage begins where an epoch does: with the first batch that has seen all examples.
        seen = c.epochs_per_stage * self.examples
        begin, end = (-(-n * seen // self.batch_rows) for n in (place, place + 1))
        return max(1, end - begin)

    def stage_at(self, step: int) -> int:
        """The scheduled stage of batch `step`, counted from 0."""
        stage, begin = self.first, 0
        while (length := self.steps_of_stage(stage)) is not None and step >= begin + length:
            stage, begin = stage + 1, begin + length
        return stage

    def plan(self, stage: int, n_steps: int) -> RowPlan:
        """What a stage makes of a row with so many steps; fewer steps than the stage are legal.

        With target "next_step", a row whose steps the stage has used up is final.
        """
        c, mode = self.config, self.mode
        if mode.removes == "tokens":
            return RowPlan(0, 0, stage >= self.last, stage)
        if mode.removes in ("all", "none"):
            drop = n_steps if mode.removes == "all" else 0
            return RowPlan(drop, 0, drop == n_steps)
        steps = min(stage, c.max_latent_stage)
        steps = steps if c.pad_latent_to_max else min(steps, n_steps)
        drop = n_steps if stage > c.max_latent_stage else min(stage, n_steps)
        return RowPlan(drop, steps * c.c_thought if mode.slots else 0, drop == n_steps)

    def forced(self, thoughts: int, n_steps: int) -> RowPlan:
        """So many steps as thoughts, whatever the stage; more than the row has are thoughts too."""
        if self.mode.removes == "tokens":
            return RowPlan(0, 0, thoughts >= self.last, thoughts)
        slots = thoughts * self.config.c_thought if self.mode.slots else 0
        drop = min(thoughts, n_steps)
        return RowPlan(drop, slots, drop == n_steps)

    def answering(self, plan: RowPlan) -> RowPlan:
        """The plan of a prompt whose answer is wanted, where the stage's own target is a step."""
        return plan._replace(final=True) if self.alone else plan

    @property
    def alone(self) -> bool:
        """Whether the target is one step or the answer alone."""
        return self.config.target == "next_step"

    def drawn(self, stage: int, n_steps: int, rng: np.random.Generator) -> RowPlan:
        """The plan of a training row: with `uniform_prob` of a stage drawn from 0 to `n_steps`; for
        iCoT with the random offset.
        """
        c = self.config
        if self.mode.removes == "tokens":
            # Geometric: P(o) proportional to exp(-decay o).
            offset = int(rng.geometric(1 - np.exp(-c.icot_offset_decay))) - 1
            # All are removed once the schedule says so, not where the offset comes to as many.
            return self.plan(stage, n_steps)._replace(drop_tokens=stage + offset)
        if c.uniform_prob and rng.random() < c.uniform_prob:
            stage = int(rng.integers(0, n_steps + 1))
        return self.plan(stage, n_steps)

    def most_slots(self, stage: int) -> int:
        """The most slots that a training row of a stage can have."""
        stages = range(self.last + 1) if self.config.uniform_prob else (stage,)
        return max(self.plan(s, 1 << 20).slots for s in stages)

    def schedule(self) -> list[str]:
        """One line a stage: when it begins, and what a row with very many steps has in it."""
        c, mode = self.config, self.mode
        name = f"latent.mode={c.mode}"
        if mode.fixed or mode.removes == "tokens":
            what = {
                "cot": "all steps are text",
                "no_cot": "no steps, no thoughts",
                "icot": f"{c.icot_tokens_per_epoch:g} tokens removed an epoch, all from "
                f"{c.icot_remove_all_from} on",
            }.get(c.mode, f"{self.plan(self.last, 1 << 20).slots} {mode.slots}(s) from the start")
            return [f"{name}: {what}"]
        lines, begin = [name], 0
        for stage in range(self.first, self.last + 1):
            plan = self.plan(stage, 1 << 20)
            slots = f"{plan.slots} {mode.slots}(s)" if mode.slots else "no thoughts"
            text = "no steps" if plan.final else f"the first {plan.drop} step(s) removed"
            length = self.steps_of_stage(stage)
            by = "by mastery, at the latest from" if c.advance == "mastery" else "from"
            when = f"{by} step {begin + 1}" if begin else "from step 1"
            lines.append(f"  stage {stage:<2} {when}: {slots}, {text}")
            if length is None:
                break
            begin += length
        return lines


@dataclass(frozen=True)
class StagedEncoder:
    """Examples as rows of a stage. `shuffle(question, rng)` may put a question into another order.

    Raises:
      ConfigError: the vocabulary has no markers of latent thought, and the mode needs them.
    """

    encoder: Encoder
    curriculum: Curriculum
    shuffle: Any = None

    def __post_init__(self) -> None:
        if self.curriculum.mode.slots and LATENT not in self.encoder.vocab.specials:
            raise ConfigError(
                f"latent.mode={self.curriculum.config.mode!r} needs a vocabulary with {LATENT}; "
                "set vocab.latent=True"
            )

    @property
    def alone(self) -> bool:
        """Whether the target is one step or the answer alone, in one token."""
        return self.curriculum.alone

    def context(self, example: Example, plan: RowPlan) -> tuple[list[int], int]:
        """(ids that are given, how many of them stand before the first slot)."""
        encoder, config = self.encoder, self.curriculum.config
        ids = encoder.prompt_ids(example.question + encoder.data.question_suffix)
        specials = encoder.vocab.specials
        marked = self.curriculum.mode.slots and config.markers
        before = [*ids, specials[BOT]] if marked else ids
        slots = [specials[LATENT]] * plan.slots if plan.slots else []
        behind = [specials[EOT]] if marked else []
        given: list[int] = []
        if self.alone and plan.final:
            given = encoder.vocab.encode(encoder.data.answer_prefix)
        return [*before, *slots, *behind, *given], len(before)

    def target(self, example: Example, plan: RowPlan) -> tuple[list[int], list[int], list[int]]:
        """(target ids, ids that may stand in the place of the only one, ids of the frontier there).

        Without alternatives, as where the target is the rest of the text, the lists are empty.

        Raises:
          ConfigError: a next step or answer that is not one token.
        """
        encoder, data = self.encoder, self.encoder.data
        encode = encoder.vocab.encode_output
        if self.alone:
            if plan.final:
                answer = self._one(example.answer)
                return [answer], [answer], [answer]
            k = plan.drop
            texts = example.step_choices[k] if example.step_choices else (example.steps[k],)
            right = list(map(self._one, texts))
            frontier = list(map(self._one, example.frontiers[k])) if example.frontiers else right
            if self.curriculum.config.draw == "frontier" and not example.frontiers:
                raise ConfigError(
                    'latent.draw="frontier" needs a source that knows the frontiers, such as the '
                    'prosqa task; use "shortest"'
                )
            return [self._one(example.steps[k])], right, frontier
        steps = [encode(step + data.step_suffix) for step in example.steps[plan.drop :]]
        chain = [i for ids in steps for i in ids]
        chain = [] if plan.drop_tokens and plan.final else chain[plan.drop_tokens :]
        answer = encode(data.answer_prefix + example.answer)
        return [*chain, *answer, encoder.vocab.eos_id], [], []

    def _one(self, text: str) -> int:
        ids = self.encoder.vocab.encode_output(text)
        if len(ids) != 1:
            raise ConfigError(
                f'latent.target="next_step": {text!r} is {len(ids)} tokens in this vocabulary, one '
                'is needed; use latent.target="rest"'
            )
        return ids[0]

    def encode(
        self, example: Example, stage: int, rng: np.random.Generator, *, clean: bool = False
    ) -> dict[str, np.ndarray]:
        """One row as arrays of equal length n <= seq_len, and its "first" and "accept".

        "first" is the number of columns before the first slot. Unless `clean`, the stage may be
        another one (uniform_prob), and the question is shuffled where that is wanted: it stays as
        it is where it has more tokens in the other order, and does not fit.

        Raises:
          RowError: the row, or its prompt, is longer than there are columns.
        """
        if self.shuffle is not None and not clean:
            shuffled = dataclasses.replace(example, question=self.shuffle(example.question, rng))
            with contextlib.suppress(RowError):
                return self._row(shuffled, stage, rng, clean)
        return self._row(example, stage, rng, clean)

    def _row(
        self, example: Example, stage: int, rng: np.random.Generator, clean: bool
    ) -> dict[str, np.ndarray]:
        curriculum, n_steps = self.curriculum, len(example.steps)
        plan = curriculum.plan(stage, n_steps) if clean else curriculum.drawn(stage, n_steps, rng)
        context, first = self.context(example, plan)
        target, right, frontier = self.target(example, plan)
        drawn_from = frontier if curriculum.config.draw == "frontier" else right
        if len(drawn_from) > 1 and not clean:
            target = [drawn_from[int(rng.integers(len(drawn_from)))]]
        self._check_room(example, len(context) + len(target) - 1, first)
        actions = np.array([*context, *target[:-1]], np.int32)
        n, p = len(actions), len(context)
        weights = np.zeros(n, np.float32)
        weights[p - 1 :] = 1.0
        return {
            "actions": actions,
            "labels": np.array([*[0] * (p - 1), *target], np.int32),
            "weights": weights,
            "floor": np.full(n, p - 1, np.int32),
            "noised": np.zeros(n, np.int32),
            "first": np.array(first, np.int32),
            "accept": np.array(frontier, np.int32),
        }

    def _check_room(self, example: Example, columns: int, first: int) -> None:
        most, prompt = self.encoder.data.seq_len, self.curriculum.config.prompt_columns
        reason, needs, key = "", columns, "data.seq_len"
        if columns > most:
            reason = f"needs {columns} columns, data.seq_len is {most}"
        elif prompt and first > prompt:
            reason = f"has a prompt of {first} columns, latent.prompt_columns is {prompt}"
            key = "latent.prompt_columns"
        elif prompt and columns - first > most - prompt:
            needs = prompt + columns - first
            reason = (
                f"needs {columns - first} columns behind its prompt, data.seq_len - "
                f"latent.prompt_columns is {most - prompt}"
            )
        if reason:
            raise RowError(reason, example.question, needs, key)


def rounded(n: int) -> int:
    """`n` columns up to the next size that is compiled: quarters of a power of two, 4 at least."""
    unit = max(4, 1 << max(0, n.bit_length() - 3))
    return n + -n % unit


def aligned(
    rows: list[dict[str, np.ndarray]],
    n_rows: int,
    latent_id: int,
    prefix: int = 0,
    width: int = 0,
    accept: int = 0,
    least_thoughts: int = 0,
) -> tuple[dict[str, Any], int, int]:
    """(arrays [n_rows, T] of a Batch, prefix, thoughts) of rows that `encode` made.

    Rows are padded on both sides so that what follows their prompt begins in one column. Without
    `prefix`, `width` (columns from there on) and `accept` (how many labels are accepted at most)
    these fit the longest row, rounded up. The number of thoughts is that of the row with the most,
    or `least_thoughts` if that is more.

    Raises:
      ConfigError: a row has more than `accept` labels.
    """
    names = ("actions", "labels", "weights", "floor", "noised")
    firsts = [int(row["first"]) for row in rows]
    behind = [len(row["actions"]) - first for row, first in zip(rows, firsts)]
    counts = (int((row["actions"] == latent_id).sum()) for row in rows)
    thoughts = max(least_thoughts, *counts)
    prefix = prefix or rounded(max(firsts))
    width = width or max(rounded(max(behind)) if max(behind) > thoughts else 0, thoughts)
    T = prefix + width
    batch: dict[str, Any] = {
        name: np.zeros((n_rows, T), np.float32 if name == "weights" else np.int32) for name in names
    }
    batch["segments"] = np.zeros((n_rows, T), np.int32)
    for i, (row, first) in enumerate(zip(rows, firsts)):
        begin, n = prefix - first, len(row["actions"])
        for name in names:
            batch[name][i, begin : begin + n] = row[name]
        batch["segments"][i, begin : begin + n] = 1
    most = max(len(row["accept"]) for row in rows)
    if most:
        if most > (accept or most):
            raise ConfigError(
                f"a step has {most} right answers, latent.prompt_columns leaves room for {accept}; "
                "raise it"
            )
        batch["accept"] = np.full((n_rows, accept or rounded(most)), -1, np.int32)
        for i, row in enumerate(rows):
            batch["accept"][i, : len(row["accept"])] = row["accept"]
    return batch, prefix, thoughts
