"""A trained model from a run folder, for the commands that only read."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from reasoning_jax import devices, screen, sharding
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.assemble import Assembly, assemble
from reasoning_jax.config import Config, ConfigError, to_dict
from reasoning_jax.config_check import check_devices, from_dict
from reasoning_jax.model import spec
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from reasoning_jax.train.compilation import keep_compiled
from reasoning_jax.train.program import abstract_state, make_program

_OTHER_MODEL = "a checkpoint cannot be loaded into another model"
# Sections that must be those of the run, and why.
_FIXED = {
    **dict.fromkeys(("model", "lora", "vocab", "weights"), _OTHER_MODEL),
    "latent": "a checkpoint answers as its own curriculum taught it; for another number of "
    "thoughts set evaluate.thoughts",
}


@dataclass(frozen=True)
class Trained:
    """A checkpoint's parameters ({"model", "lora"}) on a mesh, and the parts of its run. `stage`:
    how far the curriculum had come, where there is one.
    """

    assembly: Assembly
    mesh: jax.sharding.Mesh
    params: spec.Params
    step: int
    stage: int | None = None


def load_trained(config: Config, workdir: Path, step: int | None) -> Trained:
    """Restore the parameters of a step (default: the newest).

    Raises:
      ConfigError: not a run folder, or the config's model or curriculum is not that of the run.
      VocabError: the run's vocabulary cannot be read.
      CheckpointError: no usable checkpoint, or not that step.
    """
    return restore(load_assembly(config, workdir), workdir, step)


def load_assembly(config: Config, workdir: Path, *, with_data: bool = True) -> Assembly:
    """The parts of a run with the vocabulary that it was trained with. Starts no backend.

    Without `with_data` the run's data need not be there. Raises as `load_trained` does.
    """
    saved = runfolder.read_config(workdir)
    # Sections that an older version did not have take their defaults.
    with contextlib.suppress(ConfigError):
        saved = to_dict(from_dict(saved))
    for section, why in _FIXED.items():
        changed = runfolder.changed_keys(saved.get(section), to_dict(config)[section])
        if changed:
            raise ConfigError(
                f"{'.'.join(filter(None, (section, changed[0])))} differs from the run in "
                f"{workdir}; {why}"
            )
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(
            f"{workdir / 'checkpoints'} does not exist; the run has saved nothing"
        )
    with screen.doing("reading the data" if with_data else "reading the vocabulary"):
        return assemble(
            config, runfolder.read_vocab(workdir), with_data=with_data,
            splits=(config.evaluate.split,), saved_horizon=runfolder.read_horizon(workdir),
        )  # fmt: skip


def restore(assembly: Assembly, workdir: Path, step: int | None) -> Trained:
    """The parameters of a step on this machine's devices. Raises as `load_trained` does."""
    config = assembly.config
    folder = workdir / "checkpoints"
    devices.tell()
    keep_compiled()
    mesh = sharding.make_mesh(*check_devices(config, assembly.model, jax.device_count()))
    with jax.set_mesh(mesh), Checkpoints(folder) as checkpoints:
        program = make_program(config, assembly.model, assembly.ids, assembly.thoughts)
        like = abstract_state(program, mesh).params
        with screen.doing("loading the checkpoint"):
            params, step = checkpoints.restore_params(like, step)
        for note in checkpoints.notes(step):
            print(note, file=sys.stderr)
        stage = checkpoints.read_meta(step).get("stage")
    return Trained(assembly, mesh, params, step, stage)
