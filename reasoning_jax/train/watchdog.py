"""A thread that ends a run that no longer moves: Python stacks of all threads, and exit code 134.

The loop says in which phase it is and when it gets on; each phase has a limit of its own. A step
may take `step_medians` times the median of the last steps, but at least `step_s`; one in which JAX
traces or compiles may take `compile_s`. Nothing is saved on the way out: the disk may be what
hangs.

A Python thread cannot run while another one keeps the interpreter's lock inside C code. For that
case faulthandler's own thread stands behind this one; it prints the stacks too, and exits with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reasoning_jax.config import WatchdogConfig

STUCK = 134
# Steps whose median says how long one takes.
_REMEMBERED = 64
_POLL_S = 1.0
_WRITE_S = 5.0
_STDERR = 2
# Emitted where a program is traced, so before it is compiled.
_TRACED = "/jax/core/compile/jaxpr_trace_duration"


class Watchdog:
    """Watches while it is entered. `leave(code)` ends the process; a test may put its own there."""

    def __init__(
        self, config: WatchdogConfig, workdir: Path, leave: Callable[[int], Any] = os._exit
    ):
        self._config, self._workdir, self._leave = config, workdir, leave
        self._limits = {
            "compile": config.compile_s,
            "checkpoint": config.checkpoint_s,
            "evaluate": config.evaluate_s,
        }
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._phase, self._step, self._since = "compile", 0, time.monotonic()
        self._done = threading.Event()
        self._poll_s = min(_POLL_S, config.step_s / 4)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._config.enabled:
            import jax

            jax.monitoring.register_event_duration_secs_listener(self._heard)
            self._since = time.monotonic()
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._config.enabled:
            import jax

            self._done.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            jax.monitoring.unregister_event_duration_listener(self._heard)

    @contextlib.contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """For the duration of a block the run is in a phase: "compile", "step", "checkpoint" or
        "evaluate". The one before then begins anew.
        """
        before = self._phase
        self.begin(name, step)
        try:
            yield
        finally:
            self.begin(before, step)

    def begin(self, name: str, step: int) -> None:
        """A phase begins, or the same one gets on."""
        self._phase, self._step, self._since = name, step, time.monotonic()

    def step_done(self, seconds: float) -> None:
        """A step is finished, on the device too, and has taken so long."""
        self._steps.append(seconds)

    def limit_s(self) -> float:
        """How long the present phase may last."""
        if self._phase in self._limits:
            return self._limits[self._phase]
        median = statistics.median(self._steps) if self._steps else 0.0
        return max(self._config.step_s, self._config.step_medians * median)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        # Evaluations and saves have limits of that size anyway.
        if event == _TRACED and self._phase == "step":
            self._phase = "compile"

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._done.wait(self._poll_s):
            now = time.monotonic()
            # We did not run either (the process was stopped, or the machine busy): not their time.
            late = now - looked - self._poll_s
            if late > self._poll_s:
                self._since += late
            looked = now
            limit, lasted = self.limit_s(), now - self._since
            if lasted > limit:
                self._end(lasted, limit)
                return
            faulthandler.dump_traceback_later(limit + 10 * self._poll_s, exit=True, file=_STDERR)

    def _end(self, lasted: float, limit: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        path = self._workdir / f"stuck_{self._step:08d}.txt"
        line = (
            f"stuck: {lasted:.0f} s in phase {self._phase!r} of step {self._step}, the limit is "
            f"{limit:.0f} s (watchdog.*); stacks of all threads are in {path}; exit {STUCK}"
        )
        print(line, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        # The disk may be what hangs: it gets a thread and a moment.
        writer = threading.Thread(target=_write_stacks, args=(path, line), daemon=True)
        writer.start()
        writer.join(_WRITE_S)
        self._leave(STUCK)


def _write_stacks(path: Path, line: str) -> None:
    with contextlib.suppress(OSError), path.open("w", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
