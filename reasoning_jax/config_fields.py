"""What config sections are made of: fields with their rules, and the words of refusals."""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names key, value, rule and nearest legal."""


# Steps, rows and positions are counted in int32 on devices.
MAX_INT = 2**31 - 1
# The normal numbers of float32, in which devices compute: what is smaller or larger becomes 0, inf
# or a number of few digits there.
LEAST_FLOAT, MOST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127
# Bounds of what is divided by, or multiplied with, numbers that occur: neither result overflows.
TINY, HUGE = 1e-30, 1e6
# Logits divided by a temperature stay far from what stands for minus infinity.
COLDEST = 1e-6
# `threading` waits no longer than this.
MAX_SECONDS = 1e9
SHOWN = 80


def number(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    least: float | None = None,
) -> Any:
    """A number in [low, high]; `above` and `below` are bounds that it must not reach, also not when
    it is rounded to float32. `least`: the smallest that it may be without being 0.
    """
    if high is None and isinstance(default, int):
        high = MAX_INT
    rules = {"low": low, "high": high, "above": above, "below": below, "least": least}
    return field(default=default, metadata=rules)


def word_or_int(word: str, low: int) -> Any:
    """An integer from `low` on, or a word, which is the default."""
    rules = {"low": low, "high": MAX_INT, "choices": (word,)}
    return field(default=word, metadata=rules)


def as_float32(value: float) -> float:
    """The float32 nearest to `value`, infinite beyond the largest."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


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


# Keys by the names that they have in other programs.
_ELSEWHERE = {
    "lr": "learning_rate", "wd": "weight_decay", "bs": "batch_rows", "batch_size": "batch_rows",
    "max_tokens": "max_new_tokens", "max_length": "seq_len", "lora_rank": "rank", "lora_r": "rank",
}  # fmt: skip


def nearest_key(name: str, keys: Iterable[str]) -> str | None:
    """Of dotted keys the one that `name` was meant to be: learning_rate, lr, train.seed, or a typo.

    Its last part counts most, whatever section it was put into; None where nothing is near.
    """
    name = name[:SHOWN].lower().replace("-", "_")
    last = name.rpartition(".")[2]
    last = _ELSEWHERE.get(last, last)
    ends = {key: key.rpartition(".")[2] for key in keys}
    meant = [key for key in ends if ends[key] == last]
    if not meant:
        near = difflib.get_close_matches(last, ends.values(), n=1, cutoff=0.75)
        # By its initials, as tp is top_p.
        meant = [key for key in ends if ends[key] in near] or [
            key for key in ends if last and last == "".join(w[:1] for w in ends[key].split("_"))
        ]
    return min(
        meant, key=lambda key: -difflib.SequenceMatcher(None, name, key).ratio(), default=None
    )


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings (ConfigDicts, too) by dotted name, {"train.steps": 1000}."""
    if not hasattr(values, "keys"):
        return {prefix[:-1]: values}
    return {k: v for name in values for k, v in flat(values[name], f"{prefix}{name}.").items()}


def as_tuple(value: Any) -> Any:
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def article(kind: str) -> str:
    return {"int": "an int", "str": "a string", "bool": "true or false"}.get(kind, f"a {kind}")
