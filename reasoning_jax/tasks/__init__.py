"""Problems, strict verifiers and solvers. Knows no model and no tokens.

`make_task("arithmetic", max_digits=4)` builds a task; nothing is imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from reasoning_jax.tasks.base import SPLITS, Problem, Score, Task, TaskError, Trace
from reasoning_jax.tasks.checks import did_you_mean, show

__all__ = [
    "SPLITS",
    "TASKS",
    "Problem",
    "Score",
    "Task",
    "TaskError",
    "Trace",
    "make_task",
    "task_dials",
]

# name -> (module, class); the class is a frozen dataclass whose fields are the dials.
TASKS: dict[str, tuple[str, str]] = {
    "arithmetic": ("reasoning_jax.tasks.arithmetic", "Arithmetic"),
    "add_or_sub_in_base": ("reasoning_jax.tasks.arithmetic", "AddOrSubInBase"),
    "countdown": ("reasoning_jax.tasks.countdown", "Countdown"),
    "prosqa": ("reasoning_jax.tasks.prosqa", "ProsQA"),
    "prontoqa": ("reasoning_jax.tasks.prontoqa", "ProntoQA"),
    "gsm_chain": ("reasoning_jax.tasks.gsm_chain", "GsmChain"),
    "reasoning_gym": ("reasoning_jax.tasks.gym", "ReasoningGym"),
}


def make_task(name: str, /, **dials: Any) -> Task:
    """The task of this name with these dials, the others at their defaults.

    Raises:
      TaskError: unknown task or dial (with the nearest legal name), or a dial's value is refused.
    """
    task_class = _task_class(name)
    legal = tuple(task_dials(name))
    for dial in dials:
        if dial not in legal:
            raise TaskError(
                f"{name}: no dial {show(dial)}.{did_you_mean(dial, legal)} "
                f"Its dials: {', '.join(legal)}"
            )
    return task_class(**dials)


def task_dials(name: str) -> dict[str, Any]:
    """The dials of a task with their defaults. Raises `TaskError` on an unknown task."""
    return {field.name: field.default for field in dataclasses.fields(_task_class(name))}


def _task_class(name: str) -> type:
    if not isinstance(name, str) or name not in TASKS:
        raise TaskError(
            f"no task {show(name)}.{did_you_mean(name, TASKS)} The tasks: {', '.join(TASKS)}"
        )
    module, class_name = TASKS[name]
    return getattr(importlib.import_module(module), class_name)
