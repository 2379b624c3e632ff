"""Continuous batching: rows wait in a queue for a place in the batch, in one compiled program.

A batch of B places steps until a row has ended. What the row did is put away, and the next row of
the queue takes its place: its prompt has been read ahead, with those of some rows behind it, so
that taking a place is copying some columns of keys and values. Rows that continue one prompt stand
side by side in the queue, and their prompt is read once. Which place a row gets, and when, changes
nothing in what it does, since a step works on each row by itself.

When the queue is empty and few rows are left, they go on in a smaller batch: the longest ones end
alone, and places in which nothing happens cost as much as others.

With rows divided among devices there is one queue, whole on each of them (it is integers), and so
are the prompts that have been read ahead. What a row did is put away on the device that did it, and
brought together at the end. Nothing here says what a step does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.decoding import record
from reasoning_jax.decoding import slots as places
from reasoning_jax.decoding.actions import Completions
from reasoning_jax.model import latent
from reasoning_jax.model.cache import Cache

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Of a device's places, as many as one in so many go on at the end; of fewer than the second number
# all do, since a smaller batch is then no faster.
FEW, PLACES_FOR_FEW = 4, 8

State = dict[str, Any]
Step = Callable[[State], State]


@struct.dataclass
class Prompts:
    """Right-padded ids, their thoughts if they have any, and the id of each one's first row."""

    ids: Int[Array, "N P"]
    length: Int[Array, " N"]
    floor: Int[Array, " N"]
    row_ids: Int[Array, " N"]
    slots: latent.Slots | None


@struct.dataclass
class Read:
    """Prompts in a cache (its lengths are of no meaning), and each one's last thought."""

    cache: Cache
    last_thought: Float[Array, "N D"] | None


