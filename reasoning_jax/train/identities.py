"""What must hold of a step's metrics whatever the parameters are; checked with --debug."""

from __future__ import annotations

from typing import Any

# Of the value sums, relative to V(s_0), in float32.
GAP_TOLERANCE = 1e-3


def check_identities(metrics: dict[str, Any], step: int) -> None:
    """What must hold of a step's metrics whatever the parameters; waits for the device.

    Every trajectory ends in <eos>, and the discounted value sums of complete trajectories telescope
    to V(s_0) (SequenceMatch).

    Raises:
      AssertionError: one does not, so trajectories are cut or rows are out of order.
    """
    if "telescoping_gap" not in metrics:
        return
    cut = float(metrics["trajectories_cut"].value)
    if cut:
        raise AssertionError(
            f"step {step}: {cut:.0f} trajectories are cut before <eos>; every trajectory must end "
            "in its terminal state"
        )
    gap = float(metrics["telescoping_gap"].value)
    scale = max(1.0, *(abs(float(metrics[f"value_start_{s}"].mean())) for s in ("data", "model")))
    if not gap <= GAP_TOLERANCE * scale:
        raise AssertionError(
            f"step {step}: the value sum of a trajectory is {gap:.3g} away from V(s_0) (of size "
            f"{scale:.3g}); its rows must be in order of time, from its start to its end"
        )
