"""The batch source of SequenceMatch: data, and beside it trajectories from a replay buffer.

For the first `bc_steps` it is the supervised source. Then, every `sample_every_steps`, prompts of
the training data are continued with the current parameters into the buffer, and each batch carries
as many sampled trajectories as it has rows. Everything drawn is a function of the seed and of a
counter, so a restored source goes on as if it had never stopped. It computes no loss.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.config import Config, ConfigError, ModelConfig, SamplingConfig
from reasoning_jax.config_check_objectives import BATCHES_KEPT
from reasoning_jax.data.batch import Batch, padded
from reasoning_jax.data.pipeline import Stream, SupervisedSource
from reasoning_jax.decoding.rows import BUCKET, padded_batches
from reasoning_jax.decoding.sampler import ActionIds, Noise, make_sampler
from reasoning_jax.rl.replay import ReplayBuffer, as_batch

# Folded into the seed's key; `commands.train` has the numbers of other purposes.
KEY_ROLLOUT = 3
# First words of numpy seeds, one a purpose.
_PREFIX, _DRAW, _PAIRED = 11, 12, 13
# The prompts of rollouts come in an order of their own.
_PROMPT_ORDER = 7_919


class MatchedSource:
    """See the module. `adapters(params)` gives the LoRA adapters of a state's parameters.

    Raises:
      ConfigError: several processes.
    """

    fresh_optimizer = False

    def __init__(
        self,
        supervised: SupervisedSource,
        stream: Stream,
        config: Config,
        model: ModelConfig,
        ids: ActionIds,
        mesh: jax.sharding.Mesh,
        adapters: Callable[[Any], Any],
    ):
        if jax.process_count() > 1:
            raise ConfigError(
                'objective.name="sequencematch" works in one process, there are '
                f"{jax.process_count()}: its replay buffer is not divided among processes"
            )
        replay, rows = config.replay, config.train.batch_rows
        self._supervised, self._config, self._mesh = supervised, config, mesh
        self._model, self._adapters = model, adapters
        self._stream = dataclasses.replace(stream, seed=stream.seed + _PROMPT_ORDER)
        self._buffer = ReplayBuffer(
            replay.capacity_rollouts or BATCHES_KEPT * rows, config.data.seq_len
        )
        self._ids = ids
        noise_ids = stream.encoder.noise_ids
        # Data live where actions go wrong at noise.rate; so do rollouts, unless they are to differ.
        rate = config.noise.rate if replay.noise_rate < 0 else replay.noise_rate
        self._noise = Noise(rate, tuple(sorted(set(noise_ids)))) if noise_ids else None
        self._key = jax.random.fold_in(jax.random.key(config.seed), KEY_ROLLOUT)
        self._step = self._drawn = 0
        self._sampled: dict[str, np.ndarray] | None = None
        self._spent = 0.0

    def next(self, state: Any) -> Batch:
        """The batch of this step; samples with the state's parameters when a refresh is due."""
        step, config = self._step, self._config
        self._step += 1
        if step < config.sequencematch.bc_steps:
            return self._supervised.next()
        rows = config.train.batch_rows
        due = (step - config.sequencematch.bc_steps) % config.replay.sample_every_steps == 0
        while due or len(self._buffer) < rows:
            self.refresh(state, step)
            due = False
        sampled = self._buffer.sample(np.random.default_rng([config.seed, _DRAW, step]), rows)
        self._sampled = sampled
        model = self._supervised.place(as_batch(sampled, step))
        if not config.replay.paired_prompts:
            return _together(self._supervised.next(), model)
        encoded = []
        for i, position in enumerate(sampled["position"].tolist()):
            rng = np.random.default_rng([config.seed, _PAIRED, step, i])
            encoded.append(self._stream.encoder.encode(self._stream.example(position), rng))
        return _together(self._supervised.place(padded(encoded, rows, config.data.seq_len)), model)

    def describe(self) -> Callable[[], dict[str, Any]]:
        sampled, paired = self._sampled, self._config.replay.paired_prompts
        data = None if paired and sampled is not None else self._supervised.describe()

        def name() -> dict[str, Any]:
            found = data() if data is not None else {}
            if sampled is not None:
                positions = sampled["position"].tolist()
                found["rollouts"] = {
                    "positions": positions,
                    "examples": [self._stream.index(p) for p in positions],
                    "sampled_at_step": (sampled["step"] + 1).tolist(),
                }
            return found

        return name

    def seconds(self) -> dict[str, float]:
        spent, self._spent = self._spent, 0.0
        return {"rollout": spent} if spent else {}

    def refresh(self, state: Any, step: int) -> None:
        """Sample one refresh of rollouts into the buffer."""
        # The state is that of a step which may not be done yet: that wait is the step's.
        jax.block_until_ready(state.params)
        began = time.perf_counter()
        self._refresh(state, step)
        self._spent += time.perf_counter() - began

    def _refresh(self, state: Any, step: int) -> None:
        config, T = self._config, self._config.data.seq_len
        n = config.replay.refresh_rollouts or config.train.batch_rows
        positions = np.arange(self._drawn, self._drawn + n, dtype=np.int32)
        pairs = [self._prompt(int(position)) for position in positions]
        floor = np.array([floor for _, floor in pairs], np.int32)
        given = np.array([len(ids) for ids, _ in pairs], np.int32)
        (prompts,) = padded_batches([ids for ids, _ in pairs], n, self._mesh)
        # The longest budget of any row, for prompts down to a multiple of the bucket.
        shortest = max(1, int(given.min()) // BUCKET * BUCKET)
        sampling = SamplingConfig(
            temperature=config.replay.temperature, max_actions=max(1, T - shortest)
        )
        # As many at a time as a batch has rows: more would be more memory than a step needs.
        sample = make_sampler(
            self._model, sampling, self._ids, self._noise, batch_rows=config.train.batch_rows
        )
        arrays = (floor, np.arange(n, dtype=np.int32), T - given)
        floors, row_ids, limit = (sharding.place_rows(a, self._mesh) for a in arrays)
        out = sample(
            state.params["model"], prompts.ids, prompts.length, floors, row_ids,
            jax.random.fold_in(self._key, self._drawn), self._adapters(state.params), limit,
        )  # fmt: skip
        out = jax.device_get(out)
        actions, labels = np.zeros((n, T), np.int32), np.zeros((n, T), np.int32)
        length = given + out.length
        for i, (ids, _) in enumerate(pairs):
            p, count = len(ids), int(out.length[i])
            actions[i, : p + count] = [*ids, *out.actions[i, :count]]
            labels[i, : p + count] = [*ids[1:], *out.chosen[i, :count], self._ids.eos]
        self._buffer.push(
            actions, labels, length=length.astype(np.int32), given=given, floor=floor,
            step=np.full(n, step, np.int32), position=positions,
        )  # fmt: skip
        self._drawn += n

    def _prompt(self, position: int) -> tuple[list[int], int]:
        """(ids to continue, floor): the prompt of an example, and perhaps a part of its response.

        The part is not below the floor: the model may delete it, as it may in the data.
        """
        encoder, config = self._stream.encoder, self._config
        ids, rest = encoder.split_ids(self._stream.example(position))
        floor = len(ids) - 1
        if config.replay.prefix_tokens:
            most = min(config.replay.prefix_tokens, len(rest), config.data.seq_len - 1 - len(ids))
            rng = np.random.default_rng([config.seed, _PREFIX, position])
            ids = ids + rest[: int(rng.integers(0, max(most, 0) + 1))]
        return ids, floor

    def save(self) -> dict[str, Any]:
        place = self._supervised.save()
        return {"supervised": place, "step": self._step, "drawn": self._drawn}

    def restore(self, place: dict[str, Any]) -> None:
        self._supervised.restore(place["supervised"])
        self._step, self._drawn = place["step"], place["drawn"]

    def arrays(self) -> dict[str, np.ndarray]:
        return self._buffer.arrays()

    def restore_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self._buffer.restore(arrays)

    def meta(self) -> dict[str, Any]:
        return {}


def _together(data: Batch, model: Batch) -> Batch:
    """Data with rollouts beside them, and one count of token rows for both.

    The count is static: a count each would be a compilation for every pair.
    """
    rows = max(data.token_rows, model.token_rows)
    model = dataclasses.replace(model, token_rows=rows)
    return dataclasses.replace(data, model=model, token_rows=rows)
