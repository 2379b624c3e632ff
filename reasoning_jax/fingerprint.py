"""The content of a file or folder as one short hash, so that a place is not taken for an identity.

Two sources with equal fingerprints hold the same bytes under the same names, wherever they are.
Nothing here is kept: a caller that asks often caches by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xxhash

ALGORITHM = "xxh3_128"
_BLOCK = 1 << 20


def file_hash(path: Path) -> tuple[str, int]:
    """(hex digest, bytes) of a file's content. Raises OSError."""
    state, buffer, size = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK)), 0
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            state.update(buffer[:n])
            size += n
    return state.hexdigest(), size


def fingerprint(path: Path) -> str:
    """ "xxh3_128:..." of a file's bytes or, for a folder, of all files below it with their names.

    The name of `path` itself does not count; links are followed. Raises OSError.
    """
    if not path.is_dir():
        return of_files([("", path)])
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return of_files([(file.relative_to(path).as_posix(), file) for file in files])


def of_files(files: Sequence[tuple[str, Path]]) -> str:
    """`fingerprint` of some files of a folder, each with its name there, in this order.

    One file without a name is its bytes alone. Raises OSError.
    """
    if len(files) == 1 and not files[0][0]:
        return f"{ALGORITHM}:{file_hash(files[0][1])[0]}"
    total = xxhash.xxh3_128()
    for name, file in files:
        digest, size = file_hash(file)
        total.update(f"{name}\0{size}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return f"{ALGORITHM}:{total.hexdigest()}"
