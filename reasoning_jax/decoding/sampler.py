"""Batched sampling in one compiled program, with `<backspace>` as a rewind of the KV cache.

Slot = position = depth. Each step feeds every row's top token at its own slot, so a row that has
just deleted a token feeds the new top once more and overwrites its slot with identical values:
uniform cost, no branches. Rows in a batch may have different prompts, depths and floors. At the
action budget and at the depth budget `<eos>` is forced, so that every trajectory ends.

There may be more rows than the batch has places: a row that has ended gives its place to the next
one of the queue (`queue.py`), inside the same program. Several rows may continue one prompt, which
is read once.

Prompts may hold latent thoughts (`model/latent.py`): they are thought once, on the same cache, and
then text follows, with or without backspace. Nothing can delete a thought: they are in the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding import queue as queues
from reasoning_jax.decoding import record
from reasoning_jax.decoding.actions import (
    ActionIds,
    Completions,
    Noise,
    action_log_probs,
    allowed_actions,
    replaced,
)
from reasoning_jax.model import cache as kv
from reasoning_jax.model import decoding_weights, latent, readout, transformer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Controls of thoughts for which each row must have its own prompt, all of them in one batch.
ALONE = ("other_row", "noise")
# Folded into a row's key: noise in place of thoughts.
_NOISE_KEY = 0x7F000000


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
    batch_rows: int = 0,
) -> Callable[..., Completions]:
    """A jitted `sample(params, prompts, prompt_length, floor, row_ids, key, lora, limit, slots)`.

    prompts [N, P]: right-padded, `prompt_length[i]` >= 1 ids count. floor [N]: the depth (index of
    the last undeletable token) below which nothing is deleted; prompt_length - 1 protects the whole
    prompt. row_ids [Q], a multiple of N: the global index of each row, which continues prompt
    q // (Q / N); a row's samples depend on `key`, its own id and its own prompt alone, neither on
    its batch mates nor on `batch_rows`. lora: adapters, or None (the default). limit [Q]: the row's
    own action budget, at most sampling.max_actions, which is the default; a row of 0 is left out.
    slots: where the prompts' thoughts are (`latent.Slots`); needed if there are any and `thinking`.
    Without `thinking`, a <latent> in a prompt is read as a token (a pause).

    batch_rows: how many rows are decoded at a time (or a few more, up to what the devices divide);
    0 is all of them.

    Raises (when called):
      ValueError: rows that are no multiple of the prompts; a control that takes thoughts of another
        row, or noise of each row, where rows come from a queue or share a prompt.
    """
    return functools.partial(
        _sample, config=config, sampling=sampling, ids=ids, noise=noise, thinking=thinking,
        batch_rows=batch_rows,
    )  # fmt: skip


@functools.partial(
    jax.jit, static_argnames=("config", "sampling", "ids", "noise", "thinking", "batch_rows")
)
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
    batch_rows: int,
) -> Completions:
    (N, P), Q, A = prompts.shape, row_ids.shape[0], sampling.max_actions
    if thinking is None or slots is None or not slots.n:
        thinking = slots = None
    thought_room = 0 if slots is None else slots.room
    room = P + max(sampling.max_new_tokens or A, thought_room) + 1
    limit = jnp.zeros_like(row_ids) + A if limit is None else jnp.minimum(limit, A)
    if Q % N:
        raise ValueError(f"{Q} rows cannot continue {N} prompts equally often")
    alone = Q == N and not 0 < batch_rows < Q
    if thinking is not None and not alone and thinking.control in ALONE:
        raise ValueError(
            f'the control "{thinking.control}" needs each row with its own prompt, all in one batch'
        )

    def read(part: queues.Prompts, room: int) -> queues.Read:
        keys = row_keys(key, part.row_ids)
        return read_prompts(params, config, part.ids, room, lora, thinking, part.slots, keys)

    step = make_step(params, config, sampling, ids, key, lora, noise, thinking)
    queue = queues.Queue.of(prompts, prompt_length, floor, row_ids, limit, slots)
    return queues.run(queue, read, step, A, room, P + thought_room, batch_rows)


def make_step(
    params: Any,
    config: ModelConfig,
    sampling: SamplingConfig,
    ids: ActionIds,
    key: jax.Array,
    lora: Any = None,
    noise: Noise | None = None,
    thinking: Thinking | None = None,
    draw: Callable[[dict[str, Any], jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One action of every live row: (state) -> state; `queue.run` says what is in it.

    `draw(state, keys [B], log_probs [B, V])` chooses the actions [B]; by default they are sampled
    as `sampling` says. What it chooses is executed even if it has no probability.
    """
    V, A = config.vocab_size, sampling.max_actions
    new_tokens = sampling.max_new_tokens or A
    params = decoding_weights.unstacked(params)
    if draw is None:
        draw = _argmax if sampling.temperature == 0 else _categorical

    def step(s: dict[str, Any]) -> dict[str, Any]:
        depth, live, floor, t = s["depth"], s["live"], s["floor"], s["length"]
        out = top_state(params, config, s, lora, thinking)
        logits = readout.logits(params, config, out.hidden[:, 0])
        log_probs = action_log_probs(logits, allowed_actions(ids, V, depth, floor), sampling)
        keys = jax.vmap(jax.random.fold_in)(row_keys(key, s["row_id"]), t)
        chosen = draw(s, keys, log_probs).astype(jnp.int32)
        executed = chosen
        if noise is not None and noise.rate > 0:
            executed = replaced(jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys), chosen, noise)
            if ids.backspace is not None:
                executed = jnp.where(chosen == ids.backspace, chosen, executed)
        at_limit = (t >= s["budget"] - 1) | (depth - s["last"] >= new_tokens)
        action = jnp.where(at_limit, ids.eos, executed)

        deleting = jnp.zeros_like(depth, jnp.float32)
        erased = jnp.zeros_like(live)
        if ids.backspace is not None:
            # No indexing: the vocabulary may be split over devices.
            is_backspace = jnp.arange(V)[None, :] == ids.backspace
            plain = jax.nn.softmax(logits.astype(jnp.float32))
            deleting = jnp.where(is_backspace, plain, 0.0).sum(-1)
            erased = action == ids.backspace
        moved = jnp.where(erased, jnp.maximum(depth - 1, jnp.minimum(floor, depth)), depth + 1)
        slot = jnp.arange(s["tokens"].shape[1])[None, :]
        written = (slot == moved[:, None]) & (~erased & live)[:, None]
        return {
            **record.recorded(s, ids, chosen, action, at_limit, log_probs, deleting),
            "cache": out.cache,
            "tokens": jnp.where(written, action[:, None], s["tokens"]),
            "depth": jnp.where(live, moved, depth),
        }

    return step


