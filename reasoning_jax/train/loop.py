"""The training loop: the impure part. Data, steps, evaluation, checkpoints, metrics, preemption.

It knows one thing about data (`BatchSource`), one about the objective (a `Loss`), and nothing about
tasks. A step is saved before it is evaluated, and an evaluation that fails ends nothing.
Exit codes: 0 done, 5 done but an evaluation failed, 42 preempted and saved. A watchdog ends it with
134 if it hangs.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reasoning_jax.config import Config, ConfigError, ModelConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.data.pipeline import BatchSource
from reasoning_jax.durable import DISK_ERRORS
from reasoning_jax.exit_codes import EXIT_EVALUATION
from reasoning_jax.train import nonfinite
from reasoning_jax.train.attempt import attempt
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints, unfinished_only
from reasoning_jax.train.compilation import CompileCounter
from reasoning_jax.train.faults import NO_FAULTS, FaultPlan
from reasoning_jax.train.identities import check_identities
from reasoning_jax.train.metrics import MetricSums, MetricsWriter, Stopwatch
from reasoning_jax.train.nonfinite import DUMPS, Diverged, NonfiniteGuard, diagnose, dump_batch
from reasoning_jax.train.pace import Pace, Rate
from reasoning_jax.train.preemption import DONE, PREEMPTED, Preemption
from reasoning_jax.train.room import check_space, nbytes
from reasoning_jax.train.rows import FAILED, drop_rows, evaluation_row
from reasoning_jax.train.state import TrainState
from reasoning_jax.train.state_hash import of_state
from reasoning_jax.train.step import Gradients, Step
from reasoning_jax.train.watchdog import Watchdog

# As `train.step` names the function that it jits.
STEP_NAME = "train_step"
# Saves that may fail one after the other before training ends.
FAILED_SAVES_LIMIT = 3

# evaluate(state) -> the scalars of a validation row; writes its own files.
Evaluate = Callable[[TrainState], dict[str, float]]


@dataclass
class Run:
    """What the loop drives. `meta` goes into every checkpoint beside the unfinished metrics.

    `reset_optimizer` is called where the source says that a step begins with a new optimizer;
    `begin` when nothing is left that could refuse the run, before its first file is written.
    """

    config: Config
    model: ModelConfig
    workdir: Path
    state: TrainState
    source: BatchSource
    step: Step
    gradients: Gradients
    evaluate: Evaluate
    meta: dict[str, Any]
    debug: bool = False
    reset_optimizer: Callable[[TrainState], TrainState] | None = None
    faults: FaultPlan = NO_FAULTS
    begin: Callable[[], None] = lambda: None


def restore_if_any(
    checkpoints: Checkpoints, run: Run, say: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """The newest intact checkpoint's (state, meta), with the data source at its place; else a fresh
    start, also where all that is left is a first save that was cut off: no step was ever complete.
    Says what is damaged and was passed over, and renames it, so that its step can be saved again.

    Raises:
      CheckpointError: the folder holds steps, but none of them is complete and readable.
    """
    folder = checkpoints.folder
    fresh = checkpoints.latest() is None
    if fresh and not unfinished_only(folder):
        left = sorted(p.name for p in folder.iterdir())
        raise CheckpointError(
            f"{folder} holds {', '.join(left[:3])} but no complete checkpoint; move the run folder "
            "away to start again"
        )
    checkpoints.clean()
    if fresh:
        return run.state, {}
    state, place, meta, arrays = checkpoints.restore(run.state, arrays=run.source.arrays())
    for note in checkpoints.notes(int(state.step)):
        say(note)
    for step in checkpoints.damaged:
        say(f"renamed to {checkpoints.set_aside(step).name}")
    run.source.restore(place)
    run.source.restore_arrays(arrays)
    return state, meta


def train(run: Run, quiet: bool = False) -> int:
    """Train from the newest checkpoint (or the start) to `train.steps`. Returns an exit code.

    Raises:
      CheckpointError: none is usable, saving failed time and again, or what is written beside the
        checkpoints failed once.
      Diverged: too many steps in a row had a NaN or Inf.
      FloatingPointError: a check for NaN is on (--debug), and an evaluation has one.
    """
    config = run.config.train
    checkpoints = Checkpoints(
        run.workdir / "checkpoints", config.keep_last, config.keep_every_steps, run.faults
    )
    with (
        Watchdog(run.config.watchdog, run.workdir) as watchdog,
        CompileCounter(STEP_NAME) as compiled,
        checkpoints,
        Preemption() as preemption,
    ):
        loop = _Loop(run, checkpoints, watchdog, compiled, quiet)
        try:
            try:
                return loop.go(preemption)
            finally:
                loop.writer.close()
                # Of a save that fails while something else ends the run, that is still told.
                checkpoints.wait()
                loop.tell_failed_saves()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            checkpoints.wait()
            raise CheckpointError(
                f"{run.workdir} cannot be written: {error}; {loop.newest()}. Mend the disk and run "
                "again"
            ) from error


def next_batch(run: Run, state: TrainState) -> tuple[TrainState, Batch]:
    """The batch of the next step, and the state: with a new optimizer where the source says so."""
    batch = run.source.next(state)
    if run.source.fresh_optimizer and run.reset_optimizer is not None:
        state = run.reset_optimizer(state)
    return state, batch


class _Loop:
    """What `train` does between two steps, and what it must remember for that."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        compiled: CompileCounter,
        quiet: bool,
    ):
        self.run, self.config, self.checkpoints = run, run.config.train, checkpoints
        self.watchdog, self.compiled = watchdog, compiled
        self.watch = Stopwatch()
        # What a user must know whatever --quiet says.
        self.state, meta = restore_if_any(checkpoints, run, _warn)
        self.sums = MetricSums(meta.get("unfinished_metrics"))
        self.start = int(self.state.step)
        if not self.start:
            folder = checkpoints.folder if checkpoints.folder.exists() else run.workdir
            _check_room(folder, self.state, run.source.arrays())
        run.begin()
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.evaluated, self.failed_evaluations = self._evaluated(), 0
        self.pace = Pace(self.start, self.config.steps)
        self.writer = MetricsWriter(run.workdir, self.start, self.config.steps, quiet, self.pace)
        compiled.heard = self.compiling
        self.guard = NonfiniteGuard(
            run.workdir, self.config.skipped_steps_limit, self.writer.say,
            meta.get("skipped_in_a_row", 0),
        )  # fmt: skip
        drop_rows(run.workdir / nonfinite.FILE, self.start + 1)
        self.rate = Rate(run.config, run.model)
        # The last dispatched step until it is looked at: number, what was not finite, its batch.
        self.unseen: tuple[int, Any, Callable[[], dict[str, Any]]] | None = None
        self.batch: Any = None
        if 0 < self.start < self.config.steps:
            self.writer.say(f"resumed from step {self.start} of {checkpoints.folder}")

    def _evaluated(self) -> int | None:
        """The step that the run begins with, if it was evaluated already; else None.

        One whose evaluation failed is not evaluated again, so that no restart meets that failure,
        unless nothing else is left to do.
        """
        path = self.run.workdir / "metrics.jsonl"
        row = evaluation_row(path, self.start) if self.start else None
        if row is not None and FAILED in row and self.start >= self.config.steps:
            drop_rows(path, self.start + 1, evaluation_of=self.start)
            row = None
        return None if row is None else self.start

    def owed(self, step: int) -> bool:
        """Whether a step is to be evaluated and was not yet: perhaps the run ended in between."""
        due = _due(step, self.config.evaluate_every_steps) or step >= self.config.steps
        return due and self.evaluated != step

    def go(self, preemption: Preemption) -> int:
        config, faults = self.config, self.run.faults
        if self.start >= config.steps:
            self.writer.say(
                f"already at step {self.start} of {config.steps}; for more set "
                f"--config.train.steps={2 * self.start}"
            )
        if self.owed(self.start):
            self.evaluate(self.start)
        self.pace.begin()
        for step in range(self.start + 1, config.steps + 1):
            last, first = step == config.steps, step == self.start + 1
            self.watchdog.begin("compile" if first else "step", step)
            faults.reach("data", step)
            with self.first_step() if first else contextlib.nullcontext():
                self.take(step)
            due_log = step % config.log_every_steps == 0 or last
            due_save = step % config.checkpoint_every_steps == 0 or last or preemption.requested
            if first or due_log or due_save or self.owed(step):
                self.wait()
            self.watchdog.step_done(self.pace.step_done(step))
            if first:
                passed = self.watch.elapsed()
                self.writer.say(f"first step {step} done {passed:.1f} s after the loop began")
            if due_log:
                self.log(step)
            if due_save:
                self.save()
            # Who is asked to stop has little time: the evaluation is made when the run goes on.
            if self.owed(step) and not preemption.requested:
                self.evaluate(step)
            self.report_failed_saves()
            if preemption.requested and (not last or self.owed(step)):
                self.finish_save(step)
                self.writer.say(preemption.text(step))
                return PREEMPTED
        self.finish_save(max(config.steps, self.start))
        self.run.state = self.state
        if not self.failed_evaluations:
            return DONE
        _warn(
            f"trained and saved, but {self.failed_evaluations} evaluation(s) failed; exit "
            f"{EXIT_EVALUATION}. Mend what is said above; the same command then evaluates the "
            "last step"
        )
        return EXIT_EVALUATION

    def take(self, step: int) -> None:
        """Make a batch, dispatch the step, and look at the one before it."""
        run = self.run
        with self.watch.measure("data"):
            self.state, self.batch = next_batch(run, self.state)
        for purpose, seconds in run.source.seconds().items():
            self.watch.move("data", purpose, seconds)
        run.faults.reach("step", step)
        with self.watch.measure("step"):
            try:
                self.state, metrics = run.step(self.state, self.batch)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {step}: {error}") from error
            broken = metrics.pop("nonfinite").value
            self.sums.add(metrics)
            if run.debug:
                check_identities(metrics, step)
            self.look()
            self.unseen = (step, broken, run.source.describe())

    def wait(self) -> None:
        """Wait for the device, so that no time of steps falls to what comes next."""
        with self.watch.measure("step"):
            self.look()
            jax.block_until_ready(self.state)

    @contextlib.contextmanager
    def aside(self, phase: str, step: int, what: str) -> Iterator[None]:
        """For the duration of a block the run does not train: for the clocks, and on the screen."""
        with (
            self.watch.measure(phase),
            self.watchdog.phase(phase, step),
            self.pace.away(what),
        ):
            yield

    def first_step(self) -> contextlib.AbstractContextManager[None]:
        return self.pace.doing("compiling the training step")

    def compiling(self, seconds: float, name: str) -> None:
        """Some function was traced or compiled until now."""
        now = time.perf_counter()
        self.pace.compiled(now - seconds, now)
        if name == STEP_NAME:
            self.pace.traced("the training step for rows of another shape")

    def look(self) -> None:
        """Wait for the step that was dispatched last, and see whether it was skipped."""
        if self.unseen is None:
            return
        step, broken, describe = self.unseen
        self.unseen = None
        try:
            self.guard.look(step, broken, describe)
        except Diverged as error:
            where = self.dump(step)
            raise Diverged(f"{error}\n{where}") from None

    def dump(self, step: int) -> str:
        """Write what a diverged run was doing; says where. The state is that before the skipped
        steps; the batch is the last one that was made.
        """
        folder = self.run.workdir / DUMPS / f"step_{step:08d}"
        try:
            dump_batch(folder / "batch.npz", self.batch)
            report = diagnose(self.run.gradients, self.state, self.batch)
            runs_until = int(self.state.step)
            text = json.dumps({**report, "step": runs_until}, indent=1)
            (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            return f"no dump: {folder} cannot be written ({error.strerror})"
        return f"{folder} has the last batch and its gradients; nonfinite.jsonl names all batches"

    def log(self, step: int) -> None:
        config, run = self.config, self.run
        with self.watch.measure("step"):
            tokens = round(self.sums.total("tokens"))
            tokens_here = round(self.sums.total("tokens", here=True))
            skipped = round(self.sums.total("steps_skipped"))
            means = self.sums.finish()
        # Of nothing there is no mean.
        nothing = means.pop("steps_skipped") == 1
        means = {"tokens": 0} if nothing else {**means, "tokens": tokens}
        row = {"step": step, "split": "train", **run.source.meta(), **means}
        row["steps_skipped"] = skipped
        if _due(step // config.log_every_steps, config.hash_every_logs):
            with self.watch.measure("hash"):
                row["state_hash"] = "-".join(of_state(self.state).values())
        times: dict[str, float | None] = {**self.watch.finish(), **self.compiled.counts()}
        run.faults.reach("log", step)
        if self.checkpoints.failed_in_a_row:
            times["failed_saves"] = self.checkpoints.failed_in_a_row
        times |= self.rate.measure(tokens_here, self.pace.row())
        left = self.pace.remaining()
        if left is not None:
            times["remaining_s"] = round(left, 1)
        self.writer.write({**row, "time": times})

    def evaluate(self, step: int) -> None:
        """Evaluate a step, when its save is on disk; what fails is a row, a warning and counted."""
        with self.aside("checkpoint", step, "saving"):
            self.checkpoints.wait()
        self.report_failed_saves()
        with self.aside("evaluate", step, "evaluating"):
            values = attempt(self.run.workdir, step, lambda: self._measured(step))
        row = {"step": step, "split": "validation", **self.run.source.meta(), **values}
        self.writer.write({**row, "time": {}})
        self.evaluated = step
        if FAILED in values:
            self.failed_evaluations += 1
            later = self.newest()
            if step in self.checkpoints.steps():
                run = shlex.quote(str(self.run.workdir))
                later = f"evaluate --workdir={run} --checkpoint={step} makes up for it"
            _warn(f"evaluating step {step} failed: {values[FAILED]}; training goes on; {later}")

    def _measured(self, step: int) -> dict[str, float]:
        self.run.faults.reach("evaluate", step)
        return self.run.evaluate(self.state)

    def save(self) -> None:
        source = self.run.source
        self.wait()
        with self.aside("checkpoint", int(self.state.step), "saving"):
            meta = {
                **self.run.meta, **source.meta(), "unfinished_metrics": self.sums.save(),
                "skipped_in_a_row": self.guard.in_a_row,
            }  # fmt: skip
            self.checkpoints.save(self.state, source.save(), meta, source.arrays())

    def tell_failed_saves(self) -> None:
        """Say which saves failed, each by its own step."""
        for failure in self.checkpoints.failures():
            _warn(f"saving step {failure.step} failed: {failure.reason}; {self.newest()}")

    def report_failed_saves(self) -> None:
        """`tell_failed_saves`. Raises CheckpointError after too many."""
        self.tell_failed_saves()
        if self.checkpoints.failed_in_a_row >= FAILED_SAVES_LIMIT:
            raise CheckpointError(
                f"{self.checkpoints.failed_in_a_row} saves in a row failed, the last at step "
                f"{int(self.state.step)}; {self.newest()}. Mend the disk and run again"
            )

    def finish_save(self, step: int) -> None:
        """Return when a step is on disk, trying once more if need be. Raises CheckpointError."""
        with self.watchdog.phase("checkpoint", step):
            self.checkpoints.wait()
            self.report_failed_saves()
            if step not in self.checkpoints.steps():
                self.save()
                self.checkpoints.wait()
                self.report_failed_saves()
            if step not in self.checkpoints.steps():
                raise CheckpointError(
                    f"step {step} could not be saved; {self.newest()}. Mend the disk and run again"
                )

    def newest(self) -> str:
        latest = self.checkpoints.latest()
        return "no step is saved" if latest is None else f"the newest saved step is {latest}"


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_room(folder: Path, state: TrainState, arrays: dict[str, np.ndarray]) -> None:
    """Refuse to begin a run of which not even one checkpoint would fit. Raises ConfigError."""
    try:
        check_space(folder, nbytes((state, arrays)))
    except OSError as error:
        raise ConfigError(f"no room for a checkpoint: {error}") from None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
