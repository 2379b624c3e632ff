"""`checkpoint verify|list|diff`: what a run has saved, whether it is still that, and what differs.

Reads; changes nothing.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax import devices
from reasoning_jax.commands.runfolder import changed_keys
from reasoning_jax.config import ConfigError
from reasoning_jax.train import manifest
from reasoning_jax.train.checkpoint import DAMAGED, Checkpoints

FOUND = 1
_SHOWN = 20
_AT_STEP = re.compile(r"(.+)@(\d+)", re.DOTALL)


def verify(workdir: Path, step: int | None) -> int:
    """Compare every file and array of a step (default: of all) with those that were saved: what is
    intact can be restored. 0: all intact, 1: not.

    Raises:
      ConfigError: this is no run folder.
      CheckpointError: there is no such step.
    """
    with _open(workdir) as checkpoints:
        steps = _steps(checkpoints, step)
        damaged = 0
        for number in steps:
            findings = checkpoints.verify(number, values=True)
            damaged += bool(findings)
            size = _mib(checkpoints.folder / str(number))
            print(f"step {number}: " + (f"intact, {size}" if not findings else "DAMAGED"))
            for finding in findings[:_SHOWN]:
                print(f"  {finding}")
            if len(findings) > _SHOWN:
                print(f"  and {len(findings) - _SHOWN} more")
    print(f"{len(steps) - damaged} of {len(steps)} intact")
    return FOUND if damaged else 0


def list_steps(workdir: Path) -> int:
    """A line a step: when it was saved, its size, the stage of its curriculum."""
    with _open(workdir) as checkpoints:
        print(f"{'step':>10}  {'saved at':<19}  {'size':>12}  {'manifest':<8}  stage")
        for step in checkpoints.steps():
            folder = checkpoints.folder / str(step)
            sealed = manifest.exists(folder)
            when = datetime.datetime.fromtimestamp(folder.stat().st_mtime)
            try:
                stage = str(checkpoints.read_meta(step).get("stage", ""))
            except RuntimeError:
                stage = "(cannot be read; see checkpoint verify)"
            print(
                f"{step:>10}  {when.isoformat(' ', 'seconds')}  {_mib(folder):>12}  "
                f"{'yes' if sealed else 'no':<8}  {stage}".rstrip()
            )
        others = sorted(p.name for p in checkpoints.folder.iterdir() if DAMAGED in p.name)
        for name in others:
            print(f"{name}: was found damaged and put aside")
    return 0


def diff(a: str, b: str) -> int:
    """What differs between two checkpoints, each RUN or RUN@STEP: arrays, place in the data, meta.

    Returns 0 where nothing does, else 1. Raises ConfigError, CheckpointError.
    """
    (first, name_a), (second, name_b) = (_contents(text) for text in (a, b))
    lines = []
    for item in sorted({*first, *second}):
        if item not in first or item not in second:
            lines.append(f"{item}: only in {name_a if item in first else name_b}")
        elif item in ("data", "meta"):
            lines += [f"{item}.{key} differs" for key in changed_keys(first[item], second[item])]
        else:
            lines += _array_lines(item, first[item], second[item])
    for line in lines[:_SHOWN]:
        print(line)
    if len(lines) > _SHOWN:
        print(f"and {len(lines) - _SHOWN} more")
    print(f"{name_a} and {name_b}: {len(lines)} difference(s)" if lines else "no difference")
    return FOUND if lines else 0


def _array_lines(item: str, a: Any, b: Any) -> list[str]:
    left, right = _flat(a), _flat(b)
    lines = [f"{item}/{path}: only in one of them" for path in sorted({*left} ^ {*right})]
    for path in sorted({*left} & {*right}):
        x, y = left[path], right[path]
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            lines.append(f"{item}/{path}: {x.dtype}{x.shape} against {y.dtype}{y.shape}")
        elif x.tobytes() != y.tobytes():
            p, q = x.astype(np.float64), y.astype(np.float64)
            unequal = int((p != q).sum())
            most = float(np.abs(p - q).max())
            lines.append(f"{item}/{path}: {unequal:,} of {x.size:,} differ, by {most:.3g} at most")
    return lines


def _flat(tree: Any) -> dict[str, np.ndarray]:
    import jax

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }


def _contents(text: str) -> tuple[dict[str, Any], str]:
    """The items of RUN or RUN@STEP, and how to call it."""
    found = None if Path(text).is_dir() else _AT_STEP.fullmatch(text)
    workdir, step = (Path(found[1]), int(found[2])) if found else (Path(text), None)
    with _open(workdir) as checkpoints:
        step = _steps(checkpoints, step)[-1]
        return checkpoints.read_all(step), f"{workdir}@{step}"


def _open(workdir: Path) -> Checkpoints:
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"{workdir} has no folder checkpoints; is it a run folder?")
    # Orbax starts it, too, and then in a traceback.
    devices.start()
    return Checkpoints(workdir / "checkpoints")


def _steps(checkpoints: Checkpoints, step: int | None) -> list[int]:
    steps = checkpoints.require(step)
    return steps if step is None else [step]


def _mib(folder: Path) -> str:
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return f"{size / 2**20:,.2f} MiB"
