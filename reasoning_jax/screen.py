"""What a command is doing, while it takes longer than a few seconds.

Prints to stderr, so that what a command answers stays alone on stdout.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TextIO

# Seconds before the first word, and off a terminal between two of them.
PATIENCE_S = 4.0
SILENCE_S = 30.0


# Whether the command was asked to be quiet; set by `quiet`.
_QUIET = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quiet(asked: bool) -> Iterator[None]:
    """For the duration of a block nothing here is printed, if that was asked for."""
    token = _QUIET.set(_QUIET.get() or asked)
    try:
        yield
    finally:
        _QUIET.reset(token)


def say(text: str) -> None:
    """A line on stderr, but for the quiet."""
    if not _QUIET.get():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def doing(
    what: str, patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S
) -> Iterator[None]:
    """For the duration of a block: a word about it where it takes long, and how long it has taken.

    On a terminal one line that is rewritten, elsewhere a line every `silence_s`.
    """
    if _QUIET.get():
        yield
        return
    ended = threading.Event()
    arguments = (what, ended, sys.stderr, patience_s, silence_s)
    thread = threading.Thread(target=_tell, args=arguments, name="screen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(
    what: str, ended: threading.Event, out: TextIO, patience_s: float, silence_s: float
) -> None:
    began = time.monotonic()
    terminal = out.isatty()
    wait, told = patience_s, False
    while not ended.wait(wait):
        text = f"{what}, {time.monotonic() - began:.0f} s ..."
        # Whoever reads our stderr may have gone.
        with contextlib.suppress(OSError, ValueError):
            out.write(f"\r{text}\x1b[K" if terminal else f"{text}\n")
            out.flush()
        wait, told = 1.0 if terminal else silence_s, True
    if terminal and told:
        with contextlib.suppress(OSError, ValueError):
            out.write("\r\x1b[K")
            out.flush()
