"""The examples of a run: opened once, each record of a file measured, bad ones refused or left out.

Of a task, whose problems are made on demand, a sample is measured; `data.pipeline.Stream` deals
with one that does not fit later. Nothing here builds a vocabulary or starts a backend.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reasoning_jax.commands.references import check_reference
from reasoning_jax.config import ConfigError, DataConfig, to_dict
from reasoning_jax.data import measured
from reasoning_jax.data.batch import RowError
from reasoning_jax.data.examples import DataError, Example, TaskSource
from reasoning_jax.data.jsonl import SHOWN_FAULTS, SKIP, JsonlSource, bad_records
from reasoning_jax.data.measured import Measured, Row, RowFault
from reasoning_jax.data.splits import Chosen, HashSplit
from reasoning_jax.fingerprint import fingerprint
from reasoning_jax.tasks import Task
from reasoning_jax.tasks.base import SPLITS, TaskError
from reasoning_jax.vocab import VocabError

if TYPE_CHECKING:
    from reasoning_jax.commands.assemble import Assembly

# How many problems of a task are measured before a run starts.
TRIAL = 64
# Validation and test problems that a task source offers.
_HELD_OUT = 100_000
# A note is made where noise is expected to cut so many records.
_CUT_SHARE = 0.01
# A note is made where rows have so many times the positions that the longest of them takes.
_ROOMY = 2


class Unit(NamedTuple):
    """What is measured as a whole: a file with all its splits, or one split of another source.

    `path` is where it is on disk ("" for a task); `split` that of its records which are meant,
    None for all.
    """

    source: Any
    path: str
    split: str | None = None


class Sources:
    """See the module. `data` and `task` are those of the config."""

    def __init__(self, data: DataConfig | None = None, task: Task | None = None) -> None:
        self.data, self.task = data or DataConfig(), task
        self._files: dict[str, JsonlSource] = {}
        self._units: dict[str, Unit] = {}
        self._measured: dict[int, Measured] = {}
        self._contents: dict[str, str] = {}
        self._examples: dict[str, Any] = {}

    def whole(self) -> list[Any]:
        """Sources of everything that is on disk, whatever its split. Raises DataError."""
        data = self.data
        if data.source == "text":
            from reasoning_jax.data.text import TextSource

            return [TextSource(data.path, data.window_chars)]
        return [self.file(path) for path in (data.path, data.validation_path) if path]

    def file(self, path: str) -> JsonlSource:
        """A file of records. Raises DataError."""
        if path not in self._files:
            data = self.data
            skip = data.bad_rows == "skip"
            self._files[path] = JsonlSource(path, data.columns, data.answer_prefix, skip)
        return self._files[path]

    def unit(self, split: str) -> Unit:
        """What holds a split's examples. Raises DataError or TaskError."""
        if split not in self._units:
            self._units[split] = self._open(split)
        return self._units[split]

    def raw(self, split: str) -> Any:
        """Random access to a split's examples, not measured. Raises DataError or TaskError."""
        source, _, part = self.unit(split)
        return source if part is None else HashSplit(source, part)

    def examples(self, assembly: Assembly, split: str) -> Any:
        """Those that can be trained or evaluated on.

        Raises:
          DataError, TaskError: the source cannot be read, or a record is bad and refused, or none
            is left.
        """
        if split not in self._examples:
            source, bad = self.raw(split), set(self.measured(assembly, split).bad)
            if bad:
                unit = self.unit(split)
                places = range(len(unit.source))
                places = unit.source.indices(unit.split) if unit.split else places
                kept = [i for i in places if i not in bad]
                if not kept:
                    raise DataError(
                        f"{unit.path or 'the task'}: all {len(places):,} records of the {split} "
                        f"split are left out: {self._why(unit)}"
                    )
                source = Chosen(unit.source, kept)
            self._examples[split] = source
        return self._examples[split]

    def measured(self, assembly: Assembly, split: str) -> Measured:
        """What was found of the unit that holds a split. Raises DataError where that is refused."""
        unit = self.unit(split)
        if id(unit.source) not in self._measured:
            found = _find(assembly, unit, split)
            if found.bad and self.data.bad_rows == "refuse":
                raise DataError(_refusal(unit, found))
            self._measured[id(unit.source)] = found
        return self._measured[id(unit.source)]

    def content(self, path: str) -> str:
        """A hash of the bytes at a path. Raises DataError."""
        if path not in self._contents:
            try:
                self._contents[path] = fingerprint(Path(path))
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{path}: cannot be read: {reason}") from error
        return self._contents[path]

    def notes(self) -> list[str]:
        """What a user should know of the sources that were opened."""
        lines = [note for file in self._files.values() for note in file.notes]
        told: set[int] = set()
        for unit in self._units.values():
            found = self._measured.get(id(unit.source))
            if found is None or id(unit.source) in told:
                continue
            told.add(id(unit.source))
            if found.bad:
                lines.append(
                    f"{unit.path or 'the task'}: {len(found.bad):,} of {found.records:,} records "
                    f"are left out: {self._why(unit)}"
                )
            if found.cut > _CUT_SHARE * found.records:
                lines.append(
                    f"noise makes about {found.cut:,} of {found.records:,} rows longer than "
                    f"data.seq_len={self.data.seq_len}; their ends are then cut off"
                )
        return lines

    def counts(self) -> list[str]:
        """How many rows each file has, and how many of them are in which split."""
        lines = []
        for path, file in self._files.items():
            found = self._measured.get(id(file))
            bad = set(found.bad) if found else set()
            if self.data.validation_path:
                use = "to train on" if path == self.data.path else "to evaluate on"
                lines.append(f"{path}: {len(file) - len(bad):,} rows {use}")
                continue
            sizes = {s: sum(i not in bad for i in file.indices(s)) for s in SPLITS}
            shares = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
            empty = [split for split, size in sizes.items() if not size]
            more = f"; none is in {' or '.join(empty)}: {_MORE_ROWS}" if empty else ""
            lines.append(f"{path}: {sum(sizes.values()):,} rows: {shares}{more}")
        return lines

    def _why(self, unit: Unit) -> str:
        faults = self._measured[id(unit.source)].faults
        return "; ".join(fault.strip() for fault in faults)

    def _open(self, split: str) -> Unit:
        data = self.data
        if data.source == "jsonl":
            if not data.validation_path:
                return Unit(self.file(data.path), data.path, split)
            path = data.path if split == "train" else data.validation_path
            return Unit(self.file(path), path)
        if data.source == "text":
            from reasoning_jax.data.text import TextSource

            assert data.window_chars, "resolved by assemble"
            return Unit(TextSource(data.path, data.window_chars, split), data.path)
        if data.source == "tfds":
            from reasoning_jax.data.builder import TfdsSource

            return Unit(TfdsSource(data.path, split), data.path)
        assert self.task is not None
        size = data.train_problems if split == "train" else _HELD_OUT
        return Unit(TaskSource(self.task, split, size), "")


