"""The rewindable KV cache: one slot a position, and a length for each row.

Slots at or beyond a row's length are stale: never attended, overwritten later. So taking back the
last tokens of a row is writing a smaller integer (`rewind`), and rows of one batch may differ.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@struct.dataclass
class Cache:
    """Keys and values of each layer in the compute dtype; `length` [B] counts live slots.

    A layer is an array of its own, since slices of one would be copied in each step; the heads
    stand before the slots, as attention reads them.
    """

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    length: Int[Array, " B"]

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]


def rewind(cache: Cache, length: Int[Array, " B"]) -> Cache:
    """The cache with its rows cut to `length` [B] slots; nothing is moved."""
    return dataclasses.replace(cache, length=length)


def of_columns(
    keys: Float[Array, "L B T K H"], values: Float[Array, "L B T K H"], slots: int
) -> Cache:
    """A cache of `slots` slots that begins with these columns, as `transformer.apply` returns them;
    all T of them are live.
    """
    B, T = keys.shape[1:3]

    def place(x: jax.Array) -> tuple[jax.Array, ...]:
        x = jnp.pad(x.swapaxes(2, 3), [(0, 0)] * 3 + [(0, slots - T), (0, 0)])
        return tuple(x[i] for i in range(x.shape[0]))

    length = jnp.full((B,), T, jnp.int32)
    if sharding.has_mesh():
        length = jax.reshard(length, sharding.P(sharding.axis_of(keys, 1)))
    return Cache(place(keys), place(values), length)


def write(
    old: Float[Array, "B K S H"], new: Float[Array, "B T K H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """A layer's keys (or values) with T more columns of every row, from slot `start[b]` on.

    Rows whose slots would end beyond S are clamped by XLA: callers bound their lengths themselves.
    """

    def row(old: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(old, new, (0, start, 0))

    return jax.vmap(row)(old, new.swapaxes(1, 2), start)


def extend(
    cache: Cache, keys: Float[Array, "L B T K H"], values: Float[Array, "L B T K H"]
) -> Cache:
    """The cache with T more columns of every row in every layer."""

    def place(old: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(write(o, new[i], cache.length) for i, o in enumerate(old))

    return Cache(place(cache.keys, keys), place(cache.values, values), cache.length + keys.shape[2])
