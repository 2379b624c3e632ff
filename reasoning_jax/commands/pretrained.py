"""Pretrained weights for a run: to start from, and to compare texts by. Trains nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.commands.assemble import Assembly, latent_rows
from reasoning_jax.config import ConfigError, ModelConfig
from reasoning_jax.data.batch import padded
from reasoning_jax.evaluate.generation import FeatureModel
from reasoning_jax.model import attention, readout, spec, transformer
from reasoning_jax.train import state as states

# Training examples over whose states a new row's probability is set.
_SAMPLE = 8
_READ = ("actions", "segments")
# To find the length of the new row: Newton's steps, and the slope below which none is taken.
_NEWTON_STEPS, _LEAST_SLOPE = 12, 1e-3


def load_pretrained(assembly: Assembly, mesh: jax.sharding.Mesh) -> spec.Params | None:
    """The parameters of `weights.path` with rows for the added specials; None without a path."""
    config = assembly.config
    if not config.weights.path:
        return None
    from reasoning_jax import weights

    # Weights that were exported here know the action and the markers: their rows are not new ones.
    known = weights.read_tokenizer(config.weights.path).rows
    copied = latent_rows(config.weights, assembly.vocab)
    loaded = weights.load(
        config.weights.path,
        param_dtype=config.model.param_dtype,
        mesh=mesh,
        vocab_rows=assembly.vocab.size,
        copied_rows={row: source for row, source in copied.items() if row >= known},
    )
    for note in loaded.notes:
        print(note, file=sys.stderr)
    wanted, row = config.weights.backspace_probability, assembly.vocab.backspace_id
    if not wanted or row is None or row < known:
        return loaded.params
    source = assembly.examples("train")
    encoded = [
        assembly.encoder.encode(source[i], np.random.default_rng(i))
        for i in range(min(_SAMPLE, len(source)))
    ]
    rows = _SAMPLE + -_SAMPLE % sharding.batch_parts(mesh)
    tokens = padded(encoded, rows, config.data.seq_len)
    return with_backspace_row(loaded.params, assembly.model, tokens, row, wanted, mesh)


def with_backspace_row(
    params: spec.Params,
    config: ModelConfig,
    batch: dict[str, np.ndarray],
    row: int,
    probability: float,
    mesh: jax.sharding.Mesh,
) -> spec.Params:
    """Parameters whose output row `row` has, on average over the batch's states, the
    log-probability log(probability) of being chosen.

    The mean of all rows, which favours no token, is moved along the mean hidden state. (That a new
    row should start near the rate of noise is advice of ours for SequenceMatch on pretrained
    weights; how it is reached is ours too.)
    """
    placed = {n: sharding.place_rows(batch[n], mesh) for n in _READ}
    table, axis = ("unembedding", 1)
    if config.tied_embeddings:
        table, axis = ("tokens", 0)

    def new_row(params: spec.Params, batch: dict[str, jax.Array]) -> jax.Array:
        positions = jnp.zeros_like(batch["actions"]) + jnp.arange(batch["actions"].shape[1])
        hidden = transformer.apply(
            params, config, batch["actions"], positions=positions,
            attention=attention.Causal(batch["segments"]),
        ).hidden  # fmt: skip
        weight = (batch["segments"] > 0).astype(jnp.float32)
        old = readout.score_labels(params, config, hidden, jnp.full_like(batch["actions"], row))
        # The logsumexp of all other rows.
        others = old.logsumexp + jnp.log1p(-jnp.exp(old.log_prob))

        def mean(x: jax.Array) -> jax.Array:
            w = weight.reshape(weight.shape + (1,) * (x.ndim - 2))
            return (w * x).sum((0, 1)) / weight.sum()

        hidden = hidden.astype(jnp.float32)
        where = params["embedding"] if config.tied_embeddings else params
        rows = sharding.reshard(where[table].astype(jnp.float32), sharding.P(None, None))
        average = rows.mean(axis)
        centre = mean(hidden)
        direction = centre / jnp.square(centre).sum()
        # What the average row is short of at each state, and what a step along the direction adds.
        odds = (hidden * average).sum(-1) - others
        gain = (hidden * direction).sum(-1)

        def mean_log_prob(step: jax.Array) -> jax.Array:
            return mean(jax.nn.log_sigmoid(odds + step * gain))

        # Concave in the step, and by Jensen's inequality not above its goal at the first one: so
        # Newton's steps come from below. Where the goal is out of reach, the best one is kept.
        def newton(_: Any, carry: Any) -> Any:
            step, best, highest = carry
            value, slope = jax.value_and_grad(mean_log_prob)(step)
            best, highest = jnp.where(value > highest, step, best), jnp.maximum(value, highest)
            more = (jnp.log(probability) - value) / jnp.maximum(slope, _LEAST_SLOPE)
            return step + jnp.where(slope > _LEAST_SLOPE, more, 0.0), best, highest

        first = jnp.log(probability) - jnp.log1p(-probability) - mean(odds)
        start = (first, first, jnp.full_like(first, -jnp.inf))
        _, best, _ = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
        return average + best * direction

    value = jax.jit(new_row)(params, placed)
    holder = params["embedding"] if config.tied_embeddings else params

    def put(leaf: jax.Array, value: jax.Array) -> jax.Array:
        here = jnp.arange(leaf.shape[axis]) == row
        here, value = (here[:, None], value[None]) if axis == 0 else (here[None], value[:, None])
        return jnp.where(here, value.astype(leaf.dtype), leaf)

    changed = jax.jit(put, out_shardings=holder[table].sharding)(holder[table], value)
    if config.tied_embeddings:
        return {**params, "embedding": {**params["embedding"], table: changed}}
    return {**params, table: changed}


def feature_model(
    assembly: Assembly, mesh: jax.sharding.Mesh
) -> Callable[[spec.Params], FeatureModel]:
    """The model of `evaluate.feature_weights`, or the one that is evaluated itself."""
    path, config = assembly.config.evaluate.feature_weights, assembly.config
    if not path:
        return lambda params: FeatureModel(
            params["model"], states.adapters(params, config), assembly.model, assembly.vocab, "self"
        )
    from reasoning_jax import weights

    try:
        tokenizer = weights.read_tokenizer(path)
        vocab, _ = weights.vocab_of_weights(
            tokenizer, weights.read_config(path).vocab_size, path, backspace=False, latent=False
        )
        loaded = weights.load(path, mesh=mesh)
    except weights.WeightsError as error:
        raise ConfigError(
            f'evaluate.feature_weights={path!r}: {error}; "" takes the trained model itself'
        ) from None
    for note in (*tokenizer.notes, *loaded.notes):
        print(note, file=sys.stderr)
    model = FeatureModel(loaded.params, None, loaded.config, vocab, path)
    return lambda params: model
