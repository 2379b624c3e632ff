"""Folders under a name that no library takes for anything but a folder.

Libraries read more into a path than its bytes: `[` begins a pattern, `gs:` or /hf/ an address, and
bytes that are no UTF-8 cannot be written into their settings. Nothing here reads or writes files.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from reasoning_jax.config_fields import ConfigError, show

# Linux names what a process has open, whatever the folder is called and wherever it is moved to.
_OPEN = "/proc/self/fd"
_HARMLESS = re.compile(r"(?!/(?:gs|s3|az|hf)/)[\w./+@=, -]+")
_OPEN_NAME = re.compile(rf"{_OPEN}/\d+")


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """Another name of a folder, of letters, digits and slashes, for the duration of a block.

    Where the system has no such names, it is the folder's own.

    Raises:
      OSError: the folder cannot be opened.
      ConfigError: there is no other name, and its own would be misread.
    """
    if not os.path.isdir(_OPEN):
        check(folder)
        yield folder.absolute()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(_OPEN, str(descriptor))
    finally:
        os.close(descriptor)


def check(folder: Path) -> None:
    """Refuse a folder that `plain` could not give a harmless name. Raises ConfigError."""
    if not os.path.isdir(_OPEN) and not _HARMLESS.fullmatch(str(folder.absolute())):
        raise ConfigError(
            f"{show(str(folder))}: this system has no {_OPEN}, and without it checkpoints under "
            "such a name would be lost; use letters, digits and any of _./+@=,- in the path"
        )


def own_name(text: str, folder: Path) -> str:
    """A message in which the name that `plain` gave is the folder's own again."""
    return _OPEN_NAME.sub(lambda _: str(folder), text)
