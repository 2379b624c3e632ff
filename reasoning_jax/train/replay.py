"""One step of a run computed once more: from a checkpoint before it, without saving or logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from reasoning_jax.train.loop import Run, next_batch
from reasoning_jax.train.nonfinite import diagnose, names
from reasoning_jax.train.state_hash import of_state


@dataclass(frozen=True)
class Replayed:
    """A step: `began` is the checkpoint it was reached from (0: the start), `report` is JSON-able,
    `state_hash` that of the state after it, as metrics have it.
    """

    began: int
    report: dict[str, Any]
    batch: Any
    state_hash: str
    notes: tuple[str, ...]


def replay_step(run: Run, checkpoints: Checkpoints, step: int) -> Replayed:
    """Take the steps up to `step`, look at its gradients, and take it too."""
    notes = ()
    try:
        arrays = run.source.arrays()
        state, place, _, saved = checkpoints.restore(run.like, arrays=arrays, before=step)
        notes = tuple(checkpoints.notes(int(state.step)))
        run.source.restore(place)
        run.source.restore_arrays(saved)
    except CheckpointError as error:
        state = run.init()
        notes = (f"{str(error).splitlines()[0]}; beginning at the start",)
    began = int(state.step)
    while int(state.step) < step - 1:
        state, batch = next_batch(run, state)
        state, _ = run.step(state, batch)
    state, batch = next_batch(run, state)
    report = {**diagnose(run.gradients, state, batch), "batch": run.source.describe()()}
    state, metrics = run.step(state, batch)
    report["nonfinite"] = names(int(np.asarray(jax.device_get(metrics["nonfinite"].value))))
    return Replayed(began, report, batch, "-".join(of_state(state).values()), notes)
