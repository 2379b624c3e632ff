"""Batched sampling in one compiled program, with `<backspace>` as a rewind of the KV cache.

Slot = position = depth. Each step feeds every row's top token at its own slot, so a row that has
just deleted a token feeds the new top once more and overwrites its slot with identical values:
uniform cost, no branches. Rows in a batch may have different prompts, depths and floors. At the
action budget and at the depth budget `<eos>` is forced, so that every trajectory ends.

Prompts may hold latent thoughts (`model/latent.py`): they are thought once, on the same cache, and
then text follows, with or without backspace. Nothing can delete a thought: they are in the prompt.

The log-probability of an executed action is that of the distribution it was drawn from, computed by
`action_log_probs`, which training uses too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.model import cache as kv
from reasoning_jax.model import latent, readout, transformer
from reasoning_jax.vocab import Vocab

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Low enough that exp underflows to 0 in float32, finite so that 0 * log p stays 0.
FORBIDDEN = -1e30
# Folded into a row's key: noise in place of thoughts.
_NOISE_KEY = 0x7F000000


@dataclass(frozen=True)
class ActionIds:
    """The ids that the sampler must know: `<eos>`, `<backspace>` (or None), and never-drawn ids.

    Unless `floor_masked`, a backspace at the floor is an action too, which changes nothing.
    """

    eos: int
    backspace: int | None
    never: tuple[int, ...] = ()
    floor_masked: bool = True

    @staticmethod
    def of(vocab: Vocab, floor_masked: bool = True) -> ActionIds:
        never = tuple(vocab.unsampled_ids())
        return ActionIds(vocab.eos_id, vocab.backspace_id, never, floor_masked)


@dataclass(frozen=True)
class Noise:
    """An environment that errs: with `rate`, a chosen token or <eos> is replaced by another of
    `ids` (sorted, unique), drawn uniformly. `<backspace>` is never replaced.
    """

    rate: float
    ids: tuple[int, ...]


@struct.dataclass
class Completions:
    """What was executed, and what is left standing.

    `actions`, `log_probs`, `forced` [B, A] are aligned; the first `length[b]` count. `tokens`
    [B, S] is prompt plus visible text (with <eos> if reached), `token_count` [B] its length.
    `forced` marks an <eos> put there by a limit (its log-probability is still the policy's).
    `chosen` is what the policy drew, where a limit or noise put another action in its place.
    `backspace` is the probability of `<backspace>` before each action, in the plain softmax over
    all rows of the vocabulary (0 where there is none).
    """

    actions: Int[Array, "B A"]
    chosen: Int[Array, "B A"]
    backspace: Float[Array, "B A"]
    log_probs: Float[Array, "B A"]
    forced: Bool[Array, "B A"]
    length: Int[Array, " B"]
    tokens: Int[Array, "B S"]
    token_count: Int[Array, " B"]


def action_log_probs(
    logits: Float[Array, "... V"], allowed: Bool[Array, "... V"], sampling: SamplingConfig
) -> Float[Array, "... V"]:
    """log of the sampling distribution: disallowed actions out, then temperature, top-k, min-p and
    top-p in this order, then normalised. Temperature 0 gives the distribution at temperature 1.
    """
    z = jnp.where(allowed, logits.astype(jnp.float32), FORBIDDEN)
    if sampling.temperature > 0:
        z = jnp.where(allowed, z / sampling.temperature, FORBIDDEN)
    if 0 < sampling.top_k < z.shape[-1]:
        kth = lax.top_k(z, sampling.top_k)[0][..., -1:]
        z = jnp.where(z >= kth, z, FORBIDDEN)
    if sampling.min_p > 0:
        z = jnp.where(z >= z.max(-1, keepdims=True) + np.log(sampling.min_p), z, FORBIDDEN)
    if sampling.top_p < 1:
        ordered = lax.sort(-z, dimension=-1)
        probs = jax.nn.softmax(-ordered, axis=-1)
        # Keep an action while the mass of the more probable ones is below top_p.
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        lowest = jnp.where(kept, -ordered, jnp.inf).min(-1, keepdims=True)
        z = jnp.where(z >= lowest, z, FORBIDDEN)
    return jnp.where(z > FORBIDDEN, jax.nn.log_softmax(z, axis=-1), FORBIDDEN)


def allowed_actions(
    ids: ActionIds, vocab_size: int, depth: Int[Array, " B"], floor: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """Which actions a state has: everything but the never-drawn ids; no backspace at the floor."""
    ordinary = np.ones(vocab_size, bool)
    ordinary[list(ids.never)] = False
    allowed = jnp.asarray(ordinary)[None, :]
    if ids.backspace is not None and ids.floor_masked:
        is_backspace = jnp.arange(vocab_size)[None, :] == ids.backspace
        allowed = allowed & ~(is_backspace & (depth <= floor)[:, None])
    return jnp.broadcast_to(allowed, (depth.shape[0], vocab_size))


@dataclass(frozen=True)
class Thinking:
    """That <latent> in a prompt is a thought; static. `control`: see `latent.think`."""

    thoughts: latent.Thoughts
    control: str = ""


def make_sampler(
    config: ModelConfig,
    sampling: SamplingConfig,
    ids: ActionIds,
    noise: Noise | None = None,
    thinking: Thinking | None = None,
) -> Callable[..., Completions]:
    """A jitted `sample(params, prompts, prompt_length, floor, row_ids, key, lora, limit, slots)`.

    prompts [B, P]: right-padded, `prompt_length[b]` >= 1 ids count. floor [B]: the depth (index of
    the last undeletable token) below which nothing is deleted; prompt_length - 1 protects the whole
    prompt. row_ids [B]: the global index of each row; a row's samples depend on `key`, its own id
    and its own prompt alone, not on its batch mates. lora: adapters, or None (the default). limit
    [B]: the row's own action budget, at most sampling.max_actions, which is the default. slots:
    where the prompts' thoughts are (`latent.Slots`); needed if there are any and `thinking`.
    Without `thinking`, a <latent> in a prompt is read as a token (a pause).
    """
    return functools.partial(
        _sample, config=config, sampling=sampling, ids=ids, noise=noise, thinking=thinking
    )


@functools.partial(jax.jit, static_argnames=("config", "sampling", "ids", "noise", "thinking"))
def _sample(
    params: Any,
    prompts: jax.Array,
    prompt_length: jax.Array,
    floor: jax.Array,
    row_ids: jax.Array,
    key: jax.Array,
    lora: Any = None,
    limit: jax.Array | None = None,
    slots: latent.Slots | None = None,
    *,
    config: ModelConfig,
    sampling: SamplingConfig,
    ids: ActionIds,
    noise: Noise | None,
    thinking: Thinking | None,
) -> Completions:
    P = prompts.shape[1]
    A = sampling.max_actions
    new_tokens = sampling.max_new_tokens or A
    thought_room = slots.room if slots is not None and thinking is not None else 0
    room = P + max(new_tokens, thought_room) + 1
    V = config.vocab_size
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)
    state, last_thought = read_prompts(
        params, config, prompts, prompt_length, A, room, lora, thinking, slots, row_keys
    )
    params = transformer.unstacked(params)
    last = state["depth"]
    zeros = jnp.zeros_like(prompt_length)
    budget = zeros + A if limit is None else jnp.minimum(limit, A)

    def step(s: dict[str, Any]) -> dict[str, Any]:
        depth, done, t = s["depth"], s["done"], s["step"]
        slot = jnp.arange(room)[None, :]
        out = top_state(params, config, s, last_thought, lora, thinking)
        logits = readout.logits(params, config, out.hidden[:, 0])
        allowed = allowed_actions(ids, V, depth, floor)
        log_probs = action_log_probs(logits, allowed, sampling)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, t)
        if sampling.temperature > 0:
            chosen = jax.vmap(jax.random.categorical)(keys, log_probs)
        else:
            chosen = jnp.argmax(log_probs, axis=-1)
        chosen = chosen.astype(jnp.int32)
        executed = chosen
        if noise is not None and noise.rate > 0:
            executed = _replace(jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys), chosen, noise)
            if ids.backspace is not None:
                executed = jnp.where(chosen == ids.backspace, chosen, executed)
        at_limit = (t >= budget - 1) | (depth - last >= new_tokens)
        action = jnp.where(at_limit, ids.eos, executed)

        deleting = zeros.astype(jnp.float32)
        if ids.backspace is not None:
            # No indexing: the vocabulary may be split over devices.
            is_backspace = jnp.arange(V)[None, :] == ids.backspace
            plain = jax.nn.softmax(logits.astype(jnp.float32))
            deleting = jnp.where(is_backspace, plain, 0.0).sum(-1)
        erased = zeros > 0 if ids.backspace is None else action == ids.backspace
        moved = jnp.where(erased, jnp.maximum(depth - 1, jnp.minimum(floor, depth)), depth + 1)
        written = (slot == moved[:, None]) & (~erased & ~done)[:, None]
        return {
            **recorded(s, ids, chosen, action, at_limit, log_probs, deleting),
            "cache": out.cache,
            "tokens": jnp.where(written, action[:, None], s["tokens"]),
            "depth": jnp.where(done, depth, moved),
        }

    return run(step, state)


def read_prompts(
    params: Any,
    config: ModelConfig,
    prompts: Int[Array, "B P"],
    prompt_length: Int[Array, " B"],
    actions: int,
    room: int,
    lora: Any,
    thinking: Thinking | None,
    slots: latent.Slots | None,
    row_keys: Any,
) -> tuple[dict[str, Any], Float[Array, "B D"] | None]:
    """The state in which decoding begins (see `begin`), with the prompts' thoughts thought, and
    what was fed in each row's last thought.
    """
    if slots is None or thinking is None or not slots.n:
        cache, _ = transformer.prefill(params, config, prompts, room, lora)
        return begin(prompts, prompt_length, actions, cache), None
    cache, last_thought, _, _ = latent.think(
        params, config, thinking.thoughts, prompts, slots, room, lora,
        thinking.control, jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, _NOISE_KEY),
    )  # fmt: skip
    return begin(prompts, prompt_length, actions, cache), last_thought


def top_state(
    params: Any,
    config: ModelConfig,
    s: dict[str, Any],
    last_thought: Float[Array, "B D"] | None,
    lora: Any,
    thinking: Thinking | None,
) -> transformer.Output:
    """Each row's top token fed once more at its own slot: the state in which the row stands."""
    depth = s["depth"]
    slot = jnp.arange(s["tokens"].shape[1])[None, :]
    top = jnp.where(slot == depth[:, None], s["tokens"], 0).sum(-1, keepdims=True)
    x = transformer.embed(params, config, top)
    if last_thought is not None:
        # Without a marker behind them the last thought itself is on top.
        assert thinking is not None
        is_thought = (top == thinking.thoughts.latent_id)[..., None]
        x = jnp.where(is_thought, last_thought[:, None].astype(x.dtype), x)
    return transformer.apply(
        params, config, embeddings=x, positions=depth[:, None],
        cache=kv.rewind(s["cache"], depth), lora=lora,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config", "thinking"))
def next_log_probs(
    params: Any,
    prompts: Int[Array, "B P"],
    prompt_length: Int[Array, " B"],
    row_ids: Int[Array, " B"],
    key: jax.Array,
    lora: Any = None,
    slots: latent.Slots | None = None,
    *,
    config: ModelConfig,
    thinking: Thinking | None = None,
) -> Float[Array, "B V"]:
    """log p of every id behind each prompt, in the plain softmax over all rows of the vocabulary.

    The arguments are those of a sampler.
    """
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)
    room = prompts.shape[1] + (slots.room if slots is not None else 0) + 1
    state, last_thought = read_prompts(
        params, config, prompts, prompt_length, 0, room, lora, thinking, slots, row_keys
    )
    out = top_state(params, config, state, last_thought, lora, thinking)
    return jax.nn.log_softmax(readout.logits(params, config, out.hidden[:, 0]))


def begin(
    prompts: Int[Array, "B P"], prompt_length: Int[Array, " B"], actions: int, cache: kv.Cache
) -> dict[str, Any]:
    """The state in which a decoder's loop begins, of a cache with the prompts in it.

    It has the tokens in as many columns as the cache has slots, each row's depth (the index of its
    last token), whether it is done, and room for `actions` actions (see `recorded`).
    """
    zeros = jnp.zeros_like(prompt_length)
    wide = jnp.zeros_like(prompts[:, :1])
    rest = cache.slots - prompts.shape[1]

    def columns(n: int, dtype: Any) -> jax.Array:
        return jnp.concatenate([wide.astype(dtype)] * n or [wide[:, :0].astype(dtype)], axis=1)

    return {
        "step": jnp.int32(0),
        "cache": cache,
        "tokens": jnp.concatenate([prompts, columns(rest, prompts.dtype)], axis=1),
        "depth": prompt_length - 1,
        "done": zeros > 0,
        "length": zeros,
        "actions": columns(actions, jnp.int32),
        "chosen": columns(actions, jnp.int32),
        "backspace": columns(actions, jnp.float32),
        "log_probs": columns(actions, jnp.float32),
        "forced": columns(actions, bool),
    }


def recorded(
    s: dict[str, Any],
    ids: ActionIds,
    chosen: Int[Array, " B"],
    action: Int[Array, " B"],
    at_limit: Bool[Array, " B"],
    log_probs: Float[Array, "B V"],
    backspace: Float[Array, " B"],
) -> dict[str, Any]:
    """The state with one more action of each row that is not done written down; the rest of it
    (cache, tokens, depth) is the decoder's own.
    """
    t, done = s["step"], s["done"]
    now = (jnp.arange(s["actions"].shape[1]) == t)[None, :] & ~done[:, None]
    is_action = jnp.arange(log_probs.shape[-1])[None, :] == action[:, None]
    values = {
        "actions": action,
        "chosen": chosen,
        "backspace": backspace,
        "log_probs": jnp.where(is_action, log_probs, 0.0).sum(-1),
        "forced": at_limit & (chosen != ids.eos),
    }
    return {
        **s,
        **{name: jnp.where(now, x[:, None], s[name]) for name, x in values.items()},
        "step": t + 1,
        "done": done | (action == ids.eos),
        "length": s["length"] + ~done,
    }


def run(step: Callable[[dict[str, Any]], dict[str, Any]], state: dict[str, Any]) -> Completions:
    """`step` until every row is done, or has no room for another action."""
    actions = state["actions"].shape[1]
    s = lax.while_loop(lambda s: (s["step"] < actions) & ~s["done"].all(), step, state)
    return Completions(
        actions=s["actions"], chosen=s["chosen"], backspace=s["backspace"],
        log_probs=s["log_probs"], forced=s["forced"], length=s["length"],
        tokens=s["tokens"], token_count=s["depth"] + 1,
    )  # fmt: skip


def _replace(keys: jax.Array, chosen: jax.Array, noise: Noise) -> jax.Array:
    """`chosen` [B], or with probability `noise.rate` another of `noise.ids`."""
    candidates = jnp.asarray(noise.ids)

    def one(key: jax.Array, chosen: jax.Array) -> jax.Array:
        same = candidates == chosen
        others = len(noise.ids) - same.any()
        happens, which = jax.random.uniform(key, (2,))
        place = jnp.minimum(jnp.floor(which * others).astype(jnp.int32), others - 1)
        place = place + (same.any() & (place >= jnp.argmax(same)))
        # No indexing: the rows may be split over devices.
        other = jnp.where(jnp.arange(len(noise.ids)) == place, candidates, 0).sum()
        return jnp.where((happens < noise.rate) & (others > 0), other, chosen)

    return jax.vmap(one)(keys, chosen)
