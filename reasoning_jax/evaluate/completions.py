"""Completions of prompts by a model, on the host; and what it would write next, without writing it.

It judges nothing, and knows neither tasks nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding.contrastive import make_contrastive_sampler
from reasoning_jax.decoding.rows import (
    PaddedIds,
    padded_batches,
    paired_batches,
    queued_batches,
    slots_of,
)
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
    <latent> in a prompt is a thought (under "other_row" one of another prompt with as many).

    Raises:
      ValueError: under "other_row", a prompt with a number of thoughts that no other has.
    """
    if not prompts:
        return []
    ids, group = ActionIds.of(vocab, floor_masked), samples_per_prompt
    searches = sampling.method == "contrastive"
    alone = thinking is not None and thinking.control in ALONE
    if searches or alone:
        prompts, group = [p for p in prompts for _ in range(group)], 1
        batches = _batches([p.ids for p in prompts], batch_rows, mesh, thinking)
    else:
        queues = queued_batches([p.ids for p in prompts], group, batch_rows, mesh)
        batches = ((batch, _places(batch)) for batch in queues)
    sampler = (
        make_contrastive_sampler(config, sampling, ids)
        if searches
        # A batch may have more rows than asked for: what fills it up, and what the devices divide.
        else make_sampler(
            config, sampling, ids, thinking=thinking, batch_rows=0 if alone else batch_rows
        )
    )
    done: list[Completion] = []
    order: list[int] = []
    for batch, places in batches:
        chunk, rows = [prompts[i] for i in places], len(batch.ids)
        order += places
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
    found = {place: done[i * group : (i + 1) * group] for i, place in enumerate(order)}
    return [completion for place in range(len(prompts)) for completion in found[place]]


def _batches(
    sequences: Sequence[Sequence[int]],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
    thinking: Thinking | None,
) -> Iterator[tuple[PaddedIds, list[int]]]:
    """Batches with the places of their sequences: in order, or paired for "other_row"."""
    if thinking is not None and thinking.control == "other_row":
        counts = [thoughts_in(ids, thinking) for ids in sequences]
        yield from paired_batches(sequences, counts, batch_rows, mesh)
        return
    for batch in padded_batches(sequences, batch_rows, mesh):
        yield batch, _places(batch)


def _places(batch: PaddedIds) -> list[int]:
    return list(range(batch.begin, batch.begin + batch.count))


def thoughts_in(ids: Sequence[int], thinking: Thinking) -> int:
    """How many thoughts a prompt has."""
    return sum(i == thinking.thoughts.latent_id for i in ids)


def batch_slots(batch: PaddedIds, thinking: Thinking, mesh: jax.sharding.Mesh) -> Slots | None:
    """Where the thoughts of a batch of prompts are.

    Raises:
      ValueError: thoughts of another row are wanted, and rows have different numbers of them.
    """
    ids, length = jax.device_get((batch.ids, batch.length))
    slots = slots_of(ids, length, thinking.thoughts.latent_id, mesh)
    if thinking.control == "other_row" and slots is not None:
        counts = set(np.asarray(jax.device_get(slots.count)).tolist())
        if len(counts) > 1 or len(ids) < 2:
            raise ValueError(
                'the control "other_row" needs 2 rows or more with as many thoughts each; got rows '
                f"with {', '.join(map(str, sorted(counts)))}"
            )
    return slots


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
    """log p of every id behind each prompt, [len(prompts), V]; see `sampler.next_log_probs`.

    Raises: as `complete` does.
    """
    found = np.zeros((len(prompts), config.vocab_size), np.float32)
    for batch, places in _batches(prompts, batch_rows, mesh, thinking):
        row_ids = np.arange(batch.begin, batch.begin + len(batch.ids), dtype=np.int32)
        slots = batch_slots(batch, thinking, mesh) if thinking is not None else None
        out = next_log_probs(
            params, batch.ids, batch.length, sharding.place_rows(row_ids, mesh), key, lora, slots,
            config=config, thinking=thinking,
        )  # fmt: skip
        found[places] = np.asarray(jax.device_get(out))[: batch.count]
    return found


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
