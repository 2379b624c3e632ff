"""Sequences of ids as padded arrays on the devices, a batch at a time. Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Sequences are padded to a multiple of this, so that few shapes are compiled.
BUCKET = 16


class PaddedIds(NamedTuple):
    """The sequences `begin` to `begin + count` - 1, right-padded with 0, and the length of each.

    Rows from `count` on repeat the last sequence.
    """

    begin: int
    count: int
    ids: Int[Array, "R W"]
    length: Int[Array, " R"]


def padded_batches(
    sequences: Sequence[Sequence[int]], batch_rows: int, mesh: jax.sharding.Mesh
) -> Iterator[PaddedIds]:
    """All sequences in order, `batch_rows` at a time (or more, up to what the devices divide).

    All batches have one shape.
    """
    if not sequences:
        return
    rows = min(batch_rows, len(sequences))
    rows += -rows % sharding.batch_parts(mesh)
    width = max(map(len, sequences))
    width += -width % BUCKET
    for begin in range(0, len(sequences), rows):
        chunk = list(sequences[begin : begin + rows])
        filled = chunk + [chunk[-1]] * (rows - len(chunk))
        ids = np.zeros((rows, width), np.int32)
        for i, sequence in enumerate(filled):
            ids[i, : len(sequence)] = sequence
        length = np.array([len(sequence) for sequence in filled], np.int32)
        placed = (sharding.place_rows(x, mesh) for x in (ids, length))
        yield PaddedIds(begin, len(chunk), *placed)