_MORE_ROWS = "give more rows, or a file of its own as data.validation_path"


def measure_data(assembly: Assembly, splits: Sequence[str] = ()) -> list[str]:
    """Measure all records of `splits` (default: all that a run needs); gives notes to show.

    Raises:
      DataError, TaskError: bad records that are refused, or a source that cannot be read.
    """
    config, sources = assembly.config, assembly.sources
    evaluated = config.evaluate.split
    needed = splits or ("train", evaluated)
    if not splits and config.latent.mode != "off" and config.latent.advance == "mastery":
        needed = (*needed, "validation")
    for split in needed:
        assembly.examples(split)
    notes = [*sources.counts(), *sources.notes()]
    if "train" in needed and config.data.source == "jsonl":
        notes += _fit_of_settings(assembly)
    if evaluated in needed and config.data.source != "text":
        notes += _fewer_problems(assembly, evaluated) + _short_budget(assembly, evaluated)
    return notes


def _fit_of_settings(assembly: Assembly) -> list[str]:
    """Notes on settings that are legal, and that a user may not have meant for this file."""
    config, sources = assembly.config, assembly.sources
    data, rows, steps = config.data, config.train.batch_rows, config.train.steps
    there = len(assembly.examples("train"))
    lines = []
    if not data.pack_examples:
        passes = steps * rows / there
        lines.append(f"{steps:,} steps of {rows:,} rows: {passes:,.3g} passes over {there:,} rows")
        needs = sources.measured(assembly, "train").needs
        if needs * _ROOMY <= data.seq_len:
            lines.append(
                f"the longest row takes {needs} of data.seq_len={data.seq_len} positions, the rest "
                "is padding"
            )
    if data.validation_path and sources.content(data.path) == sources.content(data.validation_path):
        lines.append(
            "data.validation_path has the content of data.path: what is evaluated on is trained on"
        )
    return lines


