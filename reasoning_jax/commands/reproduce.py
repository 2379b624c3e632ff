"""`reproduce`: run a paper's experiment at a scale, and set our table beside the paper's numbers.

An experiment is a config file with `get_sweep` (see `commands/sweep.py`) and `get_study`, which
says what to report. Runs are those of the sweep, so that an interrupted reproduction goes on where
it was, and an array of jobs can share the work: `sweep FILE:scale=SCALE --index=I`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reasoning_jax.commands import runfolder
from reasoning_jax.commands.sweep import SweepRun, resolve_file, run_points
from reasoning_jax.config import Config, ConfigError, nearest_name, to_dict
from reasoning_jax.config_check import from_dict

SCALES = ("smoke", "cpu", "gpu", "paper")
_CHECKOUT = Path(__file__).parent.parent.parent


def experiment_file(name: str) -> Path:
    """configs/NAME.py, here or in the checkout that this package is from.

    Raises:
      ConfigError: there is no such experiment; names those that there are.
    """
    known: dict[str, Path] = {}
    for root in (_CHECKOUT / "configs", Path("configs")):
        for path in sorted(root.glob("*/*.py")):
            known[path.relative_to(root).with_suffix("").as_posix()] = path
    if name not in known:
        hint = nearest_name(name, list(known)) if known else "; run it in a checkout of the project"
        raise ConfigError(f"there is no experiment {name[:80]!r}{hint}")
    return known[name]


def reproduce(
    call: Callable[..., Any],
    scale: str,
    workdir: Path,
    common: Mapping[str, Any],
    quiet: bool = False,
) -> int:
    """Run what is not finished, then write table.md, table.json and table.png into `workdir`.

    `call(function, *arguments)` calls a function of the experiment's file; `common` are overrides
    of every run. Returns the exit code.

    Raises:
      ConfigError: an unknown scale, or what `run_points` raises.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    from reasoning_jax.report.study import arm_labels, newest_metrics, write_study

    runs = resolve_file(call, f"scale={scale}", workdir, common)
    study = call("get_study", scale)
    labels = arm_labels([run.overrides for run in runs], study.seeds_key)
    for label, (arm, _) in study.decoders.items():
        if arm not in labels:
            hint = nearest_name(arm, sorted({*labels}))
            raise ConfigError(f"decoder {label!r} is of an unknown arm {arm!r}{hint}")
    code = run_points(runs, workdir, common=common, quiet=quiet)
    if code:
        return code
    results = [(arm, newest_metrics(workdir / run.name)) for arm, run in zip(labels, runs)]
    for label, (arm, overrides) in study.decoders.items():
        for run_arm, run in zip(labels, runs):
            if run_arm == arm:
                results.append((label, _decoded(workdir, label, run, overrides)))
    path = write_study(study, results, _about(scale, workdir, runs), workdir)
    print(path.read_text(encoding="utf-8"))
    print(f"table: {path}")
    return 0


def _decoded(
    workdir: Path, label: str, run: SweepRun, overrides: Mapping[str, Any]
) -> dict[str, float]:
    """The measures of a run's last step under other settings of sampling or evaluation; kept."""
    safe = "".join(c if c.isalnum() else "_" for c in label)
    path = workdir / "decoded" / f"{safe}--{run.name}.json"
    if path.exists():
        return runfolder.read_json(path)
    values: dict[str, Any] = json.loads(json.dumps(to_dict(run.config)))
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if section not in ("sampling", "evaluate") or name not in values[section]:
            raise ConfigError(f"decoder {label!r}: {key} is no key of sampling or evaluate")
        values[section][name] = value
    config: Config = from_dict(values)
    import jax

    from reasoning_jax.commands.load import load_trained
    from reasoning_jax.commands.train import make_measure

    trained = load_trained(config, workdir / run.name, None)
    with jax.set_mesh(trained.mesh):
        result = make_measure(trained.assembly, trained.mesh)(trained.params)
    metrics = {name: m.to_dict()["value"] for name, m in result.metrics.items()}
    runfolder.write_json(path, metrics)
    return metrics


def _about(scale: str, workdir: Path, runs: list[SweepRun]) -> list[str]:
    """Where and with what the runs were made, as their folders say."""
    env = runfolder.read_json(workdir / runs[0].name / "env.json")
    return [
        f"Scale `{scale}`, {len(runs)} runs, {env.get('device_count')} x "
        f"{env.get('device_kind')} ({env.get('hostname')}), Python {env.get('python')}, jax "
        f"{env.get('jax')}, commit {env.get('commit')}."
    ]
