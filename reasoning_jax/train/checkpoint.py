"""Checkpoints: a small door to orbax. The only file I/O of parameters here.

A step holds four items: `params`, `opt`, `data` (the place in the stream) and `meta` (the config,
versions, and hashes of the state), and where there is one the replay buffer. How a step is saved:

    <step>.saving      orbax writes beside the next training steps; then every file is hashed into
                       the step's manifest (`train/manifest.py`), with the arrays of the state
    <step>             one rename: from now on it counts
                       it is read again, and its arrays are opened and compared with the state's;
                       only when it is intact are older steps deleted

So a step that was cut off never counts, and what fails leaves the older steps as they are. Reading
begins with the hashes: of a step that is damaged nothing is used, and the next older one is taken.
orbax gets the folder by a name that it cannot take for a pattern (`paths.plain`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from reasoning_jax import paths
from reasoning_jax.durable import sync
from reasoning_jax.train import manifest, stored
from reasoning_jax.train.faults import NO_FAULTS, FaultPlan
from reasoning_jax.train.room import check_space, nbytes
from reasoning_jax.train.state import TrainState
from reasoning_jax.train.state_hash import of_leaves, of_state, state_hash

SAVING, DELETING, DAMAGED = ".saving", ".deleting", ".damaged"
# How orbax ends the name of a folder until everything in it is written.
_ORBAX_UNFINISHED = ".orbax-checkpoint-tmp"

_OS_ERROR, _LOCAL_FILE = re.compile(r"os_error_code='(\d+)'"), re.compile(r'local file "([^"]+)"')


class CheckpointError(RuntimeError):
    """A checkpoint was expected and none is usable (exit code 4)."""


@dataclass(frozen=True)
class SaveFailure:
    """A save that did not succeed: which step, and why in one line."""

    step: int
    reason: str


class Checkpoints:
    """The checkpoints of one run folder. One process writes; reading needs no writer's rights.

    Of its steps the newest `keep_last` are kept, and every multiple of `keep_every` (0: none).
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 3,
        keep_every: int = 0,
        faults: FaultPlan = NO_FAULTS,
    ):
        self.folder = folder.absolute()
        self._keep_last, self._keep_every = keep_last, keep_every
        self._faults = faults
        self._orbax = _async_checkpointer()
        self._thread: threading.Thread | None = None
        self._failures: list[SaveFailure] = []
        self.failed_in_a_row = 0
        # Of a step's own verification, until it is asked again.
        self.damaged: dict[int, list[str]] = {}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wait()
        self._orbax.close()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps that were saved completely, ascending; damaged ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if _complete(p))

    def save(
        self,
        state: TrainState,
        data: dict[str, Any],
        meta: dict[str, Any],
        arrays: dict[str, np.ndarray] | None = None,
    ) -> bool:
        """Start saving a state under its step. False if that step is saved already, or if saving
        could not begin (`failures` says why).

        `arrays` belong to the data, such as a replay buffer; they may change after the call.
        """
        step = int(state.step)
        if step in self.steps():
            return False
        self.wait()
        trees: dict[str, Any] = {"params": _storable(state.params), "opt": state.opt_state}
        if arrays:
            trees["replay"] = {name: np.array(values) for name, values in arrays.items()}
        said = {"data": data, "meta": {**meta, "step": step, "state_hash": of_state(state)}}
        items: dict[str, Any] = {n: ocp.args.StandardSave(tree) for n, tree in trees.items()}
        items |= {name: ocp.args.JsonSave(values) for name, values in said.items()}
        wanted = {name: stored.described(tree) for name, tree in trees.items()}
        with contextlib.ExitStack() as stack:
            try:
                self._faults.reach("save", step)
                self.folder.mkdir(parents=True, exist_ok=True)
                check_space(self.folder, nbytes((state, arrays or {})))
                self._remove(step)
                place = stack.enter_context(paths.plain(self.folder))
                self._orbax.save(place / f"{step}{SAVING}", args=ocp.args.Composite(**items))
            except Exception as error:
                self._failed(step, error)
                return False
            # The thread closes it, when orbax no longer writes.
            opened = stack.pop_all()
        self._thread = threading.Thread(
            target=self._commit, args=(step, wanted, _texts(said), opened), name=f"save {step}"
        )
        self._thread.start()
        return True

    def wait(self) -> None:
        """Return when no save is under way; what failed is in `failures`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failures(self) -> list[SaveFailure]:
        """The saves that failed since the last call, each by its own step."""
        found, self._failures = self._failures, []
        return found

    def _commit(
        self,
        step: int,
        wanted: dict[str, stored.Described],
        said: dict[str, str],
        opened: contextlib.ExitStack,
    ) -> None:
        """In a thread: wait for orbax, hash, rename, read again, and let go of older steps."""
        saving, final = self._path(step, SAVING), self._path(step)
        with opened:
            try:
                self._faults.reach("write", step)
                self._orbax.wait_until_finished()
                self._faults.reach("seal", step)
                manifest.write(saving, step, wanted)
                self._faults.reach("commit", step)
                os.rename(saving, final)
                sync(self.folder)
                self._faults.reach("committed", step)
                findings = self.verify(step)
                if not findings:
                    with paths.plain(final) as place:
                        read = _texts(self._read_said(place))
                    findings = [f"{name}: differs" for name in said if read[name] != said[name]]
                if findings:
                    self.set_aside(step)
                    raise OSError(f"what is read is not what should be there: {findings[0]}")
            except BaseException as error:
                self._failed(step, error)
                return
        self.failed_in_a_row = 0
        try:
            self._faults.reach("prune", step)
            self._prune()
        except OSError as error:
            self._failures.append(SaveFailure(step, f"older steps not deleted: {error}"))

    def _failed(self, step: int, error: BaseException) -> None:
        self._failures.append(SaveFailure(step, self._reason(error)))
        self.failed_in_a_row += 1
        # What it is still writing must be out of the way before it is deleted. Then another orbax,
        # since this one may hold on to what failed.
        with contextlib.suppress(Exception):
            self._orbax.wait_until_finished()
        self._orbax = _async_checkpointer()
        self._remove(step)

    def _remove(self, step: int) -> None:
        """Delete what an unfinished save of a step has left."""
        for path in self.folder.glob(f"{step}{SAVING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def clean(self) -> None:
        """Delete what saves and deletions that were cut off have left. For the writer only."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _unfinished(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Delete all steps but those to keep; a step that is being deleted does not count."""
        steps = self.steps()
        kept = set(steps[-self._keep_last :])
        if self._keep_every:
            kept |= {step for step in steps if step % self._keep_every == 0}
        for step in steps:
            if step not in kept:
                leaving = self._path(step, DELETING)
                os.rename(self._path(step), leaving)
                shutil.rmtree(leaving)

    def set_aside(self, step: int) -> Path:
        """Rename a damaged step, so that it no longer counts and can be saved anew."""
        target, number = self._path(step, DAMAGED), 1
        while target.exists():
            target, number = self._path(step, f"{DAMAGED}.{number}"), number + 1
        os.rename(self._path(step), target)
        return target

    def verify(self, step: int, items: Sequence[str] = (), *, values: bool = False) -> list[str]:
        """What is not as it was saved, one line a file or array; empty for an intact step.

        First the files against their hashes, then the arrays, which are opened and compared with
        those of the state that was to be saved; with `values` they are read, too, and compared with
        the hash of that state. Of a step without a manifest (as versions before had none) only that
        is said.
        """
        folder = self._path(step)
        findings = manifest.check(folder, step, items)
        if findings:
            return findings
        wanted = manifest.arrays(folder) or None
        trees = [name for name in wanted or ("params", "opt") if not items or name in items]
        with paths.plain(folder) as place:
            for name in trees:
                lines = stored.missing(place / name, wanted[name] if wanted else None)
                findings += [f"{name}: {paths.own_name(line, folder)}" for line in lines]
            if not findings and values and wanted is not None:
                findings = self._other_values(place, wanted)
        return findings

    def _other_values(self, place: Path, wanted: dict[str, stored.Described]) -> list[str]:
        """The items whose arrays are not, bit for bit, those of the state that was saved."""
        told = self._read_said(place)["meta"]["state_hash"]
        return [
            f"{name}: what is read is not what was saved (state hash)"
            for name in told
            if of_leaves(stored.arrays_of(place / name, wanted[name])) != told[name]
        ]

    def restore(
        self,
        like: TrainState,
        step: int | None = None,
        arrays: dict[str, np.ndarray] | None = None,
        before: int | None = None,
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
        """(state, data place, meta, arrays) of a step, in the shardings of `like`; `arrays` are
        like those that were saved. By default of the newest intact step (below `before`):
        `damaged` then holds the newer ones that were passed over, and what is wrong with each.

        Raises:
          CheckpointError
        """
        items: dict[str, Any] = {
            "params": ocp.args.StandardRestore(_storable(_abstract(like.params))),
            "opt": ocp.args.StandardRestore(_abstract(like.opt_state)),
            "data": ocp.args.JsonRestore(),
            "meta": ocp.args.JsonRestore(),
        }
        if arrays:
            items["replay"] = ocp.args.StandardRestore(arrays)
        out, step = self._read_intact(step, items, before)
        params = {"lora": {}, **out["params"]}
        counter = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        state = TrainState(counter, params, out["opt"])
        saved = {name: np.asarray(values) for name, values in (out.get("replay") or {}).items()}
        return state, dict(out["data"]), dict(out["meta"]), saved

    def restore_params(self, like: Any, step: int | None = None) -> tuple[Any, int]:
        """(parameters, step) without the optimizer, of a step or of the newest intact one; `like`
        is an abstract or concrete tree. Raises CheckpointError.
        """
        items = {
            "params": ocp.args.StandardRestore(_storable(_abstract(like))),
            "meta": ocp.args.JsonRestore(),
        }
        out, step = self._read_intact(step, items)
        return {"lora": {}, **out["params"]}, step

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside a step (default: the newest intact): versions, config, the stage.

        Raises:
          CheckpointError
        """
        out, _ = self._read_intact(step, {"meta": ocp.args.JsonRestore()})
        return dict(out["meta"])

    def read_all(self, step: int) -> dict[str, Any]:
        """Everything in a step, on the host: {item: tree of numpy arrays, or JSON values}. Needs no
        devices like those that saved it. Raises CheckpointError.
        """
        self.require(step)
        findings = self.verify(step)
        if findings and manifest.exists(self._path(step)):
            self.damaged = {step: findings}
            raise CheckpointError(self._none_left(step))
        out = {}
        try:
            with paths.plain(self._path(step)) as place:
                for name in ("params", "opt", "replay"):
                    if (place / name).is_dir():
                        out[name] = _read_numpy(place / name)
                out |= self._read_said(place)
        except Exception as error:
            reason = f"checkpoint {self._path(step)} cannot be restored: {self._reason(error)}"
            raise CheckpointError(reason) from error
        return out

    def _read_said(self, place: Path) -> dict[str, Any]:
        """The JSON items of a step, by a path from `paths.plain`."""
        items = {name: ocp.args.JsonRestore() for name in ("data", "meta")}
        return {n: v for n, v in self._orbax.restore(place, ocp.args.Composite(**items)).items()}

    def require(self, step: int | None, before: int | None = None) -> list[int]:
        """The complete steps (below `before`): some, and `step` among them.

        Raises:
          CheckpointError: there are none, or not that one.
        """
        steps = [n for n in self.steps() if before is None or n < before]
        if not steps:
            below = "" if before is None else f" before step {before}"
            raise CheckpointError(f"no complete checkpoint{below} in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"step {step} is not in {self.folder}; there are {', '.join(map(str, steps))}"
            )
        return steps

    def _read_intact(
        self, step: int | None, items: dict[str, Any], before: int | None = None
    ) -> tuple[Any, int]:
        """The items of a step, or of the newest that is intact, and the step."""
        steps = self.require(step, before)
        # A step that was asked for is that step, or nothing.
        wanted = steps[::-1] if step is None else [step]
        self.damaged = {}
        # Without a manifest nothing says what a step was; such a one comes after all others.
        for number in sorted(wanted, key=lambda n: manifest.exists(self._path(n)), reverse=True):
            findings = self.verify(number, tuple(items))
            if findings and manifest.exists(self._path(number)):
                self.damaged[number] = findings
                continue
            try:
                return self._read(number, items), number
            except CheckpointError as error:
                self.damaged[number] = [*findings, str(error)]
        raise CheckpointError(self._none_left(step))

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        try:
            with paths.plain(self._path(step)) as place:
                out = self._orbax.restore(place, args=ocp.args.Composite(**items))
        except Exception as error:
            raise CheckpointError(f"cannot be restored: {self._reason(error)}") from error
        # From end to end: what is on the devices now against what was there then.
        for name, wanted in dict(out["meta"].get("state_hash", {})).items():
            if name in items and state_hash(out[name]) != wanted:
                raise CheckpointError(f"{name}: what was read is not what was saved (state hash)")
        return out

    def _none_left(self, step: int | None) -> str:
        lines = [f"checkpoint {n} in {self.folder}: {f[0]}" for n, f in self.damaged.items()]
        more = len(lines) - 3
        lines = lines[:3] + ([f"and {more} more"] if more > 0 else [])
        if step is None:
            return "\n".join([f"no intact checkpoint in {self.folder}", *lines])
        others = [n for n in self.steps() if n != step and not self.verify(n)]
        hint = f"intact: {', '.join(map(str, others))}" if others else "no other step is intact"
        return "\n".join([*lines, hint])

    def notes(self, used: int) -> list[str]:
        """What to tell of the last reading: each damaged step, its file, and the step used."""
        lines = [
            f"checkpoint {self.folder / str(step)} is damaged: {findings[0]}"
            + (f" (and {len(findings) - 1} more)" if len(findings) > 1 else "")
            + f"; using step {used}"
            for step, findings in self.damaged.items()
        ]
        if used in self.steps() and not manifest.exists(self._path(used)):
            lines.append(
                f"checkpoint {self.folder / str(used)} has no {manifest.NAME}, so its files cannot "
                "be verified"
            )
        return lines

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"{step}{suffix}"

    def _reason(self, error: BaseException) -> str:
        return paths.own_name(_reason(error), self.folder)


def unfinished_only(folder: Path) -> bool:
    """Whether all in a folder of checkpoints is what saves that were cut off have left."""
    return not folder.is_dir() or all(_unfinished(path.name) for path in folder.iterdir())


def _complete(path: Path) -> bool:
    return path.name.isdecimal() and str(int(path.name)) == path.name and path.is_dir()


def _unfinished(name: str) -> bool:
    return name.endswith((SAVING, DELETING)) or _ORBAX_UNFINISHED in name


def _no_traceback(record: logging.LogRecord) -> bool:
    """Drops the traceback that orbax logs of a failed save, of which `failures` tells in a line."""
    return not (record.exc_info and "orbax" in record.pathname)


def _async_checkpointer() -> ocp.AsyncCheckpointer:
    # Adding the same filter again changes nothing.
    logging.getLogger("absl").addFilter(_no_traceback)
    # Folders that are made in the background are waited for, for minutes, where making one failed.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def _read_numpy(path: Path) -> Any:
    """An item that StandardSave has written, whatever its devices were."""
    handler: Any = ocp.PyTreeCheckpointHandler()
    tree: Any = handler.metadata(path).tree
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=kinds))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"[:300]
    text = (str(error).strip() or type(error).__name__).split("\n")[0]
    # The library that writes arrays tells the cause last, behind several paths.
    code, file = _OS_ERROR.search(text), _LOCAL_FILE.search(text)
    if code:
        text = os.strerror(int(code[1])) + (f": {file[1]}" if file else "")
    return text[:300]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _texts(items: dict[str, Any]) -> dict[str, str]:
    """JSON values as texts: those of equal values are equal, also where they hold a NaN."""
    return {name: json.dumps(values, sort_keys=True) for name, values in items.items()}


def _storable(params: Any) -> Any:
    """Without empty subtrees, which orbax does not store alike in all versions."""
    return {name: tree for name, tree in params.items() if tree}
