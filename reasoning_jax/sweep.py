"""Sweeps: an algebra over points. A point is a flat dict, {"optimizer.learning_rate": 1e-3}.

A config file's `get_sweep(arg)` returns points made here. The key "arg" is special: it is the text
that `get_config` is called with, for choices that change many keys at once. Nothing here runs or
reads a file: `commands/sweep.py` does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reasoning_jax.config_fields import (
    ConfigError,
    article,
    as_tuple,
    int_hint,
    nearest_name,
    show,
)

Point = dict[str, Any]
Points = tuple[Point, ...]

ARG = "arg"
# Run folders get files of their own; file systems allow 255 characters a name.
NAME_LENGTH = 100
_ABSENT = "(absent)"


class SweepError(ConfigError):
    """A sweep that cannot be run."""


def fixed(values: Mapping[str, Any], /) -> Points:
    """One point: keys that are the same in all that it is multiplied with."""
    return (_checked(values),)


def sweep(key: str, values: Sequence[Any]) -> Points:
    """One point a value, in their order. Raises SweepError for no values."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise SweepError(f"sweep({key!r}, values) needs a tuple of values, got {show(values)}")
    return tuple(_checked({key: value}) for value in values)


def product(*sweeps: Points) -> Points:
    """Every combination, the last sweep varying fastest; of no sweeps, the one empty point.

    Raises:
      SweepError: two sweeps give a key different values.
    """
    return tuple(_merged(points) for points in itertools.product(*sweeps))


def zip_(*sweeps: Points) -> Points:
    """The first points together, then the second, ...

    Raises:
      SweepError: sweeps of different lengths, or that give a key different values.
    """
    lengths = [len(points) for points in sweeps]
    if len({*lengths}) > 1:
        raise SweepError(f"zip_ needs sweeps of one length, got {lengths}; product combines all")
    return tuple(_merged(points) for points in zip(*sweeps, strict=True))


def chain(*sweeps: Points) -> Points:
    """The points of one sweep after those of the other."""
    return tuple(point for points in sweeps for point in points)


def check_points(points: Any) -> Points:
    """`points` as a tuple of points. Raises SweepError for anything else, none, or one twice."""
    if not isinstance(points, list | tuple):
        raise SweepError(f"get_sweep must return a tuple of dicts, got {show(points)}")
    if not points:
        raise SweepError("the sweep is empty; get_sweep must return at least one point, such as {}")
    seen: dict[str, int] = {}
    for i, point in enumerate(checked := tuple(_checked(p) for p in points)):
        first = seen.setdefault(repr(sorted(point.items())), i)
        if first != i:
            raise SweepError(f"points {first} and {i} of the sweep are the same: {show(point)}")
    return checked


def run_names(points: Points, kept: Sequence[str] = ()) -> tuple[str, ...]:
    """A name a point from the keys that vary: "objective.name=bc,seed=1". Safe as a folder's name.

    What is too long, or equal to another but for what a file name cannot hold, ends in a hash of
    its point. The first names are `kept`: those that a sweep had before it grew.
    """
    keys = sorted({key for point in points for key in point})
    varying = [k for k in keys if len({repr(point.get(k, _ABSENT)) for point in points}) > 1]
    names = [_name(point, varying or keys) for point in points]
    # Some file systems do not tell Name from name.
    taken = Counter(name.casefold() for name in [*names[len(kept) :], *kept])
    for i in range(len(kept), len(names)):
        if len(names[i]) > NAME_LENGTH or taken[names[i].casefold()] > 1:
            text = json.dumps(points[i], sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:10]
            names[i] = f"{names[i][: NAME_LENGTH - 11]}-{digest}"
    return (*kept, *names[len(kept) :])


def apply_point(config: Any, point: Mapping[str, Any]) -> None:
    """Set the keys of a point (but "arg") in a ConfigDict; int -> float is the only conversion.

    Raises:
      SweepError: an unknown key, a section, or a value of another type than the file's.
    """
    for key, value in point.items():
        if key == ARG:
            continue
        *sections, last = names = key.split(".")
        node = config
        for i, name in enumerate(names):
            known = list(node.keys()) if hasattr(node, "keys") else []
            if name not in known:
                hint = nearest_name(name, known) if known else f"; {'.'.join(names[:i])} is a value"
                raise SweepError(f"unknown key {'.'.join(names[: i + 1])}{hint}")
            node = node[name]
        section = config
        for name in sections:
            section = section[name]
        section[last] = _as_type_of(node, key, value)


def _as_type_of(default: Any, key: str, value: Any) -> Any:
    if hasattr(default, "keys"):
        raise SweepError(f"{key} is a section; set one of {', '.join(default.keys())}")
    value, kind = as_tuple(value), type(as_tuple(default))
    if kind is float and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not kind:
        raise SweepError(
            f"{key} must be {article(kind.__name__)}, got {show(value)} ({type(value).__name__}; "
            f"its value in the file is {show(default)}){int_hint(kind, value)}"
        )
    return value


def _checked(point: Any) -> Point:
    """A copy of a point whose values JSON keeps, with tuples for lists."""
    if not isinstance(point, Mapping):
        raise SweepError(f"a point of a sweep is a dict of overrides, got {show(point)}")
    for key, value in point.items():
        if not isinstance(key, str):
            raise SweepError(f"a point's key must be a string, got {show(key)}")
        if key == ARG and not isinstance(value, str):
            raise SweepError(f'"arg" is the string given to get_config, got {show(value)}')
        _check_value(key, value)
    return {key: as_tuple(value) for key, value in point.items()}


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        for element in value:
            _check_value(key, element)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise SweepError(
            f"{key} must be true or false, a number, a string or a tuple of these, got "
            f"{show(value)} ({type(value).__name__}); convert it, as in float(value)"
        )


def _merged(points: Sequence[Point]) -> Point:
    merged: Point = {}
    for point in points:
        for key, value in point.items():
            # 1, 1.0 and True are equal to Python; they are not the same value of a config.
            if repr(merged.setdefault(key, value)) != repr(value):
                raise SweepError(
                    f"{key} is given twice, as {show(merged[key])} and {show(value)}; use chain "
                    "for one after the other"
                )
    return merged


def _name(point: Point, keys: Sequence[str]) -> str:
    # An argument reads "seed=1,objective=bc" already.
    parts = [
        _text(point[key]) if key == ARG and point[key] else f"{key}={_text(point[key])}"
        for key in keys
        if key in point
    ]
    name = re.sub(r"[^A-Za-z0-9_=,.+-]", "-", ",".join(parts))
    return name if name[:1].isalnum() else f"run{name}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
