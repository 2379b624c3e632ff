"""What the tasks share: checks of dials, refusals, and text that is safe to print.

A dial is checked when its task is built, so that a bad value is told before anything runs. Nothing
here judges an answer; each task does that itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from reasoning_jax.tasks.base import Score, TaskError

_SHOWN = 60


def require_int(task: str, dial: str, value: Any, low: int, high: int) -> None:
    """Raise `TaskError` unless `value` is an integer (no bool) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TaskError(f"{task}: {dial}={show(value)}: must be an integer from {low} to {high}")


def require_range(
    task: str, low_dial: str, least: Any, high_dial: str, most: Any, low: int, high: int
) -> None:
    """Raise `TaskError` unless low <= least <= most <= high, all integers."""
    require_int(task, low_dial, least, low, high)
    require_int(task, high_dial, most, low, high)
    if least > most:
        raise TaskError(f"{task}: {low_dial}={least}: must not be above {high_dial}={most}")


def require_number(task: str, dial: str, value: Any, low: float, high: float) -> None:
    """Raise `TaskError` unless `value` is a number (no bool, no NaN) in [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise TaskError(f"{task}: {dial}={show(value)}: must be a number from {low} to {high}")


def require_bool(task: str, dial: str, value: Any) -> None:
    """Raise `TaskError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TaskError(f"{task}: {dial}={show(value)}: must be True or False")


def require_choice(task: str, dial: str, value: Any, legal: Iterable[str]) -> None:
    """Raise `TaskError` unless `value` is one of the legal strings; names the nearest."""
    legal = tuple(legal)
    if not isinstance(value, str) or value not in legal:
        raise TaskError(
            f"{task}: {dial}={show(value)}: must be one of {', '.join(legal)}."
            + did_you_mean(value, legal)
        )


def require_subset(task: str, dial: str, value: Any, legal: Iterable[str]) -> None:
    """Raise `TaskError` unless `value` is a non-empty tuple of distinct legal strings."""
    legal = tuple(legal)
    if not isinstance(value, tuple) or not value:
        raise TaskError(
            f"{task}: {dial}={show(value)}: must be a non-empty tuple of {', '.join(legal)}"
        )
    for entry in value:
        require_choice(task, dial, entry, legal)
    if len(set(value)) < len(value):
        raise TaskError(f"{task}: {dial}={show(value)}: must not name anything twice")


def require_strategy(task: str, strategy: str, legal: Iterable[str]) -> None:
    """Raise `TaskError` unless the task has this solver strategy."""
    require_choice(task, "strategy", strategy, legal)


def did_you_mean(wrong: Any, legal: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest legal name, or nothing when none is near."""
    near = difflib.get_close_matches(wrong[:_SHOWN], legal, 1) if isinstance(wrong, str) else []
    return f" Did you mean {near[0]!r}?" if near else ""


def show(value: Any) -> str:
    """A short printable form of any value: strange characters escaped, long text cut."""
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!a}... ({len(value):,} characters)"
    text = ascii(value)
    return text if len(text) <= 3 * _SHOWN else text[: 3 * _SHOWN] + "..."


def wrong(reason: str, parsed: str = "", value: float = 0.0) -> Score:
    """The verdict on a wrong response; lone surrogates are escaped, so that it can be stored."""
    return Score(False, value, parsed=_storable(parsed), reason=_storable(reason))


def right(parsed: str) -> Score:
    """The verdict on a right response, storable likewise: some scorers forgive anything around."""
    return Score(correct=True, value=1.0, parsed=_storable(parsed))


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def too_long(response: str, most: int) -> Score | None:
    """A refusal of a response above `most` characters, so that no verifier reads without end."""
    if len(response) <= most:
        return None
    return wrong(f"the response has {len(response):,} characters; at most {most:,} are read")
