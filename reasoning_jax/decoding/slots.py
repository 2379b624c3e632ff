"""Rows of a batch that are exchanged for others: taken out of a queue, put into slots.

A batch whose rows are divided among devices consists of parts, one a device. What is put into a
part's slots is written on its device; a queue is whole on every device, so that nothing but small
integers crosses between them. It knows neither model nor sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


def parts_of(rows: Any) -> int:
    """Among how many devices a batch is divided, of its mesh axis (or axes, or None)."""
    names = () if rows is None else (rows,) if isinstance(rows, str) else rows
    shape = jax.sharding.get_abstract_mesh().shape if names else {}
    n = 1
    for name in names:
        n *= shape[name]
    return n


def replicated(x: jax.Array) -> jax.Array:
    """`x` with all of its rows on every device; how its other axes are split stays."""
    rest = (sharding.axis_of(x, i) for i in range(1, x.ndim))
    return sharding.reshard(x, sharding.P(None, *rest))


def divided(x: jax.Array, rows: Any) -> jax.Array:
    """`x` with its rows divided over the mesh axes `rows`, or whole where they do not divide."""
    rest = (sharding.axis_of(x, i) for i in range(1, x.ndim))
    rows = None if x.shape[0] % parts_of(rows) else rows
    return sharding.reshard(x, sharding.P(rows, *rest))


def take_rows(x: jax.Array, index: Int[Array, " R"]) -> jax.Array:
    """Rows `index` of a replicated `x`, on the devices that `index` is divided among."""
    if not sharding.has_mesh():
        return x[index]
    rest = (sharding.axis_of(x, i) for i in range(1, x.ndim))
    return x.at[index].get(out_sharding=sharding.P(sharding.axis_of(index, 0), *rest))


def by_part(x: jax.Array, n: int) -> jax.Array:
    """[n * b, ...] as [n, b, ...], a part each."""
    rows, *rest = (sharding.axis_of(x, i) for i in range(x.ndim))
    return sharding.reshape(x, (n, x.shape[0] // n, *x.shape[1:]), sharding.P(rows, None, *rest))


def joined(x: jax.Array) -> jax.Array:
    """The inverse of `by_part`."""
    rows, _, *rest = (sharding.axis_of(x, i) for i in range(x.ndim))
    return sharding.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), sharding.P(rows, *rest))


def rows_at(x: jax.Array, at: Int[Array, "n r"]) -> jax.Array:
    """Rows [n * r, ...] of `x` [B, ...]: each part's slots `at`."""
    return joined(jax.vmap(lambda x, at: x[at])(by_part(x, at.shape[0]), at))


def put_rows(old: jax.Array, at: Int[Array, "n r"], new: jax.Array) -> jax.Array:
    """`old` [B, ...] with the rows `new` [n * r, ...] in each part's slots `at`.

    What would go beyond a part's slots is dropped. `new` may be shorter than `old` along the third
    axis: then what is behind stays.
    """
    n = at.shape[0]
    cut = (slice(None), slice(new.shape[2])) if old.ndim > 2 else ()

    def put(old: jax.Array, at: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[(at, *cut)].set(new, mode="drop")

    return joined(jax.vmap(put)(by_part(old, n), at, by_part(new, n)))


def free_slots(live: Bool[Array, " B"], n: int, r: int) -> tuple[jax.Array, jax.Array]:
    """(slots [n, r], whether they are free): the first free slots of each part."""
    free, at = lax.top_k(by_part((~live).astype(jnp.int32), n), r)
    return at, free > 0


def numbered(valid: Bool[Array, "n r"], begin: jax.Array) -> Int[Array, "n r"]:
    """Numbers from `begin` on for what is valid, over all parts in order."""
    rows = sharding.axis_of(valid, 0)
    flat = replicated(valid).reshape(-1).astype(jnp.int32)
    count = begin + jnp.cumsum(flat) - 1
    return sharding.reshard(count.reshape(valid.shape), sharding.P(rows, None))
