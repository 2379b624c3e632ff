"""Grain pipelines: from a random-access source of examples to batches, with a resumable place.

Order and noise are functions of the seed and of the position in the global stream alone; the stream
is shuffled before it is divided among processes. The place is a small JSON-able dict, exact to the
example.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import grain
import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError
from reasoning_jax.data.batch import Batch, Encoder, RowError, padded
from reasoning_jax.data.examples import Example

# Rounds of the index permutation; fewer than 4 leave visible structure.
_SHUFFLE_ROUNDS = 4
# Up to here a permutation is kept in memory: the index cipher is slow for few indices.
_SHUFFLE_IN_MEMORY = 1 << 16
# Every number of rows is a compilation: there are at most this many.
_TOKEN_ROW_BUCKETS = 8
# How often another problem is drawn for one that does not fit.
_REDRAWS = 100
_REDRAW = 0x5EED
_TOLD_FIRST = 3
_T = TypeVar("_T")
_FIELDS = ("actions", "labels", "weights", "floor", "noised")


class ExampleSource(Protocol):
    """Random access to examples; TaskSource, JsonlSource and TfdsSource are such."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Example: ...


class BatchSource(Protocol):
    """All that the training loop knows about data."""

    def next(self, state: Any) -> Batch:
        """The next global batch for the current train state (which supervised data ignores)."""
        ...

    def save(self) -> dict[str, Any]:
        """The place in the stream, JSON-able."""
        ...

    def restore(self, place: dict[str, Any]) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What else must be saved, such as a replay buffer, in shapes that never change."""
        ...

    def restore_arrays(self, arrays: dict[str, np.ndarray]) -> None: ...

    def meta(self) -> dict[str, Any]:
        """What evaluation must know of a checkpoint, such as the stage of a curriculum."""
        ...

    def describe(self) -> Callable[[], dict[str, Any]]:
        """A function that says, JSON-able, which examples the last batch was made of. It costs
        nothing until it is called, and stays right when later batches have been made.
        """
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds of `next` since the last call that are to be told apart, by their purpose."""
        ...

    @property
    def fresh_optimizer(self) -> bool:
        """Whether the step of the last batch is to begin with a new optimizer."""
        ...


