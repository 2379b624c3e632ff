"""The algebra of edits: depth, liveness, packing P1 and P2, collapse, noise augmentation.

An action sequence contains tokens and `<backspace>`, which takes the last token back. The state
after a backspace is exactly the state before the deleted token was written. Packing turns a
sequence of actions into tokens, positions and an attention mask such that one ordinary forward pass
yields the logits of every state visited (SequenceMatch, arXiv 2306.05426; the formulation here is
our own, since the paper's pseudo-code was not available to us). Everything is pure, static in shape
and jit-able; nothing here knows a model.

Conventions. Row i of P1 is the state after i actions; row 0 holds the start token. Several
sequences may share a row of the batch: `segments` numbers them from 1 (0 is padding) and each
segment begins with its own start token. `floor` is the depth below which a segment cannot be
deleted (the prompt); the start token has depth 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


@struct.dataclass
class Live:
    """What rows of a packing see, as data of each row; liveness in closed form.

    Row i sees itself, and an earlier row j of its own segment if the token of j has not been
    deleted by the `time` of i (`time[j] < time[i] < until[j]`; until is 0 where no token was
    written) and stands below it (`depth[j] < depth[i]`). Segment 0 sees itself alone.
    """

    time: Int[Array, "B T"]
    until: Int[Array, "B T"]
    depth: Int[Array, "B T"]
    segments: Int[Array, "B T"]

    def below(self, others: Live) -> Bool[Array, "B T S"]:
        """Which of some other rows each of these rows sees; that it sees itself is left out."""
        time, depth, segments = (x[:, :, None] for x in (self.time, self.depth, self.segments))
        written, until, depth_below, its_segment = (
            x[:, None, :] for x in (others.time, others.until, others.depth, others.segments)
        )
        alive = (written < time) & (time < until)
        return alive & (depth_below < depth) & (segments == its_segment) & (segments > 0)

    @property
    def mask(self) -> Bool[Array, "B T T"]:
        """The whole mask. Training makes that of a block at a time (`model/blockwise.py`)."""
        return self.below(self) | jnp.eye(self.time.shape[1], dtype=bool)[None]


@struct.dataclass
class Packed:
    """Packing P1: one row a state, aligned with time.

    `tokens`, `positions` and `live` are the model's input (`mask` is `live` as an array); `depth`
    is the number of live tokens beyond the start token; `push` marks rows entered by a token (or by
    a start).
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    live: Live
    depth: Int[Array, "B T"]
    push: Bool[Array, "B T"]

    @property
    def mask(self) -> Bool[Array, "B T T"]:
        return self.live.mask


@struct.dataclass
class Deduplicated:
    """Packing P2: one row a written token. State i of P1 has its logits at row `pointer[b, i]`.

    `rows` [B] is how many rows each sequence needed; rows beyond R are lost, so callers check that
    `rows <= R`.
    """

    tokens: Int[Array, "B R"]
    positions: Int[Array, "B R"]
    live: Live
    pointer: Int[Array, "B T"]
    rows: Int[Array, " B"]

    @property
    def mask(self) -> Bool[Array, "B R R"]:
        return self.live.mask


