"""A config file whose argument is a run folder: the config that the run was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import config_dict

from reasoning_jax.commands.runfolder import read_config
from reasoning_jax.config import as_config_dict


def get_config(workdir: str) -> config_dict.ConfigDict:
    return as_config_dict(_tuples(read_config(Path(workdir))))


def _tuples(value: Any) -> Any:
    """JSON lists as tuples, which can be overridden on the command line."""
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
