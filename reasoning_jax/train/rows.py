"""The rows of a metrics.jsonl read back, of a run that goes on or is judged. Loads no JAX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reasoning_jax.durable import replace_text

# In a row of an evaluation: why it has no values.
FAILED = "failed"


def drop_rows(path: Path, first: int, evaluation_of: int | None = None) -> None:
    """Drop the rows of a JSONL file from step `first` on, which will be written again, and a torn
    last line; and the evaluation of one step. Replaces the file as a whole.
    """
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["step"] < first]
    kept = [row for row in kept if not _is_evaluation(row, evaluation_of)]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def evaluation_row(path: Path, step: int) -> dict[str, Any] | None:
    """The row of a step's evaluation in a metrics.jsonl, or None where there is none."""
    rows = read_rows(path) if path.exists() else []
    return next((row for row in rows if _is_evaluation(row, step)), None)


def evaluated(path: Path, step: int) -> bool:
    """Whether that step, or a later one, has an evaluation that did not fail."""
    rows = read_rows(path) if path.exists() else []
    return any(
        row["step"] >= step and row.get("split") == "validation" and FAILED not in row
        for row in rows
    )


def _is_evaluation(row: dict[str, Any], step: int | None) -> bool:
    return row["step"] == step and row.get("split") == "validation"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that are whole and of a step. Raises OSError."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
