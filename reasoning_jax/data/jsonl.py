"""User files as a source of examples: validated in one pass, then read at random from disk.

Three formats, told apart by the suffix:
  .jsonl  one JSON object a line: `question` and `answer` (non-empty strings), optionally `steps`
          (a list of non-empty strings);
  .json   a list of such objects (the published ProsQA files);
  .txt    `question||step step #### answer` a line (the published iCoT files); steps end at spaces.
Keys beyond these three are ignored, unless they look like one of them misspelt. UTF-8, with or
without a byte order mark; Windows line ends and empty last lines are fine.

What stays in memory is 16 bytes a record: offset, length, checksum. A file that changes after it
was indexed is refused when it is next read. Nothing here downloads, writes or repairs a file.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import stat
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from reasoning_jax.data.examples import DataError, Example, record_index
from reasoning_jax.tasks.checks import did_you_mean, show

MAX_RECORD_BYTES = 16 << 20
# A .json list is decoded whole while it is indexed; a .jsonl file of any size is streamed.
MAX_LIST_BYTES = 512 << 20
FIELDS = ("question", "steps", "answer")
_SHOWN_DEFECTS = 3
_MISSPELT_WITHIN = 2
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KIND_OF = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
_OBJECT = '{"question": "...", "answer": "..."}, with "steps": ["...", ...] if there are any'
_ADVICE = {
    ".jsonl": f"Each line must be {_OBJECT}",
    ".json": f"Each entry of the list must be {_OBJECT}",
    ".txt": "Each line must be: question||step step #### answer",
}


class JsonlSource:
    """The examples of one file, in the order of the file.

    Raises:
      DataError: the file cannot be read, or holds a bad record (the first three are listed, with
        the number of all); on access: the file is no longer what was indexed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._parse = _PARSERS[_suffix(self.path)]
        self._starts = array("Q")
        self._lengths = array("I")
        self._checksums = array("I")
        try:
            with open(_regular_file(self.path), "rb") as file:
                self._stamp = _stamp(file)
                self._index(file)
                changed = _stamp(file) != self._stamp
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if changed:
            raise DataError(f"{self.path}: changed while it was read; wait until it is complete")
        self._fingerprint = zlib.crc32(self._checksums.tobytes())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, len(self))
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self._starts[index])
                body = file.read(self._lengths[index])
                stamp = _stamp(file)
        except OSError as error:
            raise DataError(
                f"{self.path}, record {index}: cannot be read any more: {error.strerror or error}"
            ) from error
        # The checksum catches an edit that keeps the size and the time stamp.
        if stamp != self._stamp or zlib.crc32(body) != self._checksums[index]:
            raise DataError(
                f"{self.path}, record {index}: the file changed after it was indexed (got "
                f"{stamp[0]:,} bytes, wanted {self._stamp[0]:,} as they were); start again"
            )
        question, steps, answer = self._parse(body)
        return Example(question=question, steps=steps, answer=answer, index=index)

    def __repr__(self) -> str:
        return f"JsonlSource({self.path!r}, records={len(self)}, crc32={self._fingerprint:08x})"

    def _index(self, file: BinaryIO) -> None:
        suffix = _suffix(self.path)
        defects, n_defects = [], 0
        for line, start, body in _SCANNERS[suffix](file, self.path):
            try:
                self._parse(body)
            except _Defect as defect:
                n_defects += 1
                if n_defects <= _SHOWN_DEFECTS:
                    defects.append(f"  line {line}{defect}")
            self._starts.append(start)
            self._lengths.append(len(body))
            self._checksums.append(zlib.crc32(body))
        if not self._starts:
            raise DataError(f"{self.path}: got no records, wanted at least one. {_ADVICE[suffix]}")
        if defects:
            shown = "" if n_defects == len(defects) else f"; the first {len(defects)}"
            raise DataError(
                "\n".join(
                    [
                        f"{self.path}: {n_defects:,} bad of {len(self):,} records{shown}:",
                        *defects,
                        _ADVICE[suffix],
                    ]
                )
            )


