"""Numbers on the screen are of wall time: held against a clock, real or made up."""

import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from reasoning_jax.commands import train as command
from reasoning_jax.config import ModelConfig
from reasoning_jax.exit_codes import EXIT_INTERRUPTED
from reasoning_jax.model.presets import PRESETS
from reasoning_jax.train import console, loop
from reasoning_jax.train.flops import train_flops_per_token
from reasoning_jax.train.pace import Pace, Rate, Spans, clock_time, progress_text
from reasoning_jax.train.preemption import Preemption
from tests.small import LLAMA, tiny_run

# Of the slow device below: far above what a tiny step takes, also on a busy machine.
WAIT_S = 0.15


class FakeClock:
    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def test_spans_that_overlap_count_once():
    """Catches: a compilation inside an evaluation that is taken off twice."""
    spans = Spans()
    for began, ended in ((2, 3), (1, 4), (6, 7), (6.5, 8), (10, 12)):
        spans.add(began, ended)
    assert spans.seconds(0, 100) == 3 + 2 + 2
    assert spans.seconds(3, 11) == 1 + 2 + 1
    assert spans.seconds(12, 100) == 0
    assert Spans().seconds(0, 1) == 0


def test_what_is_no_training_is_no_time_of_training():
    clock = FakeClock()
    pace = Pace(0, 10, clock)
    with pace.away("evaluating"):
        clock.at += 50
    pace.begin()
    # The first step: 30 s of compiling, 2 s of work.
    clock.at += 32
    pace.compiled(clock.at - 31, clock.at - 1)
    assert pace.remaining() is None
    assert pace.step_done(1) == pytest.approx(2)
    assert pace.row() == pytest.approx(2)
    # An evaluation that compiles, and a save; compiling in an evaluation is taken off once.
    clock.at += 4
    with pace.away("evaluating"):
        clock.at += 20
        pace.compiled(clock.at - 15, clock.at - 5)
    with pace.away("saving"):
        clock.at += 3
    clock.at += 1
    assert pace.step_done(2) == pytest.approx(5)
    assert pace.row() == pytest.approx(5)
    # The clock of the rest: evaluations and saves are a part of what is to come, compiling is not.
    assert pace.elapsed() == pytest.approx(60)
    assert pace.remaining() == pytest.approx((60 - 30 - 10) / 2 * 8)
    clock.at += 6
    pace.step_done(3)
    assert pace.row() == pytest.approx(6)


