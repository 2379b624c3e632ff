"""Noise for text from bigram counts: a wrong token that could have followed the one before it.

The definition is ours, not a paper's. A wrong token z before the clean token x_i, where x_{i-1} is
the token before that, is drawn with

    p(z | x_{i-1}) proportional to count(x_{i-1}, z) + smoothing / V,   z != x_i,

V being the number of text ids: so such an error is as plausible locally as the training data make
it. Of a longer run, each further token is drawn so (with nothing excluded) given the noise token
before it. Where the token before has no other continuation and there is no smoothing, the choice is
uniform over the text ids. Nothing here reads files or knows a vocabulary, and no count goes beyond
pairs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from reasoning_jax.data.examples import DataError

MAX_TOKENS = 2_000_000
SMOOTHING = 1.0
_MAX_ID = 2**31 - 1
# A pair of ids as one integer: previous << 32 | next.
_SHIFT = 32
# Pairs are counted in parts of so many.
_PART = 1 << 18


@dataclass(frozen=True, eq=False, repr=False)
class NgramNoise:
    """Bigram counts as a sparse matrix by rows; make it with `from_sequences`.

    Row r belongs to the previous token `previous_ids[r]` (ascending). Its continuations are
    `next_ids[starts[r]:starts[r + 1]]` (ascending); `cumulative[j]` is the sum of the counts of all
    entries before the j-th. `text_ids` (ascending) is what noise may consist of. All are int64: a
    search in an array of another type would copy it first.
    """

    text_ids: np.ndarray
    previous_ids: np.ndarray
    starts: np.ndarray
    next_ids: np.ndarray
    cumulative: np.ndarray
    smoothing: float

    @staticmethod
    def from_sequences(
        sequences: Iterable[Sequence[int]],
        text_ids: Sequence[int],
        max_tokens: int = MAX_TOKENS,
        smoothing: float = SMOOTHING,
    ) -> NgramNoise:
        """Count the pairs within each sequence whose second token is a text id.

        Reading stops after `max_tokens` tokens. Memory is 16 bytes a distinct pair, at most
        `max_tokens` of them. `smoothing` is added to each row's count, spread over all text ids.

        Raises:
          DataError: no text ids, no pairs, an id that is negative or above 2^31 - 1, or a negative
            `smoothing`.
        """
        if not 0 <= smoothing < np.inf:
            raise DataError(f"smoothing must be a number >= 0, got {smoothing}")
        allowed = np.unique(_as_ids(text_ids))
        if not len(allowed):
            raise DataError("got no text ids, wanted at least one that noise may consist of")
        keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for part in _parts(_pairs(sequences, max_tokens)):
            part = part[np.isin(part & _MAX_ID, allowed)]
            ones = np.ones(len(part), np.int64)
            keys, counts = _merged(np.append(keys, part), np.append(counts, ones))
        if not len(keys):
            raise DataError(
                f"got no pairs of tokens to count in up to {max_tokens:,} tokens, wanted at least "
                "one; give training sequences of two tokens or more"
            )
        previous_ids, starts = np.unique(keys >> _SHIFT, return_index=True)
        noise = NgramNoise(
            text_ids=allowed,
            previous_ids=previous_ids,
            starts=np.append(starts, len(keys)),
            next_ids=keys & _MAX_ID,
            cumulative=np.append(0, np.cumsum(counts)),
            smoothing=float(smoothing),
        )
        for column in noise._columns():
            column.flags.writeable = False
        return noise

    def draw(
        self, rng: np.random.Generator, previous: int | None, right: int, run: int
    ) -> np.ndarray | None:
        """`run` noise tokens [run] int64 to stand after `previous`, the first of them not `right`.

        None where `right` is the only text id: then there is no wrong token. `previous` None (there
        is no token before) makes the first choice uniform.
        """
        return self._draw(rng.random(run), previous, right)

    def __repr__(self) -> str:
        checksum = 0
        for column in self._columns():
            checksum = zlib.crc32(column.tobytes(), checksum)
        return (
            f"NgramNoise(bigrams={len(self.next_ids)}, tokens={self.cumulative[-1]}, "
            f"text_ids={len(self.text_ids)}, smoothing={self.smoothing}, crc32={checksum:08x})"
        )

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.text_ids, self.previous_ids, self.starts, self.next_ids, self.cumulative

    def _draw(self, uniform: np.ndarray, previous: int | None, right: int) -> np.ndarray | None:
        out = np.empty(len(uniform), np.int64)
        excluded: int | None = right
        for k, u in enumerate(uniform):
            token = self._continuation(float(u), previous, excluded)
            if token is None:
                return None
            out[k] = previous = token
            excluded = None
        return out

    def _continuation(self, u: float, previous: int | None, excluded: int | None) -> int | None:
        """The token that the uniform number `u` in [0, 1) selects; None where there is none."""
        others = len(self.text_ids)
        gap = None if excluded is None else _find(self.text_ids, excluded)
        if gap is not None:
            others -= 1
        if not others:
            return None
        first, last = self._row(previous)
        before = self.cumulative[first]
        counted = int(self.cumulative[last] - before)
        hole = None if excluded is None else _find(self.next_ids[first:last], excluded)
        if hole is not None:
            hole_start = int(self.cumulative[first + hole] - before)
            hole_width = int(self.cumulative[first + hole + 1] - before) - hole_start
            counted -= hole_width
        added = self.smoothing * others / len(self.text_ids) if counted else 1.0
        place = u * (counted + added)
        if place < counted:
            # The excluded token's counts are stepped over.
            at = int(place)
            if hole is not None and at >= hole_start:
                at += hole_width
            ends = self.cumulative[first + 1 : last + 1]
            return int(self.next_ids[first + np.searchsorted(ends, before + at, side="right")])
        at = min(int((place - counted) / added * others), others - 1)
        return int(self.text_ids[at + (gap is not None and at >= gap)])

    def _row(self, previous: int | None) -> tuple[int, int]:
        row = None if previous is None else _find(self.previous_ids, previous)
        return (0, 0) if row is None else (int(self.starts[row]), int(self.starts[row + 1]))


def draw_ngram_noise(
    rng: np.random.Generator,
    clean: np.ndarray,
    rate: float,
    run: int,
    ngrams: NgramNoise,
    previous: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens get noise before them, and which: (noised [T], noise [T, run]), numpy.

    As `backspace.draw_noise`, with noise from bigram counts; `previous` is the token before
    `clean[0]`. Where there is no noise, `noise` holds an arbitrary text id.
    """
    T = len(clean)
    noised = rng.random(T) < rate
    # Drawn for all places, so that the noise at one does not depend on which others have any.
    uniform = rng.random((T, run))
    noise = np.full((T, run), ngrams.text_ids[0], np.int64)
    for i in np.flatnonzero(noised):
        before = int(clean[i - 1]) if i else previous
        drawn = ngrams._draw(uniform[i], before, int(clean[i]))
        if drawn is None:
            noised[i] = False
        else:
            noise[i] = drawn
    return noised, noise