class _Defect(ValueError):
    """What is wrong with one record, to be put after its line number."""

    def __init__(self, got: str, wanted: str, field: str = "") -> None:
        super().__init__(f"{field and f', field {field}'}: got {got}, wanted {wanted}")


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _ADVICE:
        raise DataError(f"{path}: got suffix {suffix!r}, wanted one of {', '.join(_ADVICE)}")
    return suffix


def _regular_file(path: str) -> str:
    """`path`, if it is a file; the nearest name in its folder is told if it is not there."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = Path(path).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise DataError(f"{path}: no such file.{did_you_mean(Path(path).name, names)}") from None
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise DataError(f"{path}: got {what}, wanted a file")
    return path


def _stamp(file: Any) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _scan_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, line without its end). Empty lines at the end are left out; of a line
    above the cap only one byte more than the cap is given.
    """
    offset, empty = 0, []
    for line in itertools.count(1):
        raw = file.readline(MAX_RECORD_BYTES + 1)
        if not raw:
            return
        start, offset = offset, offset + len(raw)
        rest = raw
        while len(rest) > MAX_RECORD_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_RECORD_BYTES + 1)
            offset += len(rest)
        body = raw.rstrip(b"\r\n")
        if line == 1 and body.startswith(_BYTE_ORDER_MARK):
            start, body = start + len(_BYTE_ORDER_MARK), body[len(_BYTE_ORDER_MARK) :]
        if not body.strip():
            empty = empty or [(line, start, b"")]
            continue
        yield from empty
        empty = []
        yield line, start, body


def _scan_list(file: BinaryIO, path: str) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, text) of each element of a JSON list."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_LIST_BYTES:
        raise DataError(
            f"{path}: got a list of {size:,} bytes, wanted at most {MAX_LIST_BYTES:,}; write one "
            "object a line into a .jsonl file instead"
        )
    raw = file.read()
    body = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: got invalid UTF-8, wanted UTF-8 text") from None
    line, offset, at = 1, len(raw) - len(body), 0
    for first, last in _list_spans(text, path):
        line += text.count("\n", at, first)
        # Between elements there are only ASCII characters, a byte each.
        offset += first - at
        element = text[first:last].encode()
        yield line, offset, element
        line += text.count("\n", first, last)
        offset += len(element)
        at = last


def _list_spans(text: str, path: str) -> Iterator[tuple[int, int]]:
    """The first and the last character (exclusive) of each element of a JSON list."""

    def check(at: int, legal: str, wanted: str) -> None:
        got = text[at : at + 1]
        if got not in legal or not got:
            line = text.count("\n", 0, at) + 1
            got = show(got) if got else "the end of the file"
            raise DataError(f"{path}, line {line}: got {got}, wanted {wanted}")

    at = _skip_space(text, 0)
    if at == len(text):
        return
    check(at, "[", "'[', a list of objects (one object a line goes into a .jsonl file)")
    at = _skip_space(text, at + 1)
    more = text[at : at + 1] != "]"
    while more:
        try:
            _, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise DataError(f"{path}, line {line}{_bad_json(error)}") from None
        yield at, end
        at = _skip_space(text, end)
        check(at, ",]", "',' or ']' after an element of the list")
        more = text[at] == ","
        at = _skip_space(text, at + 1) if more else at
    at = _skip_space(text, at + 1)
    if at < len(text):
        line = text.count("\n", 0, at) + 1
        raise DataError(f"{path}, line {line}: got text after the list, wanted the end of the file")


def _skip_space(text: str, at: int) -> int:
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)


def _bad_json(error: Exception) -> _Defect:
    if isinstance(error, json.JSONDecodeError):
        return _Defect(f"bad JSON ({error.msg}, column {error.colno})", "one JSON object")
    what = "is nested too deeply" if isinstance(error, RecursionError) else "has too long a number"
    return _Defect(f"JSON that {what}", "one JSON object")


