"""A first-in-first-out buffer of trajectories: what was executed, what was chosen, and when.

Logits are not kept: the training step computes them again, with the parameters of its own time.
Plain numpy of fixed shapes, so that the buffer is a part of a checkpoint; it draws no samples from
a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

_PER_ROW = ("length", "given", "floor", "step", "position")


class ReplayBuffer:
    """The newest `capacity` trajectories of at most `rows` states each.

    A trajectory of `length` rows is: the start token, then one executed action a row, the last of
    them <eos>. `labels[i]` is the action chosen at row i. The first `given` tokens were not the
    model's own. `step` is when it was sampled, `position` where its prompt stands in the stream.
    """

    def __init__(self, capacity: int, rows: int):
        if capacity < 1 or rows < 2:
            raise ValueError(f"a buffer needs capacity >= 1 and rows >= 2, got {capacity}, {rows}")
        self.capacity, self.rows = capacity, rows
        self._arrays = {
            "actions": np.zeros((capacity, rows), np.int32),
            "labels": np.zeros((capacity, rows), np.int32),
            **{name: np.zeros(capacity, np.int32) for name in _PER_ROW},
            "pushed": np.zeros((), np.int32),
        }

    def __len__(self) -> int:
        return min(int(self._arrays["pushed"]), self.capacity)

    def push(
        self,
        actions: Int[np.ndarray, "n T"],
        labels: Int[np.ndarray, "n T"],
        **per_row: Int[np.ndarray, " n"],
    ) -> None:
        """Add n trajectories; the oldest go. `per_row` is length, given, floor, step, position.

        Raises:
          ValueError: more than fit at once, rows of another width, or a missing name.
        """
        n, width = actions.shape
        if n > self.capacity or width != self.rows or set(per_row) != set(_PER_ROW):
            raise ValueError(
                f"got {n} trajectories of {width} rows with {sorted(per_row)}; the buffer holds "
                f"{self.capacity} of {self.rows} and wants {sorted(_PER_ROW)}"
            )
        pushed = int(self._arrays["pushed"])
        places = (pushed + np.arange(n)) % self.capacity
        for name, values in {"actions": actions, "labels": labels, **per_row}.items():
            self._arrays[name][places] = values
        # Counted modulo a multiple of the capacity: places go round, and int32 never overflows.
        total = pushed + n
        over = total >= 2 * self.capacity
        self._arrays["pushed"][...] = total % self.capacity + self.capacity if over else total

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """n different trajectories, uniformly: actions, labels [n, T] and the per-row values.

        Raises:
          ValueError: fewer are there.
        """
        if n > len(self):
            raise ValueError(f"{n} trajectories wanted, the buffer holds {len(self)}")
        places = rng.choice(len(self), size=n, replace=False)
        return {name: a[places] for name, a in self._arrays.items() if name != "pushed"}

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in it, for a checkpoint."""
        return self._arrays

    def restore(self, arrays: dict[str, Any]) -> None:
        """The inverse of `arrays`. Raises ValueError where names or shapes differ; then nothing is
        changed.
        """
        for name, mine in self._arrays.items():
            got = np.shape(arrays[name]) if name in arrays else None
            if got != mine.shape:
                raise ValueError(f"replay buffer: {name} has shape {got}, wanted {mine.shape}")
        for name, mine in self._arrays.items():
            mine[...] = arrays[name]


def as_batch(sampled: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """Sampled trajectories as the arrays of a `Batch` (its `model`), at train step `step`."""
    row = np.arange(sampled["actions"].shape[1])[None, :]
    length, given = sampled["length"][:, None], sampled["given"][:, None]
    inside = row < length
    return {
        "actions": np.where(inside, sampled["actions"], 0),
        "labels": np.where(inside, sampled["labels"], 0),
        "weights": ((row >= given - 1) & (row < length - 1)).astype(np.float32),
        "segments": inside.astype(np.int32),
        "floor": np.where(inside, sampled["floor"][:, None], 0).astype(np.int32),
        "noised": np.zeros_like(sampled["actions"]),
        "age": (step - sampled["step"]).astype(np.int32),
    }
