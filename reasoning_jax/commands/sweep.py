"""`sweep`: the points of a config file's `get_sweep`, each an ordinary `train` in DIR/NAME.

`resolve` makes checked configs of points, `run_points` trains a list of configs, wherever it comes
from. One process trains one run at a time; nothing keeps two processes from the same run. Loads JAX
only to train.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from reasoning_jax.commands import runfolder
from reasoning_jax.config import Config, ConfigError, to_dict
from reasoning_jax.config_check import from_dict
from reasoning_jax.config_fields import show
from reasoning_jax.exit_codes import EXIT_EVALUATION, EXIT_OK
from reasoning_jax.sweep import ARG, Points, SweepError, apply_point, check_points, run_names
from reasoning_jax.train.rows import evaluated

SLURM_INDEX = "SLURM_ARRAY_TASK_ID"
_FILE = "sweep.json"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_=,.+-]{0,199}")
_NONE: Mapping[str, Any] = MappingProxyType({})


class SweepRun(NamedTuple):
    """One run of a sweep: the name of its folder, its config, and the point that made it."""

    name: str
    config: Config
    overrides: Mapping[str, Any] = _NONE


def resolve_file(
    call: Callable[..., Any],
    arg: str | None,
    workdir: Path,
    common: Mapping[str, Any] = _NONE,
) -> list[SweepRun]:
    """The runs of a config file. `call(function, *arguments)` calls one of its functions; `arg` is
    what the command line gives to `get_sweep`, and to `get_config` for points without their own.

    Raises:
      SweepError: as `resolve` does, and if `arg` has no effect.
    """
    given = () if arg is None else (arg,)
    points = check_points(call("get_sweep", *given))
    own = next((point[ARG] for point in points if ARG in point), None)
    passed_on = all(_says(point[ARG], arg or "") for point in points if ARG in point)
    if arg and own is not None and not passed_on and _points_without_arg(call) == points:
        raise SweepError(
            f"the points give get_config its argument, such as {show(own)}, and get_sweep makes "
            f"the same points without {show(arg)}, which would be lost; leave it out"
        )
    return resolve(
        lambda arg: call("get_config", *(given if arg is None else (arg,))),
        points,
        workdir,
        common,
    )


def resolve(
    get_config: Callable[[str | None], Any],
    points: Any,
    workdir: Path,
    common: Mapping[str, Any] = _NONE,
) -> list[SweepRun]:
    """A checked config and a name for every point.

    `get_config` takes the point's "arg", or None where it has none, and returns a ConfigDict.
    `common` are overrides of every point. Names that `workdir` has already are kept.

    Raises:
      SweepError: no points, the same run twice, a key both swept and in `common`, or a point whose
        config is refused.
    """
    points = check_points(points)
    for key in common:
        if any(key in point for point in points):
            raise SweepError(
                f"{key} is swept, so --config.{key} would undo the sweep; leave it out, or change "
                "get_sweep"
            )
    kept = [entry["name"] for entry in _read(workdir)][: len(points)]
    runs: list[SweepRun] = []
    made: dict[Config, int] = {}
    for i, (name, point) in enumerate(zip(run_names(points, kept), points, strict=True)):
        try:
            values = get_config(point.get(ARG))
            apply_point(values, point)
            apply_point(values, common)
            config = from_dict(values.to_dict())
        except ConfigError as error:
            raise SweepError(f"point {i} ({name}): {error}") from None
        if made.setdefault(config, i) != i:
            raise SweepError(f"points {made[config]} and {i} ({name}) make the same config")
        runs.append(SweepRun(name, config, point))
    return runs


def choose(index: int | None, all_: bool, list_: bool) -> int | None:
    """Which run is meant: an index, or None for all. Slurm's index counts where nothing is said.

    Raises:
      SweepError: not one of --index, --all and --list.
    """
    if (index is not None) + all_ + list_ > 1:
        raise SweepError("sweep takes one of --index=I, --all and --list")
    if index is not None or all_ or list_:
        return index
    text = os.environ.get(SLURM_INDEX)
    if text is None:
        raise SweepError(
            f"sweep needs --index=I, --all or --list; {SLURM_INDEX}, which would give the index, "
            "is not set"
        )
    if not re.fullmatch("[0-9]{1,9}", text):
        raise SweepError(f"{SLURM_INDEX} must be an index, got {show(text)}; or give --index=I")
    print(f"index {text} from {SLURM_INDEX}", flush=True)
    return int(text)


def run_points(
    runs: Sequence[SweepRun],
    workdir: Path,
    *,
    index: int | None = None,
    common: Mapping[str, Any] = _NONE,
    quiet: bool = False,
) -> int:
    """Train run `index`, or all in order, in folders of `workdir`. Returns the exit code.

    A finished run is left alone, an interrupted one goes on; the first code that is not 0 ends the
    sweep, but that of an evaluation that failed, which is returned at the end. `common` is what was
    overridden in every run, noted in each run's folder.

    Raises:
      ConfigError: `index` or a name is illegal; `workdir` holds another sweep, or a run of another
        config under one of the names. Nothing has been trained then.
      TaskError, DataError, VocabError, WeightsError, CheckpointError: of the run that failed.
    """
    if index is not None and not 0 <= index < len(runs):
        raise SweepError(f"index {index} is outside the sweep; legal are 0 to {len(runs) - 1}")
    check_sweep(runs, workdir)
    chosen = range(len(runs)) if index is None else [index]
    for i in chosen:
        runfolder.check_same_run(workdir / runs[i].name, runs[i].config)
    _write(runs, workdir)
    if all(finished(workdir, runs[i]) for i in chosen):
        print(f"nothing to do: finished already, in {workdir}")
        return 0
    from reasoning_jax.commands import train
    from reasoning_jax.train.loop import PREEMPTED, Preemption

    ended = EXIT_OK
    # A signal that comes between two runs, or in the last step of one, ends the sweep too.
    with Preemption() as preemption:
        for i in chosen:
            name, config, overrides = runs[i]
            if finished(workdir, runs[i]):
                print(f"run {i} of {len(runs)}: {name} is finished", flush=True)
                continue
            if preemption.requested:
                return PREEMPTED
            print(f"run {i} of {len(runs)}: {name}", flush=True)
            noted = [f"{key}={value!r}" for key, value in sorted({**overrides, **common}.items())]
            try:
                code = train.train(config, workdir / name, noted, quiet)
            except Exception:
                print(f"run {i} ({name}) failed", file=sys.stderr, flush=True)
                raise
            if code == EXIT_EVALUATION:
                ended = code
            elif code:
                return code
    return ended


def list_runs(runs: Sequence[SweepRun], workdir: Path) -> int:
    """Print index, name, state and overrides of every run. Returns the exit code.

    Raises:
      ConfigError: as `run_points` does for a folder of another sweep.
    """
    check_sweep(runs, workdir)
    width = max(len(run.name) for run in runs)
    for i, run in enumerate(runs):
        started = (workdir / run.name / "config.json").exists()
        state = "finished" if finished(workdir, run) else "started" if started else "-"
        print(f"{i:>4}  {run.name:<{width}}  {state:<8}  {json.dumps(dict(run.overrides))}")
    return 0


def finished(workdir: Path, run: SweepRun) -> bool:
    """Whether the run's last step is saved and evaluated; it is evaluated last of all."""
    # A folder gets its number when everything in it is on disk.
    saved = (workdir / run.name / "checkpoints").glob("*")
    steps = run.config.train.steps
    reached = any(p.name.isdecimal() and int(p.name) >= steps for p in saved)
    return reached and evaluated(workdir / run.name / "metrics.jsonl", steps)


