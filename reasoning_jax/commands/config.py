"""`--explain`, `config show` and `config diff`: configs in words, and what tells two of them apart.

Prints only: starts no backend, imports no JAX, trains nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoning_jax import weights
from reasoning_jax.commands import runfolder
from reasoning_jax.config import Config, ConfigError, ModelConfig, to_dict
from reasoning_jax.config_check import batch_tree, check_devices, from_dict
from reasoning_jax.config_fields import flat, show
from reasoning_jax.config_file import load_config_file
from reasoning_jax.tasks import task_dials

# Numbers of devices that are tried, and how many of the legal ones are printed.
_MOST_DEVICES, _SHOWN_DEVICES = 4096, 10


def explain(config: Config, source: str, overrides: Sequence[str] = ()) -> int:
    """Print how the batch divides over devices, and every value that is not the default.

    `overrides` are the keys that the command line set; the others are from `source`. Returns the
    exit code.

    Raises:
      WeightsError: the model is that of a weight file, which cannot be read.
    """
    print("\n".join(_mesh_lines(config)))
    print("\n".join(_value_lines(config, source, overrides)))
    return 0


def _mesh_lines(config: Config) -> Iterator[str]:
    model = weights.read_config(config.weights.path) if config.weights.path else config.model
    legal = list(_legal_meshes(config, model))
    mesh = config.mesh
    yield f"mesh             data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}"
    if not legal:
        yield f"  devices        none of 1 to {_MOST_DEVICES} fit; see config.mesh"
        return
    devices, shape = legal[0]
    yield f"  on {devices} device(s)".ljust(17) + "data {} x fsdp {} x tensor {}".format(*shape)
    yield batch_tree(config, shape)
    if len(legal) > 1:
        rows = config.train.batch_rows // config.optimizer.accumulate
        some = [f"{n} ({rows // (s[0] * s[1])} rows each)" for n, s in legal[1:_SHOWN_DEVICES]]
        more = ", ..." if len(legal) > _SHOWN_DEVICES else ""
        yield f"also on          {', '.join(some)}{more} devices"


def _legal_meshes(config: Config, model: ModelConfig) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(number of devices, mesh shape) for all numbers on which the config runs."""
    for devices in range(1, _MOST_DEVICES + 1):
        with contextlib.suppress(ConfigError):
            yield devices, check_devices(config, model, devices)


def _value_lines(config: Config, source: str, overrides: Sequence[str]) -> Iterator[str]:
    usual = to_dict(Config())
    usual["task"] = {"name": usual["task"]["name"], **task_dials(config.task.name)}
    before, after = flat(usual), flat(to_dict(config))
    rows = [
        (key, show(value), f"default {show(before[key])}" if key in before else "no default",
         "command line" if key in overrides else source)
        for key, value in after.items()
        if key in overrides or key not in before or _plain(before[key]) != _plain(value)
    ]  # fmt: skip
    section = ""
    for key, *cells in rows:
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            yield section
        yield "  " + _columns([(key, *row) for key, *row in rows], (key, *cells))
    yield f"{len(rows)} of {len(after)} values are not the default, or were set on the command line"


def compare(first: str, second: str) -> int:
    """Print the keys in which two configs differ, and which of them make another run.

    Each is a config file with an argument, a run folder, or its config.json. Returns the exit code,
    0 whether they differ or not.

    Raises:
      ConfigError: one of them cannot be read.
    """
    before, after = (_read(name)[0] for name in (first, second))
    keys = runfolder.changed_keys(before, after)
    if not keys:
        print("the same config")
        return 0
    left, right = flat(before), flat(after)
    deciding = runfolder.deciding(keys)
    rows = [
        (key, _cell(left, key), _cell(right, key), "another run" if key in deciding else "")
        for key in keys
    ]
    head = ("key", first, second, "")
    for row in (head, *rows):
        print(_columns((head, *rows), row))
    same = "a run of one cannot be continued as the other" if deciding else "they may be one run"
    print(f"{len(keys)} of {len({*left, *right})} values differ; {same}")
    return 0


def show_config(name: str) -> int:
    """`explain` for a config file, a run folder or a config.json. Raises ConfigError."""
    values, source = _read(name)
    return explain(from_dict(values), source)


def _read(name: str) -> tuple[dict[str, Any], str]:
    """The values of a config by any of its names, and what they are from."""
    path = Path(name)
    if path.is_dir() or path.suffix == ".json":
        values = runfolder.read_json(path / "config.json" if path.is_dir() else path)
        values = runfolder.with_new_defaults(values)
        # Keys that an older version did not have take their defaults; what is refused now stands.
        with contextlib.suppress(ConfigError):
            values = to_dict(from_dict(values))
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: wanted a config, got {show(values)}")
        return values, "run" if path.is_dir() else "file"
    return to_dict(from_dict(load_config_file(name).to_dict())), "config file"


def _cell(values: Mapping[str, Any], key: str) -> str:
    return show(_plain(values[key])) if key in values else "-"


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    return json.loads(json.dumps(value))


def _columns(rows: Sequence[Sequence[str]], row: Sequence[str]) -> str:
    widths = [min(48, max(len(r[i]) for r in rows)) for i in range(len(row))]
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
