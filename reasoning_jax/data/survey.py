"""How long a user's records are, for a config that takes its lengths from the data.

Reads the whole file once, and remembers it while the process lives and the file is the same.
Nothing here decides a length.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reasoning_jax.data.examples import DataError, render
from reasoning_jax.data.jsonl import JsonlSource


@dataclass(frozen=True)
class Survey:
    """Of the good records: `rows` to train on, to validate on, and in all; the most units (bytes,
    or what `count` counts) of a whole row and of its response, and of all rows together; whether
    any record has steps, and the share of bytes that are more than characters.
    """

    train: int
    validation: int
    rows: int
    longest: int
    longest_response: int
    total: int
    has_steps: bool
    bytes_per_character: float


def survey(
    path: str,
    validation_path: str = "",
    columns: Sequence[str] = (),
    *,
    question_suffix: str = "\n",
    step_suffix: str = "\n",
    answer_prefix: str = "",
    count: Callable[[str], int] | None = None,
) -> Survey:
    """Survey one or two files of records; bad records are left out, to be told by the run itself.

    Without steps anywhere, `answer_prefix` is left out of the lengths. Raises DataError.
    """
    stamps = []
    for file in filter(None, (path, validation_path)):
        try:
            status = os.stat(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        stamps.append((file, status.st_size, status.st_mtime_ns))
    layout = (question_suffix, step_suffix, answer_prefix)
    return _survey(tuple(stamps), tuple(columns), layout, count)


@functools.lru_cache(maxsize=4)
def _survey(
    stamps: tuple[tuple[str, int, int], ...],
    columns: tuple[str, ...],
    layout: tuple[str, str, str],
    count: Callable[[str], int] | None,
) -> Survey:
    sources = [JsonlSource(path, columns, layout[2], skip=True) for path, _, _ in stamps]
    has_steps = any(example.steps for source in sources for example in _all(source))
    layout = layout if has_steps else (*layout[:2], "")
    length = count or _bytes
    longest = longest_response = total = characters = in_bytes = 0
    for source in sources:
        for example in _all(source):
            prompt, response = render(example, *layout)
            given, answered = length(prompt), length(response)
            longest = max(longest, given + answered)
            longest_response = max(longest_response, answered)
            total += given + answered
            characters += len(prompt) + len(response)
            in_bytes += _bytes(prompt) + _bytes(response)
    rows = sum(map(len, sources))
    if len(sources) == 2:
        train, validation = map(len, sources)
    else:
        train, validation = (len(sources[0].indices(s)) for s in ("train", "validation"))
    return Survey(
        train, validation, rows, longest, longest_response, total, has_steps, in_bytes / characters
    )


def _all(source: JsonlSource) -> map:
    return map(source.__getitem__, range(len(source)))


def _bytes(text: str) -> int:
    return len(text.encode())
