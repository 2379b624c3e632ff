"""Checkpoints: a small door to orbax's CheckpointManager. The only file I/O of parameters here.

A step holds four items: `params`, `opt`, `data` (the place in the stream) and `meta` (the config
and versions). Saving is asynchronous; a step that was cut off while saving is never offered again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from reasoning_jax.train.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint was expected and none is usable (exit code 4)."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, keep: int = 3):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        data: dict[str, Any],
        meta: dict[str, Any],
        arrays: dict[str, np.ndarray] | None = None,
    ) -> bool:
        """Start saving a state under its step. False if that step is saved already.

        `arrays` belong to the data, such as a replay buffer; they may change after the call.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(_storable(state.params)),
            "opt": ocp.args.StandardSave(state.opt_state),
            "data": ocp.args.JsonSave(data),
            "meta": ocp.args.JsonSave({**meta, "step": step}),
        }
        if arrays:
            copies = {name: np.array(values) for name, values in arrays.items()}
            items["replay"] = ocp.args.StandardSave(copies)
        return self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Return when the last save is on disk; raises what it raised."""
        self._manager.wait_until_finished()

    def restore(
        self,
        like: TrainState,
        step: int | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
        """(state, data place, meta, arrays) of a step (default: the newest), in the shardings of
        `like`; `arrays` are like those that were saved.

        Raises:
          CheckpointError
        """
        step = self._require(step)
        items: dict[str, Any] = {
            "params": ocp.args.StandardRestore(_storable(_abstract(like.params))),
            "opt": ocp.args.StandardRestore(_abstract(like.opt_state)),
            "data": ocp.args.JsonRestore(),
            "meta": ocp.args.JsonRestore(),
        }
        if arrays:
            items["replay"] = ocp.args.StandardRestore(arrays)
        out = self._read(step, ocp.args.Composite(**items))
        params = {"lora": {}, **out["params"]}
        counter = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        state = TrainState(counter, params, out["opt"])
        saved = {name: np.asarray(values) for name, values in (out.get("replay") or {}).items()}
        return state, dict(out["data"]), dict(out["meta"]), saved

    def restore_params(self, like: Any, step: int | None = None) -> tuple[Any, int]:
        """(parameters, step) without the optimizer; `like` is an abstract or concrete tree."""
        step = self._require(step)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_storable(_abstract(like))))
        return {"lora": {}, **self._read(step, args)["params"]}, step

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside a step (default: the newest): versions, config, the stage."""
        step = self._require(step)
        return dict(self._read(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])

    def _require(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no complete checkpoint in {self._folder}")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"step {step} is not in {self._folder}; there are {', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else step

    def _read(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise CheckpointError(
                f"checkpoint {self._folder / str(step)} cannot be restored: {reason}"
            ) from error


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _storable(params: Any) -> Any:
    """Without empty subtrees, which orbax does not store alike in all versions."""
    return {name: tree for name, tree in params.items() if tree}
