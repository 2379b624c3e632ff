"""What config sections are made of: fields with their rules, and the words of refusals."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names key, value, rule and nearest legal."""


# Steps, rows and positions are counted in int32 on devices.
MAX_INT = 2**31 - 1
SHOWN = 80


def number(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A number in [low, high]; `above` and `below` are bounds that it must not reach."""
    if high is None and isinstance(default, int):
        high = MAX_INT
    rules = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata=rules)


def choice(default: str, *options: str) -> Any:
    """One of some words."""
    return field(default=default, metadata={"choices": (default, *options)})


def show(value: Any) -> str:
    """A value for a message: one line, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = "a very long integer"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def int_hint(kind: type, value: Any) -> str:
    """ "; write 100000" for 1e5 given as an int, whether as a number or as text."""
    try:
        whole = kind is int and float(value).is_integer() and abs(float(value)) <= MAX_INT
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"; write {int(float(value))}" if whole and not isinstance(value, bool) else ""


def nearest_name(name: str, options: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:SHOWN], list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(options)}"


def as_tuple(value: Any) -> Any:
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def article(kind: str) -> str:
    return {"int": "an int", "str": "a string", "bool": "true or false"}.get(kind, f"a {kind}")
