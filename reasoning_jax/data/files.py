"""Files of records as bytes: lines, a JSON list, either of them packed by gzip, parquet.

`scan` gives each record's number, line, place and bytes. What cannot be read at its place is held
in memory: what gzip unpacks, and a parquet file's rows as JSON; so both are bounded. Nothing here
knows what a record holds, writes, or mends a file.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from reasoning_jax.data import records
from reasoning_jax.data.examples import DataError
from reasoning_jax.tasks.checks import did_you_mean, show

# A list is decoded whole while it is indexed, and what is packed is held; lines are streamed.
MAX_HELD_BYTES = 512 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt")
_PACKED = ".gz"
_PARQUET = ".parquet"
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_UNPACK = {
    b"\x1f\x8b": "it is packed by gzip: name it *.gz",
    b"\xff\xfe": "it is UTF-16: write it as UTF-8",
    b"\xfe\xff": "it is UTF-16: write it as UTF-8",
    b"PK\x03\x04": "it is a zip file: unpack it",
    b"\x28\xb5\x2f\xfd": "it is packed by zstd: unpack it",
    b"PAR1": "it is parquet: name it *.parquet",
}


class Scanned(NamedTuple):
    """`number` is the record's in a list (from 1), else its line's; `start` its first byte."""

    number: int
    line: int
    start: int
    body: bytes


def suffix_of(path: str) -> tuple[str, bool]:
    """(suffix, whether it is packed by gzip). Raises DataError."""
    name = Path(path).name.lower()
    packed = name.endswith(_PACKED)
    suffix = Path(name.removesuffix(_PACKED) if packed else name).suffix
    if suffix in _SUFFIXES or (suffix == _PARQUET and not packed):
        return suffix, packed
    raise DataError(
        f"{path}: got suffix {show(''.join(Path(name).suffixes[-2:]))}, wanted one of "
        f"{', '.join(_SUFFIXES)} (each also with .gz) or {_PARQUET}"
    )


def regular_file(path: str) -> str:
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


def stamp(file: Any) -> tuple[int, int]:
    """(size, time of the last change)."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def held(file: BinaryIO, path: str, columns: Collection[str]) -> bytes | None:
    """What must be in memory to be read at random; None where the file itself can be.

    Raises:
      DataError: it cannot be unpacked, or is too large.
    """
    suffix, packed = suffix_of(path)
    if suffix == _PARQUET:
        return _parquet_lines(path, columns)
    return _unpacked(file, path) if packed else None


def is_list(file: BinaryIO, path: str) -> bool:
    """Whether the records are a JSON list: its first sign is `[`. Leaves the file at its start."""
    if suffix_of(path)[0] in (".txt", _PARQUET):
        return False
    begin = file.read(_CHUNK_BYTES)
    file.seek(0)
    for mark, hint in _UNPACK.items():
        if begin.startswith(mark):
            raise DataError(f"{path}: got no UTF-8 text; {hint}")
    return begin.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"["


def scan(file: BinaryIO, path: str, in_list: bool) -> Iterator[Scanned]:
    """The records in order, from the file's start. Raises DataError where a list is none."""
    return _scan_list(file, path) if in_list else _scan_lines(file)


