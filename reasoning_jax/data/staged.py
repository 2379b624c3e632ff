"""The batch source of Coconut and its baselines: rows of a stage, and the stage's advance.

Batch k at stage s is a function of the seed, k and s alone, so the place is these two numbers and
the step at which the stage began; a source that is restored goes on as if it had never stopped.
With latent.advance="mastery" the stage also depends on the parameters, which are measured on
validation rows of the stage. It computes no loss and resets no optimizer: it says when one is due.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError
from reasoning_jax.data.batch import Batch
from reasoning_jax.data.curriculum import StagedEncoder, aligned
from reasoning_jax.data.examples import Example
from reasoning_jax.data.pipeline import ExampleSource, Stream
from reasoning_jax.vocab import LATENT

# measure(state, stage) -> how well the stage's target is met, in [0, 1].
Measure = Callable[[Any, int], float]


@dataclass(frozen=True)
class _StagedBatches:
    """The rows of this process of batch k at one stage, with its static numbers."""

    stream: Stream
    encoder: StagedEncoder
    stage: int
    batch_rows: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return len(self.stream) // self.batch_rows

    def __getitem__(self, k: int) -> dict[str, Any]:
        local = self.batch_rows // self.process_count
        first = operator.index(k) * self.batch_rows + self.process_index * local
        rows = []
        for position in range(first, first + local):
            rows.append(self.stream.fitting(position, self._encoder_at(position))[1])
        return batch_arrays(rows, local, self.encoder, self.stage, mixed=True)

    def _encoder_at(self, position: int) -> Callable[[Example], dict[str, np.ndarray]]:
        """What makes a row of this stage, with the randomness of a position."""

        def encode(example: Example) -> dict[str, np.ndarray]:
            rng = np.random.default_rng([self.stream.seed, position])
            return self.encoder.encode(example, self.stage, rng)

        return encode


class CurriculumSource:
    """See the module. `measure` is needed for mastery.

    `stage` is that of the last batch; `fresh_optimizer` says whether that batch begins an epoch or
    a stage for which latent.reset_optimizer wants a new optimizer.

    Raises:
      ConfigError: several processes, and no fixed number of columns that they would agree on.
    """

    def __init__(
        self,
        examples: ExampleSource,
        encoder: StagedEncoder,
        *,
        seed: int,
        mesh: jax.sharding.Mesh,
        measure: Measure | None = None,
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        self._index = jax.process_index() if process_index is None else process_index
        self._count = jax.process_count() if process_count is None else process_count
        curriculum = encoder.curriculum
        if self._count > 1 and not curriculum.config.prompt_columns:
            raise ConfigError(
                f"latent.prompt_columns=0 fits columns to each batch in one process, there are "
                f"{self._count}; set it to the longest prompt"
            )
        if curriculum.batch_rows % self._count:
            raise ValueError(
                f"{curriculum.batch_rows} rows do not divide among {self._count} processes"
            )
        self._mesh, self._measure = mesh, measure
        self._encoder, self._curriculum = encoder, curriculum
        self._stream = Stream(examples, encoder.encoder, seed)
        self._step, self._began = 0, 0
        self.stage = curriculum.first
        self.fresh_optimizer = False
        self._spent = 0.0
        self._open(0)

    def _open(self, k: int) -> None:
        """Read ahead from batch k on at the present stage."""
        batches = _StagedBatches(
            self._stream, self._encoder, self.stage, self._curriculum.batch_rows,
            self._index, self._count,
        )  # fmt: skip
        random_access: Any = batches
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        # One reading thread: the work is Python, and more threads only take turns.
        self._iterator = iter(grain.MapDataset.source(random_access)[k:].to_iter_dataset(options))

    def next(self, state: Any) -> Batch:
        """The next batch; with mastery, of the stage that the state's parameters have reached."""
        step, config, before = self._step, self._curriculum.config, self.stage
        if self._advances(state, step):
            self.stage, self._began = self.stage + 1, step
            self._open(step)
        epoch = self._curriculum.epoch
        due = {
            "stage": self.stage != before,
            "epoch": step > 0 and epoch(step) != epoch(step - 1),
            "never": False,
        }
        self.fresh_optimizer = due[config.reset_optimizer]
        self._step += 1
        return place(next(self._iterator), self._mesh)

    def describe(self) -> Callable[[], dict[str, Any]]:
        rows, stage = self._curriculum.batch_rows, self.stage
        name = functools.partial(self._stream.name_rows, (self._step - 1) * rows, rows)
        return lambda: {"stage": stage, **name()}

    def _advances(self, state: Any, step: int) -> bool:
        length = self._curriculum.steps_of_stage(self.stage)
        if length is None:
            return False
        within, config = step - self._began, self._curriculum.config
        if within >= length:
            return True
        if config.advance != "mastery" or not within or within % config.mastery_every_steps:
            return False
        assert self._measure is not None
        # The state is that of a step which may not be done yet: that wait is the step's.
        jax.block_until_ready(state)
        began = time.perf_counter()
        mastered = self._measure(state, self.stage) >= config.mastery
        self._spent += time.perf_counter() - began
        return mastered

    def seconds(self) -> dict[str, float]:
        spent, self._spent = self._spent, 0.0
        return {"mastery": spent} if spent else {}

    def save(self) -> dict[str, Any]:
        return {"step": self._step, "stage": self.stage, "stage_began": self._began}

    def restore(self, place: dict[str, Any]) -> None:
        self._step, self.stage = place["step"], place["stage"]
        self._began = place["stage_began"]
        self._open(self._step)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    def restore_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        del arrays

    def meta(self) -> dict[str, Any]:
        """What evaluation must know of a checkpoint."""
        return {"stage": self.stage}


