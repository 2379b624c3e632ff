"""Completions of prompts by a model, on the host; and what it would write next, without writing it.

It judges nothing, and knows neither tasks nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding.contrastive import make_contrastive_sampler
from reasoning_jax.decoding.rows import PaddedIds, padded_batches, queued_batches, slots_of
from reasoning_jax.decoding.sampler import (
    ALONE,
    ActionIds,
    Thinking,
    make_sampler,
    next_log_probs,
)
from reasoning_jax.model.latent import Slots
from reasoning_jax.vocab import Vocab


@dataclass(frozen=True)
class Prompt:
    """Ids to continue. Nothing at or before index `floor` can be deleted."""

    ids: tuple[int, ...]
    floor: int


@dataclass
class Completion:
    """One sampled completion, on the host.

    `text` is what stands behind the floor in the end, without <eos>; `truncated` if a limit ended
    it; `backspace` the probability of <backspace> before each action.
    """

    prompt: Prompt
    actions: list[int]
    log_probs: list[float]
    forced: list[bool]
    text: str
    truncated: bool
    backspace: list[float] = field(default_factory=list)


def complete(
    params: Any,
    lora: Any,
    config: ModelConfig,
    vocab: Vocab,
    sampling: SamplingConfig,
    prompts: Sequence[Prompt],
    key: jax.Array,
    batch_rows: int,
    mesh: jax.sharding.Mesh,
    floor_masked: bool = True,
    thinking: Thinking | None = None,
    samples_per_prompt: int = 1,
) -> list[Completion]:
    """Decode `samples_per_prompt` completions of each prompt as `sampling` says, one prompt's after
    another's, `batch_rows` at a time.

    A completion depends on `key`, its place in the list and its own prompt alone. Unless
    `floor_masked`, a backspace at the floor is an action, without effect. With `thinking`, each
    <latent> in a prompt is a thought (under "other_row" one of the prompt before it in its batch).
    """
    if not prompts:
        return []
    ids, group = ActionIds.of(vocab, floor_masked), samples_per_prompt
    searches = sampling.method == "contrastive"
    if searches or (thinking is not None and thinking.control in ALONE):
        prompts, group = [p for p in prompts for _ in range(group)], 1
        batches = padded_batches([p.ids for p in prompts], batch_rows, mesh)
    else:
        batches = queued_batches([p.ids for p in prompts], group, batch_rows, mesh)
    sampler = (
        make_contrastive_sampler(config, sampling, ids)
        if searches
        else make_sampler(config, sampling, ids, thinking=thinking, batch_rows=batch_rows)
    )
    done: list[Completion] = []
    for batch in batches:
        chunk, rows = prompts[batch.begin : batch.begin + batch.count], len(batch.ids)
        row_ids = np.arange(batch.begin * group, (batch.begin + rows) * group, dtype=np.int32)
        floor = np.full(rows, chunk[-1].floor, np.int32)
        floor[: batch.count] = [p.floor for p in chunk]
        placed = (sharding.place_rows(x, mesh) for x in (floor, row_ids))
        more: dict[str, Any] = {}
        if not searches:
            # What only fills up is left out.
            limit = np.repeat(np.arange(rows) < batch.count, group) * np.int32(sampling.max_actions)
            more["limit"] = sharding.place_rows(limit, mesh)
        if thinking is not None:
            more["slots"] = batch_slots(batch, thinking, mesh)
        out = jax.device_get(sampler(params, batch.ids, batch.length, *placed, key, lora, **more))
        done += [_to_host(out, i, chunk[i // group], vocab) for i in range(len(chunk) * group)]
    return done


def batch_slots(batch: PaddedIds, thinking: Thinking, mesh: jax.sharding.Mesh) -> Slots | None:
    """Where the thoughts of a batch of prompts are.

    Raises:
      ValueError: thoughts of another row are wanted, and there is no other row.
    """
    ids, length = jax.device_get((batch.ids, batch.length))
    if thinking.control == "other_row" and batch.begin + batch.count < 2:
        raise ValueError('the control "other_row" needs at least 2 prompts')
    return slots_of(ids, length, thinking.thoughts.latent_id, mesh)


def next_token_log_probs(
    params: Any,
    lora: Any,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    batch_rows: int,
    mesh: jax.sharding.Mesh,
    thinking: Thinking | None = None,
) -> np.ndarray:
    """log p of every id behind each prompt, [len(prompts), V]; see `sampler.next_log_probs`."""
    found = [np.zeros((0, config.vocab_size), np.float32)]
    for batch in padded_batches(prompts, batch_rows, mesh):
        row_ids = np.arange(batch.begin, batch.begin + len(batch.ids), dtype=np.int32)
        slots = batch_slots(batch, thinking, mesh) if thinking is not None else None
        out = next_log_probs(
            params, batch.ids, batch.length, sharding.place_rows(row_ids, mesh), key, lora, slots,
            config=config, thinking=thinking,
        )  # fmt: skip
        found.append(np.asarray(jax.device_get(out))[: batch.count])
    return np.concatenate(found)


def _to_host(out: Any, i: int, prompt: Prompt, vocab: Vocab) -> Completion:
    n, count = int(out.length[i]), int(out.token_count[i])
    visible = out.tokens[i, prompt.floor + 1 : count].tolist()
    if visible and visible[-1] == vocab.eos_id:
        visible.pop()
    forced = out.forced[i, :n].tolist()
    return Completion(
        prompt, out.actions[i, :n].tolist(), out.log_probs[i, :n].tolist(), forced,
        vocab.decode(visible), any(forced), out.backspace[i, :n].tolist(),
    )  # fmt: skip