@struct.dataclass
class Queue:
    """Rows that continue prompts: row q, of the id `row_ids[q]`, prompt q // (Q / N).

    `limit` is a row's action budget; a row of 0 is left out: it has no action, and what is said of
    its tokens has no meaning. Of rows behind all others not even prompts are read (but for those
    that are read together with others).
    """

    prompts: Prompts
    row_ids: Int[Array, " Q"]
    limit: Int[Array, " Q"]

    @staticmethod
    def of(
        ids: Int[Array, "N P"],
        length: Int[Array, " N"],
        floor: Int[Array, " N"],
        row_ids: Int[Array, " Q"],
        limit: Int[Array, " Q"],
        slots: latent.Slots | None,
    ) -> Queue:
        N, Q = ids.shape[0], row_ids.shape[0]
        first = row_ids if N == Q else places.replicated(row_ids).reshape(N, Q // N)[:, 0]
        return Queue(Prompts(ids, length, floor, first, slots), row_ids, limit)

    @property
    def group(self) -> int:
        return self.row_ids.shape[0] // self.prompts.ids.shape[0]


def run(
    queue: Queue,
    read: Callable[[Prompts, int], Read],
    step: Step,
    actions: int,
    room: int,
    columns: int,
    batch_rows: int = 0,
) -> Completions:
    """Every row of the queue to its end, `batch_rows` at a time (0: all of them).

    `read` reads prompts into a cache of so many slots, of which it needs `columns`; a row has
    `room`, and at most `actions` actions. `step` is given and returns a state, which is

      what `record.begin` makes; cache; tokens [B, room]; depth [B], the index of a row's last
      token; last [B], that of its prompt's; floor, budget, row_id [B]; live [B], whether it goes
      on; row [B], its place in the queue; last_thought [B, D] or None.
    """
    Q, rows = queue.row_ids.shape[0], sharding.axis_of(queue.row_ids, 0)
    n = places.parts_of(rows)
    B = min(batch_rows or Q, Q)
    B += -B % n
    s = first_rows(queue, read, B, actions, room)
    if B == Q:
        return record.completions(lax.while_loop(lambda s: s["live"].any(), step, s))

    # How many prompts are read at once, how many rows of each part are exchanged at once, and how
    # many must have ended for that.
    N, group = queue.prompts.ids.shape[0], queue.group
    U = min(N, max(1, B // 4))
    U = min(N, U + -U % n)
    r = max(1, B // n // 4)
    due = max(1, B // 32)
    few = B // n // FEW if B // n >= PLACES_FOR_FEW else 0
    every = jax.tree.map(places.replicated, queue)
    end = jnp.where(every.limit > 0, jnp.arange(Q, dtype=jnp.int32) + 1, 0).max()

    def read_from(prompt: jax.Array) -> tuple[jax.Array, Read]:
        """U prompts from this one on, or the last U, and the first of them."""
        begin = jnp.minimum(prompt, N - U).astype(jnp.int32)
        part = jax.tree.map(
            lambda x: places.divided(lax.dynamic_slice_in_dim(x, begin, U), rows), every.prompts
        )
        return begin, jax.tree.map(places.replicated, read(part, columns))

    def exchange(s: State, out: State, ahead: tuple[jax.Array, Read], waits: jax.Array) -> Any:
        """Puts away what some ended rows did, and gives their places to the rows from `waits` on,
        as far as their prompts have been read.
        """
        begin, done = ahead
        at, free = places.free_slots(s["live"], n, r)
        q = places.numbered(free, waits)
        taken = free & (q < jnp.minimum(end, (begin + U) * group))
        at = jnp.where(taken, at, B // n)
        out = _put_away(s, out, at)
        q = places.joined(jnp.clip(q, 0, Q - 1))
        prompt = q // group
        mine = jax.tree.map(lambda x: places.take_rows(x, prompt), every.prompts)
        place = jnp.clip(prompt - begin, 0, U - 1)
        done = jax.tree.map(lambda x: places.take_rows(x, place), done)
        row_ids, limit = (places.take_rows(x, q) for x in (every.row_ids, every.limit))
        new = _rows(mine, done, row_ids, limit, q, room)
        new["start"], new["length"] = jnp.zeros_like(q) + s["step"], jnp.zeros_like(q)
        kept = {name: x for name, x in s.items() if name not in new}
        old = {name: s[name] for name in new}
        put = jax.tree.map(lambda old, new: places.put_rows(old, at, new), old, new)
        return kept | put, out, waits + taken.sum(dtype=jnp.int32)

    def many_live(s: State) -> jax.Array:
        return places.replicated(places.by_part(s["live"], n).sum(1)).max() > few

    def body(carry: Any) -> Any:
        s, out, ahead, waits = carry
        wanted = jnp.minimum(due, end - waits)

        def goes_on(s: State) -> jax.Array:
            return jnp.where(waits < end, (~s["live"]).sum() < wanted, many_live(s))

        s = lax.while_loop(goes_on, step, s)
        is_read = (waits < (ahead[0] + U) * group) | (waits >= end)
        # A loop of no or one turn: a condition would copy what it returns.
        ahead = lax.fori_loop(
            0, jnp.where(is_read, 0, 1), lambda _, __: read_from(waits // group), ahead
        )
        s, out, waits = exchange(s, out, ahead, waits)
        return s, out, ahead, waits

    def goes_on_with_all(carry: Any) -> jax.Array:
        s, *_, waits = carry
        return (waits < end) | many_live(s)

    nothing = jax.tree.map(_zeros, jax.eval_shape(read_from, jnp.int32(0)))
    ahead = (jnp.int32(-U), nothing[1])
    every_place = places.divided(jnp.zeros((n, 1), jnp.int32), rows) + jnp.arange(B // n)[None, :]
    sizes = jax.eval_shape(lambda: _put_away(s, None, every_place))
    out = jax.tree.map(lambda x: _zeros(x, (n * Q, *x.shape[1:])), sizes)
    s, out, *_ = lax.while_loop(goes_on_with_all, body, (s, out, ahead, jnp.int32(B)))
    out = _put_away(s, out, every_place)
    if few:
        # What these rows do from here on is put over what they have done so far.
        s = lax.while_loop(lambda s: s["live"].any(), step, _live_rows(s, n, few))
        out = _put_away(s, out, every_place[:, :few])

    def together(x: jax.Array) -> jax.Array:
        # A row was put away by one part; elsewhere there are zeros.
        x = places.by_part(x, n)
        return places.divided(x.any(0) if x.dtype == jnp.bool_ else x.sum(0, dtype=x.dtype), rows)

    return Completions(**jax.tree.map(together, out))


def first_rows(
    queue: Queue, read: Callable[[Prompts, int], Read], B: int, actions: int, room: int
) -> State:
    """The state in which the first B rows of a queue begin."""
    group, rows = queue.group, sharding.axis_of(queue.row_ids, 0)
    k = -(-B // group)

    def first(x: jax.Array, k: int) -> jax.Array:
        return places.divided(x if k == len(x) else places.replicated(x)[:k], rows)

    prompts = jax.tree.map(lambda x: first(x, k), queue.prompts)
    done = read(prompts, room)
    if group > 1:
        index = places.divided(jnp.arange(B) // group, rows)
        # Each prompt's rows stand on its device if they are as many on each.
        beside = k * group == B and not k % places.parts_of(rows)

        def of_rows(x: jax.Array) -> jax.Array:
            if beside:
                return sharding.repeat_rows(x, group)
            return places.take_rows(places.replicated(x), index)

        prompts, done = jax.tree.map(of_rows, (prompts, done))
    row_ids, limit = (first(x, B) for x in (queue.row_ids, queue.limit))
    row = places.divided(jnp.arange(B, dtype=jnp.int32), rows)
    s = _rows(prompts, done, row_ids, limit, row, room)
    return record.begin(jnp.zeros_like(row), actions) | s


def _rows(
    prompts: Prompts,
    done: Read,
    row_ids: jax.Array,
    limit: jax.Array,
    row: jax.Array,
    room: int,
) -> State:
    """What the state holds of rows that begin, but for their log; of as many prompts as rows."""
    wide = room - prompts.ids.shape[1]
    return {
        "cache": done.cache,
        "last_thought": done.last_thought,
        "tokens": jnp.pad(prompts.ids, ((0, 0), (0, wide))),
        "depth": prompts.length - 1,
        "last": prompts.length - 1,
        "floor": prompts.floor,
        "budget": limit,
        "live": limit > 0,
        "row_id": row_ids,
        "row": row,
    }


def _put_away(s: State, out: State | None, at: Int[Array, "n r"]) -> State:
    """`out` with the completions of the rows in each part's places `at`; without it, those alone.

    What is in no place is dropped.
    """
    own = {name: s[name] for name in ("length", "tokens", "depth", "row")}
    own = {name: places.rows_at(x, at) for name, x in own.items()}
    row = own.pop("row")
    own["token_count"] = own.pop("depth") + 1
    own |= record.read(s, at)
    if out is None:
        return own
    n = at.shape[0]
    Q = len(out["length"]) // n
    inside = at < len(s["live"]) // n
    where = jnp.where(inside, places.by_part(row, n), Q)
    return {name: places.put_rows(x, where, own[name]) for name, x in out.items()}


def _live_rows(s: State, n: int, count: int) -> State:
    """The state of `count` rows of each part: those that are live, and others if they are fewer."""
    at, _ = places.free_slots(~s["live"], n, count)

    def rows(x: jax.Array) -> jax.Array:
        return places.rows_at(x, at)

    rest = {name: x for name, x in s.items() if name not in ("step", "log")}
    log = {name: record.columns_at(x, at) for name, x in s["log"].items()}
    return {**jax.tree.map(rows, rest), "step": s["step"], "log": log}


def _zeros(like: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    kwargs = {"out_sharding": like.sharding.spec} if sharding.has_mesh() else {}
    return jnp.zeros(like.shape if shape is None else shape, like.dtype, **kwargs)
