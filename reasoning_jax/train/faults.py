"""A plan of faults, for tests: where a run is killed, stopped, starved of disk or fed a NaN.

    --faults=kill@save:4,enospc@seal:8,nan@loss:7

`KIND@SITE:STEP`, separated by commas: at step STEP (of a save: the step that is being saved), when
the run comes to SITE, KIND happens; `+MS` behind a kill, term or stop delays it, as a thread of its
own. A plan is a function of nothing but its text. Without one, `reach` returns at once and nothing
is traced into the step.

A fault of a process happens once a run folder, also if the run is started again with the same plan:
it is noted in `faults.jsonl` before it happens. NaN and Inf happen whenever their step is computed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from reasoning_jax.config_fields import ConfigError, nearest_name, show

FILE = "faults.jsonl"
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "erofs": errno.EROFS}
_NUMBERS = ("nan", "inf")
_KINDS = (*_SIGNALS, *_ERRORS, "hang", *_NUMBERS)
# In the order of a run: a batch is made, a step dispatched, a row of metrics logged, the state
# evaluated; a save copies the state (save), its files are written beside the next steps (write),
# hashed (seal), renamed (commit), checked and read again (committed), and old steps are deleted
# (prune).
_IO_SITES = ("save", "write", "seal", "commit", "committed", "prune")
_WRITING_SITES = ("evaluate", "log", *_IO_SITES)
_SITES = ("data", "step", *_WRITING_SITES)
_NUMBER_SITES = ("loss", "grad")
_FAULT = re.compile(r"([a-z]+)@([a-z]+):(\d{1,9})(?:\+(\d{1,6}))?")


@dataclass(frozen=True)
class Fault:
    """`kind` at `site` of step `step`, `delay_ms` after it was reached."""

    kind: str
    site: str
    step: int
    delay_ms: int = 0

    def __str__(self) -> str:
        return f"{self.kind}@{self.site}:{self.step}" + f"+{self.delay_ms}" * bool(self.delay_ms)


@dataclass(frozen=True)
class FaultPlan:
    """What will go wrong. `workdir` is where what has happened is noted; None: nowhere."""

    faults: tuple[Fault, ...] = ()
    workdir: Path | None = None
    _happened: set[str] = field(default_factory=set, compare=False)

    def reach(self, site: str, step: int) -> None:
        """Have happen what is planned here and has not happened yet.

        Raises:
          OSError: the planned one.
        """
        for fault in self.faults:
            if (fault.site, fault.step) == (site, step) and str(fault) not in self._happened:
                self._note(fault)
                _happen(fault)

    def poison(self, site: str) -> tuple[tuple[int, float], ...]:
        """(step, NaN or Inf) of each number that is to be broken at a site: "loss" or "grad"."""
        return tuple((f.step, float(f.kind)) for f in self.faults if f.site == site)

    def _note(self, fault: Fault) -> None:
        self._happened.add(str(fault))
        if self.workdir is not None:
            with (self.workdir / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(str(fault)) + "\n")
                file.flush()
                os.fsync(file.fileno())


NO_FAULTS = FaultPlan()


def parse(text: str, workdir: Path | None = None) -> FaultPlan:
    """The plan of a text, without what has happened in `workdir`.

    Raises:
      ConfigError: it is no plan; the message names the part.
    """
    faults = tuple(_parse(part.strip()) for part in text.split(",") if part.strip())
    happened: set[str] = set()
    if faults and workdir is not None and (workdir / FILE).exists():
        lines = (workdir / FILE).read_text(encoding="utf-8").splitlines()
        happened = {json.loads(line) for line in lines}
    return FaultPlan(faults, workdir, happened)


def _parse(text: str) -> Fault:
    found = _FAULT.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"--faults: {show(text)} is no fault; write KIND@SITE:STEP, as in kill@save:4"
        )
    kind, site, step, delay = found.groups()
    if kind not in _KINDS:
        raise ConfigError(
            f"--faults: unknown kind {kind!r} in {show(text)}{nearest_name(kind, _KINDS)}"
        )
    sites = _NUMBER_SITES if kind in _NUMBERS else _WRITING_SITES if kind in _ERRORS else _SITES
    if site not in sites:
        raise ConfigError(
            f"--faults: {kind} cannot happen at {site!r}; it can at {', '.join(sites)}"
        )
    if delay and kind not in _SIGNALS:
        raise ConfigError(f"--faults: {kind} in {show(text)} cannot be delayed; leave out +{delay}")
    return Fault(kind, site, int(step), int(delay or 0))


def _happen(fault: Fault) -> None:
    if fault.kind in _ERRORS:
        number = _ERRORS[fault.kind]
        raise OSError(number, f"{os.strerror(number)} (planned: {fault})")
    if fault.kind == "hang":
        while True:
            time.sleep(3600)
    number = _SIGNALS[fault.kind]
    if fault.delay_ms:
        timer = threading.Timer(fault.delay_ms / 1000, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    else:
        os.kill(os.getpid(), number)
