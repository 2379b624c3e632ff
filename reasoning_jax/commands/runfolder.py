"""The run folder: the files that describe a run, written whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reasoning_jax import paths
from reasoning_jax.config import Config, ConfigError, to_dict, warmup_steps
from reasoning_jax.config_check import from_dict
from reasoning_jax.config_fields import MAX_INT, show
from reasoning_jax.durable import open_locked, replace_text
from reasoning_jax.train.rows import read_rows
from reasoning_jax.vocab import Vocab, VocabError
from reasoning_jax.weights import Companions, read_companions

# What may differ between a run and its continuation; everything else decides the result.
_MAY_CHANGE = ("train", "watchdog", "evaluate", "sampling", "mesh")
# (section, key, how it is called now): folders of older versions still have the old names.
_RENAMED = (("train", "keep_checkpoints", "keep_last"),)
# Defaults of older versions in sections that only objective.name="sequencematch" reads.
_OLD_DEFAULTS = (("sequencematch", "horizon", 0), ("replay", "noise_rate", 0.0))
# The place in the data is counted in batches.
_FIXED = ("train.batch_rows",)
# What came with the pretrained weights and goes with what is exported.
_PRETRAINED = "pretrained"
_LOCK = "lock"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file of a run. Raises ConfigError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; is {path.parent} a run folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def read_config(workdir: Path) -> Any:
    """The `config.json` of a run, its keys as they are called now. Raises ConfigError."""
    values = read_json(workdir / "config.json")
    for section, old, new in _RENAMED:
        if isinstance(values, dict) and old in (values.get(section) or {}):
            values[section].setdefault(new, values[section].pop(old))
    return with_new_defaults(values)


def with_new_defaults(values: Any) -> Any:
    """The values of a config.json without old defaults that were not read, for present ones to take
    their place. Those of a run that read them stand.
    """
    objective = values.get("objective") if isinstance(values, dict) else None
    if not isinstance(objective, dict) or objective.get("name") == "sequencematch":
        return values
    for section, key, old in _OLD_DEFAULTS:
        if isinstance(values.get(section), dict) and values[section].get(key) == old:
            del values[section][key]
    return values


def check_same_run(workdir: Path, config: Config) -> None:
    """Refuse to continue an existing run with a config that would make it another run.

    A folder in which no step was made is no run, and takes any config.

    Raises:
      ConfigError: more differs than the length of training, evaluation, sampling or mesh; or there
        are checkpoints of an unknown config; or the folder cannot be read.
    """
    try:
        described = (workdir / "config.json").exists()
        begun = has_begun(workdir)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be read: {error.strerror}") from None
    if not described or not begun:
        if any((workdir / "checkpoints").glob("*")):
            raise ConfigError(
                f"{workdir} has checkpoints but no config.json, so nothing says of which run; use "
                "another --workdir"
            )
        return
    before = read_config(workdir)
    _same_warmup(before, config)
    # Keys that an older version did not have take their defaults. What is illegal in it now is
    # compared as it stands, and differs.
    with contextlib.suppress(ConfigError):
        before = to_dict(from_dict(before))
    fixed = deciding(changed_keys(before, to_dict(config)))
    if fixed:
        raise ConfigError(
            f"{workdir} holds a run with another config; changed: {', '.join(fixed[:5])}.\n"
            "Use another --workdir, or the same values to continue it"
        )


def _same_warmup(before: Any, config: Config) -> None:
    """Runs of older versions have their warm-up in steps: where that is what the share gives now,
    write it into `before` as the config says it.
    """
    try:
        optimizer, steps = before["optimizer"], before["train"]["steps"]
        if "warmup_fraction" in optimizer:
            return
        same = optimizer["warmup_steps"] == warmup_steps(config.optimizer, steps)
    except (KeyError, TypeError):
        return
    if same:
        now = config.optimizer
        optimizer |= {
            "warmup_steps": now.warmup_steps, "warmup_fraction": now.warmup_fraction,
        }  # fmt: skip


def has_begun(workdir: Path) -> bool:
    """Whether there is a step in a run folder: a checkpoint of any kind, or a logged row.

    Raises:
      OSError: it cannot be read.
    """
    if any((workdir / "checkpoints").glob("*")):
        return True
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and any(row["step"] for row in read_rows(metrics))


@contextlib.contextmanager
def opened(workdir: Path) -> Iterator[None]:
    """The folder of a run, made where there is none, and locked for the duration of a block.

    What ends the block before anything else is in the folder leaves it as it was: no lock, and no
    folders that were made for it.

    Raises:
      ConfigError: it cannot be made or written to, or another process trains there.
    """
    paths.check(workdir)
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    make_folder(workdir)
    with locked(workdir):
        try:
            yield
        except BaseException:
            if [path.name for path in workdir.iterdir()] == [_LOCK]:
                (workdir / _LOCK).unlink()
                with contextlib.suppress(OSError):
                    for folder in made:
                        folder.rmdir()
            raise


def make_folder(workdir: Path) -> None:
    """Make an empty folder where there is none; a run is in it once `open_run` has described it.

    Raises:
      ConfigError: it cannot be made, or not be written to.
    """
    check_writable("--workdir=", workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def check_writable(name: str, folder: Path, hint: str = "") -> None:
    """Refuse, before any work, a folder that cannot be written. Raises ConfigError."""
    if why := not_writable(folder):
        raise ConfigError(f"{name}{folder} cannot be written: {why}{hint}")


def not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not be there yet; "" where it can be."""
    try:
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            return f"{folder} is a file" if folder.exists() else f"{folder} leads nowhere"
        if os.access(folder, os.W_OK | os.X_OK):
            return ""
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "its file system is read-only" if read_only else "permission denied"


