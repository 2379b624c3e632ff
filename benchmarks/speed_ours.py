"""Our side of benchmarks/speed.py: training steps, sampling and the loop, as our runs have them.

python -m benchmarks.speed_ours THREADS
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import worker
from reasoning_jax import sharding
from reasoning_jax.config import Config, ModelConfig, OptimizerConfig, SamplingConfig, TrainConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds, make_sampler
from reasoning_jax.model import readout, spec, transformer
from reasoning_jax.train import loop
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import Program, fresh_state, make_program

# No id ends a row: 0 is <eos>, and never drawn.
IDS = ActionIds(eos=0, backspace=None, never=(0,))


def model_of(*, vocab: int, width: int, layers: int, heads: int, inner: int) -> ModelConfig:
    """A Llama: RMSNorm, RoPE, SwiGLU, no biases, an unembedding of its own."""
    return ModelConfig(
        vocab_size=vocab, d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=heads,
        head_dim=width // heads, d_ff=inner, tied_embeddings=False,
    )  # fmt: skip


def same_work(params: Any) -> dict[str, Any]:
    """What an arm with the same model has too."""
    leaves = jax.tree.leaves(params)
    (dtype,) = {str(x.dtype) for x in leaves}
    return {"parameters": sum(x.size for x in leaves), "dtype": dtype}


def program_of(shape: dict[str, int], train: TrainConfig) -> Program:
    model = model_of(**shape)
    optimizer = OptimizerConfig(
        learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.01, b2=0.999,
        clip_norm=0.0, no_decay=(),
    )  # fmt: skip
    config = Config(optimizer=optimizer, model=model, train=train)
    return make_program(config, model, IDS)


class Constant:
    """A batch source of one batch: a position's label is the next token."""

    fresh_optimizer = False

    def __init__(self, vocab: int, batch: int, length: int):
        rng = np.random.default_rng(0)
        rows = rng.integers(0, vocab, (batch, length)).astype(np.int32)
        zeros, ones = np.zeros_like(rows), np.ones(rows.shape, np.float32)
        arrays = Batch(rows, np.roll(rows, -1, 1), ones, zeros + 1, zeros, zeros)
        self.batch = jax.tree.map(jnp.asarray, arrays)

    def next(self, state: Any) -> Batch:
        return self.batch

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, place: dict[str, Any]) -> None:
        pass

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    def restore_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        pass

    def meta(self) -> dict[str, Any]:
        return {}

    def describe(self) -> Callable[[], dict[str, Any]]:
        return dict

    def seconds(self) -> dict[str, float]:
        return {}


class Training:
    """Steps of AdamW on one batch; metrics are made, as in a run."""

    def __init__(self, *, batch: int, length: int, **shape: int):
        self.program = program_of(shape, TrainConfig())
        self.source = Constant(shape["vocab"], batch, length)
        self.state = fresh_state(self.program, sharding.make_mesh())
        self.tokens, self.metrics = batch * length, {}

    def __call__(self) -> int:
        self.state, self.metrics = self.program.step(self.state, self.source.batch)
        jax.block_until_ready(self.state)
        return self.tokens

    def facts(self) -> dict[str, Any]:
        loss = self.metrics["loss"]
        mean = float(loss.value / loss.count)
        return {**same_work(self.state.params["model"]), "training loss": mean}


