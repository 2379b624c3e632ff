"""Sequences of ids as padded arrays on the devices, a batch at a time. Runs no model.

Also where the thoughts in them are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.model import latent

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Sequences are padded to a multiple of this, so that few shapes are compiled.
BUCKET = 16
# So many times the rows that are decoded at a time wait in one queue: few enough for what is kept
# of each row, and so many that the end, where places stay empty, is short beside the rest.
QUEUED_BATCHES = 16


class PaddedIds(NamedTuple):
    """The sequences `begin` to `begin + count` - 1, right-padded with 0, and the length of each.

    Rows from `count` on repeat the sequence before `begin` (the last of all, before the first).
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
    yield from _padded(sequences, min(batch_rows, len(sequences)), mesh)


def queued_batches(
    sequences: Sequence[Sequence[int]], group: int, batch_rows: int, mesh: jax.sharding.Mesh
) -> Iterator[PaddedIds]:
    """All prompts in order, in queues for a sampler that decodes `batch_rows` at a time.

    Each of them is continued `group` times. Where one batch is not enough, every queue has the
    shape of a full one, so that another number of prompts is no other program.
    """
    if not sequences:
        return
    rows = len(sequences)
    if rows * group > batch_rows:
        rows = max(1, QUEUED_BATCHES * batch_rows // group)
    yield from _padded(sequences, rows, mesh)


def paired_batches(
    sequences: Sequence[Sequence[int]],
    counts: Sequence[int],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[PaddedIds, list[int]]]:
    """Batches in which every row has one count, with the places of their sequences in the list.

    Each row stands behind the one before it of its count, and the first of all behind the last, in
    whatever batches: the one before a batch's first fills its end. All batches have one shape;
    `begin` is that of the sequences in order of their counts.

    Raises:
      ValueError: a count that only one sequence has (`partnered` finds those that can be taken).
    """
    if not sequences:
        return
    if len(partnered(counts)) < len(counts):
        raise ValueError("each row needs another one with as many thoughts")
    rows = min(batch_rows, len(sequences)) + 1
    rows += -rows % sharding.batch_parts(mesh)
    width = max(map(len, sequences))
    width += -width % BUCKET
    done = 0
    for count in sorted(set(counts)):
        group = [i for i, c in enumerate(counts) if c == count]
        for begin in range(0, len(group), rows - 1):
            places = group[begin : begin + rows - 1]
            filled = places + [group[begin - 1]] * (rows - len(places))
            batch = _place([sequences[i] for i in filled], width, done, len(places), mesh)
            yield batch, places
            done += len(places)


def partnered(counts: Sequence[int]) -> list[int]:
    """The places whose count another one has too, or that need no other, since theirs is 0."""
    times = Counter(counts)
    return [i for i, count in enumerate(counts) if count == 0 or times[count] > 1]


def _padded(
    sequences: Sequence[Sequence[int]], rows: int, mesh: jax.sharding.Mesh
) -> Iterator[PaddedIds]:
    rows += -rows % sharding.batch_parts(mesh)
    width = max(map(len, sequences))
    width += -width % BUCKET
    for begin in range(0, len(sequences), rows):
        chunk = list(sequences[begin : begin + rows])
        filled = chunk + [sequences[begin - 1]] * (rows - len(chunk))
        yield _place(filled, width, begin, len(chunk), mesh)


def _place(
    filled: Sequence[Sequence[int]], width: int, begin: int, count: int, mesh: jax.sharding.Mesh
) -> PaddedIds:
    ids = np.zeros((len(filled), width), np.int32)
    for i, sequence in enumerate(filled):
        ids[i, : len(sequence)] = sequence
    length = np.array([len(sequence) for sequence in filled], np.int32)
    return PaddedIds(begin, count, *(sharding.place_rows(x, mesh) for x in (ids, length)))


def slots_of(
    ids: np.ndarray, length: np.ndarray, latent_id: int, mesh: jax.sharding.Mesh
) -> latent.Slots | None:
    """Where the thoughts of right-padded prompts are, on the devices; None if there are none.

    Raises:
      ValueError: as `latent.find_thoughts`.
    """
    real = np.arange(ids.shape[1])[None, :] < length[:, None]
    first, count = latent.find_thoughts(ids, real, latent_id)
    n = int(count.max())
    if n == 0:
        return None
    rest = int((length - first - count).max())
    # A marker alone is exact; more comes in sizes, so that few shapes are compiled.
    rest = rest if rest <= 2 else rest + -rest % (BUCKET // 2)
    placed = (sharding.place_rows(x.astype(np.int32), mesh) for x in (first, count))
    return latent.Slots(*placed, n=n, rest=rest)
