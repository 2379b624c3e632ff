"""The training step: pure, jitted once, donated.

A step whose loss, gradients or update hold a NaN or Inf changes nothing but the step counter: the
parameters and the optimizer stay what they were, bit for bit, and `steps_skipped` counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
# What of a step was not finite, as bits.
NONFINITE = {1: "loss", 2: "gradients", 4: "update"}
# (step, value): at these steps a number is replaced by NaN or Inf (see `train/faults.py`).
Poison = Sequence[tuple[int, float]]
# gradients(state, batch) -> (of {path: array}, (metrics, mixture)).
Gradients = Callable[[TrainState, Batch], tuple[Any, tuple[Metrics, Mixture]]]


def make_gradients(config: Config, loss: Loss, trained: tuple[str, ...]) -> Gradients:
    """The gradient of the loss's sums over their whole batch's counts, so that any number of
    accumulation parts gives the gradient of the whole batch; and what was measured on the way.
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
        if batch.model is not None:
            # Rollouts are trained on, too.
            tokens = tokens + (batch.model.segments > 0).sum().astype(jnp.float32)
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

    def gradients(state: TrainState, batch: Batch) -> tuple[Any, tuple[Metrics, Mixture]]:
        trained_params, frozen = split(state.params, trained)
        whole = gradient if parts == 1 else accumulated
        return whole(trained_params, frozen, batch, state.step)

    return gradients


def make_train_step(
    gradients: Gradients,
    tx: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    trained: tuple[str, ...],
    poison_loss: Poison = (),
    poison_grad: Poison = (),
) -> Step:
    """One optimizer step.

    Metrics are `Sum`s; "loss" divides to nats per counted label, or, where the loss is a mixture,
    to the mean over the steps. Of a skipped step they are zero sums of zero counts, but for
    `steps_skipped` (1), and `nonfinite`: the sum of the codes in `NONFINITE`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained_params, frozen = split(state.params, trained)
        grads, (metrics, mixture) = gradients(state, batch)
        for step, value in poison_grad:
            first = min(grads)
            grads = {**grads, first: jnp.where(state.step == step - 1, value, grads[first])}
        updates, opt_state = tx.update(grads, state.opt_state, trained_params)
        new: Any = optax.apply_updates(trained_params, updates)
        one = jnp.float32(1)
        alone = len(mixture.sums) == 1
        metrics["loss"] = mixture.sums[0] if alone else Sum(mixture.mean(), one)
        metrics["tokens"] = Sum(metrics["tokens"].value, one)
        metrics["learning_rate"] = Sum(_rate(schedule, state), one)
        loss, grad_norm = mixture.mean().astype(jnp.float32), _norm(grads)
        for step, value in poison_loss:
            loss = jnp.where(state.step == step - 1, value, loss)
        metrics["grad_norm"] = Sum(grad_norm, one)
        # A finite norm is one of finite numbers.
        broken = jnp.float32(0)
        for code, value in zip(NONFINITE, (loss, grad_norm, _norm(updates))):
            broken = broken + jnp.where(jnp.isfinite(value), 0.0, code)
        fine = broken == 0

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(fine, new, old)

        params = join(jax.tree.map(chosen, new, trained_params), frozen)
        opt_state = jax.tree.map(chosen, opt_state, state.opt_state)
        metrics = jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), metrics)
        metrics["steps_skipped"] = Sum(1.0 - fine.astype(jnp.float32), one)
        metrics["nonfinite"] = Sum(broken, one)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def _norm(tree: Any) -> jax.Array:
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def _rate(schedule: Callable[[Any], Any], state: TrainState) -> jax.Array:
    """The learning rate of this step. The schedule counts the steps that were not skipped."""
    counted = [
        s.count for s in jax.tree.leaves(state.opt_state, is_leaf=_is_schedule) if _is_schedule(s)
    ]
    return jnp.asarray(schedule(counted[0] if counted else state.step), jnp.float32)


def _is_schedule(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)
