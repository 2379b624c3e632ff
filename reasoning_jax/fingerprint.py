"""The content of a file or folder as one short hash, so that a place is not taken for an identity.

Two sources with equal fingerprints hold the same bytes under the same names, wherever they are.
Nothing here is kept: a caller that asks often caches by itself.
"""

from __future__ import annotations

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
        return f"{ALGORITHM}:{file_hash(path)[0]}"
    total = xxhash.xxh3_128()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest, size = file_hash(file)
        total.update(f"{file.relative_to(path).as_posix()}\0{size}\0{digest}\n".encode())
    return f"{ALGORITHM}:{total.hexdigest()}"
