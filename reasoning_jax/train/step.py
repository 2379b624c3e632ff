"""The training step: pure, jitted once, donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasoning_jax.config import Config
from reasoning_jax.data.batch import Batch
from reasoning_jax.objectives.masked import Sum
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
    """One optimizer step. The gradient is that of the summed loss over the summed count, so that
    any number of accumulation parts gives the gradient of the whole batch.

    Metrics are `Sum`s; "loss" divides to nats per counted label.
    """
    parts = config.optimizer.accumulate

    def loss_sum(trained_params: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        params = join(trained_params, frozen)
        total, metrics = loss(params["model"], adapters(params, config), batch)
        tokens = (batch.segments > 0).sum().astype(jnp.float32)
        metrics = {**metrics, "loss": total, "tokens": Sum(tokens, jnp.float32(1))}
        return total.value, metrics

    gradient = jax.grad(loss_sum, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained_params, frozen = split(state.params, trained)
        if parts == 1:
            grads, metrics = gradient(trained_params, frozen, batch)
        else:
            grads, metrics = _accumulate(gradient, trained_params, frozen, batch, parts)
        count = jnp.maximum(metrics["loss"].count, 1.0)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        updates, opt_state = tx.update(grads, state.opt_state, trained_params)
        new: Any = optax.apply_updates(trained_params, updates)
        one = jnp.float32(1)
        metrics["tokens"] = Sum(metrics["tokens"].value, one)
        metrics["grad_norm"] = Sum(optax.tree.norm(grads).astype(jnp.float32), one)
        metrics["learning_rate"] = Sum(jnp.asarray(schedule(state.step), jnp.float32), one)
        params = join(new, frozen)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def _accumulate(
    gradient: Any, trained_params: Any, frozen: Any, batch: Batch, parts: int
) -> tuple[Any, Metrics]:
    """Sum gradients and metrics over `parts` interleaved slices of the batch, one at a time."""

    def slices(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    batches = jax.tree.map(slices, batch)
    first = jax.tree.map(lambda x: x[0], batches)
    rest = jax.tree.map(lambda x: x[1:], batches)

    def add(carry: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(trained_params, frozen, part)), None

    total, _ = jax.lax.scan(add, gradient(trained_params, frozen, first), rest)
    return total
