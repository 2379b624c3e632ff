"""Reads run folders into plain values. Draws nothing, and believes nothing it has not checked.

A run may still be written, or may have been killed in the middle of a line: the last line of a
`.jsonl` file may lack its end, and is then left out and noted. Any other damage is a `ReportError`
that names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.report.replay import KINDS

_MAX_STEP = 2**53  # exact as a float, hence on a plot's axis and in the viewer
_TYPE_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}


class ReportError(ValueError):
    """A run folder cannot be reported on; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One line of metrics.jsonl. `values` holds its scalars, the clock's under "time.NAME"."""

    step: int
    split: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """A measured mean, its standard error and the number of items; the last two may be unknown."""

    value: float
    stderr: float | None
    n: int | None


@dataclass(frozen=True)
class Evaluation:
    """One file of eval/."""

    step: int
    split: str
    n_problems: int
    metrics: Mapping[str, Estimate]
    by_difficulty: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class Action:
    """One sampled action. `logprob` is None where it is not a finite number."""

    text: str
    kind: str
    logprob: float | None
    forced: bool


@dataclass(frozen=True)
class Sample:
    """One line of a file of samples/. The last of `deletable` is the end of `prompt`.

    `correct` is None where nothing is right or wrong, as in a continued text.
    """

    step: int
    kind: str
    prompt: str
    question: str
    answer: str
    text: str
    correct: bool | None
    difficulty: str
    deletable: tuple[str, ...]
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Run:
    """A run folder. Rows, evaluations and samples are in order of step."""

    name: str
    path: Path
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    env: Mapping[str, Any]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]

    def series(self, split: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one scalar over the rows of a split that have it."""
        pairs = [(r.step, r.values[key]) for r in self.rows if r.split == split and key in r.values]
        return np.array([s for s, _ in pairs], float), np.array([v for _, v in pairs], float)

    def last(self, split: str, key: str) -> float:
        """The newest finite value of one scalar, or NaN."""
        values = self.series(split, key)[1]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if finite.size else math.nan


def load_runs(paths: Sequence[Path]) -> tuple[Run, ...]:
    """Load each folder. Names are folder names, with parents where those are not distinct.

    Raises:
      ReportError: no folder, the same folder twice, or what `load_run` raises.
    """
    if not paths:
        raise ReportError("no run folder given; name at least one, for example runs/quickstart")
    resolved = [Path(path).resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise ReportError(f"{paths[index]}: given twice; name each run folder once")
    return tuple(load_run(path, name) for path, name in zip(paths, _distinct_names(resolved)))


def load_run(path: Path, name: str) -> Run:
    """Load one run folder.

    Raises:
      ReportError: the folder is missing, is not a run, or one of its files is corrupt.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ReportError(f"{path} {what}; wanted a run folder, as `train` writes it")
    missing = [f for f in ("config.json", "metrics.jsonl") if not (path / f).is_file()]
    if missing:
        raise ReportError(
            f"{path} is not a run folder: it has no {' and no '.join(missing)}\n"
            "name the folder that holds config.json, metrics.jsonl, eval/ and samples/"
        )
    notes: list[str] = []
    rows = _drop_overwritten(list(_read_rows(path / "metrics.jsonl", notes)), notes)
    evaluations = [_read_evaluation(file) for file in sorted(path.glob("eval/step_*.json"))]
    samples = [
        _sample(_Record(record, where))
        for file in sorted(path.glob("samples/step_*.jsonl"))
        for record, where in _read_lines(file, notes)
    ]
    overrides, env = path / "overrides.json", path / "env.json"
    for file, what in ((overrides, "overrides"), (env, "environment")):
        if not file.is_file():
            notes.append(f"no {file.name}: the {what} of this run are not known.")
    if not rows:
        notes.append("metrics.jsonl holds no complete line yet.")
    return Run(
        name=name,
        path=path,
        config=_read_json(path / "config.json", dict),
        overrides=tuple(map(str, _read_json(overrides, list))) if overrides.is_file() else (),
        env=_read_json(env, dict) if env.is_file() else {},
        rows=tuple(sorted(rows, key=lambda r: r.step)),
        evaluations=tuple(sorted(evaluations, key=lambda e: e.step)),
        samples=tuple(sorted(samples, key=lambda s: s.step)),
        notes=tuple(notes + _not_finite(rows)),
    )


@dataclass(frozen=True)
class _Record:
    """A JSON object and where it stands, so that every complaint names its place."""

    value: Mapping[str, Any]
    where: str

    def field(self, name: str, wanted: type, default: Any = None) -> Any:
        value = self.value.get(name, default)
        if not isinstance(value, wanted):
            got = "nothing" if name not in self.value else f"{value!r:.60}"
            raise ReportError(f"{self.where}: {name} must be {_TYPE_NAMES[wanted]}, got {got}")
        return value

    def step(self) -> int:
        step = self.value.get("step")
        if type(step) is not int or not 0 <= step < _MAX_STEP:
            raise ReportError(
                f"{self.where}: step must be an integer from 0 to 2**53 - 1, got {step!r:.60}"
            )
        return step

    def count(self, name: str) -> int | None:
        value = _number(self.value.get(name))
        return int(value) if value is not None and math.isfinite(value) else None


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) or str(path) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode())
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
        where = f"{where} line {error.lineno}" if " line " not in where else where
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    raise ReportError(
        f"{where}: corrupt JSON ({reason:.200})\n"
        "restore the file from a copy, or mend or remove the line by hand"
    )


