"""Attention in blocks of queries, in XLA alone: no array of [T, T], neither mask nor scores.

A block of queries meets the keys that any of its columns may see: all up to its own end where
nothing looks ahead, so that the upper half of the scores is mostly never computed. The mask of the
block comes from `visibility.Marks`. Kept for the gradient are the output and the logsumexp of each
query; the backward pass makes the scores of a block again (as in FlashAttention, arXiv 2205.14135,
but here a block has all its keys, so that no softmax is corrected later).

Products are laid out as CPUs are fast at them: keys and values as [H, S], the gradients of both as
transposed products. Only one part of keys is handled: those of the pass itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from reasoning_jax import sharding
from reasoning_jax.model.visibility import Dense, Description, Marks, columns_of, sees

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Finite: no NaN comes of a row or block in which all is masked.
MASKED = -1e30
# Queries of a block, and how many runs of blocks have a length of keys of their own.
BLOCK = 128
RUNS = 8
# The place of a column that was added: later than any.
_BEYOND = 1 << 30
# What a rematerialised layer keeps of its attention: the backward pass then has no need of a
# second forward pass.
SAVED = ("attention_output", "attention_logsumexp")


@dataclass(frozen=True)
class Plan:
    """Blocks of `size` queries in `runs` of `each`; the blocks of a run share a length of keys."""

    size: int
    each: int
    runs: int

    @staticmethod
    def of(columns: int, block: int, causal: bool) -> Plan:
        blocks = -(-columns // block)
        size = -(-columns // blocks)
        if blocks > 1:
            size = 8 * -(-size // 8)
        each = -(-blocks // (min(blocks, RUNS) if causal else 1))
        return Plan(size, each, -(-blocks // each))

    @property
    def padded(self) -> int:
        return self.size * self.each * self.runs

    def bounds(self) -> list[tuple[int, int]]:
        """The columns [begin, end) of each run's queries; its keys are those before `end`."""
        length = self.size * self.each
        return [(i * length, (i + 1) * length) for i in range(self.runs)]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    description: Description,
    block: int = BLOCK,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of columns to each other; the softmax is in float32.

    Memory beyond the arguments is O(B N block T), and O(B N T) is kept for the gradient.
    """
    plan = Plan.of(query.shape[1], block, not isinstance(description, Dense))
    if isinstance(description, Dense):
        # A query that sees nothing averages all values: as one of zeros that sees all does.
        sees_any = description.mask.any(-1)
        query = jnp.where(sees_any[:, :, None, None], query, 0)
        description = Dense(description.mask | ~sees_any[:, :, None])
    return _attend(plan, query, key, value, Marks(columns_of(query), description))


def _queries(plan: Plan, x: Float[Array, "B T N H"], K: int) -> Float[Array, "B K G T H"]:
    """Heads in front, those that share a key in a group, and columns added to whole blocks."""
    B, T, N, H = x.shape
    x = jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, plan.padded - T), (0, 0)))
    spec = sharding.P(sharding.axis_of(x, 0), sharding.axis_of(x, 1), None, None, None)
    return sharding.reshape(x, (B, K, N // K, plan.padded, H), spec)


def _of_queries(x: Float[Array, "B K G T H"], T: int) -> Float[Array, "B T N H"]:
    """The inverse of `_queries`."""
    B, K, G, padded, H = x.shape
    spec = sharding.P(sharding.axis_of(x, 0), sharding.axis_of(x, 1), None, None)
    return sharding.reshape(x, (B, K * G, padded, H), spec)[:, :, :T].swapaxes(1, 2)


def _keys(plan: Plan, x: Float[Array, "B T K H"]) -> Float[Array, "B K H T"]:
    x = x.transpose(0, 2, 3, 1)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, plan.padded - x.shape[3])))


def _of_keys(x: Float[Array, "B K H T"], like: Float[Array, "B T K H"]) -> Float[Array, "B T K H"]:
    """The inverse of `_keys`. Not fused with what reads it, which would read column by column."""
    x = x[..., : like.shape[1]].transpose(0, 3, 1, 2).astype(like.dtype)
    return lax.optimization_barrier(x)


def _arranged(
    plan: Plan, query: jax.Array, key: jax.Array, value: jax.Array, marks: Marks
) -> tuple[jax.Array, jax.Array, jax.Array, Marks]:
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    padded = jax.tree.map(functools.partial(_pad, length=plan.padded), marks)
    return _queries(plan, scaled, key.shape[2]), _keys(plan, key), _keys(plan, value), padded


def _pad(x: jax.Array, length: int) -> jax.Array:
    """Marks of columns beyond the row's end: none before sees them, since they come later."""
    later = ((0, length - x.shape[1]),) * (x.ndim - 1)
    return jnp.pad(x, ((0, 0), *later), constant_values=False if x.dtype == bool else _BEYOND)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: Plan,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    marks: Marks,
) -> Float[Array, "B T N H"]:
    return _forward(plan, query, key, value, marks)[0]


