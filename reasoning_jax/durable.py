"""Files that are there whole or not at all, and on disk when that is said; and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# What a file system says that is full, or that cannot be written.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries (renames, deletions), on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Give a file a new content at once: whoever reads it sees the old or the new one, and a crash
    leaves one of them. Raises OSError.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """`replace_text` of bytes. Raises OSError, and leaves nothing half written then."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def share(path: Path) -> None:
    """Give a file the permissions of one that is newly made in its folder, as the umask says.

    For files of libraries that make them private. Raises OSError.
    """
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    try:
        shutil.copymode(probe, path)
    finally:
        probe.unlink()


@contextlib.contextmanager
def open_locked(path: Path, *, wait: bool) -> Iterator[IO[str] | None]:
    """A file that no other process has locked, made where there is none; the lock is the kernel's
    and ends with the process, however that ends. None without `wait` where another process has it.

    The owner may remove the file, and need not. Raises OSError.
    """
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            # The one before may have removed it meanwhile: then this is the lock of nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield file
                    return
