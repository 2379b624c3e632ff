"""Metrics: summed exactly between log points, written to JSONL and TensorBoard, shown by a console.

Values arrive as `Sum`s on the device and are fetched only at log points. Between two of them they
are added in float64 in the order of the steps; `MetricSums.save` puts an unfinished interval into
the checkpoint, so that a resumed run logs the same numbers as an unbroken one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from reasoning_jax.objectives.masked import Sum
from reasoning_jax.train.console import Console
from reasoning_jax.train.pace import Pace
from reasoning_jax.train.rows import drop_rows


class MetricSums:
    """The (value, count) sums of an interval."""

    def __init__(self, saved: Mapping[str, list[float]] | None = None):
        self._sums = {name: list(pair) for name, pair in (saved or {}).items()}
        self._carried = {name: pair[0] for name, pair in self._sums.items()}
        self._pending: list[dict[str, Sum]] = []

    def add(self, metrics: dict[str, Sum]) -> None:
        """Remember one step's metrics without waiting for the device."""
        self._pending.append(metrics)

    def save(self) -> dict[str, list[float]]:
        """The unfinished interval, JSON-able and exact."""
        self._fetch()
        return {name: list(pair) for name, pair in self._sums.items()}

    def total(self, name: str, *, here: bool = False) -> float:
        """The sum of one metric over the interval; `here`: over the steps of this process."""
        self._fetch()
        value = self._sums.get(name, [0.0, 0.0])[0]
        return value - self._carried.get(name, 0.0) if here else value

    def finish(self) -> dict[str, float]:
        """The interval's means, in name order; starts the next interval."""
        self._fetch()
        means = {n: v / c if c else 0.0 for n, (v, c) in sorted(self._sums.items())}
        self._sums, self._carried = {}, {}
        return means

    def _fetch(self) -> None:
        for metrics in jax.device_get(self._pending):
            for name, s in metrics.items():
                pair = self._sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(s.value)
                pair[1] += float(s.count)
        self._pending = []


class Stopwatch:
    """Seconds spent by purpose since the last `finish`."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._spent: dict[str, float] = {}

    def measure(self, purpose: str) -> _Span:
        """A context manager that adds its duration to `purpose`."""
        return _Span(self._spent, purpose)

    def move(self, purpose: str, other: str, seconds: float) -> None:
        """Count seconds that were measured for one purpose to another."""
        self._spent[purpose] = self._spent.get(purpose, 0.0) - seconds
        self._spent[other] = self._spent.get(other, 0.0) + seconds

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def finish(self) -> dict[str, float]:
        """{purpose}_s since the last call, and `elapsed_s` since the start."""
        spent = {f"{name}_s": round(s, 6) for name, s in sorted(self._spent.items())}
        self._spent.clear()
        return {"elapsed_s": round(self.elapsed(), 6), **spent}


class _Span:
    def __init__(self, spent: dict[str, float], purpose: str):
        self._spent, self._purpose = spent, purpose

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        passed = time.perf_counter() - self._begin
        self._spent[self._purpose] = self._spent.get(self._purpose, 0.0) + passed


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and TensorBoard, and shows them on the console.

    On opening, rows that the run will write again are dropped: those beyond `resume_step`, or all.
    """

    def __init__(
        self,
        workdir: Path,
        resume_step: int,
        total_steps: int,
        quiet: bool = False,
        pace: Pace | None = None,
    ):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        # A run that starts anew may evaluate at step 0, one that resumes has done so.
        first = resume_step + 1 if resume_step else 0
        drop_rows(self._path, first)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)
        self._console = Console(pace or Pace(resume_step, total_steps), quiet)

    def write(self, row: dict[str, Any]) -> None:
        """One row: `step`, `split`, scalars, and under `time` what differs from run to run."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in {**row, **row.get("time", {})}.items():
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])
        self._console.show(row)

    def say(self, text: str) -> None:
        """A line of plain text between the rows."""
        self._console.say(text)

    def close(self) -> None:
        self._console.close()
        self._file.close()
        self._board.close()
