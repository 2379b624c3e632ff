"""How much SequenceMatch's loss weighs beside that of bc, and the horizon that makes them alike.

The bc loss is a mean over labels, so that a trajectory's labels weigh 1 together. The loss of
SequenceMatch is a mean over trajectories, whose action i weighs scale * gamma^i. This module
measures data; it trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from reasoning_jax.config import Config
from reasoning_jax.objectives.sequencematch import discounted, loss_scale

# Training examples that are measured, from the first on.
MEASURED = 256
# First word of the numpy seeds of their noise.
_NOISE = 14


class Encodes(Protocol):
    def encode(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Lengths:
    """Mean numbers of actions of `examples` data trajectories: of their responses, which is what bc
    learns, and from s_0 on, which is what SequenceMatch discounts.
    """

    response: float
    trajectory: float
    examples: int

    @property
    def horizon(self) -> int:
        return max(1, round(self.response))


def measure(source: Sequence[Any], encoder: Encodes, config: Config) -> Lengths:
    """The lengths of the first MEASURED examples, with noise as in training. Depends on the data
    and the config alone. Raises what encoding an example raises.
    """
    response, trajectory = [], []
    for i in range(min(MEASURED, len(source))):
        rows = encoder.encode(source[i], np.random.default_rng([config.seed, _NOISE, i]))
        actions = float(rows["weights"].sum())
        response.append(actions)
        # The last row is the terminal state; at <bos> all others act.
        from_bos = config.sequencematch.start == "bos"
        trajectory.append(len(rows["actions"]) - 1 if from_bos else actions)
    return Lengths(float(np.mean(response)), float(np.mean(trajectory)), len(response))


def with_horizon(config: Config, horizon: int) -> Config:
    """The config with a number in place of "auto"."""
    return replace(config, sequencematch=replace(config.sequencematch, horizon=horizon))


def share_at_end(config: Config, trajectory: float) -> float:
    """SequenceMatch's part of the weight of both losses once beta is beta_end, for trajectories of
    so many actions. `config` has a number as its horizon.
    """
    match = config.sequencematch
    assert isinstance(match.horizon, int)
    gamma = float(match.gamma) if np.float32(match.gamma) != 1 else 1.0
    scale = loss_scale(match.gamma, match.horizon)
    weight = (1 - match.beta_end) * scale * discounted(gamma, trajectory)
    return weight / (match.beta_end + weight) if weight else 0.0


def notes(config: Config, lengths: Lengths, measured: bool) -> tuple[str, ...]:
    """What to say of the horizon at the start of a run: its number where it was "auto", and a share
    that is below half of the nominal 1 - beta_end.
    """
    match = config.sequencematch
    lines = []
    if measured:
        lines.append(
            f'sequencematch.horizon="auto" is {match.horizon}: {lengths.response:.1f} actions a '
            f"response, the mean of {lengths.examples} training examples"
        )
    share = share_at_end(config, lengths.trajectory)
    if share < (1 - match.beta_end) / 2:
        lines.append(
            f"sequencematch.beta_end={match.beta_end} leaves SequenceMatch {share:.1%} of the "
            f"loss, not {1 - match.beta_end:.0%}: with horizon={match.horizon} and "
            f"gamma={match.gamma} the {lengths.trajectory:.1f} actions of a trajectory weigh "
            "little; sequencematch.horizon=auto gives them the weight that they have in bc"
        )
    return tuple(lines)