def _forward(
    plan: Plan, query: jax.Array, key: jax.Array, value: jax.Array, marks: Marks
) -> tuple[jax.Array, Any]:
    q, k, v, padded = _arranged(plan, query, key, value, marks)
    outputs = []
    for begin, end in plan.bounds():
        keys, values, seen = k[..., :end], v[..., :end], padded.part(0, end)

        def block(xs: Any, keys=keys, values=values, seen=seen) -> tuple[jax.Array, jax.Array]:
            return _block_forward(xs, keys, values, seen)

        xs = (q[:, :, :, begin:end], padded.part(begin, end))
        outputs.append(_over_blocks(plan, block, xs))
    out, logsumexp = (jnp.concatenate(parts, axis=3) for parts in zip(*outputs))
    out = _of_queries(out, query.shape[1])
    out, logsumexp = (checkpoint_name(x, name) for x, name in zip((out, logsumexp), SAVED))
    return out, (query, key, value, marks, out, logsumexp)


def _backward(plan: Plan, residuals: Any, d_out: jax.Array) -> Any:
    query, key, value, marks, out, logsumexp = residuals
    q, k, v, padded = _arranged(plan, query, key, value, marks)
    K, H = key.shape[2:]
    # The softmax's own term of the gradient, a number a query.
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    delta, d_out = _queries(plan, delta, K), _queries(plan, d_out, K)
    d_q, d_k, d_v = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for begin, end in plan.bounds():
        keys, values, seen = k[..., :end], v[..., :end], padded.part(0, end)
        queries = tuple(x[:, :, :, begin:end] for x in (q, d_out, logsumexp, delta))

        def block(
            sums: Any, xs: Any, keys=keys, values=values, seen=seen
        ) -> tuple[Any, tuple[jax.Array]]:
            d_query, *more = _block_backward(xs, keys, values, seen)
            return tuple(a + b for a, b in zip(sums, more)), (d_query,)

        sums = tuple(jnp.zeros_like(x, jnp.float32) for x in (keys, values))
        sums, (d_query,) = _scan_blocks(plan, block, sums, (queries, padded.part(begin, end)))
        d_q.append(d_query)
        later = ((0, 0), (0, 0), (0, 0), (0, plan.padded - end))
        d_k, d_v = (total + jnp.pad(x, later) for total, x in zip((d_k, d_v), sums))
    d_query = _of_queries(jnp.concatenate(d_q, axis=3), query.shape[1])
    d_query = d_query * jnp.asarray(H**-0.5, query.dtype)
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), marks)
    return d_query, _of_keys(d_k, key), _of_keys(d_v, value), nothing


_attend.defvjp(_forward, _backward)