def check_sweep(runs: Sequence[SweepRun], workdir: Path) -> None:
    """Refuse names that cannot be folders, and a `workdir` in which an index means another run.

    Raises:
      ConfigError
    """
    if not runs:
        raise SweepError("there are no runs in the sweep; give at least one")
    seen: dict[str, int] = {}
    for i, run in enumerate(runs):
        if not _SAFE_NAME.fullmatch(run.name) or run.name == _FILE:
            raise SweepError(
                f"run {i} cannot have {show(run.name)} as its name; use letters, digits and _=,.+-"
            )
        if seen.setdefault(run.name.casefold(), i) != i:
            raise SweepError(f"runs {seen[run.name.casefold()]} and {i} have one name: {run.name}")
    saved, present = _read(workdir), _entries(runs)
    if len(saved) > len(present):
        raise SweepError(
            f"{workdir} holds a sweep of {len(saved)} runs, now there are {len(present)}; a sweep "
            "may only grow at its end, or use another --workdir"
        )
    for i, (before, now) in enumerate(zip(saved, present)):
        if before == now:
            continue
        what = f"run {i} was {before['name']} {json.dumps(before['overrides'])}"
        if (before["name"], before["overrides"]) == (now["name"], now["overrides"]):
            what = f"the config of run {i} ({now['name']}) has changed, by its file or an override"
        raise SweepError(
            f"{workdir} holds another sweep: {what[:300]}.\n"
            "A sweep may only grow at its end; use another --workdir, or what it was begun with"
        )


def _says(own: Any, arg: str) -> bool:
    """Whether a point's own argument says all that `arg` says, such as scale=cpu, a default."""
    return set(arg.split(",")) <= set(str(own).split(","))


def _points_without_arg(call: Callable[..., Any]) -> Points | None:
    try:
        return check_points(call("get_sweep"))
    except ConfigError:
        return None


def _entries(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """The runs as sweep.json holds them."""
    entries = [
        {"name": run.name, "overrides": dict(run.overrides), "config": _digest(run.config)}
        for run in runs
    ]
    return json.loads(json.dumps(entries))


def _digest(config: Config) -> str:
    """A hash of what makes a config another run, where it is not the default.

    A new key with a default therefore changes no digest.
    """
    values = to_dict(config)
    keys = runfolder.deciding(runfolder.changed_keys(to_dict(Config()), values))
    leaves: dict[str, Any] = {}
    for key in keys:
        leaf: Any = values
        for name in key.split("."):
            leaf = leaf.get(name)
        leaves[key] = leaf
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]


def _read(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / _FILE
    try:
        if not path.exists():
            return []
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be read: {error.strerror}") from None
    values = runfolder.read_json(path)
    try:
        runs = [
            {"name": str(run["name"]), "overrides": run["overrides"], "config": run["config"]}
            for run in values["runs"]
        ]
    except (KeyError, TypeError):
        raise ConfigError(f"{path} is not the file of a sweep; move it away") from None
    # A sweep of which no run has made a step is none, and takes any points.
    return runs if any(runfolder.has_begun(workdir / run["name"]) for run in runs) else []


def _write(runs: Sequence[SweepRun], workdir: Path) -> None:
    entries = _entries(runs)
    if entries == _read(workdir):
        return
    # The tasks of a Slurm array come here at the same time, each with a file of its own.
    mine = workdir / f".{_FILE}.{uuid.uuid4().hex}"
    try:
        runfolder.write_json(mine, {"runs": entries})
        os.replace(mine, workdir / _FILE)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