def _fewer_problems(assembly: Assembly, split: str) -> list[str]:
    wanted, there = assembly.config.evaluate.problems, len(assembly.examples(split))
    if there >= wanted:
        return []
    return [f"evaluate.problems={wanted}, the {split} split has {there:,}: these are evaluated"]


def _short_budget(assembly: Assembly, split: str) -> list[str]:
    """A note where reference answers are longer than samples may be. Where all of them are, so that
    every score will be 0, it goes to stderr, which --quiet leaves alone.
    """
    sampling, unit = assembly.config.sampling, assembly.sources.unit(split)
    most = sampling.max_actions
    if sampling.max_new_tokens:
        # <eos> is an action, and no visible text.
        most = min(most, sampling.max_new_tokens + 1)
    counts = assembly.sources.measured(assembly, split).counts(unit.split)
    total, long = counts.total(), sum(n for size, n in counts.items() if size > most)
    if not long:
        return []
    longest = max(counts)
    key = "max_actions" if most == sampling.max_actions else "max_new_tokens"
    told = (
        f"of {total:,} reference answers ({split} split) do not fit sampling.{key}="
        f"{getattr(sampling, key)}, the longest needs {longest} with <eos>"
    )
    if long == total:
        print(
            f"warning: all {told}: no sample can be right; set --config.sampling.{key}={longest} "
            "or more",
            file=sys.stderr,
        )
        return []
    return [f"{long:,} {told}: they cannot be answered"]


def _find(assembly: Assembly, unit: Unit, split: str) -> Measured:
    """What measuring finds, or has found before."""
    config, source = assembly.config, unit.source
    row = _row_maker(assembly, source)
    if not unit.path:
        # Drawing a problem may take milliseconds: all that are evaluated are measured only where
        # those that do not fit are to be left out.
        whole = config.data.bad_rows == "skip" and split == config.evaluate.split
        count = min(max(config.evaluate.problems if whole else 0, TRIAL), len(source))
        if config.data.bad_rows == "skip":
            row = _in_words(row)
        return measured.measure(
            source, count, row, name=f"the {split} split", place=source.place, told=False
        )
    key = measured.key_of(_deciding(assembly, unit))
    found = measured.read(unit.path, key, len(source))
    if found is None:
        by_split, begin = unit.split is not None, time.monotonic()
        found = measured.measure(
            source, len(source), _in_words(row),
            name=unit.path,
            place=lambda i: source.place(i).removeprefix(f"{unit.path}, "),
            group=source.split_name if by_split else lambda _: "",
        )  # fmt: skip
        measured.keep(unit.path, key, found, time.monotonic() - begin)
    return found


