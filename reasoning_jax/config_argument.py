"""The ARG of `--config=FILE:ARG`: "name=value,name=value", where values may hold commas and "=".

Splits and converts text; the file system is only asked whether a path is there.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from reasoning_jax.config_fields import ConfigError, article, int_hint, nearest_name, show

_QUOTES = "\"'"


def parse_assignments(arg: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `arg` gives, of the types of their defaults: bool, int, float or str.

    Raises:
      ConfigError: an unknown name, a missing value, or one that is not of its default's type.
    """
    values: dict[str, Any] = {}
    for name, text in _assignments(arg, defaults):
        if text is None:
            raise ConfigError(
                f"config argument {name} needs a value, as in {name}={defaults[name]}"
            )
        values[name] = _parse_as(name, text, defaults[name])
    return values


def _assignments(arg: str, defaults: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(name, text) of each part; text is None where there is no "=" behind the name of no bool."""
    at = 0
    while at < len(arg):
        if arg[at] == ",":
            at += 1
            continue
        part = arg[at:].partition(",")[0]
        name, given, _ = part.partition("=")
        if name not in defaults:
            raise ConfigError(
                f"config argument {show(name)} is unknown{nearest_name(name, defaults)}"
            )
        if not given:
            at += len(part)
            yield name, "true" if isinstance(defaults[name], bool) else None
            continue
        begin = at + len(name) + 1
        if isinstance(defaults[name], str):
            text, at = _text(arg, begin, name, defaults)
        else:
            text, at = part[len(name) + 1 :], at + len(part)
        yield name, text


def _text(arg: str, begin: int, name: str, defaults: Mapping[str, Any]) -> tuple[str, int]:
    """The text of a string argument that begins at `begin`, and where the next part begins."""
    rest = arg[begin:]
    if rest[:1] in _QUOTES and not _exists(rest):
        for close in _places(rest, rest[:1]):
            if close and rest[close + 1 : close + 2] in ("", ","):
                return rest[1:close], begin + close + 1
    # Where the text may end: at a comma with the name of an argument behind it, or at the end.
    ends = [i for i in _places(rest, ",") if _begins_argument(rest[i + 1 :], defaults)]
    ends.append(len(rest))
    there = [end for end in ends if _exists(rest[:end])]
    if len(there) > 1:
        short, long = (show(rest[:end])[1:-1] for end in (there[0], there[-1]))
        raise ConfigError(
            f"config argument {name} may be {short} or {long}, and both are there; put quotes "
            f"around what is meant, {name}='{short}'"
        )
    end = there[0] if there else ends[0]
    if not there:
        _refuse_misspelt(rest[:end], name, defaults)
    return rest[:end], begin + end


def _begins_argument(text: str, defaults: Mapping[str, Any]) -> bool:
    name, given, _ = text.partition(",")[0].partition("=")
    return name in defaults and (bool(given) or isinstance(defaults[name], bool))


def _refuse_misspelt(text: str, name: str, defaults: Mapping[str, Any]) -> None:
    """Refuse a part of a text that looks like another argument with a slip in its name."""
    for part in text.split(",")[1:]:
        other, given, _ = part.partition("=")
        near = difflib.get_close_matches(other[:80], defaults, n=1, cutoff=0.75)
        if given and near:
            raise ConfigError(
                f"config argument {show(other)} is unknown; did you mean {near[0]}? If it is a "
                f"part of {name}, put quotes around that: {name}='{show(text)[1:-1]}'"
            )


def _places(text: str, letter: str) -> list[int]:
    return [i for i, other in enumerate(text) if other == letter]


def _exists(path: str) -> bool:
    try:
        return bool(path) and os.path.exists(path)
    except ValueError:  # a NUL, a lone surrogate
        return False


def _parse_as(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"config argument {name} must be {article(kind.__name__)}, got {show(text)} "
            f"(default {default!r}){int_hint(kind, text)}"
        ) from None
