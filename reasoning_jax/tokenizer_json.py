"""A `tokenizer.json` from a stranger: parsed and used without panics, blow-ups or huge tables.

The `tokenizers` library is Rust: what it does not expect is a panic, which Python sees as a
BaseException that is no Exception. Nothing here knows what a vocabulary is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")
# How much longer normalizers may make a text, all together. Those of published tokenizers: 4.
_MOST_GROWTH = 1_000
# Texts of which most tokenizers know one.
_PROBES = ("a", "e", "0", " ", "A", "\n")


class TokenizerError(ValueError):
    """A tokenizer.json that is none, or that does not do what it is asked to."""


def parse_tokenizer_json(text: str) -> Any:
    """A `tokenizers.Tokenizer` that neither cuts nor pads.

    Refused are ids that a file of this size cannot number (a table has a row for each), and steps
    that could multiply a text: 40 replacements of "a" by "aa" make a terabyte of one letter.

    Raises:
      TokenizerError
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(_first_line(error)) from None
    if not isinstance(values, dict):
        raise TokenizerError(f"wanted a JSON object, got {type(values).__name__}")
    growth = 1
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        for part in _parts(values.get(name)):
            growth = min(growth * _factor(part), _MOST_GROWTH + 1)
    if growth > _MOST_GROWTH:
        raise TokenizerError(
            f"its replacements could make a text more than {_MOST_GROWTH:,} times longer"
        )
    import tokenizers

    tokenizer = guarded(tokenizers.Tokenizer.from_str, text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    highest = max(guarded(tokenizer.get_vocab).values(), default=-1)
    if highest >= len(text):
        raise TokenizerError(
            f"token id {highest:,} is more than a file of {len(text):,} characters can number"
        )
    return tokenizer


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a `tokenizers.Tokenizer` itself puts before every text, and behind it.

    Raises:
      TokenizerError: its post-processor fails.
    """
    for text in _probes(tokenizer):
        try:
            bare = guarded(tokenizer.encode, text, add_special_tokens=False).ids
        except TokenizerError:
            continue  # it has no token for what it does not know
        whole = guarded(tokenizer.encode, text, add_special_tokens=True).ids
        if not bare:
            continue  # no letter of the text is in the vocabulary
        for i in range(len(whole) - len(bare) + 1):
            if whole[i : i + len(bare)] == bare:
                return whole[:i], whole[i + len(bare) :]
        raise TokenizerError(f"it makes {len(whole)} ids of {len(bare)}, none of them the text's")
    return [], []


def _probes(tokenizer: Any) -> Iterator[str]:
    """Texts of which the tokenizer should know one: last some of its own tokens."""
    yield from _PROBES
    yield from itertools.islice(guarded(tokenizer.get_vocab, with_added_tokens=False), 8)


def guarded(function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
    """Call into the library; whatever goes wrong there is a TokenizerError.

    Raises:
      TokenizerError
      UnicodeEncodeError, TypeError: the text has a lone surrogate.
    """
    try:
        return function(*arguments, **named)
    except (KeyboardInterrupt, SystemExit, UnicodeEncodeError, TypeError):
        raise
    except BaseException as error:
        raise TokenizerError(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:200]


def _parts(values: Any) -> Iterator[dict[str, Any]]:
    """The steps of a (nested) sequence. Not recursive: JSON nests deeper than Python calls."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _factor(part: dict[str, Any]) -> int:
    """How much longer a step can make a text."""
    if part.get("type") == "ByteLevel":
        return 2  # a letter for each byte
    content, pattern = part.get("content"), part.get("pattern")
    if part.get("type") != "Replace" or not isinstance(content, str):
        return 1
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1, -(-len(content) // len(literal)))
    return 1 + len(content)  # a regular expression may match nothing, anywhere