def _deciding(assembly: Assembly, unit: Unit) -> dict[str, Any]:
    """Everything that decides what measuring finds."""
    config = assembly.config
    elsewhere = {"path", "validation_path", "train_problems", "bad_rows"}
    data = {k: v for k, v in to_dict(config.data).items() if k not in elsewhere}
    return {
        "content": assembly.sources.content(unit.path),
        "source": [type(unit.source).__name__, len(unit.source), unit.source.fingerprint],
        "vocab": assembly.vocab.to_dict(),
        "data": data,
        "latent": to_dict(config.latent),
        "noise": to_dict(assembly.encoder.noise),
        "terminal_row": assembly.encoder.terminal_row,
        "split": unit.split is not None,
        "task": to_dict(config.task) if assembly.task is not None else None,
    }


def _row_maker(assembly: Assembly, source: Any) -> Callable[[int, Example], Row]:
    """A function that makes a record's rows, and raises what training would raise."""
    encoder, noise = assembly.encoder, assembly.encoder.noise
    T, is_text = assembly.config.data.seq_len, assembly.config.data.source == "text"
    staged = None
    if assembly.config.latent.mode != "off":
        # How many examples there are decides when stages begin, and no row.
        staged = assembly.staged_of(1)

    def row(i: int, example: Example) -> Row:
        if staged is not None:
            made = _staged_row(staged, example)
        else:
            prompt, response = encoder.fitting_ids(example)
            needs = encoder.positions(len(prompt), len(response))
            longer = 2 * noise.rate * noise.run_length * len(response)
            made = Row(needs, len(response), needs + longer > T and not encoder.cut)
        if is_text:
            return made
        check_reference(encoder, assembly.judge(source, i), example)
        return made

    return row


def _staged_row(staged: Any, example: Example) -> Row:
    """The longest row of any stage: with all thoughts, with all steps, and as it is drawn."""
    curriculum, rng = staged.curriculum, np.random.default_rng(0)
    stages: Sequence[int] = range(curriculum.first, curriculum.last + 1)
    if curriculum.config.uniform_prob:
        stages = range(curriculum.last + 1)
    if curriculum.mode.removes == "tokens":
        # Each token that is removed makes a row shorter.
        stages = (curriculum.first, curriculum.last)
    longest, most = 0, curriculum.config.prompt_columns
    for stage in stages:
        row = staged.encode(example, stage, rng, clean=True)
        longest = max(longest, len(row["actions"]))
        if most and len(row["accept"]) > most:
            raise ConfigError(
                f"a step has {len(row['accept'])} right answers, latent.prompt_columns={most} "
                "leaves room for as many only; raise it"
            )
    staged.encode(example, curriculum.first, rng)
    plan = curriculum.answering(curriculum.plan(curriculum.last, len(example.steps)))
    target, _, _ = staged.target(example, plan)
    return Row(longest, len(target) + staged.alone)


def _in_words(row: Callable[[int, Example], Row]) -> Callable[[int, Example], Row]:
    """The same, where what is wrong with a record is a RowFault."""

    def told(i: int, example: Example) -> Row:
        try:
            return row(i, example)
        except RowError as error:
            fault = RowFault(error.reason, f"raise {error.key}")
            fault.needs = error.needs
        except VocabError as error:
            fault = RowFault(str(error), 'use a vocabulary that has it, such as vocab.kind="byte"')
        except (ConfigError, TaskError) as error:
            reason, _, advice = str(error).partition("\n")
            fault = RowFault(reason.rstrip(";"), advice)
        raise fault from None

    return told


def _refusal(unit: Unit, found: Measured) -> str:
    advice = found.advice
    if advice == "raise data.seq_len":
        advice = f"set --config.data.seq_len={found.needs} for the longest"
    if len(found.bad) < found.records:
        advice = f"{advice}, {SKIP}" if advice else SKIP.removeprefix("or ")
    name = unit.path or "the task"
    told = bad_records(name, len(found.bad), found.records, found.faults[:SHOWN_FAULTS])
    return f"{told}\n{advice}" if advice else told