def _block_forward(
    xs: Any, k: Float[Array, "B K H S"], v: Float[Array, "B K H S"], seen: Marks
) -> tuple[jax.Array, jax.Array]:
    """Output and logsumexp of a block of queries (q [B, K, G, t, H], marks)."""
    q, marks = xs
    scores = _scores(q, k, marks, seen)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    rows = _rows(weights).astype(v.dtype)
    mixed = jnp.einsum("bkts,bkhs->bkth", rows, v, preferred_element_type=jnp.float32)
    return (_like(mixed, q) / total).astype(q.dtype), jnp.log(total) + top


def _block_backward(
    xs: Any, k: Float[Array, "B K H S"], v: Float[Array, "B K H S"], seen: Marks
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of the block's queries, and its part of those of all keys and values."""
    (q, d_out, logsumexp, delta), marks = xs
    weights = jnp.exp(_scores(q, k, marks, seen) - logsumexp)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_rows = _rows(d_out)
    d_weights = _like(product("bkth,bkhs->bkts", d_rows, v), q)
    d_scores = _rows((weights * (d_weights - delta)).astype(q.dtype))
    d_v = product("bkth,bkts->bkhs", d_rows, _rows(weights).astype(q.dtype))
    d_k = product("bkth,bkts->bkhs", _rows(q), d_scores)
    d_q = product("bkts,bkhs->bkth", d_scores, k).astype(q.dtype)
    return _like(d_q, q), d_k, d_v


def _scores(q: jax.Array, k: jax.Array, marks: Marks, seen: Marks) -> Float[Array, "B K G t S"]:
    """float32; masked by what the marks say."""
    scores = jnp.einsum("bkth,bkhs->bkts", _rows(q), k, preferred_element_type=jnp.float32)
    mask = sees(marks, seen)[:, None, None, :, : k.shape[-1]]
    return jnp.where(mask, _like(scores, q), MASKED)


def _rows(x: Float[Array, "B K G t S"]) -> Float[Array, "B K Gt S"]:
    """The queries of a key's group side by side: one product for all."""
    B, K, G, t, S = x.shape
    spec = sharding.P(sharding.axis_of(x, 0), sharding.axis_of(x, 1), None, None)
    return sharding.reshape(x, (B, K, G * t, S), spec)


def _like(x: Float[Array, "B K Gt S"], q: Float[Array, "B K G t H"]) -> jax.Array:
    """The inverse of `_rows`."""
    spec = sharding.P(sharding.axis_of(x, 0), sharding.axis_of(x, 1), None, None, None)
    return sharding.reshape(x, (*q.shape[:4], x.shape[-1]), spec)


def _scan_blocks(
    plan: Plan, block: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any
) -> tuple[Any, Any]:
    """`block(carry, x)` for each block of a run; queries stand at axis 3, their marks at axis 1."""
    if plan.each == 1:
        return block(carry, xs)
    queries, marks = xs

    def blocks(x: jax.Array, axis: int) -> jax.Array:
        spec = [sharding.axis_of(x, i) for i in range(x.ndim)]
        spec.insert(axis, None)
        shape = (*x.shape[:axis], plan.each, plan.size, *x.shape[axis + 1 :])
        return jnp.moveaxis(sharding.reshape(x, shape, sharding.P(*spec)), axis, 0)

    def whole(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 3)
        spec = [sharding.axis_of(x, i) for i in range(x.ndim)]
        del spec[3]
        shape = (*x.shape[:3], plan.each * plan.size, *x.shape[5:])
        return sharding.reshape(x, shape, sharding.P(*spec))

    stacked = (
        jax.tree.map(lambda x: blocks(x, 3), queries),
        jax.tree.map(lambda x: blocks(x, 1), marks),
    )
    carry, out = lax.scan(block, carry, stacked)
    return carry, jax.tree.map(whole, out)


def _over_blocks(plan: Plan, block: Callable[[Any], Any], xs: Any) -> Any:
    return _scan_blocks(plan, lambda _, x: (None, block(x)), None, xs)[1]
