"""Contrastive search: the most probable tokens, re-ranked against repeating what stands already.

Su et al. 2022, arXiv 2202.06417, equation 5. Of the k most probable tokens V_k it takes

    argmax over v in V_k of  (1 - alpha) p(v | x) - alpha max_j cos(h_v, h_j)

where j runs over all of the context, prompt and start token included, and h is the decoder's last
hidden state: after the final norm, as in transformers 4.52, which the tests hold this against. A
tie goes to the more probable token. It is deterministic, and it never deletes: `<backspace>` is not
among the candidates.

Deviations: p is the softmax over the tokens that may be chosen (text and <eos>), so what a model
gives to `<backspace>` counts for nothing; at the limits <eos> is forced, as in `sampler.py`.

How: each step feeds the k candidates as k tokens of one row, all at the next position, each of them
seeing the context and itself. So the cache is never repeated k times: the chosen candidate's keys
and values alone are written into it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding import record
from reasoning_jax.decoding.actions import (
    FORBIDDEN,
    ActionIds,
    Completions,
    action_log_probs,
    allowed_actions,
)
from reasoning_jax.model import attention, decoding_weights, readout, transformer
from reasoning_jax.model import cache as kv

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# The model's own distribution: contrastive search has neither temperature nor filters.
_UNFILTERED = SamplingConfig(temperature=1.0)


def make_contrastive_sampler(
    config: ModelConfig, sampling: SamplingConfig, ids: ActionIds
) -> Callable[..., Completions]:
    """A jitted `search(params, prompts, prompt_length, floor, row_ids, key, lora=None)`.

    Takes the arguments of the function that `sampler.make_sampler` returns up to `lora`, a prompt
    for each row, so that one may stand for the other; `floor`, `row_ids` and `key` change nothing
    here. Of `sampling` it reads
    `contrastive_candidates` (more than the vocabulary holds means all of it),
    `contrastive_penalty`, `max_actions` and `max_new_tokens`. `log_probs` are those of p above.
    """
    never = ids.never if ids.backspace is None else (*ids.never, ids.backspace)
    ids = ActionIds(ids.eos, None, never)
    return functools.partial(_search, config=config, sampling=sampling, ids=ids)


def contrastive_scores(
    log_probs: Float[Array, "B k"],
    candidates: Float[Array, "B k D"],
    context: Float[Array, "B S D"],
    in_context: Bool[Array, "B S"],
    penalty: float,
) -> Float[Array, "B k"]:
    """Equation 5 for k candidates: their log-probabilities and unit vectors, and the context's.

    A candidate that has no probability (`FORBIDDEN`) scores below every other.
    """
    cosine = jnp.einsum("bkd,bsd->bks", candidates, context)
    likeness = jnp.where(in_context[:, None], cosine, -jnp.inf).max(-1)
    scores = (1.0 - penalty) * jnp.exp(log_probs) - penalty * likeness
    return jnp.where(log_probs > FORBIDDEN, scores, FORBIDDEN)


def _unit(hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] as float32 vectors of length 1; a zero vector stays zero."""
    hidden = hidden.astype(jnp.float32)
    square = jnp.square(hidden).sum(-1, keepdims=True)
    return hidden * lax.rsqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))


@functools.partial(jax.jit, static_argnames=("config", "sampling", "ids"))
def _search(
    params: Any,
    prompts: jax.Array,
    prompt_length: jax.Array,
    floor: jax.Array,
    row_ids: jax.Array,
    key: jax.Array,
    lora: Any = None,
    *,
    config: ModelConfig,
    sampling: SamplingConfig,
    ids: ActionIds,
) -> Completions:
    del floor, row_ids, key
    B, P = prompts.shape
    V = config.vocab_size
    A = sampling.max_actions
    k = min(sampling.contrastive_candidates, V)
    new_tokens = sampling.max_new_tokens or A
    slots = P + new_tokens + 1
    cache, read = transformer.prefill(params, config, prompts, slots, lora)
    last = prompt_length - 1
    state = record.begin(jnp.zeros_like(last), A) | {
        "cache": cache, "tokens": jnp.pad(prompts, ((0, 0), (0, slots - P))), "depth": last,
        "live": last >= 0,
    }  # fmt: skip
    slot = jnp.arange(slots)[None, :]
    at_top = (jnp.arange(P)[None, :] == last[:, None])[..., None]
    state["top"] = jnp.where(at_top, read.hidden, 0).sum(1)
    state["context"] = jnp.pad(_unit(read.hidden), ((0, 0), (0, slots - P), (0, 0)))

    params = decoding_weights.unstacked(params)
    # A candidate sees the context and itself.
    own = attention.Dense(jnp.broadcast_to(jnp.eye(k, dtype=bool), (B, k, k)))

    def step(s: dict[str, Any]) -> dict[str, Any]:
        depth, live, t = s["depth"], s["live"], s["step"]
        logits = readout.logits(params, config, s["top"])
        log_probs = action_log_probs(logits, allowed_actions(ids, V, depth, last), _UNFILTERED)
        log_probs = sharding.whole(log_probs)
        candidate_log_probs, candidates = lax.top_k(log_probs, k)

        # [B, k]: k alternatives for the next position.
        next_slot = depth[:, None] + 1
        in_context = slot < next_slot
        position = next_slot
        if config.position == "learned":
            # Behind a text that fills the table: such a row ends, whatever its candidates are.
            position = jnp.minimum(position, config.max_positions - 1)
        context = kv.rewind(s["cache"], depth + 1)
        out = transformer.apply(
            params, config, candidates, positions=position + jnp.zeros_like(candidates),
            attention=own, cache=context, return_keys=True, lora=lora,
        )  # fmt: skip
        assert out.keys is not None
        assert out.values is not None
        units = _unit(out.hidden)
        scores = contrastive_scores(
            candidate_log_probs, units, s["context"], in_context, sampling.contrastive_penalty
        )
        best = jnp.argmax(scores, axis=-1)
        is_best = jnp.arange(k)[None, :] == best[:, None]
        chosen = jnp.where(is_best, candidates, 0).sum(-1).astype(jnp.int32)
        at_limit = (t == A - 1) | (depth - last >= new_tokens)
        action = jnp.where(at_limit, ids.eos, chosen)
        written = (slot == next_slot) & live[:, None]
        keys, values = (
            jnp.where(is_best[None, :, :, None, None], x, 0).sum(2, keepdims=True)
            for x in (out.keys, out.values)
        )
        unit = jnp.where(is_best[..., None], units, 0).sum(1)
        return {
            # It never deletes: the probability of <backspace> is not looked at.
            **record.recorded(
                s, ids, chosen, action, at_limit, log_probs, jnp.zeros_like(scores[:, 0])
            ),
            "cache": kv.extend(context, keys, values),
            "tokens": jnp.where(written, action[:, None], s["tokens"]),
            "top": jnp.where(is_best[..., None], out.hidden, 0).sum(1),
            "context": jnp.where(written[..., None], unit[:, None], s["context"]),
            "depth": jnp.where(live, depth + 1, depth),
        }

    return record.completions(lax.while_loop(lambda s: s["live"].any(), step, state))