def test_a_run_that_goes_on_tells_its_own_pace():
    clock = FakeClock()
    pace = Pace(600, 1000, clock)
    pace.begin()
    clock.at += 10
    pace.step_done(605)
    assert pace.remaining() == pytest.approx(10 / 5 * 395)
    assert progress_text(pace) == "step 605 of 1,000, 0:10 elapsed, about 13:10 left"
    with pace.doing("evaluating"):
        clock.at += 70
        assert progress_text(pace).endswith("; evaluating, 1:10")
    pace.traced("train_step")
    clock.at += 5
    assert progress_text(pace).endswith("; compiling train_step, 0:05")
    pace.step_done(606)
    assert ";" not in progress_text(pace)
    assert [clock_time(s) for s in (0.4, 59.6, 61, 3600, 36_061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_parameters_without_a_gradient_cost_two_thirds():
    whole = train_flops_per_token(LLAMA, 16)
    assert whole - train_flops_per_token(LLAMA, 16, frozen=100) == 200
    assert train_flops_per_token(LLAMA, 16, adapters=10) - whole == 60
    # Rough figures of a known model: LoRA is about two thirds of a full step.
    model = ModelConfig(**PRESETS["smollm2-135m"])
    full = Rate(tiny_run(), model)._flops
    lora = Rate(tiny_run(lora={"rank": 8}), model)._flops
    assert 6 * 134e6 < full < 7.5 * 134e6
    assert 0.6 < lora / full < 0.8
    assert Rate(tiny_run(), LLAMA).measure(0, 1.0) == {}
    assert Rate(tiny_run(), LLAMA).measure(10, 0.0) == {}
    assert Rate(tiny_run(train={"peak_flops": 1e9}), LLAMA).measure(100, 2.0)["tokens_per_s"] == 50


def wait_on_device(x):
    time.sleep(WAIT_S)
    return np.asarray(x)


def slow_device(run):
    """A run whose device takes WAIT_S longer for each step, and returns from dispatch at once."""

    @jax.jit
    def slowly(step, tokens):
        wait = jax.pure_callback(wait_on_device, jax.ShapeDtypeStruct((), np.float32), tokens)
        return step + (0 * wait).astype(step.dtype)

    def step(state, batch):
        state, metrics = run.step(state, batch)
        waited = slowly(state.step, metrics["tokens"].value)
        nonfinite = metrics["nonfinite"]
        metrics["nonfinite"] = dataclasses.replace(
            nonfinite, value=nonfinite.value + 0.0 * waited.astype(np.float32)
        )
        return dataclasses.replace(state, step=waited), metrics

    return dataclasses.replace(run, step=step)


def rows_of(config, workdir, monkeypatch, until=None):
    """(rows of metrics.jsonl, wall time at which each was written) of a run on a slow device."""
    written = []
    write = loop.MetricsWriter.write

    def recorded(self, row):
        written.append((row, time.perf_counter()))
        write(self, row)

    monkeypatch.setattr(loop.MetricsWriter, "write", recorded)
    make = command.make_run

    def make_run(*args, **kwargs):
        return _slow(make(*args, **kwargs), until)

    monkeypatch.setattr(command, "make_run", make_run)
    code = command.train(config, workdir, [], quiet=True)
    monkeypatch.undo()
    return code, [row for row, _ in written], [at for _, at in written]


class _slow:
    """`make_run` on a slow device; the step `until` asks it to stop, as a scheduler does."""

    def __init__(self, made, until):
        self._made, self._until = made, until

    def __enter__(self):
        run = slow_device(self._made.__enter__())
        step, until = run.step, self._until

        def stopping(state, batch):
            if until is not None and int(state.step) + 1 == until:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        def slow_evaluation(state):
            del state
            time.sleep(2 * WAIT_S)
            return {"loss": 1.0}

        return dataclasses.replace(run, step=stopping, evaluate=slow_evaluation)

    def __exit__(self, *exc):
        return self._made.__exit__(*exc)


@pytest.mark.parametrize("every", [1, 3])
def test_throughput_is_that_of_a_clock(every, tmp_path, monkeypatch, quick_to_compile):
    """Catches: seconds of dispatch for seconds of steps, a wait that falls into hashing, evaluating
    or saving, compiling in the first row, evaluations in the rows behind them.
    """
    config = tiny_run(
        train={"steps": 6, "log_every_steps": every, "evaluate_every_steps": 3,
               "checkpoint_every_steps": 3},
        evaluate={"problems": 4, "batch_rows": 4, "corrupt_tokens": 0},
    )  # fmt: skip
    code, rows, at = rows_of(config, tmp_path / "run", monkeypatch)
    assert code == 0
    trained = [(row, when) for row, when in zip(rows, at) if row["split"] == "train"]
    assert [row["step"] for row, _ in trained] == list(range(every, 7, every))
    for row, _ in trained:
        seconds = row["tokens"] / row["time"]["tokens_per_s"]
        # A step takes at least the wait, and the machine's own work little beside it.
        assert every * WAIT_S * 0.98 <= seconds
        assert row["time"]["step_s"] >= every * WAIT_S * 0.9
        assert row["time"].get("hash_s", 0.0) < WAIT_S or row["step"] == every
    # Rows that follow each other without anything between them are as far apart as they say.
    for (before, began), (row, ended) in itertools.pairwise(trained):
        seconds = row["tokens"] / row["time"]["tokens_per_s"]
        assert seconds <= (ended - began) * 1.02
        if before["step"] % 3:
            assert seconds >= (ended - began) * 0.9
        else:
            # Evaluated and saved in between: at least the evaluation is taken off.
            assert seconds <= ended - began - 2 * WAIT_S * 0.98
    # The first row leaves compiling out, which takes longer than its steps here.
    first = trained[0][0]
    assert first["tokens"] / first["time"]["tokens_per_s"] < first["time"]["elapsed_s"]
    left = [row["time"]["remaining_s"] for row, _ in trained]
    # At least the waits that are to come.
    for row, seconds in zip(trained, left):
        assert seconds >= (6 - row[0]["step"]) * WAIT_S * 0.9
    assert left[-1] == 0
    saved = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert saved == rows


def test_a_row_that_began_before_a_stop_counts_its_own_seconds(
    tmp_path, monkeypatch, quick_to_compile
):
    """Catches: tokens of steps before a stop over the seconds behind it."""
    config = tiny_run(
        train={"steps": 6, "log_every_steps": 6, "checkpoint_every_steps": 100},
        evaluate={"problems": 4, "batch_rows": 4, "corrupt_tokens": 0},
    )  # fmt: skip
    code, rows, _ = rows_of(config, tmp_path / "run", monkeypatch, until=4)
    assert (code, rows) == (42, [])
    code, rows, _ = rows_of(config, tmp_path / "run", monkeypatch)
    assert code == 0
    row = rows[0]
    # The mean is over all six steps; the pace is that of the two that were left.
    seconds = row["tokens"] / 3 / row["time"]["tokens_per_s"]
    assert seconds >= 2 * WAIT_S * 0.7


def test_off_a_terminal_silence_ends_in_a_line(capsys):
    """Catches: nothing on the screen while a program compiles, and lines for --quiet."""
    for quiet in (False, True):
        shown = console.Console(Pace(0, 20), quiet, silence_s=0.05)
        pace = shown._pace
        with pace.doing("compiling the training step"):
            deadline = time.monotonic() + 20
            out = ""
            while not quiet and out.count("compiling") < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
                out += capsys.readouterr().out
            if quiet:
                time.sleep(0.2)
                out = capsys.readouterr().out
        shown.close()
        if quiet:
            assert out == ""
        else:
            assert out.startswith("step 0 of 20; compiling the training step, 0:0")
            assert out.count("compiling") >= 2


def test_on_a_terminal_the_picture_moves_by_itself(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", shown)
    pace = Pace(0, 20)
    live = console.Console(pace, quiet=False)
    pace.begin()
    pace.step_done(7)
    with pace.doing("evaluating"):
        deadline = time.monotonic() + 20
        while "evaluating" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    live.close()
    assert "step 7 of 20" in shown.getvalue()
    assert "evaluating" in shown.getvalue()


PRESSED_TWICE = """
import time
from reasoning_jax.train.preemption import Preemption
with Preemption() as p:
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            # Deaf, as C code is.
            continue
"""


def test_a_second_ctrl_c_ends_at_once():
    """Also where the main thread does not heed it, as in a compiler."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRESSED_TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert "once more ends at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "second Ctrl-C" in process.stderr.readline()
        assert process.wait(timeout=30) == EXIT_INTERRUPTED
    finally:
        process.kill()
        process.communicate()


def test_a_stop_says_what_stopped_it(capsys):
    with Preemption() as outer, Preemption() as inner:
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not inner.requested and time.monotonic() < deadline:
            time.sleep(0.01)
    assert outer.requested
    assert outer.signal == inner.signal == signal.SIGINT
    assert inner.text(51) == "stopped by Ctrl-C at step 51; to continue run the same line"
    with Preemption() as scheduler:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    assert scheduler.text(3) == "preempted: saved step 3, exit 42 (run again)"
    capsys.readouterr()