def depths(
    actions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    floor: Int[Array, "B T"],
    backspace_id: int,
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Depth of the state at each row, and whether a token was pushed there.

    `actions[b, i]` is the action that led to row i; at a segment's first row, its start token.
    At the floor a backspace changes nothing; while the depth is still below the floor (inside a
    prompt) it changes nothing either.
    """
    starts = _starts(segments)
    push = (actions != backspace_id) | starts

    def step(depth: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        start, pushed, lowest = xs
        popped = jnp.maximum(depth - 1, jnp.minimum(lowest, depth))
        depth = jnp.where(start, 0, jnp.where(pushed, depth + 1, popped))
        return depth, depth

    # Zeros made from the input, so that under a mesh the carry is split as the batch is.
    initial = jnp.zeros_like(actions[:, 0])
    _, depth = lax.scan(step, initial, (starts.T, push.T, floor.T))
    return depth.T, push


def pack(
    actions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    floor: Int[Array, "B T"],
    backspace_id: int,
) -> Packed:
    """Packing P1 of action sequences; see the module for the arguments.

    A row attends to itself and to the live rows below it: those pushed earlier in its segment,
    not deleted since, and of smaller depth. A backspace row repeats the token that is on top again,
    at its position, in place of the original row, which it therefore does not attend to. Padding
    rows attend to themselves only.
    """
    depth, push = depths(actions, segments, floor, backspace_id)
    tokens = jnp.take_along_axis(actions, _top(depth, push), axis=1)
    time = jnp.zeros_like(depth) + jnp.arange(actions.shape[1])
    live = Live(time, jnp.where(push, _deleted_at(depth), 0), depth, segments)
    return Packed(tokens, depth, live, depth, push)


def deduplicate(
    actions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    floor: Int[Array, "B T"],
    backspace_id: int,
    rows: int,
) -> Deduplicated:
    """Packing P2 in `rows` static rows: the P1 rows entered by a push, and a pointer to them."""
    depth, push = depths(actions, segments, floor, backspace_id)
    push = push & (segments > 0)
    T = actions.shape[1]
    count = jnp.cumsum(push, axis=1)
    # origin[b, r]: the P1 row that P2 row r stands for; T where there is none.
    row = jnp.zeros_like(actions[:, :1]) + jnp.arange(rows)
    origin = _first_below(-count, jnp.zeros_like(row), -row)
    used = origin < T
    at = jnp.minimum(origin, T - 1)

    def take(x: jax.Array) -> jax.Array:
        return jnp.where(used, jnp.take_along_axis(x, at, axis=1), 0)

    live = Live(origin, take(_deleted_at(depth)), take(depth), take(segments))
    top = jnp.take_along_axis(count, jnp.maximum(_top(depth, push), 0), axis=1) - 1
    pointer = jnp.where(segments > 0, top, 0)
    return Deduplicated(take(actions), live.depth, live, pointer, count[:, -1])


def collapse(
    actions: Int[Array, "B T"],
    length: Int[Array, " B"],
    backspace_id: int,
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The tokens left standing after the first `length` actions, left-aligned, and how many.

    There is no prompt here: a backspace with nothing left to delete does nothing. Entries beyond
    the count are 0.
    """
    T = actions.shape[1]
    inside = jnp.arange(T)[None, :] < length[:, None]
    # A start row of depth 0 in front makes this the packing of a one-segment row.
    shifted = jnp.pad(jnp.where(inside, actions, backspace_id), ((0, 0), (1, 0)))
    ones = jnp.ones_like(shifted)
    depth, push = depths(shifted, ones, jnp.zeros_like(shifted), backspace_id)
    at_end = jnp.arange(T + 1)[None, :] <= length[:, None]
    depth = jnp.where(at_end, depth, T + 1)
    written = jnp.arange(T + 1)[None, :] > 0
    survives = push & written & at_end & (_deleted_at(depth) > length[:, None])
    place = jnp.where(survives, jnp.cumsum(survives, axis=1) - 1, T + 1)
    return _scatter_rows(shifted, place, T), survives.sum(axis=1)


def insert_noise(
    clean: Any, length: Any, noised: Any, noise: Any, backspace_id: int, xp: Any = jnp
) -> tuple[Any, Any, Any]:
    """Insert noise runs and the backspaces that take them back, before chosen tokens.

    Before token i with `noised[i]`, the K tokens `noise[i]` are executed and then K backspaces. The
    label at the state before the noise is still `clean[i]` (the noise is the environment's, not
    the model's); from the first noised state on it is `<backspace>`. For K = 1 this is the
    augmentation reported for the paper; K > 1 is our extension.

    Args:
      clean: [T] tokens; the first `length` count.
      length: scalar.
      noised: [T] bool.
      noise: [T, K] noise tokens.
      xp: `jax.numpy` under jit, or `numpy` in a data pipeline.

    Returns:
      executed [T * (2K + 1)], labels (same shape), and the new length. Entries beyond it are 0.
    """
    T, K = noise.shape
    noised = noised & (xp.arange(T) < length)
    width = xp.where(noised, 2 * K + 1, 1)
    ends = xp.cumsum(width)
    out = xp.arange(T * (2 * K + 1))
    source = xp.minimum(xp.searchsorted(ends, out, side="right"), T - 1)
    offset = out - (ends[source] - width[source])
    total = xp.where(length > 0, ends[xp.maximum(length - 1, 0)], 0)
    run = xp.where(noised[source], K, 0)
    is_noise = offset < run
    is_backspace = (offset >= run) & (offset < 2 * run)
    token = clean[source]
    noise_token = noise[source, xp.minimum(offset, K - 1)]
    executed = xp.where(is_noise, noise_token, xp.where(is_backspace, backspace_id, token))
    at_noised_state = (offset >= 1) & (offset < 2 * run)
    labels = xp.where(at_noised_state, backspace_id, token)
    valid = out < total
    return xp.where(valid, executed, 0), xp.where(valid, labels, 0), total


def draw_noise(
    rng: np.random.Generator, clean: np.ndarray, rate: float, run: int, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens get noise before them, and which: (noised [T], noise [T, run]), numpy.

    The first noise token of a run differs from the token it precedes, so that it is an error;
    where `candidates` leaves no other choice, that token gets no noise.
    """
    T = len(clean)
    noised = rng.random(T) < rate
    noise = rng.choice(candidates, size=(T, run))
    first = rng.random(T)
    for i in np.flatnonzero(noised):
        wrong = candidates[candidates != clean[i]]
        if len(wrong):
            noise[i, 0] = wrong[int(first[i] * len(wrong))]
        else:
            noised[i] = False
    return noised, noise


def _starts(segments: jax.Array) -> jax.Array:
    """True at the first row of each segment and at every padding row (each its own island)."""
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return (segments != previous) | (segments == 0)


def _deleted_at(depth: jax.Array) -> jax.Array:
    """The first later row whose depth is smaller: where the token of a row stops being live."""
    later = jnp.zeros_like(depth) + jnp.arange(1, depth.shape[1] + 1)
    return _first_below(depth, later, depth)


def _top(depth: jax.Array, push: jax.Array) -> jax.Array:
    """The row whose token is on top at each row: the last push up to it that is not deeper.

    A push that is not deeper and came after the top's would have needed the top to be deleted.
    """
    T = depth.shape[1]
    pushed = jnp.where(push, depth, T + 1)[:, ::-1]
    start = jnp.zeros_like(depth) + jnp.arange(T)[::-1]
    return T - 1 - _first_below(pushed, start, depth + 1)


def _first_below(values: jax.Array, start: jax.Array, bound: jax.Array) -> jax.Array:
    """For each query [B, Q] the first column >= start of values [B, T] below bound; T if none.

    By minima over windows of 1, 2, 4, ... columns, in which a query skips the longest first: no
    array of [T, T], which would be most of the work at long rows.
    """
    T = values.shape[1]
    highest = jnp.iinfo(values.dtype).max
    windows, length = [values], 1
    while length < T:
        ahead = jnp.pad(windows[-1][:, length:], ((0, 0), (0, length)), constant_values=highest)
        windows.append(jnp.minimum(windows[-1], ahead))
        length *= 2
    at = start
    for minima in reversed(windows):
        least = jnp.take_along_axis(minima, jnp.minimum(at, T - 1), axis=1)
        at = jnp.where((at < T) & (least >= bound), at + length, at)
        length //= 2
    return jnp.minimum(at, T)


def _scatter_rows(values: jax.Array, place: jax.Array, size: int) -> jax.Array:
    """out[b, place[b, i]] = values[b, i] for places below `size`; the others are dropped."""

    def one(v: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.zeros((size,), v.dtype).at[p].set(v, mode="drop")

    return jax.vmap(one)(values, place)