def row_keys(key: jax.Array, row_ids: Int[Array, " B"]) -> jax.Array:
    """Each row's own key."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)


def _categorical(s: dict[str, Any], keys: jax.Array, log_probs: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys, log_probs)


def _argmax(s: dict[str, Any], keys: jax.Array, log_probs: jax.Array) -> jax.Array:
    return jnp.argmax(log_probs, axis=-1)


def read_prompts(
    params: Any,
    config: ModelConfig,
    prompts: Int[Array, "B P"],
    room: int,
    lora: Any,
    thinking: Thinking | None,
    slots: latent.Slots | None,
    keys: jax.Array,
) -> queues.Read:
    """Prompts with their thoughts thought, in a cache of `room` slots; `keys` are the rows' own."""
    if slots is None or thinking is None or not slots.n:
        cache, _ = transformer.prefill(params, config, prompts, room, lora)
        return queues.Read(cache, None)
    cache, last_thought, _, _ = latent.think(
        params, config, thinking.thoughts, prompts, slots, room, lora,
        thinking.control, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _NOISE_KEY),
    )  # fmt: skip
    return queues.Read(cache, last_thought)


def top_state(
    params: Any,
    config: ModelConfig,
    s: dict[str, Any],
    lora: Any,
    thinking: Thinking | None,
) -> transformer.Output:
    """Each row's top token fed once more at its own slot: the state in which the row stands."""
    depth = s["depth"]
    slot = jnp.arange(s["tokens"].shape[1])[None, :]
    top = jnp.where(slot == depth[:, None], s["tokens"], 0).sum(-1, keepdims=True)
    x = transformer.embed(params, config, top)
    if s.get("last_thought") is not None:
        # Without a marker behind them the last thought itself is on top.
        assert thinking is not None
        is_thought = (top == thinking.thoughts.latent_id)[..., None]
        x = jnp.where(is_thought, s["last_thought"][:, None].astype(x.dtype), x)
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
    room = prompts.shape[1] + (slots.room if slots is not None else 0) + 1
    done = read_prompts(
        params, config, prompts, room, lora, thinking, slots, row_keys(key, row_ids)
    )
    state = {
        "cache": done.cache, "tokens": prompts, "depth": prompt_length - 1,
        "last_thought": done.last_thought,
    }  # fmt: skip
    out = top_state(params, config, state, lora, thinking)
    return jax.nn.log_softmax(readout.logits(params, config, out.hidden[:, 0]))
