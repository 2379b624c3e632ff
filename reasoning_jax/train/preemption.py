"""Signals that end a run in good order: SIGTERM, as a scheduler sends it, and Ctrl-C.

The first one is a flag that the loop looks at between two steps. A second Ctrl-C ends the process
at once, also where the main thread is in C code, as while compiling: a thread reads the signals as
they come.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from reasoning_jax.exit_codes import EXIT_INTERRUPTED

DONE, PREEMPTED = 0, 42
# How long a second Ctrl-C may take to end the process in order.
_PATIENCE_S = 2.0


class Preemption:
    """Turns SIGTERM and SIGINT into a flag for the duration of a `with` block.

    Of two nested blocks the outer one's flag is set too, and the inner one begins with it.
    `leave(code)` ends the process; a test may put its own there.
    """

    def __init__(self, leave: Callable[[int], Any] = os._exit) -> None:
        self.requested = False
        # The signal that came first.
        self.signal = 0
        self._leave = leave
        self._previous: dict[int, Any] = {}
        self._pipe_in: int | None = None
        self._previous_fd = -1
        self._ended = threading.Event()

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
            self._watch()
        for outer in self._outer():
            self.requested |= outer.requested
            self.signal = self.signal or outer.signal
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._pipe_in is not None:
            signal.set_wakeup_fd(self._previous_fd)
            # The thread reads the end, and closes its own side.
            os.close(self._pipe_in)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def text(self, step: int) -> str:
        """What to say where a run stops behind a step that is saved."""
        if self.signal == signal.SIGINT:
            return f"stopped by Ctrl-C at step {step}; to continue run the same line"
        return f"preempted: saved step {step}, exit {PREEMPTED} (run again)"

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        if self.requested:
            raise KeyboardInterrupt(f"second signal {number} while saving")
        self.requested, self.signal = True, number
        for outer in self._outer():
            outer.requested, outer.signal = True, outer.signal or number

    def _outer(self) -> list[Preemption]:
        owners = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        return [owner for owner in owners if isinstance(owner, Preemption)]

    def _watch(self) -> None:
        """Have the numbers of signals written into a pipe, which a thread reads."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._pipe_in = write
        self._previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True).start()

    def _listen(self, read: int) -> None:
        pressed = 0
        with os.fdopen(read, "rb", buffering=0) as signals:
            while came := signals.read(1):
                pressed += came[0] == signal.SIGINT
                if came[0] != signal.SIGINT or self._ended.is_set():
                    continue
                if pressed == 1:
                    _say("Ctrl-C: stops and saves after this step; once more ends at once")
                elif not self._ended.wait(_PATIENCE_S):
                    # The main thread is in C code and will not see the signal soon.
                    _say("ended by a second Ctrl-C; the newest saved step is kept")
                    self._leave(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