def _read_json(path: Path, wanted: type) -> Any:
    value = _parse(path.read_bytes(), str(path))
    if not isinstance(value, wanted):
        raise ReportError(f"{path}: must hold {_TYPE_NAMES[wanted]}, got {value!r:.60}")
    return value


def _read_lines(path: Path, notes: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each object of a .jsonl file with its place. A torn last line is noted and left out."""
    *lines, tail = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path} line {number}"
            value = _parse(line, where)
            if not isinstance(value, dict):
                raise ReportError(f"{where}: must hold an object, got {value!r:.60}")
            yield value, where
    if tail.strip():
        try:
            value = _parse(tail, f"{path} line {len(lines) + 1}")
        except ReportError:
            value = None
        if isinstance(value, dict):
            yield value, f"{path} line {len(lines) + 1}"
        else:
            notes.append(
                f"{path.parent.name}/{path.name}: the last line ({len(lines) + 1}) is torn, as of "
                "a run that is still written or was killed; it is left out."
            )


def _number(value: Any) -> float | None:
    """A scalar as a float; null is NaN; anything else is None, that is, not a scalar."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _read_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    for value, where in _read_lines(path, notes):
        record = _Record(value, where)
        clock = record.field("time", dict, {})
        scalars = {**value, **{f"time.{name}": each for name, each in clock.items()}}
        numbers = {name: _number(each) for name, each in scalars.items() if name != "step"}
        values = {name: number for name, number in numbers.items() if number is not None}
        yield Row(record.step(), record.field("split", str, "train"), values)


def _drop_overwritten(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """A resumed run goes back to its checkpoint: what it had logged beyond is no longer its past.

    Applied per split, since the splits' lines need not be in one order.
    """
    kept: dict[str, list[Row]] = {}
    dropped = 0
    for row in rows:
        past = kept.setdefault(row.split, [])
        while past and past[-1].step >= row.step:
            past.pop()
            dropped += 1
        past.append(row)
    if dropped:
        notes.append(
            f"metrics.jsonl goes back in steps, as after a resume: {dropped:,} "
            f"overwritten row{'s are' if dropped > 1 else ' is'} left out."
        )
    return [row for past in kept.values() for row in past]


def _not_finite(rows: Sequence[Row]) -> list[str]:
    """One note for each scalar that is not always finite. The utilisation may be null by design."""
    bad: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for name, value in row.values.items():
            if not math.isfinite(value) and not name.startswith("time."):
                bad.setdefault((row.split, name), []).append(row.step)
    return [
        f"{split} {name} is not finite in {len(steps):,} row{'s' if len(steps) > 1 else ''}, "
        f"first at step {min(steps):,}."
        for (split, name), steps in bad.items()
    ]


def _estimates(metrics: Mapping[str, Any], where: str) -> dict[str, Estimate]:
    record = _Record(metrics, where)
    estimates = {}
    for name in metrics:
        entry = _Record(record.field(name, dict), f"{where}, {name}")
        value, stderr = _number(entry.value.get("value")), _number(entry.value.get("stderr"))
        if value is None or stderr is None:
            raise ReportError(f"{entry.where}: value and stderr must be numbers or null")
        known = math.isfinite(stderr) and stderr >= 0
        estimates[name] = Estimate(value, stderr if known else None, entry.count("n"))
    return estimates


def _read_evaluation(path: Path) -> Evaluation:
    record = _Record(_read_json(path, dict), str(path))
    groups = _Record(record.field("by_difficulty", dict, {}), f"{path}, by_difficulty")
    return Evaluation(
        step=record.step(),
        split=record.field("split", str, ""),
        n_problems=record.count("n_problems") or 0,
        metrics=_estimates(record.field("metrics", dict), f"{path}, metrics"),
        by_difficulty={
            label: _estimates(groups.field(label, dict), f"{groups.where}, {label}")
            for label in groups.value
        },
    )


def _sample(record: _Record) -> Sample:
    deletable = record.field("deletable", list, [])
    if not all(isinstance(text, str) for text in deletable):
        raise ReportError(f"{record.where}: deletable must be a list of strings")
    actions = record.field("actions", list)
    unjudged = "correct" in record.value and record.value["correct"] is None
    return Sample(
        step=record.step(),
        **{name: record.field(name, str) for name in ("prompt", "text")},
        **{name: record.field(name, str, "") for name in ("kind", "question", "answer")},
        correct=None if unjudged else record.field("correct", bool),
        difficulty=record.field("difficulty", str, ""),
        deletable=tuple(deletable),
        actions=tuple(
            _action(each, f"{record.where}, action {i}") for i, each in enumerate(actions)
        ),
    )


def _action(value: Any, where: str) -> Action:
    if not isinstance(value, dict):
        raise ReportError(f"{where}: must be an object, got {value!r:.60}")
    record = _Record(value, where)
    kind, logprob = value.get("kind"), _number(value.get("logprob"))
    if kind not in KINDS:
        raise ReportError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r:.60}")
    return Action(
        text=record.field("text", str, ""),
        kind=kind,
        logprob=logprob if logprob is not None and math.isfinite(logprob) else None,
        forced=record.field("forced", bool, False),
    )
