"""The Task protocol: seeded problems, strict verifiers, solvers. Knows no model and no tokens.

A task is pure Python and numpy. `problem(seed, split)` is a function of its arguments and of the
task's dials alone, so that a data set is a range of integers and random access costs nothing.

Splits are disjoint by construction: each problem has a canonical `key`, and a hash of that key
decides the only split in which the problem may appear (`split_of`). `draw_in_split` redraws until
the key falls into the wanted split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

SPLITS = ("train", "validation", "test")
# Of 256 hash buckets, the upper edges of train and validation; the rest is test.
_SPLIT_EDGES = (205, 230)
_MAX_DRAWS = 10_000
_T = TypeVar("_T")


class TaskError(ValueError):
    """A task, its dials or a problem request is not usable; the message says what to change."""


@dataclass(frozen=True)
class Problem:
    """One instance. `question`, `steps` and `answer` are text; `data` is what `verify` needs.

    `steps` is the reference chain of thought, one entry a step, without line ends (may be empty).
    `difficulty` is a short label by which accuracy is grouped ("digits=3").
    `data` holds JSON-able values only.
    """

    task: str
    seed: int
    split: str
    question: str
    answer: str
    steps: tuple[str, ...] = ()
    difficulty: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A verifier's verdict: `correct`, a `value` in [0, 1], the parsed answer, and why not."""

    correct: bool
    value: float
    parsed: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Trace:
    """A solver's work on a problem: `steps` (text), the final `answer`, and its cost in `nodes`."""

    steps: tuple[str, ...]
    answer: str
    solved: bool
    nodes: int = 0


@runtime_checkable
class Task(Protocol):
    """What every task offers. Implementations are frozen dataclasses whose fields are the dials."""

    @property
    def name(self) -> str: ...

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split. Raises `TaskError` on an unknown split."""
        ...

    def verify(self, problem: Problem, response: str) -> Score:
        """Judge any string, within a bounded time, without ever running it."""
        ...

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """A solution trace. Raises `TaskError` on a strategy the task does not have."""
        ...

    def characters(self) -> str:
        """Every character that questions, steps and answers can contain, sorted."""
        ...

    def words(self) -> tuple[str, ...]:
        """Every whitespace-separated word they can contain, sorted; empty where unbounded.

        A word `a>b` of two words of this list need not be on it: `vocab.PairCodec` has them all.
        """
        ...

    def noise_units(self) -> tuple[str, ...]:
        """Task-specific corruptions ("task" noise): text units that are plausible but may be wrong.

        For arithmetic the digits; for graph tasks the node names.
        """
        ...


def split_of(key: str) -> str:
    """The one split in which a problem with this canonical key may appear."""
    bucket = hashlib.blake2b(key.encode(), digest_size=1).digest()[0]
    if bucket < _SPLIT_EDGES[0]:
        return "train"
    return "validation" if bucket < _SPLIT_EDGES[1] else "test"


def draw_in_split(
    draw: Callable[[np.random.Generator], tuple[str, _T] | None],
    *,
    task: str,
    seed: int,
    split: str,
) -> _T:
    """Draw until the key lands in `split`. `draw(rng)` gives (key, problem), or None to redraw.

    Raises:
      TaskError: unknown split, negative seed, or no draw landed in the split, which means that the
        dials leave too few distinct problems.
    """
    check_split(split)
    if seed < 0:
        raise TaskError(f"{task}: seed must be >= 0, got {seed}")
    name_words = np.frombuffer(hashlib.blake2b(task.encode(), digest_size=8).digest(), np.uint32)
    rng = np.random.default_rng([*name_words.tolist(), SPLITS.index(split), seed])
    for _ in range(_MAX_DRAWS):
        drawn = draw(rng)
        if drawn is not None and split_of(drawn[0]) == split:
            return drawn[1]
    raise TaskError(
        f"{task}: no {split} problem in {_MAX_DRAWS:,} draws; its dials leave too few distinct "
        "problems, widen them"
    )


def check_split(split: str) -> None:
    """Raise `TaskError` unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise TaskError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
