"""The training step: pure, jitted once, donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasoning_jax import sharding
from reasoning_jax.config import Config
from reasoning_jax.data.batch import Batch
from reasoning_jax.objectives.masked import Mixture, Sum, as_mixture
from reasoning_jax.train.losses import Loss, Metrics
from reasoning_jax.train.state import TrainState, adapters, join, split

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: Config,
    loss: Loss,
    tx: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    trained: tuple[str, ...],
) -> Step:
    """One optimizer step. The gradient is that of the loss's sums over their whole batch's counts,
    so that any number of accumulation parts gives the gradient of the whole batch.

    Metrics are `Sum`s; "loss" divides to nats per counted label, or, where the loss is a mixture,
    to the mean over the steps.
    """
    parts = config.optimizer.accumulate

    def evaluated(trained_params: Any, frozen: Any, batch: Batch, step: Any) -> tuple[Any, Any]:
        params = join(trained_params, frozen)
        total, metrics = loss(params["model"], adapters(params, config), batch, step)
        return as_mixture(total), metrics

    def loss_value(
        trained_params: Any, frozen: Any, batch: Batch, step: Any, counts: Any = None
    ) -> tuple[jax.Array, Any]:
        mixture, metrics = evaluated(trained_params, frozen, batch, step)
        counts = tuple(s.count for s in mixture.sums) if counts is None else counts
        value = sum(
            w * s.value / jnp.maximum(c, 1.0)
            for w, s, c in zip(mixture.weights, mixture.sums, counts)
        )
        tokens = (batch.segments > 0).sum().astype(jnp.float32)
        metrics = {**metrics, "tokens": Sum(tokens, jnp.float32(1))}
        return jnp.asarray(value), (metrics, mixture)

    gradient = jax.grad(loss_value, has_aux=True)

    def accumulated(
        trained_params: Any, frozen: Any, batch: Batch, step: Any
    ) -> tuple[Any, tuple[Metrics, Mixture]]:
        """Gradients and metrics summed over interleaved slices of the batch, one at a time."""

        def slices(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(sharding.split_rows(x, parts), 1, 0)

        batches = jax.tree.map(slices, batch)
        first = jax.tree.map(lambda x: x[0], batches)
        rest = jax.tree.map(lambda x: x[1:], batches)

        def counted(part: Batch) -> tuple[jax.Array, ...]:
            # Of this evaluation the compiler keeps what the counts need: no forward pass.
            mixture, _ = evaluated(trained_params, frozen, part, step)
            return tuple(s.count for s in mixture.sums)

        counts = jax.tree.map(lambda c: c.sum(0), jax.lax.map(counted, batches))

        def part_gradient(part: Batch) -> Any:
            grads, (metrics, mixture) = gradient(trained_params, frozen, part, step, counts)
            return (grads, metrics, mixture.sums), mixture.weights

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, part_gradient(part)[0]), None

        start, weights = part_gradient(first)
        (grads, metrics, sums), _ = jax.lax.scan(add, start, rest)
        return grads, (metrics, Mixture(weights, sums))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained_params, frozen = split(state.params, trained)
        whole = gradient if parts == 1 else accumulated
        grads, (metrics, mixture) = whole(trained_params, frozen, batch, state.step)
        updates, opt_state = tx.update(grads, state.opt_state, trained_params)
        new: Any = optax.apply_updates(trained_params, updates)
        one = jnp.float32(1)
        alone = len(mixture.sums) == 1
        metrics["loss"] = mixture.sums[0] if alone else Sum(mixture.mean(), one)
        metrics["tokens"] = Sum(metrics["tokens"].value, one)
        metrics["grad_norm"] = Sum(optax.tree.norm(grads).astype(jnp.float32), one)
        metrics["learning_rate"] = Sum(jnp.asarray(schedule(state.step), jnp.float32), one)
        params = join(new, frozen)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