class Sampling:
    """Sampling at temperature 1: rows of ids at random as prompts; a row ends at its limit."""

    def __init__(
        self, prompts: int, prompt: int, limit: np.ndarray, batch_rows: int, shape: dict[str, int]
    ):
        self.model = model_of(**shape)
        self.mesh = sharding.make_mesh()
        specs = transformer.param_specs(self.model)
        self.params = spec.init_params(jax.random.key(0), specs, jnp.float32, self.mesh)
        rng = np.random.default_rng(0)
        self.prompts = rng.integers(1, shape["vocab"], (prompts, prompt)).astype(np.int32)
        self.limit = limit.astype(np.int32)
        sampling = SamplingConfig(temperature=1.0, max_actions=int(limit.max()))
        self.batch_rows = batch_rows
        self.sample = self.sampler(sampling)
        self.calls, self.distinct = 0, 0

    def sampler(self, sampling: SamplingConfig) -> Callable[..., Any]:
        return make_sampler(self.model, sampling, IDS, batch_rows=self.batch_rows)

    def run(self, prompts: np.ndarray, rows: np.ndarray, limit: np.ndarray) -> int:
        """Sample these rows of the queue; their prompts are `prompts`. Returns the tokens made."""
        length = np.full(len(prompts), prompts.shape[1], np.int32)
        placed = (
            sharding.place_rows(x, self.mesh)
            for x in (prompts, length, length - 1, rows.astype(np.int32))
        )
        key = jax.random.key(self.calls)
        budget = sharding.place_rows(limit, self.mesh)
        out = self.sample(self.params, *placed, key, None, budget)
        actions, written = jax.device_get((out.actions, out.length))
        assert (written == limit).all(), (written, limit)
        self.distinct = len(np.unique(actions[0, : written[0]]))
        return int(written.sum())

    def whole(self, limit: np.ndarray) -> int:
        self.calls += 1
        return self.run(self.prompts, np.arange(len(limit)), limit)

    def __call__(self) -> int:
        return self.whole(self.limit)

    def warm_up(self) -> None:
        """The same program, one token a row."""
        self.whole(np.ones_like(self.limit))

    def facts(self) -> dict[str, Any]:
        return {**same_work(self.params), "distinct": self.distinct}


def sampling(*, batch: int, prompt: int, new_tokens: int, **shape: int) -> worker.Run:
    """One batch, all rows of one length."""
    return Sampling(batch, prompt, np.full(batch, new_tokens), 0, shape)


def trace_lengths(rows: int, median: int, p90: int, most: int, seed: int = 0) -> np.ndarray:
    """Lengths of a lognormal with these quantiles: its values at evenly spaced probabilities, so
    that the quantiles are met, in an order drawn from the seed; none above `most`.
    """
    normal = statistics.NormalDist()
    spread = np.log(p90 / median) / normal.inv_cdf(0.9)
    at = np.array([normal.inv_cdf((i + 0.5) / rows) for i in range(rows)])
    lengths = np.minimum(np.round(median * np.exp(spread * at)), most).astype(np.int32)
    return np.random.default_rng(seed).permutation(np.maximum(lengths, 1))


class Batches(Sampling):
    """The queue's rows in batches, one after the other; each waits for its longest row."""

    def sampler(self, sampling: SamplingConfig) -> Callable[..., Any]:
        return make_sampler(self.model, sampling, IDS)

    def whole(self, limit: np.ndarray) -> int:
        self.calls += 1
        rows = np.arange(len(limit)).reshape(-1, self.batch_rows)
        return sum(self.run(self.prompts[r], r, limit[r]) for r in rows)


def queue(
    *, rows: int, batch: int, prompt: int, median: int, p90: int, most: int, continuous: bool,
    **shape: int,
) -> worker.Run:  # fmt: skip
    """Rows of many lengths, `batch` at a time: continuous batching, or batch after batch."""
    limit = trace_lengths(rows, median, p90, most)
    make = Sampling if continuous else Batches
    return make(prompts=rows, prompt=prompt, limit=limit, batch_rows=batch, shape=shape)


class Group(Sampling):
    """Each row with a copy of its prompt for itself."""

    def __init__(self, group: int, **rest: Any):
        super().__init__(**rest)
        self.prompts = np.repeat(self.prompts, group, axis=0)


def group(
    *, prompts: int, completions: int, prompt: int, new_tokens: int, shared: bool, **shape: int
) -> worker.Run:
    """Several completions of each prompt, which is read once ("shared") or by each row."""
    limit = np.full(prompts * completions, new_tokens)
    rest = {"prompts": prompts, "prompt": prompt, "limit": limit, "batch_rows": 0, "shape": shape}
    return Sampling(**rest) if shared else Group(completions, **rest)


