"""Optimizers and schedules as tables over optax, with decay and freezing by parameter path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError, OptimizerConfig, warmup_steps

Schedule = Callable[[Any], Any]
Mask = Mapping[str, bool]


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Learning rate over steps: linear warm-up from 0, then the schedule's own shape.

    cosine and linear fall to final_fraction of the peak at the last step; wsd holds the peak and
    falls linearly over the last decay_fraction of the steps.
    """
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    rising = warmup_steps(config, steps)
    rest = max(1, steps - rising)
    decay = max(1, round(steps * config.decay_fraction))
    shapes: dict[str, Schedule] = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": optax.linear_schedule(peak, end, rest),
        "wsd": optax.linear_schedule(peak, end, decay, max(0, rest - decay)),
    }
    if not rising:
        return shapes[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, rising)
    return optax.join_schedules([warmup, shapes[config.schedule]], [rising])


def matching(patterns: Iterable[str], paths: Iterable[str], key: str) -> set[str]:
    """The paths that some pattern matches (re.search).

    Raises:
      ConfigError: a pattern that is not a regular expression, or that matches nothing.
    """
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = {path for path in paths if re.search(pattern, path)}
        except re.error as error:
            raise ConfigError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
        if not hits:
            shown = ", ".join(paths[:12]) + (", ..." if len(paths) > 12 else "")
            raise ConfigError(f"{key}: {pattern!r} matches no parameter; there are {shown}")
        found |= hits
    return found


def make_optimizer(
    config: OptimizerConfig, steps: int, shapes: Mapping[str, tuple[int, ...]]
) -> optax.GradientTransformation:
    """The gradient transformation for parameters given as a flat {path: array}.

    Order: clip by global norm, the optimizer's own update, decoupled weight decay on what
    `no_decay` leaves, the schedule. Muon orthogonalises the weight matrices of the layers and takes
    AdamW for the rest.

    Raises:
      ConfigError
    """
    schedule = make_schedule(config, steps)
    try:
        undecayed = matching(config.no_decay, shapes, "optimizer.no_decay")
    except ConfigError:
        # Of adapters alone nothing is a norm, a bias or an embedding; nobody asked for one.
        if config.no_decay != OptimizerConfig().no_decay:
            raise
        undecayed = set()
    decayed: Mask = {path: path not in undecayed for path in shapes}
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    lr = optax.scale_by_learning_rate(schedule)

    def muon_dimensions(params: Any) -> Any:
        # The other group's parameters are masked nodes, not leaves.
        return {path: _muon_dimensions(path) or p for path, p in params.items()}

    def decayed_of(params: Any) -> Any:
        return {path: decayed[path] for path in params}

    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    rules: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adamw": lambda: optax.chain(adam, decay, lr),
        "lion": lambda: optax.chain(optax.scale_by_lion(config.b1, config.b2), decay, lr),
        "sgd": lambda: optax.chain(optax.trace(config.b1), decay, lr),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay, lr
        ),
        "muon": lambda: optax.partition(
            {
                "muon": optax.chain(
                    _in_auto_mode(
                        contrib.scale_by_muon(
                            beta=config.b1,
                            weight_dimension_numbers=muon_dimensions,
                        )
                    ),
                    optax.add_decayed_weights(config.weight_decay),
                    lr,
                ),
                "rest": optax.chain(
                    adam,
                    optax.add_decayed_weights(
                        config.weight_decay,
                        mask=decayed_of,
                    ),
                    lr,
                ),
            },
            {path: "muon" if _muon_dimensions(path) else "rest" for path in shapes},
        ),
    }
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, rules[config.name]())


def _in_auto_mode(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation with XLA choosing layouts inside; what goes in and out keeps its own.

    Muon's matrix products contract sharded axes without saying how, which Explicit mode refuses.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if not sharding.has_mesh():
            return tx.update(updates, state, params)
        specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        automatic: Any = jax.sharding.auto_axes(tx.update, out_sharding=specs)
        return automatic(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


# Projections of stacked layers: axis 0 is the layer, "output" contracts two axes.
_MUON_AXES = {
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "output": ((1, 2), (3,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
}


def _muon_dimensions(path: str) -> Any:
    axes = _MUON_AXES.get(path.rsplit("/", 1)[1])
    if axes is None or not path.startswith("model/layers/"):
        return None
    return contrib.MuonDimensionNumbers(reduction_axis=axes[0], output_axis=axes[1])