def batch_arrays(
    rows: list[dict[str, np.ndarray]],
    n_rows: int,
    encoder: StagedEncoder,
    stage: int,
    mixed: bool = False,
) -> dict[str, Any]:
    """Encoded rows as the fields of a Batch: numpy arrays [n_rows, ...], and its static numbers.

    With latent.prompt_columns all shapes and static numbers follow from the config and the stage,
    so that several processes agree on them; without, they fit the rows. `mixed`: rows may be of
    other stages (uniform_prob).
    """
    curriculum, T = encoder.curriculum, encoder.encoder.data.seq_len
    prefix = curriculum.config.prompt_columns
    latent_id = encoder.encoder.vocab.specials.get(LATENT, -1)
    fixed = (prefix, T - prefix, prefix) if prefix else ()
    # Of mixed stages the most of any: each number of thoughts is a program of its own.
    least = curriculum.most_slots(stage) if mixed and curriculum.config.uniform_prob else 0
    arrays, prefix, thoughts = aligned(
        rows, n_rows, latent_id, *fixed, least_thoughts=0 if fixed else least
    )
    if fixed:
        thoughts = min(curriculum.most_slots(stage), T - prefix)
    if encoder.curriculum.mode.slots != "thought":
        # A pause is an ordinary token.
        thoughts = 0
    return {**arrays, "prefix": prefix, "thoughts": thoughts}


def place(local: dict[str, Any], mesh: jax.sharding.Mesh) -> Batch:
    """This process's rows as a global batch on the devices."""
    placed = {
        name: jax.make_array_from_process_local_data(sharding.batch_sharding(mesh, x.ndim), x)
        if isinstance(x, np.ndarray)
        else x
        for name, x in local.items()
    }
    return Batch(**placed)


def staged_batches(
    examples: Any, encoder: StagedEncoder, stage: int, batch_rows: int, mesh: jax.sharding.Mesh
) -> list[Batch]:
    """All examples once, in order, as clean rows of a stage; the last batch is filled up."""
    rng = np.random.default_rng(0)
    rows = [encoder.encode(example, stage, rng, clean=True) for example in examples]
    chunks = [rows[begin : begin + batch_rows] for begin in range(0, len(rows), batch_rows)]
    return [place(batch_arrays(chunk, batch_rows, encoder, stage), mesh) for chunk in chunks]
