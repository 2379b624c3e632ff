"""User files as a source of examples: validated in one pass, then read at random from disk.

Formats, told apart by the suffix, which may be followed by .gz:
  .jsonl, .ndjson  one JSON object a line: `question` and `answer`, optionally `steps` (a list)
  .json            a list of such objects (the published ProsQA files), or one a line
  .txt             `question||step step #### answer` a line (the published iCoT files); steps end at
                   spaces, and a line without steps has none: no empty line stands for them
  .parquet         a row a record; needs pyarrow
Which columns are read, and other forms of a record: `data/records.py`. UTF-8, with or without a
byte order mark; Windows line ends and empty last lines are fine.

A bad record is refused, or left out and counted (`skip`). What stays in memory is 21 bytes a
record: offset, length, checksum, number, split; and the content of files that cannot be read at
random (`data/files.py`). A file that changes after it was indexed is refused when it is next read.
Nothing here downloads, writes or repairs a file.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO

from reasoning_jax.data import files, records
from reasoning_jax.data.examples import DataError, Example, record_index
from reasoning_jax.tasks.base import SPLITS, split_of
from reasoning_jax.tasks.checks import show

SHOWN_FAULTS = 3
SKIP = "or leave such records out: --config.data.bad_rows=skip"
_ICOT_ADVICE = "Each line must be: question||step step #### answer"


class JsonlSource:
    """The examples of one file, in the order of the file.

    `columns` and `marker` are those of `records.Reader`. With `skip` bad records are left out;
    `notes` says how many, and in which form the others were.

    Raises:
      DataError: the file cannot be read, or holds no good record, or a bad one without `skip` (the
        first three are listed, with the number of all); on access: the file is no longer what was
        indexed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str] = (),
        marker: str = "",
        skip: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        try:
            files.regular_file(self.path)
            suffix, _ = files.suffix_of(self.path)
            named = records.parse_columns(columns)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"data.columns: {error}") from None
        if named and suffix == ".txt":
            raise DataError(
                f"{self.path}: data.columns={show(tuple(columns))} names columns, and a .txt file "
                "has none; leave it out"
            )
        reader = records.Reader(named, marker)
        self._icot = suffix == ".txt"
        self._parse = reader.icot if self._icot else reader.json
        self._starts = array("Q")
        self._lengths = array("I")
        self._checksums = array("I")
        self._numbers = array("I")
        self._splits = array("B")
        self._forms: Counter[str] = Counter()
        self._faults: list[str] = []
        self.left_out = 0
        try:
            with open(self.path, "rb") as file:
                self._stamp = files.stamp(file)
                self._held = files.held(file, self.path, {*records.READ, *named.values()})
                self._index(file, skip, "row" if suffix == ".parquet" else "line")
                changed = files.stamp(file) != self._stamp
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{self.path}: cannot be read: {reason}") from error
        if changed:
            raise DataError(f"{self.path}: changed while it was read; wait until it is complete")
        self._fingerprint = zlib.crc32(self._checksums.tobytes())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, len(self))
        try:
            with files.opened(self.path, self._held) as file:
                file.seek(self._starts[index])
                body = file.read(self._lengths[index])
                stamp = self._stamp if self._held is not None else files.stamp(file)
        except OSError as error:
            raise DataError(
                f"{self.place(index)}: cannot be read any more: {error.strerror or error}"
            ) from error
        # The checksum catches an edit that keeps the size and the time stamp.
        if stamp != self._stamp or zlib.crc32(body) != self._checksums[index]:
            raise DataError(
                f"{self.place(index)}: the file changed after it was indexed (got "
                f"{stamp[0]:,} bytes, wanted {self._stamp[0]:,} as they were); start again"
            )
        read = self._parse(body)
        return Example(question=read.question, steps=read.steps, answer=read.answer, index=index)

    def __repr__(self) -> str:
        return f"JsonlSource({self.path!r}, records={len(self)}, crc32={self._fingerprint:08x})"

    def place(self, index: int) -> str:
        """Where a record stands: file, and line or number."""
        return f"{self.path}, {self._noun} {self._numbers[index]}"

    def indices(self, split: str) -> list[int]:
        """The records whose question falls into `split`."""
        wanted = SPLITS.index(split)
        return [i for i, number in enumerate(self._splits) if number == wanted]

    def split_name(self, index: int) -> str:
        """The split that a record's question falls into."""
        return SPLITS[self._splits[index]]

    @property
    def fingerprint(self) -> int:
        """A checksum of the records' checksums."""
        return self._fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the file was read."""
        lines = []
        if self.left_out:
            first = "; ".join(fault.strip() for fault in self._faults)
            lines.append(f"{self.path}: {self.left_out:,} bad records are left out: {first}")
        for form, count in sorted(self._forms.items()):
            if form:
                which = "all" if count == len(self) else f"{count:,} of {len(self):,}"
                lines.append(f"{self.path}: read as {form} ({which} records){_explained(form)}")
        return tuple(lines)

    def _index(self, file: BinaryIO, skip: bool, noun: str) -> None:
        if self._held is not None:
            file = files.opened(self.path, self._held)
        in_list = files.is_list(file, self.path)
        self._noun = "record" if in_list else noun
        advice = _ICOT_ADVICE if self._icot else records.advice(self._noun)
        for number, line, start, body in files.scan(file, self.path, in_list):
            try:
                record = self._parse(body)
            except records.Defect as defect:
                self.left_out += 1
                if self.left_out <= SHOWN_FAULTS:
                    where = f"record {number} (line {line})" if in_list else f"{noun} {number}"
                    self._faults.append(f"  {where}{defect}")
                continue
            self._forms[record.form] += 1
            self._starts.append(start)
            self._lengths.append(len(body))
            self._checksums.append(zlib.crc32(body))
            self._numbers.append(number)
            self._splits.append(SPLITS.index(split_of(record.question.strip())))
        if not self._starts and not self.left_out:
            raise DataError(f"{self.path}: got no records, wanted at least one. {advice}")
        if self.left_out and not (skip and self._starts):
            told = bad_records(self.path, self.left_out, len(self) + self.left_out, self._faults)
            if not self._icot and any("keys: " in fault for fault in self._faults):
                advice = f"{advice}; {records.NAMES_HINT}"
            if self._starts:
                advice = f"{advice}\n{SKIP}"
            raise DataError(f"{told}\n{advice}")


def bad_records(path: str, bad: int, total: int, faults: Sequence[str]) -> str:
    """ "FILE: 9 bad of 10 records; the first 3:" and these."""
    shown = "" if bad == len(faults) else f"; the first {len(faults)}"
    return "\n".join([f"{path}: {bad:,} bad of {total:,} records{shown}:", *faults])


def _explained(form: str) -> str:
    if "several turns" in form:
        return ": the assistant's last turn is the answer, all before it the question"
    return ""
