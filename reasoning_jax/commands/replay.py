"""`replay`: compute one step of a run once more and look at it: loss, gradients, the batch.

It begins from the newest intact checkpoint before the step (or from the start) and takes the steps
between; training is a function of the config, so they are the same. The run is not changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reasoning_jax import devices, screen
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.load import load_assembly
from reasoning_jax.commands.train import make_run
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.train import faults as fault_plans
from reasoning_jax.train.checkpoint import Checkpoints
from reasoning_jax.train.nonfinite import dump_batch
from reasoning_jax.train.program import make_program
from reasoning_jax.train.replay import Replayed, replay_step

_SHOWN = 12


def replay(config: Config, workdir: Path, step: int, out: Path | None, faults: str = "") -> int:
    """Print what step `step` (from 1) was, and write `report.json` and `batch.npz` to `out`, by
    default RUN/replay/step_N.

    Raises:
      ConfigError: the config is not that of the run, or it has no such step.
    """
    if step < 1 or step > config.train.steps:
        raise ConfigError(f"--step={step}: the run has steps 1 to {config.train.steps}")
    runfolder.check_same_run(workdir, config)
    assembly = load_assembly(config, workdir)
    devices.tell()
    plan = fault_plans.parse(faults)
    program = make_program(assembly.config, assembly.model, assembly.ids, assembly.thoughts, plan)
    out = out or workdir / "replay" / f"step_{step:08d}"
    with (
        make_run(assembly, program, workdir, plan, evaluated=False) as run,
        Checkpoints(workdir / "checkpoints") as checkpoints,
    ):
        with screen.doing(f"computing step {step}, from the checkpoint before it"):
            found = replay_step(run, checkpoints, step)
        # Shown first, whatever becomes of the files.
        print(_text(found, _logged_hash(workdir, step)))
        try:
            dump_batch(out / "batch.npz", found.batch)
            runfolder.write_json(out / "report.json", found.report)
        except OSError as error:
            raise ConfigError(f"--out={out} cannot be written: {error.strerror}") from None
    print(f"written to {out}")
    return 0


def _text(found: Replayed, logged: str | None) -> str:
    report = found.report
    lines = [*found.notes, f"step {report['step']}, from the checkpoint of step {found.began}"]
    lines += [f"  {name} {report[name]}" for name in ("loss", "grad_norm")]
    broken = ", ".join(report["nonfinite"])
    lines.append(f"  skipped: {broken} not finite" if broken else "  all finite")
    rows = sorted(
        report["gradients"].items(), key=lambda item: (-item[1]["nonfinite"], -_size(item[1]))
    )
    lines.append(f"  {'gradient of':<44} {'norm':>12}  not finite")
    for path, g in rows[:_SHOWN]:
        lines.append(f"  {path:<44} {_size(g):>12.4g}  {g['nonfinite']:,} of {g['elements']:,}")
    if len(rows) > _SHOWN:
        lines.append(f"  and {len(rows) - _SHOWN} more in report.json")
    hashes = f"  state after it {found.state_hash}"
    if logged is not None:
        hashes += ", as logged" if logged == found.state_hash else f"; logged was {logged}"
    return "\n".join([*lines, hashes])


def _size(gradient: dict[str, Any]) -> float:
    return float(gradient["norm"])


def _logged_hash(workdir: Path, step: int) -> str | None:
    """The hash of the state that the run logged after a step, where it did."""
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("step") == step and "state_hash" in row:
            return row["state_hash"]
    return None
