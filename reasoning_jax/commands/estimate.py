"""How long a run will take, before it begins: an estimate, and called one.

From the analytic FLOPs of its steps and what this machine does in a short product of matrices (on
accelerators: what the table of peaks says). It knows nothing of compiling, evaluation and saving.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from reasoning_jax.commands.assemble import Assembly
from reasoning_jax.train import flops

# What training reaches of a large product's rate (CPU), or of the vendor's peak (accelerators).
_CPU_SHARE, _PEAK_SHARE = 0.5, 0.2
# A step takes no less, however small: dispatch, metrics, data.
_LEAST_STEP_S = 0.004
_SIZE, _TRIES = 768, 3


def expected_time(assembly: Assembly) -> str | None:
    """ "about 9 minutes for 1,500 steps (an estimate)"; None where steps do more than train."""
    config = assembly.config
    if config.latent.mode != "off" or config.objective.name == "sequencematch":
        return None
    device = jax.devices()[0]
    rate = flops.peak_flops(device.device_kind)
    if rate is not None:
        rate *= _PEAK_SHARE * jax.device_count()
    elif device.platform == "cpu":
        rate = _cpu_rate() * _CPU_SHARE
    else:
        return None
    T, steps = config.data.seq_len, config.train.steps
    positions = T * config.train.batch_rows
    needed = flops.train_flops_per_token(assembly.model, T) * positions
    seconds = steps * max(needed / rate, _LEAST_STEP_S)
    return (
        f"about {in_words(seconds)} for {steps:,} steps of {positions:,} positions, without "
        "evaluation (an estimate)"
    )


def in_words(seconds: float) -> str:
    """A duration in the unit that it is told in."""
    for unit, size in (("hours", 5400.0), ("minutes", 90.0)):
        if seconds >= size:
            return f"{seconds / (3600 if unit == 'hours' else 60):.0f} {unit}"
    return f"{max(1, round(seconds))} s"


def _cpu_rate() -> float:
    """FLOP/s of a product of matrices on this machine now."""
    a = np.ones((_SIZE, _SIZE), np.float32)
    best = float("inf")
    for _ in range(_TRIES):
        begin = time.perf_counter()
        np.dot(a, a)
        best = min(best, time.perf_counter() - begin)
    return 2 * _SIZE**3 / best
