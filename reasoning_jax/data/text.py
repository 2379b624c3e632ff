"""The user's own text as a source of examples: indexed in one pass, then read at random from disk.

`path` is a .txt file, or a folder of them: searched with its subfolders, in sorted order. Other
suffixes, hidden names, links and whatever is no regular file are passed over, so that no link leads
out of the folder or names a file twice. UTF-8, with or without a byte order mark.

A document is a file, or a part of one: a line of nothing but `<|endoftext|>` ends it. Each document
is cut into consecutive windows of `window_chars` characters (code points). A window is an example:
its text is the answer; there is neither question nor step. It may be a little shorter where its end
would part a Windows line end, or a letter from its combining marks (joined emoji may be parted).
Left out are windows of white space only, and a last window of less than 16 characters and less
than half a window, unless the document has no other.

Splits are disjoint and cover everything: a hash of its text puts each document into one, so that
exact copies are never on both sides. Where there are fewer than ten documents, or a split would get
none, blocks of 16 consecutive windows of a document are put into splits instead; then text on both
sides of a border is next to each other. `split_by` and the repr say which it is.

Only the last window of a document `ends`: behind the others the text goes on, and no <eos> follows.

What stays in memory is 21 bytes a window: file, offset, length, checksum. A file that changes after
it was indexed is refused when it is next read. Nothing here normalises, tokenizes or joins text.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
import stat
import unicodedata
import zlib
from array import array
from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from reasoning_jax.data.examples import DataError, Example, record_index
from reasoning_jax.tasks.base import SPLITS, check_split, split_of
from reasoning_jax.tasks.checks import show

SUFFIX = ".txt"
SEPARATOR = b"<|endoftext|>"
MAX_WINDOW_CHARS = 1 << 24
# Below these, a document's last window is left out, and documents are too few to be split whole.
SHORTEST_CHARS = 16
FEWEST_DOCUMENTS = 10
BLOCK_WINDOWS = 16
# At most so many bytes of a line are looked at together: a line may be as long as its file.
_CHUNK_BYTES = 1 << 16
# How far back from its place a cut may move.
_CUT_CHARS = 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Without this flag, opening a pipe waits for its writer. Windows has neither.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


class TextSource:
    """The windows of a file or folder of text that fall into `split` (None: all), in order.

    Raises:
      DataError: `window_chars` out of range, nothing to read, a file or folder that cannot be read
        or is not UTF-8 text (with the byte offset), a split without any window; on access: the file
        is no longer what was indexed.
      TaskError: an unknown split.
    """

    def __init__(self, path: str | os.PathLike[str], window_chars: int, split: str | None = None):
        if split is not None:
            check_split(split)
        if type(window_chars) is not int or not 1 <= window_chars <= MAX_WINDOW_CHARS:
            raise DataError(
                f"window_chars={show(window_chars)}: must be an integer from 1 to "
                f"{MAX_WINDOW_CHARS:,}"
            )
        self.path = os.fsdecode(path)
        self.window_chars = window_chars
        self.split = split
        self._files = _text_files(self.path)
        self._stamps: list[tuple[int, int]] = []
        # One entry a window.
        self._file_of, self._starts = array("I"), array("Q")
        self._lengths, self._checksums = array("I"), array("I")
        self._ends = array("B")
        by_document, by_block = array("B"), array("B")
        documents = 0
        for number in range(len(self._files)):
            for document_split, block_splits in self._index(number):
                documents += 1
                by_document.extend([document_split] * len(block_splits))
                by_block.extend(block_splits)
        if not documents:
            raise DataError(
                f"{_name(self.path)}: got no text in {len(self._files):,} {SUFFIX} files, wanted "
                "some in at least one"
            )
        whole = documents >= FEWEST_DOCUMENTS and set(by_document) == set(range(len(SPLITS)))
        self.split_by = "documents" if whole else "blocks"
        if split is not None:
            self._keep(split, by_document if whole else by_block, documents)
        self._fingerprint = zlib.crc32(self._checksums.tobytes())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, len(self))
        number = self._file_of[index]
        path, place = self._files[number], f"byte {self._starts[index]:,}"
        try:
            with _open(path) as file:
                stamp = _stamp(file)
                file.seek(self._starts[index])
                body = file.read(self._lengths[index])
        except OSError as error:
            raise DataError(
                f"{_name(path)}, {place}: cannot be read any more: {error.strerror or error}"
            ) from error
        # The checksum catches an edit that keeps the size and the time stamp.
        if stamp != self._stamps[number] or zlib.crc32(body) != self._checksums[index]:
            raise DataError(
                f"{_name(path)}, {place}: the file changed after it was indexed (got {stamp[0]:,} "
                f"bytes, wanted {self._stamps[number][0]:,} as they were); start again"
            )
        return Example("", (), body.decode("utf-8"), index=index, ends=bool(self._ends[index]))

    def place(self, index: int) -> str:
        """Where a window stands: file, and byte."""
        return f"{_name(self._files[self._file_of[index]])}, byte {self._starts[index]:,}"

    @property
    def fingerprint(self) -> int:
        """A checksum of the windows' checksums."""
        return self._fingerprint

    def __repr__(self) -> str:
        return (
            f"TextSource({self.path!r}, window_chars={self.window_chars}, split={self.split!r}, "
            f"split_by={self.split_by!r}, records={len(self)}, crc32={self._fingerprint:08x})"
        )

    def _index(self, number: int) -> Iterator[tuple[int, list[int]]]:
        """Index a file. Of each of its documents: the split, and the split of each window's block.

        Splits are given by their place in SPLITS.
        """
        path = self._files[number]
        try:
            with _open(path) as file:
                stamp = _stamp(file)
                self._stamps.append(stamp)
                pieces = _decoded(file, _name(path))
                for _, document in itertools.groupby(pieces, key=lambda piece: piece[0]):
                    text = ((offset, text) for _, offset, text in document)
                    found = self._index_document(number, _windows(text, self.window_chars))
                    if found is not None:
                        yield found
                changed = _stamp(file) != stamp
        except OSError as error:
            raise DataError(f"{_name(path)}: cannot be read: {error.strerror or error}") from error
        if changed:
            raise DataError(f"{_name(path)}: changed while it was read; wait until it is complete")

    def _index_document(
        self, number: int, windows: Iterator[tuple[int, str]]
    ) -> tuple[int, list[int]] | None:
        shortest = min(SHORTEST_CHARS, self.window_chars // 2)
        document, block = hashlib.blake2b(), hashlib.blake2b()
        splits, n = [], 0
        for start, text in windows:
            body = text.encode()
            document.update(body)
            # Only the last window of a document can be this short.
            if text.isspace() or (n and len(text) < shortest):
                continue
            block.update(body)
            n += 1
            self._file_of.append(number)
            self._starts.append(start)
            self._lengths.append(len(body))
            self._checksums.append(zlib.crc32(body))
            self._ends.append(False)
            if n % BLOCK_WINDOWS == 0:
                splits += [_split_number(block)] * BLOCK_WINDOWS
                block = hashlib.blake2b()
        splits += [_split_number(block)] * (n % BLOCK_WINDOWS)
        if n:
            self._ends[-1] = True
        return (_split_number(document), splits) if n else None

    def _keep(self, split: str, splits: array[int], documents: int) -> None:
        """Forget the windows of other splits."""
        wanted = [number == SPLITS.index(split) for number in splits]
        if not any(wanted):
            raise DataError(
                f"{_name(self.path)}: none of its {len(wanted):,} windows falls into the {split} "
                f"split (80 % train, 10 % validation, 10 % test, here by blocks of "
                f"{BLOCK_WINDOWS} windows, as there are {documents:,} documents);\n"
                "give more text, smaller windows, or mark documents by lines of <|endoftext|>"
            )
        for name in ("_file_of", "_starts", "_lengths", "_checksums", "_ends"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, itertools.compress(column, wanted)))


