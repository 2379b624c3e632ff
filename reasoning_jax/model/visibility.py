"""Which columns of a pass see which, as data of each column rather than as a mask.

A description says it for whole rows: `Causal` (by place in the row, within segments),
`backspace.Live` (what an edited sequence has left standing) or `Dense` (any boolean mask). `Marks`
are the same per column, so that the mask of a block of queries and keys is made where it is needed
and none of [T, T] ever exists; `Dense` alone is one already. Nothing is attended to here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

from reasoning_jax import sharding
from reasoning_jax.backspace import Live

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Causal:
    """Query i sees key j <= i; with `segments` [B, T] (0 is padding) only inside its segment."""

    segments: Int[Array, "B T"] | None = None


@struct.dataclass
class Dense:
    """Query i sees key j where `mask[b, i, j]`."""

    mask: Bool[Array, "B T T"]


Description = Causal | Dense | Live


@struct.dataclass
class Marks:
    """What decides about columns: their place in the row, and what their description knows."""

    column: Int[Array, "B T"]
    of: Description

    def part(self, begin: int, end: int) -> Marks:
        """Of the columns [begin, end)."""
        return jax.tree.map(lambda x: x[:, begin:end], self)


def sees(queries: Marks, keys: Marks) -> Bool[Array, "B t S"]:
    """The mask of some queries and keys of one description; of `Dense` ones the keys are all."""
    if isinstance(queries.of, Dense):
        return queries.of.mask

    column, other = queries.column[:, :, None], keys.column[:, None, :]
    if isinstance(queries.of, Live):
        assert isinstance(keys.of, Live)
        return queries.of.below(keys.of) | (column == other)
    mask = column >= other
    if queries.of.segments is None:
        return mask
    assert isinstance(keys.of, Causal)
    assert keys.of.segments is not None
    return mask & (queries.of.segments[:, :, None] == keys.of.segments[:, None, :])


def columns_of(x: Float[Array, "B T *rest"]) -> Int[Array, "B T"]:
    """The columns of an array's rows, counted from 0 and split over devices as its rows are."""
    row = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return sharding.reshard(row, sharding.P(sharding.axis_of(x, 0), None))


def visibility(description: Description, x: Float[Array, "B T *rest"]) -> Bool[Array, "B T T"]:
    """The whole mask of a description, for columns such as those of `x`."""
    marks = Marks(columns_of(x), description)
    return sees(marks, marks)
