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

    Row i sees itself, and row j < i of its own segment if the token of j has not been deleted by
    the `time` of i (`time[i] < until[j]`; until is 0 where no token was written) and stands below
    it (`depth[j] < depth[i]`). Segment 0 sees itself alone.
    """

    time: Int[Array, "B T"]
    until: Int[Array, "B T"]
    depth: Int[Array, "B T"]
    segments: Int[Array, "B T"]


@struct.dataclass
class Packed:
    """Packing P1: one row a state, aligned with time.

    `tokens`, `positions` and `live` (or `mask`, which says the same) are the model's input; `depth` is the number of live tokens
    beyond the start token; `push` marks rows entered by a token (or by a start).
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    mask: Bool[Array, "B T T"]
    live: Live
    depth: Int[Array, "B T"]
    push: Bool[Array, "B T"]


@struct.dataclass
class Deduplicated:
    """Packing P2: one row a written token. State i of P1 has its logits at row `pointer[b, i]`.

    `rows` [B] is how many rows each sequence needed; rows beyond R are lost, so callers check that
    `rows <= R`.
    """

    tokens: Int[Array, "B R"]
    positions: Int[Array, "B R"]
    mask: Bool[Array, "B R R"]
    live: Live
    pointer: Int[Array, "B T"]
    rows: Int[Array, " B"]


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
    deleted_at = _deleted_at(depth)
    row = jnp.arange(actions.shape[1])
    live = (
        push[:, None, :]
        & (row[None, :] < row[:, None])
        & (row[None, :, None] < deleted_at[:, None, :])
        & (segments[:, :, None] == segments[:, None, :])
        & (segments[:, :, None] > 0)
    )
    below = depth[:, None, :] < depth[:, :, None]
    mask = (live & below) | (row[None, :] == row[:, None])
    # The token on top after a backspace: the live row of the same depth (there is exactly one).
    on_top = live & (depth[:, None, :] == depth[:, :, None])
    top_token = jnp.where(on_top, actions[:, None, :], 0).sum(-1)
    time = jnp.zeros_like(depth) + row
    seen = Live(time, jnp.where(push, deleted_at, 0), depth, segments)
    return Packed(jnp.where(push, actions, top_token), depth, mask, seen, depth, push)


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
    deleted_at = _deleted_at(depth)
    T = actions.shape[1]
    row = jnp.arange(T)
    count = jnp.cumsum(push, axis=1)
    # origin[b, r]: the P1 row that P2 row r stands for; T where there is none.
    origin = (count[:, None, :] <= jnp.arange(rows)[None, :, None]).sum(-1)
    used = origin < T
    at = jnp.minimum(origin, T - 1)

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, at, axis=1)

    same_segment = take(segments)[:, :, None] == take(segments)[:, None, :]
    earlier = origin[:, None, :] < origin[:, :, None]
    alive = origin[:, :, None] < take(deleted_at)[:, None, :]
    mask = earlier & alive & same_segment & used[:, :, None] & used[:, None, :]
    mask = mask | jnp.eye(rows, dtype=bool)[None]

    # The live push at a row's own depth is the top of its stack: for a push, itself.
    visible = (
        push[:, None, :]
        & (row[None, :] <= row[:, None])
        & (row[None, :, None] < deleted_at[:, None, :])
        & (depth[:, None, :] == depth[:, :, None])
        & (segments[:, :, None] == segments[:, None, :])
        & (segments[:, :, None] > 0)
    )
    pointer = jnp.where(visible, (count - 1)[:, None, :], 0).sum(-1)
    positions = jnp.where(used, take(depth), 0)
    seen = Live(origin, take(deleted_at), positions, jnp.where(used, take(segments), 0))
    return Deduplicated(
        jnp.where(used, take(actions), 0),
        positions,
        mask,
        seen,
        pointer,
        count[:, -1],
    )


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
    pad = jnp.zeros_like(actions[:, :1])
    shifted = jnp.concatenate([pad, jnp.where(inside, actions, backspace_id)], axis=1)
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
    previous = jnp.concatenate([jnp.zeros_like(segments[:, :1]), segments[:, :-1]], axis=1)
    return (segments != previous) | (segments == 0)


def _deleted_at(depth: jax.Array) -> jax.Array:
    """The first later row whose depth is smaller: where the token of a row stops being live."""
    T = depth.shape[1]
    row = jnp.arange(T)
    deletes = (row[None, :] > row[:, None]) & (depth[:, None, :] < depth[:, :, None])
    return jnp.where(deletes, row[None, None, :], T).min(-1)


def _scatter_rows(values: jax.Array, place: jax.Array, size: int) -> jax.Array:
    """out[b, place[b, i]] = values[b, i] for places below `size`; the others are dropped."""

    def one(v: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.zeros((size,), v.dtype).at[p].set(v, mode="drop")

    return jax.vmap(one)(values, place)
