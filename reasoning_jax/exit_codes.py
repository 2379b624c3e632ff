"""Exit codes, and which errors are the user's to mend. Imports nothing that could raise them."""

from __future__ import annotations

import errno
import sys
from typing import Any

from reasoning_jax.config_fields import ConfigError
from reasoning_jax.durable import DISK_ERRORS

EXIT_OK, EXIT_USAGE, EXIT_DIVERGED, EXIT_CHECKPOINT = 0, 2, 3, 4
# What a shell gives to a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
# All steps are trained and saved, and an evaluation failed on the way.
EXIT_EVALUATION = 5

# Modules that are not loaded cannot have raised: their errors are looked up, not imported.
_ERRORS = (
    ("reasoning_jax.train.checkpoint", "CheckpointError", EXIT_CHECKPOINT),
    ("reasoning_jax.train.nonfinite", "Diverged", EXIT_DIVERGED),
    ("reasoning_jax.tasks.base", "TaskError", EXIT_USAGE),
    ("reasoning_jax.data.examples", "DataError", EXIT_USAGE),
    ("reasoning_jax.vocab", "VocabError", EXIT_USAGE),
    ("reasoning_jax.weights", "WeightsError", EXIT_USAGE),
    ("reasoning_jax.report", "ReportError", EXIT_USAGE),
)
# A disk that is full or broken, a folder of somebody else.
_FILES_OF_THE_USER = (*DISK_ERRORS, errno.EACCES, errno.EPERM)


class UsageError(ConfigError):
    """The command line is wrong."""


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is the user's to mend; None for a defect of ours."""
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    if isinstance(error, OSError) and error.errno in _FILES_OF_THE_USER:
        return EXIT_USAGE
    for module, name, code in _ERRORS:
        kind: Any = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code
    return None


def first_lines(error: BaseException, count: int = 3) -> str:
    """The first lines of an error's message."""
    return "\n".join(str(error).strip().split("\n")[:count])