LOSSES = ("fused", "chunks", "whole")


class Loss:
    """The vocabulary loss and its gradient: "fused" as training does it, with logits recomputed in
    "chunks", or of the "whole" batch's logits at once.
    """

    def __init__(self, *, batch: int, length: int, width: int, vocab: int, how: str):
        assert how in LOSSES, how
        rng = np.random.default_rng(0)
        self.hidden = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
        self.matrix = jnp.asarray(0.05 * rng.standard_normal((width, vocab)), jnp.float32)
        labels = jnp.asarray(rng.integers(0, vocab, (batch, length)), jnp.int32)
        weights = jnp.ones(labels.shape, jnp.float32)
        chunk = batch * length if how == "whole" else 0
        model = ModelConfig(
            vocab_size=vocab, d_model=width, tied_embeddings=False, loss_chunk_tokens=chunk
        )

        def value(hidden: jax.Array, matrix: jax.Array) -> jax.Array:
            params = {"unembedding": matrix}
            if how == "fused":
                return readout.label_loss(params, model, hidden, labels, weights)[0]
            return -readout.score_labels(params, model, hidden, labels).log_prob.sum()

        gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
        self.program: Any = gradient.lower(self.hidden, self.matrix).compile()
        self.temporaries = int(self.program.memory_analysis().temp_size_in_bytes)
        self.tokens, self.loss = batch * length, 0.0

    def __call__(self) -> int:
        loss, _ = jax.block_until_ready(self.program(self.hidden, self.matrix))
        self.loss = float(loss) / self.tokens
        return self.tokens

    def facts(self) -> dict[str, Any]:
        return {**same_work((self.hidden, self.matrix)), "loss": round(self.loss, 4)}


class Safety:
    """Steps of a run: in the loop with all that makes it safe, or `bare`.

    The loop is `reasoning-jax train`'s own, at default settings but for its length: the watchdog,
    a row of metrics and a hash of the state every 50 steps, a checkpoint with its hashes every 500
    and at the end, for which it waits. Evaluation is left out. A bare step is dispatched when the
    one before the last has ended, as the loop does it.
    """

    def __init__(self, *, batch: int, length: int, steps: int, bare: bool, **shape: int):
        self.program = program_of(shape, TrainConfig(steps=steps, batch_rows=batch))
        self.source = Constant(shape["vocab"], batch, length)
        self.state = fresh_state(self.program, sharding.make_mesh())
        self.steps, self.bare, self.tokens = steps, bare, batch * length

    def warm_up(self) -> None:
        self._steps(2)
        if not self.bare:
            self._loop(1)

    def __call__(self) -> int:
        if self.bare:
            self._steps(self.steps)
        else:
            self._loop(self.steps)
        return self.steps * self.tokens

    def _steps(self, count: int) -> None:
        before = None
        for _ in range(count):
            batch = self.source.next(self.state)
            self.state, metrics = self.program.step(self.state, batch)
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(self.state)

    def _loop(self, count: int) -> None:
        config = self.program.config
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=count))
        state = self.state.replace(step=jnp.zeros_like(self.state.step))
        with tempfile.TemporaryDirectory() as folder:
            run = loop.Run(
                config, self.program.model, Path(folder), state, self.source, self.program.step,
                self.program.gradients, lambda _: {}, {},
            )  # fmt: skip
            code = loop.train(run, quiet=True)
            assert code == loop.DONE, code
            assert (Path(folder) / "checkpoints" / str(count)).exists()
        self.state = run.state

    def facts(self) -> dict[str, Any]:
        return same_work(self.state.params["model"])


WORKS: dict[str, Callable[..., worker.Run]] = {
    "training": Training, "sampling": sampling, "queue": queue, "group": group, "loss": Loss,
    "safety": Safety,
}  # fmt: skip


def main() -> None:
    keep_freed_memory()
    jax.set_mesh(sharding.make_mesh())
    hello = {"jax": jax.__version__, "devices": str(jax.devices())}
    worker.serve(WORKS, hello)


if __name__ == "__main__":
    main()
