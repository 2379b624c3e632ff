"""The compiled parts of a run: specs, optimizer, loss and step, from a config and a model shape.

Also the same parts without any array, to count bytes before a run (`plan_memory`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasoning_jax import sharding
from reasoning_jax.config import Config, ModelConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.model import spec
from reasoning_jax.model.latent import Thoughts
from reasoning_jax.train import losses, optimizer
from reasoning_jax.train import state as states
from reasoning_jax.train.faults import NO_FAULTS, FaultPlan
from reasoning_jax.train.step import Gradients, Step, make_gradients, make_train_step


@dataclass(frozen=True)
class Program:
    """What is needed to initialise and to step; holds no parameters."""

    config: Config
    model: ModelConfig
    specs: spec.Params
    trained: tuple[str, ...]
    tx: optax.GradientTransformation
    loss: losses.Loss
    gradients: Gradients
    step: Step


def make_program(
    config: Config,
    model: ModelConfig,
    ids: ActionIds,
    thoughts: Thoughts | None = None,
    faults: FaultPlan = NO_FAULTS,
) -> Program:
    """How training attends is said by the config (`model.attention`), whatever the model says.

    Raises:
      ConfigError: patterns that match nothing, objectives that cannot be.
    """
    model = dataclasses.replace(model, attention=config.model.attention)
    specs = states.state_specs(config, model)
    trained = states.trained_paths(config, specs)
    flat = spec.flatten(specs)
    tx = optimizer.make_optimizer(
        config.optimizer, config.train.steps, {path: flat[path].shape for path in trained}
    )
    schedule = optimizer.make_schedule(config.optimizer, config.train.steps)
    loss = losses.make_loss(model, config.objective, ids, config.sequencematch, thoughts)
    gradients = make_gradients(config, loss, trained)
    step = make_train_step(
        gradients, tx, schedule, trained, faults.poison("loss"), faults.poison("grad")
    )
    return Program(config, model, specs, trained, tx, loss, gradients, step)


def fresh_state(
    program: Program, mesh: jax.sharding.Mesh, model_params: spec.Params | None = None
) -> states.TrainState:
    """A state at step 0: parameters drawn from the seed, or the given model parameters.

    With `model_params` only adapters are drawn.
    """
    key = jax.random.key(program.config.seed)
    dtype = jnp.dtype(program.model.param_dtype)
    params: spec.Params = {"lora": {}}
    if program.specs["lora"]:
        lora_key = jax.random.fold_in(key, 1)
        params["lora"] = spec.init_params(lora_key, program.specs["lora"], jnp.float32, mesh)
    if model_params is None:
        params["model"] = spec.init_params(key, program.specs["model"], dtype, mesh)
    else:
        params["model"] = model_params
    return states.init_state(params, program.tx, program.trained)


def abstract_state(program: Program, mesh: jax.sharding.Mesh) -> states.TrainState:
    """The state's shapes and shardings; allocates nothing. Needs the mesh in context."""
    dtype = jnp.dtype(program.model.param_dtype)
    params = {
        "lora": spec.abstract_params(program.specs["lora"], jnp.float32, mesh),
        "model": spec.abstract_params(program.specs["model"], dtype, mesh),
    }
    init: Callable[..., Any] = lambda p: program.tx.init(states.split(p, program.trained)[0])  # noqa: E731

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        # A trace names an abstract mesh, and of what is made of no parameter none at all.
        split = sharding.P() if leaf.sharding is None else leaf.sharding.spec
        place = jax.NamedSharding(mesh, split)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    opt_state = jax.tree.map(placed, jax.eval_shape(init, params))
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return states.TrainState(scalar, params, opt_state)  # pyright: ignore[reportArgumentType]


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Batch:
    """The shapes and shardings of a training batch: of the largest, where steps differ."""
    shape = (config.train.batch_rows, config.data.seq_len)
    placed = sharding.batch_sharding(mesh)
    ints: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placed)
    floats: Any = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed)
    batch = Batch(ints, ints, floats, ints, ints, ints)
    if config.objective.name != "sequencematch":
        return batch
    rows = sharding.batch_sharding(mesh, 1)
    age: Any = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
    return dataclasses.replace(batch, model=dataclasses.replace(batch, age=age))


def plan_memory(
    program: Program, mesh: jax.sharding.Mesh, batch: Batch | None = None
) -> dict[str, int]:
    """Bytes per device: parameters, optimizer, batch, and what the compiled step adds to them.

    `batch` is one of the largest, or its shapes, where the config does not say them.
    """
    state = abstract_state(program, mesh)
    batch = abstract_batch(program.config, mesh) if batch is None else batch
    step: Any = program.step
    memory = step.lower(state, batch).compile().memory_analysis()
    return {
        "parameters": _bytes_per_device(state.params),
        "optimizer": _bytes_per_device(state.opt_state),
        "batch": _bytes_per_device(batch),
        "temporaries of the step": int(memory.temp_size_in_bytes),
    }


def _bytes_per_device(tree: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        placed = getattr(leaf, "sharding", None)
        shape = leaf.shape if placed is None else placed.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