def _unpacked(file: BinaryIO, path: str) -> bytes:
    parts, size = [], 0
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            # A bomb is given up as soon as it is larger than what is held.
            while part := packed.read(_CHUNK_BYTES):
                size += len(part)
                if size > MAX_HELD_BYTES:
                    raise DataError(
                        f"{path}: unpacks to more than {MAX_HELD_BYTES:,} bytes; unpack it by "
                        "gunzip, and give the file itself"
                    )
                parts.append(part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is no whole gzip file ({error}); pack it again") from None
    return b"".join(parts)


def _parquet_lines(path: str, columns: Collection[str]) -> bytes:
    """Each row as a line of JSON, of the columns that are looked at."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: reading parquet needs pyarrow; pip install 'reasoning-jax[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in columns]
            if not wanted:
                raise DataError(
                    f"{path}: got the columns {show(', '.join(names))}, wanted question and "
                    f"answer; {records.NAMES_HINT}"
                )
            types = {name: file.schema_arrow.field(name).type for name in wanted}
            short = [name for name, t in types.items() if str(t) in ("float", "halffloat")]
            out, size = [], 0
            for rows in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                for row in rows.to_pylist():
                    for name in short:
                        # 0.1, and not the 0.10000000149011612 that it is in double precision.
                        if row[name] is not None:
                            row[name] = float(str(np.float32(row[name])))
                    line = json.dumps(row, default=_plain, ensure_ascii=False).encode(
                        "utf-8", "surrogatepass"
                    )
                    size += len(line) + 1
                    if size > MAX_HELD_BYTES:
                        raise DataError(
                            f"{path}: holds more than {MAX_HELD_BYTES:,} bytes of text; write it "
                            "as a .jsonl file, which is not held in memory"
                        )
                    out.append(line)
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).strip().partition("\n")[0][:160]
        raise DataError(f"{path}: cannot be read as parquet: {reason}") from None
    return b"\n".join(out)


def _plain(value: Any) -> Any:
    """What JSON has no form for: a decimal or a date as its text; anything else is no text."""
    if isinstance(value, bytes | memoryview):
        return {"bytes": len(value)}
    return str(value)


def _scan_lines(file: BinaryIO) -> Iterator[Scanned]:
    """Each line without its end. Empty lines at the end are left out; of a line above the cap only
    one byte more than the cap is given.
    """
    most = records.MAX_RECORD_BYTES
    offset, empty = 0, []
    for line in itertools.count(1):
        raw = file.readline(most + 1)
        if not raw:
            return
        start, offset = offset, offset + len(raw)
        rest = raw
        while len(rest) > most and not rest.endswith(b"\n"):
            rest = file.readline(most + 1)
            offset += len(rest)
        body = raw.rstrip(b"\r\n")
        if line == 1 and body.startswith(BYTE_ORDER_MARK):
            start, body = start + len(BYTE_ORDER_MARK), body[len(BYTE_ORDER_MARK) :]
        if not body.strip():
            empty.append(Scanned(line, line, start, b""))
            # Of very many empty lines the first few are enough to tell.
            del empty[8:]
            continue
        yield from empty
        empty = []
        yield Scanned(line, line, start, body)


def _scan_list(file: BinaryIO, path: str) -> Iterator[Scanned]:
    """Each element of a JSON list."""
    raw = file.read(MAX_HELD_BYTES + 1)
    if len(raw) > MAX_HELD_BYTES:
        raise DataError(
            f"{path}: got a list of more than {MAX_HELD_BYTES:,} bytes, wanted at most that; write "
            "one object a line into a .jsonl file instead"
        )
    body = raw.removeprefix(BYTE_ORDER_MARK)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: got invalid UTF-8, wanted UTF-8 text") from None
    line, offset, at = 1, len(raw) - len(body), 0
    for number, (first, last) in enumerate(_list_spans(text, path), 1):
        line += text.count("\n", at, first)
        # Between elements there are only ASCII characters, a byte each.
        offset += first - at
        element = text[first:last].encode()
        yield Scanned(number, line, offset, element)
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

    # Numbers stay text: Python refuses to make integers of very many digits.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    at = _skip_space(text, 0)
    check(at, "[", "'[', a list of objects")
    at = _skip_space(text, at + 1)
    more, number = text[at : at + 1] != "]", 0
    while more:
        number += 1
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            told = records.bad_json(error)
            raise DataError(f"{path}, record {number} (line {line}){told}") from None
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


def opened(path: str, held_bytes: bytes | None) -> BinaryIO:
    """The file, or what is held of it, from its start. Raises OSError."""
    return io.BytesIO(held_bytes) if held_bytes is not None else open(path, "rb", buffering=0)
