"""The training loop: the impure part. Data, steps, evaluation, checkpoints, metrics, preemption.

It knows one thing about data (`BatchSource`), one about the objective (a `Loss`), and nothing about
tasks. Exit codes: 0 done, 42 preempted and saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reasoning_jax.config import Config, ModelConfig
from reasoning_jax.data.pipeline import BatchSource
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from reasoning_jax.train.flops import peak_flops, train_flops_per_token
from reasoning_jax.train.metrics import MetricSums, MetricsWriter, Stopwatch
from reasoning_jax.train.state import TrainState
from reasoning_jax.train.step import Step

DONE, PREEMPTED = 0, 42
# How orbax ends the name of a step's folder until everything in it is on disk.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Of the value sums, relative to V(s_0), in float32.
GAP_TOLERANCE = 1e-3

# evaluate(state) -> the scalars of a validation row; writes its own files.
Evaluate = Callable[[TrainState], dict[str, float]]


@dataclass
class Run:
    """What the loop drives. `meta` goes into every checkpoint beside the unfinished metrics.

    `reset_optimizer` is called where the source says that a step begins with a new optimizer.
    """

    config: Config
    model: ModelConfig
    workdir: Path
    state: TrainState
    source: BatchSource
    step: Step
    evaluate: Evaluate
    meta: dict[str, Any]
    debug: bool = False
    reset_optimizer: Callable[[TrainState], TrainState] | None = None


class Preemption:
    """Turns SIGTERM and SIGINT into a flag for the duration of a `with` block.

    Of two nested blocks the outer one's flag is set too, and the inner one begins with it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        self.requested |= any(outer.requested for outer in self._outer())
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        if self.requested:
            raise KeyboardInterrupt(f"second signal {number} while saving")
        self.requested = True
        for outer in self._outer():
            outer.requested = True

    def _outer(self) -> list[Preemption]:
        owners = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        return [owner for owner in owners if isinstance(owner, Preemption)]


def restore_if_any(
    checkpoints: Checkpoints, folder: Path, run: Run
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint's (state, meta), with the data source at its place; else a fresh start,
    also where all that is left is a first save that was cut off: no step was ever complete.

    Raises:
      CheckpointError: the folder holds steps, but none of them is complete and readable.
    """
    if checkpoints.latest() is None:
        left = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if not all(name.endswith(_UNFINISHED) for name in left):
            raise CheckpointError(
                f"{folder} holds {', '.join(left[:3])} but no complete checkpoint; move the run "
                "folder away to start again"
            )
        return run.state, {}
    state, place, meta, arrays = checkpoints.restore(run.state, arrays=run.source.arrays())
    run.source.restore(place)
    run.source.restore_arrays(arrays)
    return state, meta


def train(run: Run, quiet: bool = False) -> int:
    """Train from the newest checkpoint (or the start) to `train.steps`. Returns an exit code."""
    config = run.config.train
    folder = run.workdir / "checkpoints"
    watch = Stopwatch()
    with Checkpoints(folder, config.keep_checkpoints) as checkpoints, Preemption() as preemption:
        state, meta = restore_if_any(checkpoints, folder, run)
        sums = MetricSums(meta.get("unfinished_metrics"))
        start = int(state.step)
        writer = MetricsWriter(run.workdir, start, config.steps, quiet)
        rate = _Rate(run)
        if start:
            writer.say(f"resumed from step {start} of {folder}")

        def save(state: TrainState) -> None:
            with watch.measure("checkpoint"):
                unfinished = sums.save()
                checkpoints.save(
                    state, run.source.save(),
                    {**run.meta, **run.source.meta(), "unfinished_metrics": unfinished},
                    run.source.arrays(),
                )  # fmt: skip

        def log(step: int) -> None:
            with watch.measure("step"):
                means = sums.finish()
            tokens = round(means.pop("tokens", 0.0) * config.log_every_steps)
            times = watch.finish()
            row = {"step": step, "split": "train", **run.source.meta(), **means, "tokens": tokens}
            writer.write({**row, "time": {**times, **rate.measure(tokens, times)}})

        def evaluate(state: TrainState, step: int) -> None:
            with watch.measure("evaluate"):
                values = run.evaluate(state)
            row = {"step": step, "split": "validation", **run.source.meta(), **values}
            writer.write({**row, "time": {}})

        if start == 0 and config.evaluate_every_steps:
            evaluate(state, 0)
        try:
            for step in range(start + 1, config.steps + 1):
                with watch.measure("data"):
                    batch = run.source.next(state)
                    if run.source.fresh_optimizer and run.reset_optimizer is not None:
                        state = run.reset_optimizer(state)
                with watch.measure("step"):
                    state, metrics = run.step(state, batch)
                    sums.add(metrics)
                    if run.debug:
                        check_identities(metrics, step)
                    if step == start + 1:
                        jax.block_until_ready(state.step)
                        writer.say(
                            f"first step {step} done {watch.elapsed():.1f} s after the loop began"
                        )
                last = step == config.steps
                if step % config.log_every_steps == 0:
                    log(step)
                if _due(step, config.evaluate_every_steps) or last:
                    evaluate(state, step)
                if step % config.checkpoint_every_steps == 0 or last or preemption.requested:
                    save(state)
                if preemption.requested and not last:
                    checkpoints.wait()
                    writer.say(f"preempted: saved step {step}, exit {PREEMPTED} (run again)")
                    return PREEMPTED
            checkpoints.wait()
        finally:
            writer.close()
        run.state = state
        return DONE


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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Rate:
    """Throughput of an interval, from its tokens and the seconds its steps took."""

    def __init__(self, run: Run):
        self._flops = train_flops_per_token(run.model, run.config.data.seq_len)
        device = jax.devices()[0]
        peak = run.config.train.peak_flops or peak_flops(device.device_kind)
        self._peak = peak * jax.device_count() if peak else None

    def measure(self, tokens: int, times: dict[str, float]) -> dict[str, float | None]:
        seconds = times.get("step_s", 0.0) + times.get("data_s", 0.0)
        if not seconds or not tokens:
            return {}
        per_second = tokens / seconds
        flops = per_second * self._flops
        return {
            "tokens_per_s": round(per_second, 1),
            "model_flops_per_s": round(flops, 1),
            "mfu": round(flops / self._peak, 4) if self._peak else None,
        }


def validation_loss(
    loss: Callable[..., Any],
    state: TrainState,
    batches: Iterable[Any],
    adapters: Any,
) -> dict[str, float]:
    """Mean loss and accuracy over fixed batches; `loss` is a jitted Loss."""
    sums: dict[str, list[float]] = {}
    for batch in batches:
        total, metrics = jax.device_get(loss(state.params["model"], adapters, batch))
        for name, s in {**metrics, "loss": total}.items():
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(np.asarray(s.value))
            pair[1] += float(np.asarray(s.count))
    return {n: v / c if c else 0.0 for n, (v, c) in sorted(sums.items())}
