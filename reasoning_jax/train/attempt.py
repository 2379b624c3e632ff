"""An evaluation as training makes it: it is tried, and whatever happens to it ends no run.

An exception becomes a row that says so. A process that dies of it (memory, a crash in C code, the
watchdog) leaves a note in the run folder; after so many deaths the evaluation is given up, and
training goes on without it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasoning_jax.durable import replace_text
from reasoning_jax.train.rows import FAILED

# In the run folder for as long as an evaluation lasts.
NOTE = "evaluating.json"
# Processes that may end while they evaluate one step.
DEATHS_LIMIT = 3
_SHOWN = 200


def attempt(workdir: Path, step: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The values of `measure()`, or {FAILED: why} where it raised or has killed too often.

    Raises:
      FloatingPointError: a check for NaN was switched on, and has found one.
      OSError: the run folder cannot be written.
    """
    note = workdir / NOTE
    died = _deaths(note, step)
    if died >= DEATHS_LIMIT:
        note.unlink(missing_ok=True)
        return {FAILED: f"the process ended {died} times while it was made"}
    replace_text(note, json.dumps({"step": step, "begun": died + 1}) + "\n")
    try:
        return measure()
    except FloatingPointError:
        raise
    except Exception as error:
        text = (str(error).strip() or "no message").split("\n")[0]
        return {FAILED: f"{type(error).__name__}: {text}"[:_SHOWN]}
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)


def _deaths(note: Path, step: int) -> int:
    """How many processes have begun to evaluate a step and did not come back."""
    try:
        values = json.loads(note.read_bytes())
        return values["begun"] if values["step"] == step else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
