"""The rows of a run on the screen: a live table with a line of progress, or plain lines.

The line moves while the main thread compiles or evaluates. Off a terminal a line comes when nothing
else has been printed for half a minute.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any

from reasoning_jax.train.pace import Pace, clock_time, progress_text

# Off a terminal: seconds of silence before a line of progress.
SILENCE_S = 30.0
_ROWS = 12
_CELLS = (("loss", ".4f"), ("accuracy", ".1%"), ("grad_norm", ".3f"), ("learning_rate", ".2e"))


class Console:
    """Shows rows, text and the pace until it is closed; nothing at all where `quiet`."""

    def __init__(self, pace: Pace, quiet: bool, silence_s: float = SILENCE_S):
        self._pace, self._quiet, self._silence_s = pace, quiet, silence_s
        self._live: Any = None
        self._rows: list[dict[str, Any]] = []
        self._closed = threading.Event()
        self._printed = time.monotonic()
        self._thread: threading.Thread | None = None
        if quiet:
            return
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._tick, name="console", daemon=True)
            self._thread.start()

    def show(self, row: dict[str, Any]) -> None:
        if self._live is not None:
            self._rows = [*self._rows, row][-_ROWS:]
        elif not self._quiet:
            self._print(plain_line(row, self._pace.total))

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            self._print(text)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        print(text, flush=True)

    def _tick(self) -> None:
        while not self._closed.wait(min(1.0, self._silence_s / 4)):
            if time.monotonic() - self._printed >= self._silence_s:
                # The reader of our output may have gone; the main thread meets that too.
                with contextlib.suppress(OSError, ValueError):
                    self._print(progress_text(self._pace))

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=False)
        for column in ("step", "split", "loss", "accuracy", "grad norm", "rate", "tokens/s"):
            table.add_column(column, justify="right")
        for row in self._rows:
            times = row.get("time", {})
            table.add_row(
                f"{row['step']:,}",
                row["split"],
                *(_cell(row.get(n), f) for n, f in _CELLS),
                _cell(times.get("tokens_per_s"), ",.0f"),
            )
        line = Text(progress_text(self._pace))
        bar = ProgressBar(total=self._pace.total, completed=self._pace.step, width=60)
        return Group(*([table] if self._rows else []), line, bar)


def plain_line(row: dict[str, Any], total_steps: int) -> str:
    """One row as a line of text."""
    labels = {"grad_norm": "grad", "learning_rate": "rate"}
    parts = [f"step {row['step']:>{len(str(total_steps))}}/{total_steps} {row['split']:<10}"]
    parts += [
        f"{labels.get(name, name)} {_cell(row[name], style)}"
        for name, style in _CELLS
        if name in row
    ]
    times = row.get("time", {})
    if times.get("tokens_per_s"):
        parts.append(f"{times['tokens_per_s']:,.0f} tokens/s")
    if times.get("remaining_s"):
        parts.append(f"{clock_time(times['remaining_s'])} left")
    return "  ".join(parts)


def _cell(value: Any, style: str) -> str:
    return "" if value is None else format(value, style)
