"""`evaluate`: measure a checkpoint on a split, print a table, keep it in RUN or --out."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import jax

from reasoning_jax import screen
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.load import load_trained
from reasoning_jax.commands.train import make_measure, write_evaluation
from reasoning_jax.config import Config, ConfigError, to_dict
from reasoning_jax.evaluate.accuracy import Evaluation


def evaluate(config: Config, workdir: Path, step: int | None, out: Path | None = None) -> int:
    """Evaluate a step (default: the newest) as `config.evaluate` and `config.sampling` say; of a
    curriculum, as the step's own stage poses the problems.

    Of a run that cannot be written the table alone is shown, without `out`. It is shown whatever
    becomes of the files.

    Raises:
      ConfigError: `out` cannot be written.
    """
    kept = _kept(workdir, out)
    trained = load_trained(config, workdir, step)
    e = config.evaluate
    for note in trained.assembly.notes:
        print(note, file=sys.stderr)
    with jax.set_mesh(trained.mesh):
        measure = make_measure(trained.assembly, trained.mesh, trained.stage)
        with screen.doing(f"evaluating {e.problems} problems"):
            result = measure(trained.params)
    stage = "" if trained.stage is None else f", stage {trained.stage}"
    print(f"step {trained.step}{stage}, {e.split} split")
    print(table(result))
    if kept is not None:
        try:
            write_evaluation(kept, trained.step, e.split, result, _difference(config, workdir))
        except OSError as error:
            raise ConfigError(f"{kept}: not kept: {error.strerror or error}") from None
    return 0


def _kept(workdir: Path, out: Path | None) -> Path | None:
    """Where the files go; None for nowhere, which is said."""
    folder = workdir if out is None else out
    for part in ("eval", "samples"):
        if out is not None:
            runfolder.check_writable("--out=", folder / part)
        elif why := runfolder.not_writable(folder / part):
            print(
                f"{workdir} cannot be written ({why}): this table is not kept; for its files give "
                "--out=FOLDER",
                file=sys.stderr,
            )
            return None
    return folder


def _difference(config: Config, workdir: Path) -> str:
    """A name for what decodes otherwise than the run itself does; "" where nothing does.

    Another split, or another number of problems, is the same measure: it takes the run's place.
    """
    same = {"split", "problems", "batch_rows", "saved_samples"}
    saved, now = runfolder.read_json(workdir / "config.json"), to_dict(config)
    changed = {
        key: now[section][key.split(".")[1]]
        for section in ("sampling", "evaluate")
        for key in runfolder.changed_keys(saved[section], now[section], f"{section}.")
        if key.split(".")[1] not in same
    }
    if not changed:
        return ""
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]


def table(result: Evaluation) -> str:
    """Measure ± standard error (n), over all and by difficulty."""
    lines = []
    for group, measures in [("all", result.metrics), *sorted(result.by_difficulty.items())]:
        lines.append(group)
        for name, measure in measures.items():
            m = measure.to_dict()
            error = "" if m["stderr"] is None else f" ± {m['stderr']:.4f}"
            lines.append(f"  {name:<28} {m['value']:.4f}{error}  (n={m['n']})")
    return "\n".join(lines)
