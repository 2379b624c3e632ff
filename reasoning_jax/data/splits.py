"""Splits of a user's file: each record belongs to the split that a hash of its question names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from reasoning_jax.data.examples import DataError, Example, record_index
from reasoning_jax.data.jsonl import JsonlSource
from reasoning_jax.tasks.base import check_split


class Chosen:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: Any, indices: Sequence[int]):
        self._source, self._indices = source, indices
        self.made_on_demand: bool = getattr(source, "made_on_demand", False)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, len(self))
        return dataclasses.replace(self._source[self._indices[index]], index=index)

    def place(self, index: int) -> str:
        """Where a record stands in its file."""
        return self._source.place(self._indices[index])

    def problem(self, index: int) -> Any:
        """Of a source of problems: the problem itself."""
        return self._source.problem(self._indices[record_index(index, len(self))])

    def __repr__(self) -> str:
        return f"Chosen({self._source!r}, records={len(self)})"


class HashSplit(Chosen):
    """The records of `source` whose question falls into `split`; disjoint between splits.

    Raises:
      DataError: no record falls into the split.
    """

    def __init__(self, source: JsonlSource, split: str):
        check_split(split)
        super().__init__(source, source.indices(split))
        self._split = split
        if not self._indices:
            raise DataError(
                f"{source.path}: none of its {len(source)} records falls into the {split} split "
                "(80 % train, 10 % validation, 10 % test, by a hash of the question);\n"
                "give more records, or a file of its own as data.validation_path"
            )

    def __repr__(self) -> str:
        return f"HashSplit({self._source!r}, {self._split!r})"
