"""Our side of benchmarks/speed.py: training steps and sampling, as a run of ours does them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import worker
from reasoning_jax import sharding
from reasoning_jax.config import Config, ModelConfig, OptimizerConfig, SamplingConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds, make_sampler
from reasoning_jax.model import readout, spec, transformer
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import fresh_state, make_program


def model_of(*, vocab: int, width: int, layers: int, heads: int, inner: int) -> ModelConfig:
    """A Llama: RMSNorm, RoPE, SwiGLU, no biases, an unembedding of its own."""
    return ModelConfig(
        vocab_size=vocab, d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=heads,
        head_dim=width // heads, d_ff=inner, tied_embeddings=False,
    )  # fmt: skip


def training(*, batch: int, length: int, **shape: int) -> worker.Run:
    """Steps of AdamW, the next token as label at every position; metrics are made, as in a run."""
    model = model_of(**shape)
    optimizer = OptimizerConfig(
        learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.01, b2=0.999,
        clip_norm=0.0, no_decay=(),
    )  # fmt: skip
    config = Config(optimizer=optimizer, model=model)
    program = make_program(config, model, ActionIds(eos=0, backspace=None))
    rows = np.random.default_rng(0).integers(0, model.vocab_size, (batch, length)).astype(np.int32)
    zeros = np.zeros_like(rows)
    one = jax.tree.map(
        jnp.asarray,
        Batch(rows, np.roll(rows, -1, 1), np.ones(rows.shape, np.float32), zeros + 1, zeros, zeros),
    )
    state = fresh_state(program, sharding.make_mesh())

    def run() -> int:
        nonlocal state
        state, _ = program.step(state, one)
        jax.block_until_ready(state)
        return batch * length

    return run


def sampling(*, batch: int, prompt: int, new_tokens: int, **shape: int) -> worker.Run:
    """Sampling at temperature 1; nothing ends a row but its budget."""
    model = model_of(**shape)
    mesh = sharding.make_mesh()
    specs = transformer.param_specs(model)
    params = spec.init_params(jax.random.key(0), specs, jnp.float32, mesh)
    rows = np.random.default_rng(0).integers(1, model.vocab_size, (batch, prompt)).astype(np.int32)
    length = np.full(batch, prompt, np.int32)
    sampling_config = SamplingConfig(temperature=1.0, max_actions=new_tokens)
    sample = make_sampler(model, sampling_config, ActionIds(eos=0, backspace=None, never=(0,)))
    arrays: tuple[Any, ...] = tuple(
        sharding.place_rows(x, mesh)
        for x in (rows, length, length - 1, np.arange(batch, dtype=np.int32))
    )
    calls = 0

    def run() -> int:
        nonlocal calls
        calls += 1
        out = sample(params, *arrays, jax.random.key(calls))
        written = jax.device_get(out.length)
        assert (written == new_tokens).all(), written
        return batch * new_tokens

    return run


LOSSES = ("fused", "chunks", "whole")


def loss(*, batch: int, length: int, width: int, vocab: int, how: str) -> worker.Run:
    """The vocabulary loss and its gradient: "fused" as training does it, with logits recomputed in
    "chunks", or of the "whole" batch's logits at once.
    """
    assert how in LOSSES, how
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
    matrix = jnp.asarray(0.05 * rng.standard_normal((width, vocab)), jnp.float32)
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

    program = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(hidden, matrix).compile()

    class Run:
        temporaries = int(program.memory_analysis().temp_size_in_bytes)

        def __call__(self) -> int:
            jax.block_until_ready(program(hidden, matrix))
            return batch * length

    return Run()


WORKS = {"training": training, "sampling": sampling, "loss": loss}


def main() -> None:
    keep_freed_memory()
    jax.set_mesh(sharding.make_mesh())
    hello = {"jax": jax.__version__, "devices": str(jax.devices())}
    worker.serve(WORKS, hello)


if __name__ == "__main__":
    main()