def _as_ids(ids: Sequence[int]) -> np.ndarray:
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if not array.size:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"got token ids of shape {array.shape} and type {array.dtype}, wanted a sequence of "
            "integers"
        )
    if array.min() < 0 or array.max() > _MAX_ID:
        raise DataError(
            f"got token ids from {array.min()} to {array.max()}, wanted them from 0 to {_MAX_ID}"
        )
    return array.astype(np.int64)


def _pairs(sequences: Iterable[Sequence[int]], max_tokens: int) -> Iterator[np.ndarray]:
    """The pairs of each sequence as integers, until `max_tokens` tokens are read."""
    left = max_tokens
    for sequence in sequences:
        ids = _as_ids(sequence[: max(left, 0)])
        yield ids[:-1] << _SHIFT | ids[1:]
        left -= len(ids)
        if left <= 0:
            return


def _parts(pairs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pairs in larger arrays: sorting many small ones is slow."""
    held, size = [], 0
    for some in pairs:
        if len(some):
            held.append(some)
            size += len(some)
        if size >= _PART:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _merged(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, with the sums of their counts."""
    distinct, place = np.unique(keys, return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, place, counts)
    return distinct, sums


def _find(ascending: np.ndarray, value: int) -> int | None:
    """Where `value` stands, or None."""
    place = int(np.searchsorted(ascending, value))
    return place if place < len(ascending) and ascending[place] == value else None
