"""`reproduce`: run a paper's experiment at a scale, and set our table beside the paper's numbers.

An experiment is a config file with `get_sweep` (see `commands/sweep.py`) and `get_study`, which
says what to report. Runs are those of the sweep, so that an interrupted reproduction goes on where
it was, and an array of jobs can share the work: `sweep FILE:scale=SCALE --index=I`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning_jax import screen
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.sweep import SweepRun, resolve_file, run_points
from reasoning_jax.config import Config, ConfigError, nearest_name, to_dict
from reasoning_jax.config_check import from_dict
from reasoning_jax.config_fields import show

if TYPE_CHECKING:
    from reasoning_jax.report.study import Study

SCALES = ("smoke", "cpu", "gpu", "paper")
_CHECKOUT = Path(__file__).parent.parent.parent


def experiments() -> dict[str, Path]:
    """The files of the experiments by their names: here, and in the checkout of this package."""
    known: dict[str, Path] = {}
    for root in (_CHECKOUT / "configs", Path("configs")):
        for path in sorted(root.glob("*/*.py")):
            known[path.relative_to(root).with_suffix("").as_posix().replace("_", "-")] = path
    return known


def list_experiments() -> int:
    """Print the experiments, each with its first line and its time. Returns the exit code."""
    known = experiments()
    if not known:
        raise ConfigError("there are no experiments here; run it in a checkout of the project")
    for name, path in known.items():
        try:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        except (OSError, ValueError, SyntaxError) as error:
            text = f"({path} cannot be read: {error})"
        print(f"{name:<28} {text.partition(chr(10))[0]}")
        if time := re.search(r"^Time +(.*)$", text, flags=re.MULTILINE):
            print(f"{'':<28} time: {time[1]}")
    print(f"reproduce EXPERIMENT --scale={'|'.join(SCALES)} --workdir=DIR")
    return 0


def experiment_file(name: str) -> Path:
    """configs/NAME.py, here or in the checkout that this package is from; "-" and "_" are alike.

    Raises:
      ConfigError: there is no such experiment; names those that there are.
    """
    known = experiments()
    if name.replace("_", "-") not in known:
        hint = nearest_name(name, list(known)) if known else "; run it in a checkout of the project"
        raise ConfigError(f"there is no experiment {name[:80]!r}{hint}")
    return known[name.replace("_", "-")]


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
      ConfigError: an unknown scale, a decoder that does not fit, or what `run_points` raises; no
        run has been trained then.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    from reasoning_jax.report.study import Study, arm_labels, newest_metrics, write_study

    runs = resolve_file(call, f"scale={scale}", workdir, common)
    study = call("get_study", scale)
    if not isinstance(study, Study):
        raise ConfigError(f"get_study must return a Study, got {type(study).__name__}")
    labels = arm_labels([run.overrides for run in runs], study.seeds_key)
    arm = {run.name: label for run, label in zip(runs, labels)}
    decoded = _check_decoders(study, runs, arm)
    code = run_points(runs, workdir, common=common, quiet=quiet)
    if code:
        return code
    results = [(arm[run.name], newest_metrics(workdir / run.name)) for run in runs]
    results += [(label, _decoded(workdir, label, name, config)) for label, name, config in decoded]
    path = write_study(study, results, _about(scale, workdir, runs), workdir)
    print(path.read_text(encoding="utf-8"))
    print(f"table: {path}")
    return 0


def _check_decoders(
    study: Study, runs: list[SweepRun], arm: Mapping[str, str]
) -> list[tuple[str, str, Config]]:
    """(label, name of a run, how to evaluate it) for every run that a decoder is of."""
    decoded: list[tuple[str, str, Config]] = []
    arms = list(dict.fromkeys(arm.values()))
    for label, (wanted, overrides) in study.decoders.items():
        if wanted not in arms:
            hint = nearest_name(wanted, arms)
            raise ConfigError(f"decoder {show(label)} is of an unknown arm {show(wanted)}{hint}")
        if label in arms:
            raise ConfigError(f"decoder {show(label)} has the name of an arm; give it its own")
        for run in runs:
            if arm[run.name] == wanted:
                decoded.append((label, run.name, _evaluated_otherwise(label, run, overrides)))
    return decoded


def _evaluated_otherwise(label: str, run: SweepRun, overrides: Mapping[str, Any]) -> Config:
    values: dict[str, Any] = json.loads(json.dumps(to_dict(run.config)))
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if section not in ("sampling", "evaluate") or name not in values[section]:
            raise ConfigError(f"decoder {show(label)}: {key} is no key of sampling or evaluate")
        values[section][name] = value
    return from_dict(values)


def _decoded(workdir: Path, label: str, name: str, config: Config) -> dict[str, float]:
    """The measures of a run's last step as `config` evaluates; kept beside what they are of."""
    # A label may be anything: a short readable part of it, and what tells it from the others.
    safe = "".join(c if c.isascii() and c.isalnum() else "_" for c in label)[:40]
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    path = workdir / "decoded" / f"{safe}-{digest}" / f"{name}.json"
    values = to_dict(config)
    of = {"step": config.train.steps, **{s: values[s] for s in ("sampling", "evaluate")}}
    of = json.loads(json.dumps(of))
    if path.exists():
        kept = runfolder.read_json(path)
        if kept["of"] == of:
            return kept["metrics"]
    import jax

    from reasoning_jax.commands.load import load_trained
    from reasoning_jax.commands.train import make_measure

    trained = load_trained(config, workdir / name, None)
    with jax.set_mesh(trained.mesh), screen.doing(f"evaluating {name} as {label}"):
        result = make_measure(trained.assembly, trained.mesh, trained.stage)(trained.params)
    metrics = {name: m.to_dict()["value"] for name, m in result.metrics.items()}
    runfolder.write_json(path, {"of": of, "metrics": metrics})
    return metrics


def _about(scale: str, workdir: Path, runs: list[SweepRun]) -> list[str]:
    """Where and with what the runs were made, as their folders say."""
    env = runfolder.read_json(workdir / runs[0].name / "env.json")
    return [
        f"Scale `{scale}`, {len(runs)} runs, {env.get('device_count')} x "
        f"{env.get('device_kind')} ({env.get('hostname')}), Python {env.get('python')}, jax "
        f"{env.get('jax')}, commit {env.get('commit')}."
    ]
