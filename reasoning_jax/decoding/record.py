"""What each row of a decoding batch has done: a log that a step adds one line to, at little cost.

The log is a ring of lines, one a step, with a column for each row: so that a step writes one line
of B, not an entry somewhere in each of B rows. A row has at most as many actions as there are
lines; a column is overwritten by its own row only, or by the one that takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.decoding.actions import ActionIds, Completions
from reasoning_jax.decoding.slots import by_part, joined

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

LOG = {
    "actions": jnp.int32, "chosen": jnp.int32, "backspace": jnp.float32,
    "log_probs": jnp.float32, "forced": jnp.bool_,
}  # fmt: skip


def begin(zeros: Int[Array, " B"], actions: int) -> dict[str, Any]:
    """An empty log of rows that may have `actions` actions each, and what counts them.

    `step` counts the steps of all rows, `start` [B] is a row's first, `length` [B] its actions.
    """
    lines = jnp.zeros((actions, 1), jnp.int32) + zeros[None, :]
    log = {name: lines.astype(dtype) for name, dtype in LOG.items()}
    return {"step": jnp.int32(0), "start": zeros, "length": zeros, "log": log}


def recorded(
    s: dict[str, Any],
    ids: ActionIds,
    chosen: Int[Array, " B"],
    action: Int[Array, " B"],
    at_limit: Bool[Array, " B"],
    log_probs: Float[Array, "B V"],
    backspace: Float[Array, " B"],
) -> dict[str, Any]:
    """The state with one more action of each live row written down; the rest of it (cache, tokens,
    depth) is the decoder's own.
    """
    live, log = s["live"], s["log"]
    line = s["step"] % log["actions"].shape[0]
    is_action = jnp.arange(log_probs.shape[-1])[None, :] == action[:, None]
    values = {
        "actions": action,
        "chosen": chosen,
        "backspace": backspace,
        "log_probs": jnp.where(is_action, log_probs, 0.0).sum(-1),
        "forced": at_limit & (chosen != ids.eos),
    }

    def written(lines: jax.Array, x: jax.Array) -> jax.Array:
        old = lax.dynamic_index_in_dim(lines, line, 0, keepdims=True)
        return lax.dynamic_update_slice_in_dim(lines, jnp.where(live, x, old), line, 0)

    return {
        **s,
        "log": {name: written(log[name], x) for name, x in values.items()},
        "step": s["step"] + 1,
        "live": live & (action != ids.eos),
        "length": s["length"] + live,
    }


def read(s: dict[str, Any], at: Int[Array, "n r"]) -> dict[str, jax.Array]:
    """The log's columns of each part's slots `at`, as rows [n * r, A] from their first action on,
    zeros behind the last.
    """
    n, B = at.shape[0], s["length"].shape[0]
    lines = s["log"]["actions"].shape[0]
    split = sharding.P(None, sharding.axis_of(at, 0), None)

    def rows(of: dict[str, jax.Array], start: jax.Array, length: jax.Array, at: jax.Array) -> Any:
        own = jnp.arange(lines)[None, :]
        line = (start[at][:, None] + own) % lines
        counts = own < length[at][:, None]
        return {
            name: jnp.where(counts, x[line, at[:, None]], 0).astype(x.dtype)
            for name, x in of.items()
        }

    parts = {k: sharding.reshape(x, (lines, n, B // n), split) for k, x in s["log"].items()}
    begins, lengths = by_part(s["start"], n), by_part(s["length"], n)
    out = jax.vmap(rows, in_axes=(1, 0, 0, 0))(parts, begins, lengths, at)
    return {name: joined(x) for name, x in out.items()}


def columns_at(x: Int[Array, "A B"], at: Int[Array, "n r"]) -> jax.Array:
    """A log's columns [A, n * r] of each part's slots `at`."""
    n, lines = at.shape[0], x.shape[0]
    rows = sharding.axis_of(at, 0)
    parts = sharding.reshape(x, (lines, n, x.shape[1] // n), sharding.P(None, rows, None))
    out = jax.vmap(lambda x, at: x[:, at], in_axes=(1, 0), out_axes=1)(parts, at)
    return sharding.reshape(out, (lines, at.size), sharding.P(None, rows))


def completions(s: dict[str, Any]) -> Completions:
    """Of a batch whose rows all began in step 0."""
    counts = jnp.arange(s["log"]["actions"].shape[0])[None, :] < s["length"][:, None]
    log = {k: jnp.where(counts, x.T, 0).astype(x.dtype) for k, x in s["log"].items()}
    return Completions(**log, length=s["length"], tokens=s["tokens"], token_count=s["depth"] + 1)
