"""What can be told of a config before JAX is imported: its task and dials, and files that miss.

What is in the files, and whether rows fit, is found by `commands.assemble`.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from reasoning_jax.config import Config, ConfigError
from reasoning_jax.config_fields import show
from reasoning_jax.config_file import nearest_file
from reasoning_jax.tasks import make_task, task_dials
from reasoning_jax.tasks.base import TaskError
from reasoning_jax.tasks.checks import did_you_mean
from reasoning_jax.weights import PACKAGES, find_gguf

# As repositories of weights are called: OWNER/NAME.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Its dials are judged by a process of its own, which takes seconds to start.
_SLOW_TASKS = ("reasoning_gym",)


def check_task(config: Config) -> None:
    """Refuse an unknown task, dials that it does not have, and values that it does not take.

    The section is checked where another source of data leaves it unused, too.

    Raises:
      ConfigError
    """
    name, dials = config.task.name, dict(config.task.dials)
    try:
        legal = task_dials(name)
        for dial in dials:
            if dial not in legal:
                others = [d for d in dials if d not in legal]
                hint = did_you_mean(dial, legal) or (
                    f" Dials of another task? A config file that changes task.name sets its dials: "
                    f'{{"name": {name!r}, **task_dials({name!r})}}.'
                    if len(others) > 1
                    else ""
                )
                raise ConfigError(
                    f"task.{show(dial)[1:-1]}={show(dials[dial])} is no dial of task.name={name!r}."
                    f"{hint}\nIts dials: {', '.join(legal)}"
                )
        if name not in _SLOW_TASKS:
            make_task(name, **dials)
    except TaskError as error:
        raise ConfigError(f"task: {error}") from None


def check_files(config: Config) -> None:
    """Refuse paths at which there is nothing. Opens no file.

    Raises:
      ConfigError: naming the key and, where there is one, the nearest name beside it.
      WeightsError: a package of weights is not installed.
    """
    for key, value in (
        ("data.path", config.data.path),
        ("data.validation_path", config.data.validation_path),
        ("vocab.path", config.vocab.path),
        ("weights.path", config.weights.path),
        ("evaluate.feature_weights", config.evaluate.feature_weights),
    ):
        if not value:
            continue
        if value in PACKAGES and key in ("weights.path", "evaluate.feature_weights"):
            find_gguf(value)
        elif not _exists(value):
            hint = nearest_file(Path(value), "*")
            if "weights" in key:
                near = difflib.get_close_matches(value, PACKAGES, n=1)
                if _HUB_ID.fullmatch(value) and not near and not _exists(os.path.dirname(value)):
                    name = value.partition("/")[2]
                    raise ConfigError(
                        f"{key}={show(value)}: there is no such folder; if that is a repository of "
                        f"weights, download it first: hf download {value} --local-dir {name}, then "
                        f"write {key.rpartition('.')[2]}={name}"
                    )
                hint = f"; did you mean {near[0]}?" if near else hint
                hint = f", and no package of that name ({', '.join(PACKAGES)}){hint}"
            raise ConfigError(f"{key}={show(value)}: there is no such file or folder{hint}")


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL, a lone surrogate
        return False