def _shuffled(seed: int, epoch: int, place: int, n: int) -> int:
    """Where a place of an epoch's order points, of n examples: a permutation, new every epoch."""
    if n <= _SHUFFLE_IN_MEMORY:
        return int(_permutation(seed, epoch, n)[place])
    order_seed = (seed * 1_000_003 + epoch) % (1 << 32)
    return grain.experimental.index_shuffle(
        place, max_index=n - 1, seed=order_seed, rounds=_SHUFFLE_ROUNDS
    )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The endless stream of encoded examples, by position: shuffled anew in every epoch.

    What stands at a position, its noise included, depends on the seed and the position alone, not
    on how the stream is divided among processes.

    Records of files have been measured before. Generated problems are too many for that: one that
    does not fit gives its place to another one, drawn from the seed and the position, and is told
    on stderr.
    """

    examples: ExampleSource
    encoder: Encoder
    seed: int
    # Places of the problems that had no row.
    left_out: set[int] = dataclasses.field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return 1 << 48

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        def encode(example: Example) -> dict[str, np.ndarray]:
            rng = np.random.default_rng([self.seed, operator.index(position)])
            return self.encoder.encode(example, rng)

        return self.fitting(position, encode)[1]

    def example(self, position: int) -> Example:
        """The example itself, not encoded."""
        return self._fitting_example(position)[1]

    def index(self, position: int) -> int:
        """Which of the examples stands at a position."""
        return self._fitting_example(position)[0] if self._redraws else self._ordered(position)

    @property
    def _redraws(self) -> int:
        return _REDRAWS if getattr(self.examples, "made_on_demand", False) else 0

    def _fitting_example(self, position: int) -> tuple[int, Example]:
        def checked(example: Example) -> Example:
            if self._redraws:
                self.encoder.fitting_ids(example)
            return example

        return self.fitting(position, checked)

    def fitting(self, position: int, encode: Callable[[Example], _T]) -> tuple[int, _T]:
        """(index, what `encode` makes) of the example at a position; of a task, of the first one
        there for which `encode` raises no RowError.
        """
        index = self._ordered(position)
        for attempt in range(self._redraws):
            try:
                return index, encode(self.examples[index])
            except RowError as error:
                self._tell(index, error)
            rng = np.random.default_rng([_REDRAW, self.seed, operator.index(position), attempt])
            index = int(rng.integers(len(self.examples)))
        return index, encode(self.examples[index])

    def _ordered(self, position: int) -> int:
        n = len(self.examples)
        epoch, place = divmod(operator.index(position), n)
        return _shuffled(self.seed, epoch, place, n)

    def _tell(self, index: int, error: RowError) -> None:
        """Say that a problem does not fit: the first few, then at every power of ten of them."""
        if index in self.left_out:
            return
        self.left_out.add(index)
        count = len(self.left_out)
        if count <= _TOLD_FIRST or count in (10**k for k in range(1, 10)):
            print(
                f"left out: problem {index} of the training data {error.reason}; another one takes "
                f"its place ({count:,} of {len(self.examples):,} left out so far)",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def name_rows(self, first: int, rows: int) -> dict[str, Any]:
        """What stands at `rows` positions from `first` on: the positions and the examples' indices
        in their source, JSON-able.
        """
        examples = [self.index(first + i) for i in range(rows)]
        return {"positions": [first, first + rows - 1], "examples": examples}


@dataclasses.dataclass(frozen=True)
class _PaddedBatches:
    """Batch k of a stream, one example a row: the rows of this process."""

    stream: Stream
    batch_rows: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return len(self.stream) // self.batch_rows

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        local = self.batch_rows // self.process_count
        first = operator.index(k) * self.batch_rows + self.process_index * local
        T = self.stream.encoder.data.seq_len
        return padded([self.stream[first + i] for i in range(local)], local, T)


class SupervisedSource:
    """Batches of encoded examples: shuffled, repeated, augmented, padded or packed."""

    fresh_optimizer = False

    def __init__(
        self,
        examples: ExampleSource,
        encoder: Encoder,
        *,
        batch_rows: int,
        seed: int,
        mesh: jax.sharding.Mesh,
        pack_examples: bool = False,
        count_token_rows: bool = False,
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        if pack_examples and count > 1:
            raise ConfigError(
                f"data.pack_examples=True works in one process, there are {count}: the places of "
                "packed streams differ by process; set it to False"
            )
        if batch_rows % count:
            raise ValueError(f"{batch_rows} rows do not divide among {count} processes")
        self._sharding = sharding.batch_sharding(mesh)
        self._row_sharding = sharding.batch_sharding(mesh, 1)
        self._backspace_id = encoder.vocab.backspace_id
        # On several processes the most would have to be agreed upon.
        self._count_token_rows = count_token_rows and count == 1 and self._backspace_id is not None
        self._stream = stream = Stream(examples, encoder, seed)
        self._rows = batch_rows
        self._packed = pack_examples
        # One reading thread: the work is Python, and more threads only take turns.
        if pack_examples:
            T = encoder.data.seq_len
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_rows)
            random_access: Any = stream
            mine = grain.MapDataset.source(random_access)[index::count]
            packed = grain.experimental.FirstFitPackIterDataset(
                mine.to_iter_dataset(options),
                length_struct={name: T for name in _FIELDS},
                num_packing_bins=batch_rows // count,
            )
            batches = packed.map(_from_packed).batch(batch_rows // count, drop_remainder=True)
        else:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
            padded = _PaddedBatches(stream, batch_rows, index, count)
            random_access: Any = padded
            batches = grain.MapDataset.source(random_access).to_iter_dataset(options)
        self._iterator = iter(batches)

    def next(self, state: Any = None) -> Batch:
        del state
        self._place = self._iterator.get_state()
        return self.place(next(self._iterator))

    def seconds(self) -> dict[str, float]:
        return {}

    def describe(self) -> Callable[[], dict[str, Any]]:
        """Of packed rows only the place in the stream from which they were made is known."""
        place = self._place
        if self._packed:
            return lambda: {"place": place}
        first = int(place["next_index"]) * self._rows
        return functools.partial(self._stream.name_rows, first, self._rows)

    def place(self, local: dict[str, np.ndarray]) -> Batch:
        """This process's rows as a global batch on the devices."""
        rows = self._token_rows(local) if self._count_token_rows else 0
        placed = {
            name: jax.make_array_from_process_local_data(
                self._sharding if values.ndim == 2 else self._row_sharding, values
            )
            for name, values in local.items()
        }
        return Batch(**placed, token_rows=rows)

    def _token_rows(self, local: dict[str, np.ndarray]) -> int:
        """Rows that hold the tokens of each row under P2: the most, up to the next bucket."""
        T = local["actions"].shape[1]
        written = (local["actions"] != self._backspace_id) & (local["segments"] > 0)
        bucket = -(-T // _TOKEN_ROW_BUCKETS)
        most = int(written.sum(axis=1).max())
        return min(T, most + -most % bucket)

    def save(self) -> dict[str, Any]:
        return self._iterator.get_state()

    def restore(self, place: dict[str, Any]) -> None:
        self._iterator.set_state(place)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    def restore_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        del arrays

    def meta(self) -> dict[str, Any]:
        return {}


def _from_packed(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    row = {name: packed[name] for name in _FIELDS}
    row["segments"] = packed["actions_segment_ids"].astype(np.int32)
    return row


def fixed_batches(
    examples: Sequence[Example], encoder: Encoder, batch_rows: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """All examples once, in order, as numpy batches; the last is filled up with padding rows."""
    encoded = [encoder.encode(e, np.random.default_rng([seed, i])) for i, e in enumerate(examples)]
    return [
        padded(encoded[begin : begin + batch_rows], batch_rows, encoder.data.seq_len)
        for begin in range(0, len(encoded), batch_rows)
    ]
