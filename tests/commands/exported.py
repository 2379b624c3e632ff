"""Runs that were saved without being trained, for tests of what is made of them.

Compiling a training step takes twenty times as long as all the rest of such a test.
"""

import jax
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.commands import runfolder, sources
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.pretrained import load_pretrained
from reasoning_jax.config import Config, to_dict
from reasoning_jax.config_check import check_devices, from_dict
from reasoning_jax.model import spec
from reasoning_jax.train import state as states
from reasoning_jax.train.checkpoint import Checkpoints
from reasoning_jax.train.program import abstract_state, make_program
from reasoning_jax.weights import read_companions


def of_weights(path, **sections):
    """The config of a run from pretrained weights, on sums as text in a file or task."""
    base = {
        "weights": {"path": str(path), "backspace_probability": 0.0},
        "vocab": {"kind": "weights"},
        "task": {"name": "arithmetic", "max_digits": 1},
        "data": {"seq_len": 16, "train_problems": 50},
        "train": {"steps": 2, "batch_rows": 8},
        "optimizer": {"warmup_steps": 0, "no_decay": (), "weight_decay": 0.0},
        "sampling": {"max_actions": 6, "temperature": 0.0},
        "evaluate": {"problems": 4},
    }
    values = to_dict(Config())
    for section, changes in [*base.items(), *sections.items()]:
        if isinstance(values[section], dict) and section != "task":
            values[section].update(changes)
        else:
            values[section] = changes
    return from_dict(values)


def saved_run(workdir, config, seed=0):
    """A run folder at step 0 as `train` leaves it, all parameters random but those of weights.

    Returns its parameters as they were saved: {"model": ..., "lora": ...}.
    """
    settled = sources.settle(config, workdir, sources.TRAIN)
    assembly = assemble(settled.config)
    program = make_program(config, assembly.model, assembly.ids, assembly.thoughts)
    mesh = sharding.make_mesh(*check_devices(config, assembly.model, jax.device_count()))
    rng = np.random.default_rng(seed)

    def drawn(specs):
        def leaf(_, s):
            value = (max(s.std, 0.2) * rng.standard_normal(s.shape)).astype(np.float32)
            dtype = assembly.model.param_dtype if specs is program.specs["model"] else "float32"
            return jax.device_put(
                value.astype(dtype), sharding.NamedSharding(
                    mesh, sharding.param_spec(s.axes, s.shape, mesh))
            )  # fmt: skip

        return spec.map_specs(leaf, specs)

    with jax.set_mesh(mesh):
        model = load_pretrained(assembly, mesh)
        params = {
            "model": drawn(program.specs["model"]) if model is None else model,
            "lora": drawn(program.specs["lora"]),
        }
        like = abstract_state(program, mesh)
        # An export reads none of these.
        zeros = [
            jax.device_put(np.zeros(x.shape, x.dtype), sharding.replicated(mesh))
            for x in jax.tree.leaves((like.step, like.opt_state))
        ]
        step, opt_state = jax.tree.unflatten(jax.tree.structure((like.step, like.opt_state)), zeros)
        state = states.TrainState(step, params, opt_state)
        sources.record(workdir, config, settled, None)
        runfolder.open_run(workdir, config, (), assembly.vocab, assembly.model)
        if config.weights.path:
            runfolder.keep_pretrained(workdir, read_companions(config.weights.path))
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            assert checkpoints.save(state, {}, {"config": to_dict(config)})
            checkpoints.wait()
            assert not checkpoints.failures()
    return assembly, jax.device_get(state.params)
