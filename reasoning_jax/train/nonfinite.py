"""What the host does about a step that was skipped for a NaN or Inf: it is counted, its batch is
named in `nonfinite.jsonl`, and after too many in a row training ends with a dump.

A step is looked at when the next one has been dispatched, so nothing waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from reasoning_jax.train.step import NONFINITE

if TYPE_CHECKING:
    from reasoning_jax.train.step import Gradients

FILE, DUMPS = "nonfinite.jsonl", "diverged"


class Diverged(RuntimeError):
    """Too many steps in a row had a NaN or Inf (exit code 3). The state is that before them."""


class NonfiniteGuard:
    """Counts skipped steps. `in_a_row` begins with what a checkpoint has of it."""

    def __init__(self, workdir: Path, limit: int, say: Callable[[str], None], in_a_row: int = 0):
        self._path, self._limit, self._say = workdir / FILE, limit, say
        self.in_a_row = in_a_row

    def look(self, step: int, nonfinite: jax.Array, describe: Callable[[], dict[str, Any]]) -> None:
        """Wait for a step, and note it if it was skipped. `describe` names its batch's examples.

        Raises:
          Diverged: it is the last of too many in a row.
        """
        broken = names(int(np.asarray(jax.device_get(nonfinite))))
        if not broken:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        batch = describe()
        row = {"step": step, "nonfinite": broken, "in_a_row": self.in_a_row, "batch": batch}
        self._say(f"step {step} skipped: {', '.join(broken)} not finite (see {FILE})")
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._say(f"{self._path} cannot be written: {error.strerror}")
        if self.in_a_row >= self._limit:
            raise Diverged(
                f"training diverged: {self.in_a_row} steps in a row up to {step} had a NaN or Inf "
                "and were skipped (train.skipped_steps_limit)"
            )


def names(code: int) -> list[str]:
    """What a step's `nonfinite` says was not finite."""
    return [name for bit, name in NONFINITE.items() if code & bit]


def diagnose(gradients: Gradients, state: Any, batch: Any) -> dict[str, Any]:
    """A step looked at without taking it: the loss, each metric, and of every parameter's gradient
    the norm and the number of elements that are not finite. JSON-able; NaN and Inf are texts.
    """
    import optax

    grads, (metrics, mixture) = jax.jit(gradients)(state, batch)
    of_parameter = {
        path: {
            "norm": number(np.asarray(jax.device_get(optax.tree.norm(g)), np.float64)),
            "nonfinite": int((~np.isfinite(np.asarray(jax.device_get(g), np.float32))).sum()),
            "elements": int(g.size),
        }
        for path, g in sorted(grads.items())
    }
    means = {name: s.mean() for name, s in metrics.items()}
    return {
        "step": int(state.step) + 1,
        "loss": number(jax.device_get(mixture.mean())),
        "grad_norm": number(jax.device_get(optax.tree.norm(grads))),
        "metrics": {name: number(x) for name, x in sorted(jax.device_get(means).items())},
        "gradients": of_parameter,
    }


def dump_batch(path: Path, batch: Any) -> None:
    """The arrays of a batch as an .npz, its fields by name. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        jax.tree_util.keystr(place, simple=True, separator="."): np.asarray(jax.device_get(x))
        for place, x in jax.tree.leaves_with_path(batch)
    }
    np.savez(path, allow_pickle=False, **arrays)


def number(x: Any) -> float | str:
    """A number for JSON: NaN and infinities as text."""
    value = float(np.asarray(x))
    return value if np.isfinite(value) else str(value)
