"""Coconut's latent feedback (arXiv 2412.06769, section 3): the last hidden state as the next input.

A row reads `question | thoughts | text`. In a thought's column the input is the hidden state of the
column before it, in place of a token embedding; positions count on as for any column. Nothing is
detached: gradients run through the whole chain, and through keys and values.

Training (`forward`) aligns the rows of a batch so that thoughts begin in one column, the `prefix`:
  1. one pass over the prefix, whose keys and values are kept;
  2. a scan over the thoughts but the last, a column each, with the keys and values of the thoughts
     so far as its carry; those of the prefix stay outside the carry, or every iteration would save
     them;
  3. one pass over the thoughts, now known, and the text.
Rows may have different numbers of thoughts, or none: a column that is no thought takes its token.
The gradient of the chain costs one more pass over the thoughts (`_chained`). Decoding (`think`)
does the same upon the rewindable cache, where each row has its own place, so that prompts need no
alignment.

Deviations and additions, all off by default: `source` and `scale` change what is fed back (ours),
`iterations` replaces the chain by Jacobi iterations over all thoughts at once (PCCoT, 2506.18582).
No loss, no sampling, no curriculum here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig
from reasoning_jax.model import cache as kv
from reasoning_jax.model import decoding_weights, transformer
from reasoning_jax.model.attention import Causal, KeyValues
from reasoning_jax.model.cache import Cache
from reasoning_jax.model.lora import Lora
from reasoning_jax.model.spec import Params

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class Thoughts:
    """What a thought is; static.

    latent_id: the id that marks a thought's column (<latent>); its embedding is never read.
    source: the state that is fed back: after the "final_norm" (the paper's) or the "residual"
    before. scale: "none", or "embedding": every thought gets the root mean square of the embedding
    table. iterations: 0 is the chain; T > 0 Jacobi iterations, which equal it from T = thoughts - 1
    on.
    """

    latent_id: int
    source: str = "final_norm"
    scale: str = "none"
    iterations: int = 0


class LatentOutput(NamedTuple):
    """`hidden` of the columns from `prefix - 1` on, after the final norm (the state that the first
    thought is made of comes first), and `inputs`: what was fed in the n columns from `prefix` on.
    """

    hidden: Float[Array, "B R D"]
    inputs: Float[Array, "B n D"]


@struct.dataclass
class Slots:
    """Where the thoughts of right-padded prompts are: `count[b]` columns from `first[b]` >= 1 on.

    n: the most of any row; rest: the most tokens of any row behind its thoughts (both static).
    """

    first: Int[Array, " B"]
    count: Int[Array, " B"]
    n: int = struct.field(pytree_node=False)
    rest: int = struct.field(pytree_node=False)

    @property
    def room(self) -> int:
        """How many slots a cache must have behind the prompts: each row takes up n thoughts and the
        rest, whatever its own numbers are.
        """
        return max(self.n, self.rest)


def find_thoughts(
    tokens: np.ndarray, real: np.ndarray, latent_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """(first, count) [B] of each row's thoughts, of ids [B, T] and which of them are `real`.

    A row without thoughts has count 0 and, as first, its number of columns up to its last real one.

    Raises:
      ValueError: thoughts that are not side by side, on padding, or with nothing before them.
    """
    is_thought = tokens == latent_id
    count = is_thought.sum(axis=1)
    T = tokens.shape[1]
    behind = T - np.argmax(real[:, ::-1], axis=1)
    first = np.where(count > 0, np.argmax(is_thought, axis=1), behind)
    column = np.arange(T)[None, :]
    inside = (column >= first[:, None]) & (column < (first + count)[:, None])
    if not (inside == is_thought).all():
        raise ValueError("the thoughts of a row must be side by side")
    if (is_thought & ~real).any():
        raise ValueError("a thought stands on padding")
    begins = np.argmax(real, axis=1)
    if ((count > 0) & (first <= begins)).any():
        raise ValueError("a thought needs a token before it, whose state it is made of")
    return first, count


def thought_of(
    params: Params, config: ModelConfig, thoughts: Thoughts, residual: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """The next input made of a column's residual stream; float32 whatever the compute dtype."""
    x = residual.astype(jnp.float32)
    if thoughts.source == "final_norm":
        x = transformer.final_norm(params, config, x)
    if thoughts.scale == "embedding":
        table = lax.stop_gradient(params["embedding"]["tokens"]).astype(jnp.float32)
        wanted = jnp.sqrt(jnp.square(table).mean())
        x = x * wanted * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
    return x


def forward(
    params: Params,
    config: ModelConfig,
    thoughts: Thoughts,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    real: Bool[Array, "B T"],
    *,
    prefix: int,
    n: int,
    lora: Lora | None = None,
    inputs: Float[Array, "B n D"] | None = None,
) -> LatentOutput:
    """Run rows whose thoughts begin in column `prefix`, at most `n` of them a row (both static).

    Rows are padded on both sides; what is not `real` is never attended by what is. `positions` of
    real columns decide; those of padding must only be legal. With `inputs` the thoughts are not
    made but given: those are fed in the thoughts' columns.

    Raises:
      ValueError: no column before the thoughts, or fewer columns than `prefix + n`.
    """
    T = tokens.shape[1]
    if not 1 <= prefix <= T - n:
        raise ValueError(f"rows of {T} columns have no {n} thoughts from column {prefix} on")
    segments = real.astype(jnp.int32)

    def run(begin: int, end: int, before: tuple[KeyValues, ...] = (), **kwargs: Any) -> Any:
        return transformer.apply(
            params, config, positions=positions[:, begin:end],
            attention=Causal(segments[:, begin:end]), before=before, lora=lora, **kwargs,
        )  # fmt: skip

    if n == 0:
        out = run(0, T, tokens=tokens)
        return LatentOutput(out.hidden[:, prefix - 1 :], out.hidden[:, :0])

    prefill = run(0, prefix, tokens=tokens[:, :prefix], return_keys=True)
    known = KeyValues.of(prefill.keys, prefill.values, real[:, :prefix])
    embedded = transformer.embed(params, config, tokens[:, prefix:]).astype(jnp.float32)
    slot = (tokens[:, prefix : prefix + n] == thoughts.latent_id)[..., None]
    if inputs is None:
        first = thought_of(params, config, thoughts, prefill.residual[:, -1])
        columns = _Columns(embedded[:, :n], slot, positions[:, prefix : prefix + n],
                           real[:, prefix : prefix + n])  # fmt: skip
        make = _iterate if thoughts.iterations else _chain
        inputs = make(params, config, thoughts, columns, first, known, lora)
    fed = jnp.where(slot, inputs, embedded[:, :n])
    x = jnp.concatenate([fed, embedded[:, n:]], axis=1)
    rest = run(prefix, T, (known,), embeddings=x)
    return LatentOutput(jnp.concatenate([prefill.hidden[:, -1:], rest.hidden], axis=1), fed)


class _Columns(NamedTuple):
    """The n columns in which rows have thoughts: the embedding of what else they hold, which are
    thoughts, positions, and which are no padding.
    """

    embedded: Float[Array, "B n D"]
    slot: Bool[Array, "B n 1"]
    positions: Int[Array, "B n"]
    real: Bool[Array, "B n"]


def _chain(
    params: Params,
    config: ModelConfig,
    thoughts: Thoughts,
    columns: _Columns,
    first: Float[Array, "B D"],
    known: KeyValues,
    lora: Lora | None,
) -> Float[Array, "B n D"]:
    """What is fed in the columns, one after the other: `first`, and the thought that each makes."""
    n = columns.embedded.shape[1]
    if n == 1:
        return first[:, None]
    constants = jax.tree.map(lax.stop_gradient, (params, lora, known, first, columns.embedded))

    def unrolled(nudges: Float[Array, "B n D"]) -> Float[Array, "B n D"]:
        """The chain with a nudge to each input, of constant parameters."""
        params, lora, known, first, embedded = constants
        buffer = tuple(
            jnp.concatenate([jnp.zeros_like(x[:, :, :, :1])] * (n - 1), axis=3)
            for x in (known.keys, known.values)
        )
        real = columns.real[:, : n - 1]

        def think_once(carry: Any, xs: Any) -> Any:
            (keys, values), made = carry
            k, token, is_thought, position, nudge = xs
            thought = made + nudge
            x = jnp.where(is_thought, thought, token)
            seen = KeyValues(keys, values, real & (jnp.arange(n - 1) < k)[None, :])
            out = transformer.apply(
                params, config, embeddings=x[:, None], positions=position[:, None],
                before=(known, seen), return_keys=True, lora=lora,
            )  # fmt: skip
            assert out.keys is not None
            assert out.values is not None
            new = KeyValues.of(out.keys, out.values, None)
            buffer = tuple(
                lax.dynamic_update_slice_in_dim(old, one, k, axis=3)
                for old, one in ((keys, new.keys), (values, new.values))
            )
            made = thought_of(params, config, thoughts, out.residual[:, 0])
            return (buffer, made), thought

        by_column = (embedded, columns.slot, columns.positions, nudges)
        xs = (jnp.arange(n - 1), *(jnp.moveaxis(x[:, : n - 1], 1, 0) for x in by_column))
        (_, last), made = lax.scan(think_once, (buffer, first), xs)
        return jnp.concatenate([jnp.moveaxis(made, 0, 1), (last + nudges[:, -1])[:, None]], axis=1)

    made, pull = jax.vjp(unrolled, jnp.zeros_like(columns.embedded))
    made = lax.stop_gradient(made)
    fed = jnp.where(columns.slot, made, constants[-1])[:, : n - 1]
    out = transformer.apply(
        params, config, embeddings=fed, positions=columns.positions[:, : n - 1],
        attention=Causal(columns.real[:, : n - 1].astype(jnp.int32)), before=(known,), lora=lora,
    )  # fmt: skip
    again = thought_of(params, config, thoughts, out.residual)
    leaves, tree = jax.tree.flatten(pull)
    again = jnp.concatenate([first[:, None], again], axis=1)
    return _chained(again, made, tree, *leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _chained(
    again: Float[Array, "B n D"], made: Float[Array, "B n D"], tree: Any, *leaves: jax.Array
) -> Float[Array, "B n D"]:
    """The inputs `made` by the chain, with the gradient of the whole chain.

    Let x = g(p, x) be the chain: input k + 1 is made of the inputs up to k. Then
    dx = (I - dg/dx)^-1 (dg/dp) dp. The first factor is the pull-back of a nudge to the inputs, with
    constant parameters: a loop over the thoughts, but one that touches no weight's gradient. The
    second is that of g at fixed x, which is `again`: all thoughts in one pass. (Backpropagation
    through the loop itself gives the same, and adds up a gradient of all weights for each thought.)
    """
    del again, tree, leaves
    return made


def _chained_forward(again: Any, made: Any, tree: Any, *leaves: jax.Array) -> Any:
    return _chained(again, made, tree, *leaves), leaves


def _chained_backward(tree: Any, leaves: Any, cotangent: Any) -> Any:
    (nudge,) = jax.tree.unflatten(tree, leaves)(cotangent)
    return (nudge, jnp.zeros_like(cotangent), *map(_no_gradient, leaves))


def _no_gradient(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


_chained.defvjp(_chained_forward, _chained_backward)


def _iterate(
    params: Params,
    config: ModelConfig,
    thoughts: Thoughts,
    columns: _Columns,
    first: Float[Array, "B D"],
    known: KeyValues,
    lora: Lora | None,
) -> Float[Array, "B n D"]:
    """What is fed in the columns after `iterations` updates of all, from the embedding of
    <latent>."""

    def shifted(states: jax.Array) -> jax.Array:
        return jnp.concatenate([first[:, None], states[:, :-1]], axis=1)

    def update(x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        out = transformer.apply(
            params, config, embeddings=jnp.where(columns.slot, x, columns.embedded),
            positions=columns.positions, attention=Causal(columns.real.astype(jnp.int32)),
            before=(known,), lora=lora,
        )  # fmt: skip
        return shifted(thought_of(params, config, thoughts, out.residual)), None

    x, _ = lax.scan(update, shifted(columns.embedded), length=thoughts.iterations)
    return x


def think(
    params: Params,
    config: ModelConfig,
    thoughts: Thoughts,
    prompts: Int[Array, "B P"],
    slots: Slots,
    room: int,
    lora: Lora | None = None,
    control: str = "",
    row_keys: jax.Array | None = None,
) -> tuple[Cache, Float[Array, "B D"], Float[Array, "B n D"], Float[Array, "B P D"]]:
    """Read right-padded prompts with their thoughts into a cache of `room` slots.

    Returns the cache (its lengths are of no meaning: callers know how long their prompts are), the
    input of each row's last thought, all inputs, and the hidden states of the prompts, those of
    thoughts excepted. `room` must be `slots.room` more than the prompts' columns at least.

    control: what is fed in place of the thoughts made: "zeros", "noise" (normal, each of the norm
    of the thought that it replaces; drawn from `row_keys` [B]), or those of the "other_row" before
    it.
    """
    P = prompts.shape[1]
    cache, out = transformer.prefill(params, config, prompts, room, lora)
    params = decoding_weights.unstacked(params)
    first, count, n = slots.first, slots.count, slots.n
    at = (jnp.arange(P)[None, :] == first[:, None] - 1)[..., None]
    state = jnp.where(at, out.residual, 0).sum(1)
    next_input = thought_of(params, config, thoughts, state)

    def think_once(carry: Any, k: jax.Array) -> Any:
        cache, next_input = carry
        # A row that has no more thoughts writes behind its last one, where nothing is read.
        place = first + jnp.minimum(k, count)
        out = transformer.apply(
            params, config, embeddings=next_input[:, None], positions=place[:, None],
            cache=kv.rewind(cache, place), lora=lora,
        )  # fmt: skip
        made = thought_of(params, config, thoughts, out.residual[:, 0])
        on = (k < count - 1)[:, None]
        return (out.cache, jnp.where(on, made, next_input)), next_input

    def update(x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """All thoughts at once with these inputs: what they make of each other, and the cache."""
        out = transformer.apply(
            params, config, embeddings=x, positions=first[:, None] + jnp.arange(n)[None, :],
            cache=kv.rewind(cache, first), lora=lora,
        )  # fmt: skip
        assert out.cache is not None
        return thought_of(params, config, thoughts, out.residual), out.cache

    if thoughts.iterations:
        slot = jnp.zeros_like(prompts[:, :1]) + thoughts.latent_id
        token = transformer.embed(params, config, slot).astype(jnp.float32)
        start = [next_input[:, None], *[token] * (n - 1)]
        inputs = jnp.concatenate(start, axis=1)
        for _ in range(thoughts.iterations):
            made, cache = update(inputs, cache)
            inputs = jnp.concatenate([next_input[:, None], made[:, :-1]], axis=1)
        _, cache = update(inputs, cache)
    else:
        (cache, _), inputs = lax.scan(think_once, (cache, next_input), jnp.arange(n))
        inputs = jnp.moveaxis(inputs, 0, 1)
    if control:
        inputs = _controlled(inputs, control, row_keys)
        _, cache = update(inputs, cache)

    last = jnp.where((jnp.arange(n)[None, :] == count[:, None] - 1)[..., None], inputs, 0).sum(1)
    hidden = out.hidden
    if slots.rest:
        begin = first + count
        columns = begin[:, None] + jnp.arange(slots.rest)[None, :]
        # No indexing: a single row that is split over devices cannot be gathered from.
        is_place = jnp.minimum(columns, P - 1)[..., None] == jnp.arange(P)[None, None, :]
        rest = jnp.where(is_place, prompts[:, None, :], 0).sum(-1)
        behind = transformer.apply(
            params, config, rest, positions=columns, cache=kv.rewind(cache, begin), lora=lora
        )
        assert behind.cache is not None
        cache = behind.cache
        place = jnp.arange(P)[None, :] - begin[:, None]
        own = jnp.take_along_axis(
            behind.hidden, jnp.clip(place, 0, slots.rest - 1)[..., None], axis=1
        )
        hidden = jnp.where((place >= 0)[..., None], own, hidden)
    return cache, last, inputs, hidden


def _controlled(
    inputs: Float[Array, "B n D"], control: str, row_keys: jax.Array | None
) -> Float[Array, "B n D"]:
    """What is fed in place of the thoughts `inputs`."""
    if control == "zeros":
        return jnp.zeros_like(inputs)
    if control == "other_row":
        # Rows that are split over devices cannot be rolled.
        rows = sharding.axis_of(inputs, 0)
        whole = sharding.reshard(inputs, sharding.P(None, None, None))
        return sharding.reshard(jnp.roll(whole, 1, axis=0), sharding.P(rows, None, None))
    assert control == "noise"
    assert row_keys is not None
    noise = jax.vmap(lambda key: jax.random.normal(key, inputs.shape[1:]))(row_keys)
    norm = jnp.linalg.norm(inputs, axis=-1, keepdims=True)
    return noise * norm / jnp.linalg.norm(noise, axis=-1, keepdims=True)
