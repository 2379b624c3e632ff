"""The train state, and which of its parameters are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from reasoning_jax.config import Config, ConfigError, ModelConfig
from reasoning_jax.model import lora as lora_lib
from reasoning_jax.model import spec, transformer
from reasoning_jax.train.optimizer import matching

if TYPE_CHECKING:
    from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """`params` is {"model": ..., "lora": ...} (the latter empty without adapters)."""

    step: Int[Array, ""]
    params: spec.Params
    opt_state: Any


def state_specs(config: Config, model: ModelConfig) -> spec.Params:
    """ParamSpecs of everything in `TrainState.params`."""
    specs: spec.Params = {"model": transformer.param_specs(model), "lora": {}}
    if config.lora.rank:
        specs["lora"] = lora_lib.lora_specs(model, config.lora)
    return specs


def trained_paths(config: Config, specs: spec.Params) -> tuple[str, ...]:
    """Paths (of the flattened specs) that receive gradients, sorted.

    With LoRA the adapters and what `lora.train_also` matches; otherwise all but `optimizer.freeze`.

    Raises:
      ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    paths = list(spec.flatten(specs))
    if config.lora.rank:
        model_paths = [p for p in paths if p.startswith("model/")]
        also = matching(config.lora.train_also, model_paths, "lora.train_also")
        chosen = {p for p in paths if p.startswith("lora/")} | also
    else:
        chosen = set(paths) - matching(config.optimizer.freeze, paths, "optimizer.freeze")
    if not chosen:
        raise ConfigError(f"optimizer.freeze={config.optimizer.freeze} leaves nothing to train")
    return tuple(sorted(chosen))


def split(params: spec.Params, trained: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) as flat {path: array}."""
    flat = spec.flatten(params)
    return {p: flat[p] for p in trained}, {p: x for p, x in flat.items() if p not in set(trained)}


def join(trained: dict[str, Any], frozen: dict[str, Any]) -> spec.Params:
    """The inverse of `split`; "lora" is present, empty without adapters."""
    return {"lora": {}, **spec.unflatten({**trained, **frozen})}


def adapters(params: spec.Params, config: Config) -> lora_lib.Lora | None:
    """The adapters of a state's parameters as `apply` takes them."""
    if not config.lora.rank:
        return None
    return lora_lib.Lora(params["lora"], config.lora.alpha / config.lora.rank)


def init_state(
    params: spec.Params, tx: optax.GradientTransformation, trained: tuple[str, ...]
) -> TrainState:
    """A state at step 0; the optimizer's moments inherit the parameters' shardings."""
    opt_state = jax.jit(lambda p: tx.init(split(p, trained)[0]))(params)
    return TrainState(jnp.int32(0), params, opt_state)


def make_reset_optimizer(
    tx: optax.GradientTransformation, trained: tuple[str, ...]
) -> Callable[[TrainState], TrainState]:
    """A jitted function that begins the optimizer anew; the learning rate's schedule goes on."""

    def reset(state: TrainState) -> TrainState:
        def is_schedule(x: Any) -> bool:
            return isinstance(x, optax.ScaleByScheduleState)

        fresh = tx.init(split(state.params, trained)[0])
        opt_state = jax.tree.map(
            lambda new, old: old if is_schedule(new) else new,
            fresh, state.opt_state, is_leaf=is_schedule,
        )  # fmt: skip
        return dataclasses.replace(state, opt_state=opt_state)

    return jax.jit(reset, donate_argnums=0)