def open_run(workdir: Path, config: Config, overrides: Sequence[str], vocab: Vocab) -> None:
    """Create the run folder, or note the present config in an existing one.

    Raises:
      ConfigError: the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not has_begun(workdir):
            _forget_start(workdir)
        if not (workdir / "vocab.json").exists():
            write_json(workdir / "vocab.json", vocab.to_dict())
        write_json(workdir / "config.json", to_dict(config))
        write_json(workdir / "overrides.json", list(overrides))
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def _forget_start(workdir: Path) -> None:
    """Remove what a start that made no step has left: another one may decide otherwise."""
    for name in ("vocab.json", "measured.json", "eval/step_00000000.json",
                 "samples/step_00000000.jsonl"):  # fmt: skip
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / _PRETRAINED, ignore_errors=True)


def keep_pretrained(workdir: Path, companions: Companions) -> None:
    """Write the settings and the chat template that came with the pretrained weights of a run.

    Raises:
      ConfigError: the folder cannot be written.
    """
    folder = workdir / _PRETRAINED
    partial = folder.with_name(f".{_PRETRAINED}.partial")
    try:
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        for name, text in companions.texts().items():
            (partial / name).write_text(text, encoding="utf-8", newline="")
        partial.rename(folder)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def read_pretrained(workdir: Path) -> Companions | None:
    """What `keep_pretrained` kept; None in a run that has none, such as those of old versions."""
    folder = workdir / _PRETRAINED
    return read_companions(folder) if folder.is_dir() else None


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """For the duration of a block no other process trains in this folder.

    The lock is the kernel's and ends with the process, however that ends.

    Raises:
      ConfigError: another process does.
    """
    with open_locked(workdir / _LOCK, wait=False) as file:
        if file is None:
            owner = (workdir / _LOCK).read_text(encoding="utf-8")[:200].strip()
            raise ConfigError(
                f"{workdir} is being trained by {owner or 'another process'}; wait for it, or use "
                "another --workdir"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def read_vocab(workdir: Path) -> Vocab:
    """The vocabulary of a run. Raises ConfigError or VocabError naming the file."""
    path = workdir / "vocab.json"
    values = read_json(path)
    try:
        return Vocab.from_dict(values)
    except VocabError as error:
        raise VocabError(f"{path}: {error}") from None


def read_horizon(workdir: Path) -> int | None:
    """The number that sequencematch.horizon="auto" is in this run, where it was measured.

    Raises:
      ConfigError: measured.json holds no such number.
    """
    if not (workdir / "measured.json").exists():
        return None
    values = read_json(workdir / "measured.json")
    horizon = values.get("sequencematch.horizon") if isinstance(values, dict) else None
    if type(horizon) is not int or not 1 <= horizon <= MAX_INT:
        raise ConfigError(
            f"{workdir / 'measured.json'}: wanted sequencematch.horizon, a number from 1 on, got "
            f"{show(values)}"
        )
    return horizon


def write_horizon(workdir: Path, config: Config) -> None:
    """`measured.json`: what "auto" stands for, so that it stays the same to the run's end. `config`
    is that of its assembly. Raises ConfigError.
    """
    if (workdir / "measured.json").exists():
        return
    try:
        write_json(
            workdir / "measured.json", {"sequencematch.horizon": config.sequencematch.horizon}
        )
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def write_environment(workdir: Path) -> None:
    """`env.json`: where, when, with what and on which devices this run was started.

    A continued run keeps the starts before this one under `earlier_starts`.
    """
    import jax

    earlier: list[Any] = []
    if (workdir / "env.json").exists():
        last = read_json(workdir / "env.json")
        earlier = [*last.pop("earlier_starts", []), last]
    write_json(
        workdir / "env.json",
        {
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "commit": _commit(),
            "hostname": platform.node(),
            "python": platform.python_version(),
            "device_kind": jax.devices()[0].device_kind,
            "device_count": jax.device_count(),
            "process_count": jax.process_count(),
            **{name: _version(name) for name in (*_PACKAGES, "reasoning-jax")},
            **({"earlier_starts": earlier} if earlier else {}),
        },
    )


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two nested dicts differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [
            key for n in names for key in changed_keys(before.get(n), after.get(n), f"{prefix}{n}.")
        ]
    same = json.dumps(before) == json.dumps(after)
    return [] if same else [prefix[:-1]]


def deciding(keys: Sequence[str]) -> list[str]:
    """Those of some dotted names whose values make a config that of another run."""
    return [key for key in keys if key.split(".")[0] not in _MAY_CHANGE or key in _FIXED]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    try:
        out = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip() or "unknown"
