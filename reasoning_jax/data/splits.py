"""Splits of a user's file: each record belongs to the split that a hash of its question names."""

from __future__ import annotations

import dataclasses

from reasoning_jax.data.examples import DataError, Example, record_index
from reasoning_jax.data.pipeline import ExampleSource
from reasoning_jax.tasks.base import check_split, split_of


class HashSplit:
    """The records of `source` whose question falls into `split`; disjoint between splits.

    Raises:
      DataError: no record falls into the split.
    """

    def __init__(self, source: ExampleSource, split: str):
        check_split(split)
        self._source, self._split = source, split
        self._indices = [
            i for i in range(len(source)) if split_of(source[i].question.strip()) == split
        ]
        if not self._indices:
            raise DataError(
                f"{source!r}: none of its {len(source)} records falls into the {split} split (80 % "
                "train, 10 % validation, 10 % test, by a hash of the question);\n"
                "give more records, or a file of its own as data.validation_path"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, len(self))
        return dataclasses.replace(self._source[self._indices[index]], index=index)

    def __repr__(self) -> str:
        return f"HashSplit({self._source!r}, {self._split!r})"