def _text_files(path: str) -> list[str]:
    """The file itself, or the files of a folder, sorted by the parts of their names."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            return [_one_file(path, mode)]
        files, passed_over, folders = [], 0, [path]
        # A stack, as folders may be nested more deeply than calls.
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif _is_text(entry.name) and entry.is_file(follow_symlinks=False):
                        files.append(entry.path)
                    else:
                        passed_over += 1
    except FileNotFoundError as error:
        raise DataError(f"{_name(error.filename or path)}: no such file or folder") from None
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{_name(where)}: cannot be read: {reason}") from error
    if not files:
        raise DataError(
            f"{_name(path)}: got a folder without any {SUFFIX} file ({passed_over:,} others and "
            f"links were passed over), wanted at least one; text must be named *{SUFFIX}"
        )
    return sorted(files, key=lambda file: PurePath(file).parts)


def _one_file(path: str, mode: int) -> str:
    if not stat.S_ISREG(mode):
        raise DataError(f"{_name(path)}: got no regular file, wanted a folder or a {SUFFIX} file")
    if not _is_text(path):
        raise DataError(
            f"{_name(path)}: got suffix {show(PurePath(path).suffix)}, wanted {SUFFIX} (or a "
            "folder); rename the file if it is plain text"
        )
    return path


def _is_text(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _open(path: str) -> BinaryIO:
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    """For `open`: a pipe that has taken the place of a file is an error; nobody waits for it."""
    descriptor = os.open(path, flags | _NO_WAIT)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file any more")
    return descriptor


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _decoded(file: BinaryIO, name: str) -> Iterator[tuple[int, int, str]]:
    """(document, byte offset, text) in order; the text is a line, or a part of a long one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    document, offset, at_line_start = 0, len(_BYTE_ORDER_MARK), True
    if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
        offset = 0
        file.seek(0)
    while chunk := file.readline(_CHUNK_BYTES):
        start, offset = offset, offset + len(chunk)
        if at_line_start and chunk.rstrip(b"\r\n") == SEPARATOR:
            document += 1
            continue
        at_line_start = chunk.endswith(b"\n")
        held = len(decoder.getstate()[0])
        yield document, start - held, _decode(decoder, chunk, start - held, name)
        if (nul := chunk.find(0)) >= 0:
            raise DataError(
                f"{name}, byte {start + nul:,}: got a NUL, wanted UTF-8 text; this is a binary "
                "file, or text in UTF-16: convert it or leave it out"
            )
    start = offset - len(decoder.getstate()[0])
    yield document, start, _decode(decoder, b"", start, name, final=True)


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, start: int, name: str, final: bool = False
) -> str:
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{name}, byte {start + error.start:,}: got 0x{byte:02x} ({error.reason}), wanted "
            "UTF-8 text; convert the file to UTF-8 or leave it out"
        ) from None


