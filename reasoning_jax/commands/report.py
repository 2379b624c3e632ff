"""`report`: one HTML page over run folders, and a line a run on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reasoning_jax.commands.runfolder import read_json
from reasoning_jax.report import write_report

# What the terminal line shows in percent, and as it is, where a run has it.
_SHOWN = {
    "exact_match": "exact match",
    "corrupted_exact_match": "from a corrupted prefix",
    "backspace_corrupted": "P(backspace) there",
    "backspace_clean": "at clean states",
}
_SHOWN_OF_TEXT = {"perplexity": "perplexity", "mauve": "MAUVE", "diversity": "diversity"}


def report(runs: Sequence[Path], out: Path) -> int:
    """Write the page. Raises ReportError."""
    page = write_report(runs, out)
    for run in runs:
        evaluations = sorted((run / "eval").glob("step_*.json"))
        if evaluations:
            print(summary(run, evaluations[-1]))
    print(f"report: {page}")
    return 0


def summary(run: Path, evaluation: Path) -> str:
    """The newest evaluation of a run in one line."""
    values = read_json(evaluation)
    parts = [
        f"{label} {100 * values['metrics'][name]['value']:.1f} %"
        for name, label in _SHOWN.items()
        if name in values["metrics"]
    ]
    parts += [
        f"{label} {values['metrics'][name]['value']:.3g}"
        for name, label in _SHOWN_OF_TEXT.items()
        if name in values["metrics"]
    ]
    return f"{run.resolve().name}, step {values['step']}: {', '.join(parts)}"