def _decode(body: bytes) -> str:
    if not body:
        raise _Defect("an empty line between records", "a record")
    if len(body) > MAX_RECORD_BYTES:
        raise _Defect(f"more than {MAX_RECORD_BYTES:,} bytes", "at most that in a record")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Defect(f"invalid UTF-8 at byte {error.start + 1}", "UTF-8 text") from None
    if "\0" in text:
        raise _Defect(f"a NUL at character {text.index(chr(0)) + 1}", "text") from None
    return text


def _parse_json(body: bytes) -> tuple[str, tuple[str, ...], str]:
    text = _decode(body)
    try:
        record = _DECODER.decode(text)
    except _Defect:
        raise
    except (ValueError, RecursionError) as error:
        raise _bad_json(error) from None
    if not isinstance(record, dict):
        hint = " (a list goes into a .json file)" if isinstance(record, list) else ""
        raise _Defect(_KIND_OF[type(record)], f"one JSON object{hint}")
    for key in record:
        if meant := _misspelt(key):
            raise _Defect("an unknown key", f"{meant!r}, or a name unlike it", show(key))
    steps = record.get("steps", [])
    if not isinstance(steps, list):
        raise _Defect(_got(steps), "a list of strings (leave it out if there are none)", "steps")
    return (
        _text(_required(record, "question"), "question"),
        tuple(_text(step, f"steps[{i}]") for i, step in enumerate(steps)),
        _text(_required(record, "answer"), "answer"),
    )


def _parse_icot(body: bytes) -> tuple[str, tuple[str, ...], str]:
    text = _decode(body)
    question, *rest = text.split("||")
    if len(rest) != 1:
        raise _Defect(f"{len(rest)} '||' in the line", "one, at its end", "question")
    steps, *answer = rest[0].split("####")
    if len(answer) != 1:
        raise _Defect(f"{len(answer)} '####' in the line", "one, before it", "answer")
    return (
        _text(question.strip(), "question"),
        tuple(steps.split()),
        _text(answer[0].strip(), "answer"),
    )


def _required(record: dict[str, Any], field: str) -> Any:
    if field not in record:
        raise _Defect(f"none (keys: {show(', '.join(record))})", "a non-empty string", field)
    return record[field]


def _text(value: Any, field: str) -> str:
    """`value` if it is a non-empty string that can be encoded."""
    if not isinstance(value, str) or not value.strip():
        raise _Defect(_got(value), "a non-empty string", field)
    if "\0" in value:
        raise _Defect("a string with a NUL", "text", field)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Defect("a string with half a surrogate pair", "text", field) from None
    return value


def _got(value: Any) -> str:
    kind = "an empty string" if isinstance(value, str) else _KIND_OF[type(value)]
    return kind if value is None else f"{kind}, {show(value)}"


@functools.lru_cache(maxsize=4096)
def _misspelt(key: str) -> str:
    """The field that this unknown key is within two edits of, or ""."""
    if key in FIELDS:
        return ""
    near = {field: _edit_distance(key.casefold(), field) for field in FIELDS}
    best = min(near, key=near.__getitem__)
    return best if near[best] <= _MISSPELT_WITHIN else ""


def _edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions between `a` and `b`; only near ones are counted."""
    if abs(len(a) - len(b)) > _MISSPELT_WITHIN:
        return _MISSPELT_WITHIN + 1
    row = list(range(len(b) + 1))
    for i, character in enumerate(a, 1):
        last, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (character != other)))
    return row[-1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Defect("the same key twice", "it once", show(twice))
    return record


def _refuse_constant(name: str) -> Any:
    raise _Defect(f"{name}, which is no JSON", "a string")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
_SCANNERS: dict[str, Callable[[BinaryIO, str], Iterator[tuple[int, int, bytes]]]] = {
    ".jsonl": _scan_lines,
    ".json": _scan_list,
    ".txt": _scan_lines,
}
_PARSERS: dict[str, Callable[[bytes], tuple[str, tuple[str, ...], str]]] = {
    ".jsonl": _parse_json,
    ".json": _parse_json,
    ".txt": _parse_icot,
}