def _windows(document: Iterator[tuple[int, str]], window_chars: int) -> Iterator[tuple[int, str]]:
    """(byte offset, text) of the windows of a document, given as (byte offset, text) in order."""
    pieces, count, start = [], 0, None
    for offset, text in document:
        start = offset if start is None else start
        pieces.append(text)
        count += len(text)
        # One character more than a window: it decides where the window may end.
        if count <= window_chars:
            continue
        joined, at = "".join(pieces), 0
        while len(joined) - at > window_chars:
            end = _cut(joined, at + window_chars, window_chars)
            window = joined[at:end]
            yield start, window
            start += len(window.encode())
            at = end
        pieces, count = [joined[at:]], len(joined) - at
    if start is not None and count:
        yield start, "".join(pieces)


def _cut(text: str, end: int, window_chars: int) -> int:
    """The last place up to `end` that parts nothing; `end` where there is none nearby."""
    for place in range(end, end - min(_CUT_CHARS, window_chars // 2) - 1, -1):
        parts_line_end = text[place - 1 : place + 1] == "\r\n"
        if not parts_line_end and not unicodedata.category(text[place]).startswith("M"):
            return place
    return end


def _split_number(digest: hashlib.blake2b) -> int:
    return SPLITS.index(split_of(digest.hexdigest()))


def _name(path: str) -> str:
    """A path that can be printed, on one line."""
    return path if path.isprintable() else ascii(path)
