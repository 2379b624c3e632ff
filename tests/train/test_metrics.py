"""Sums that lose nothing between log points, and a metrics file without rows from a lost future."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX

from reasoning_jax import durable
from reasoning_jax.objectives.masked import Sum
from reasoning_jax.train import metrics
from reasoning_jax.train.console import plain_line
from reasoning_jax.train.metrics import MetricSums, MetricsWriter, Stopwatch


def step_sums(rng):
    """One step's metrics: any value, any count, sometimes nothing counted."""
    return {
        name: Sum(jnp.float32(rng.normal() * 10.0 ** rng.integers(-6, 7)), jnp.float32(count))
        for name, count in (("loss", rng.integers(1, 500)), ("accuracy", rng.integers(0, 3)))
    }


def add(sums, steps):
    for step in steps:
        sums.add(step)
    return sums


def test_a_mean_is_over_what_was_counted_not_over_steps():
    # Catches: the mean of the steps' means.
    sums = add(MetricSums(), [{"x": Sum(*map(jnp.float32, s))} for s in ((8, 1), (0, 0), (1, 8))])
    assert sums.finish() == {"x": 1.0}
    assert sums.finish() == {}
    assert add(sums, [{"x": Sum(jnp.float32(0), jnp.float32(0))}]).finish() == {"x": 0.0}


def test_sums_are_exact_where_float32_is_not():
    # Catches: adding on the device.
    parts = [1e8, 1.0, 1.0, 1.0, -1e8]
    sums = add(MetricSums(), [{"x": Sum(jnp.float32(v), jnp.float32(1))} for v in parts])
    assert sums.finish() == {"x": 3 / 5}


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_an_interval_that_was_saved_finishes_as_if_unbroken(stop):
    """Through JSON; saving does not disturb the one that goes on.

    Catches: a saved mean, a sum rounded to float32, pending steps left out, a shared list.
    """
    rng = np.random.default_rng(stop)
    steps = [step_sums(rng) for _ in range(7)]
    want = add(MetricSums(), steps).finish()
    first = add(MetricSums(), steps[:stop])
    saved = first.save()
    text = json.dumps(saved)
    second = add(MetricSums(json.loads(text)), steps[stop:])
    assert add(first, steps[stop:]).finish() == want == second.finish()
    assert list(want) == sorted(want)
    assert json.dumps(saved) == text, "what is being written to disk has changed"


def test_a_nan_stays_in_its_metric_and_interval():
    # Catches: a NaN carried into the next interval, or hidden as 0.
    bad = {
        "x": Sum(jnp.float32(math.nan), jnp.float32(1)),
        "y": Sum(jnp.float32(1), jnp.float32(2)),
    }
    sums = add(MetricSums(json.loads(json.dumps(add(MetricSums(), [bad]).save()))), [bad])
    means = sums.finish()
    assert math.isnan(means["x"])
    assert means["y"] == 0.5
    good = {"x": Sum(jnp.float32(2), jnp.float32(1))}
    assert add(sums, [good]).finish() == {"x": 2.0}


def row(step, split="train", **values):
    return {"step": step, "split": split, "loss": 1.0 / (step + 1), **values, "time": {"step_s": 1}}


def write(workdir, resume_step, *rows):
    writer = MetricsWriter(workdir, resume_step, 10, quiet=True)
    for each in rows:
        writer.write(each)
    writer.close()


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tail", ["", '{"step": 6, "spl', "{", "\x00", '{"step": 6}\n{"st'])
def test_a_resumed_file_has_each_row_once(tmp_path, tail):
    """Rows of the lost future and a torn last line go; what is kept is kept byte by byte.

    Catches: `<` for `<=`, a validation row of the resumed step lost, a torn line glued to the next.
    """
    before = [row(0, "validation"), row(2), row(4), row(4, "validation"), row(5), row(8)]
    write(tmp_path, 0, *before)
    path = tmp_path / "metrics.jsonl"
    kept = "".join(line + "\n" for line in path.read_text().splitlines()[:4])
    with path.open("a") as file:
        file.write(tail)
    write(tmp_path, 4, row(6))
    assert path.read_text() == kept + json.dumps(row(6)) + "\n"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_last_line_that_lacks_only_its_end_is_kept_whole(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(2)))
    write(tmp_path, 2, row(4))
    assert [r["step"] for r in read(tmp_path)] == [2, 4]


def test_a_run_that_was_lost_before_its_first_checkpoint_starts_an_empty_file(tmp_path):
    # Catches: the evaluation at step 0 twice.
    for _ in range(2):
        write(tmp_path, 0, row(0, "validation"), row(2))
    assert [r["step"] for r in read(tmp_path)] == [0, 2]


def test_a_writer_that_dies_while_opening_loses_no_row(tmp_path, monkeypatch):
    # Catches: truncating the file in place.
    write(tmp_path, 0, row(2), row(4))
    before = read(tmp_path)

    def died(*_):
        raise OSError("no space left")

    monkeypatch.setattr(durable.os, "replace", died)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, 2)
    assert read(tmp_path) == before


def test_values_that_are_not_finite_are_written_and_not_plotted(tmp_path, monkeypatch):
    # Catches: a NaN that kills the run, or that is written as a number.
    plotted = []
    monkeypatch.setattr(
        tensorboardX.SummaryWriter, "add_scalar", lambda _, *scalar: plotted.append(scalar)
    )
    writer = MetricsWriter(tmp_path, 0, 10, quiet=True)
    bad = {"loss": math.nan, "grad_norm": math.inf, "accuracy": 0.5, "time": {"mfu": None, "a": 2}}
    writer.write(row(3, **bad) | {"time": bad["time"]})
    writer.close()
    assert plotted == [("train/accuracy", 0.5, 3), ("train/a", 2, 3)]
    (got,) = read(tmp_path)
    assert math.isnan(got["loss"])
    assert got["grad_norm"] == math.inf
    assert got["time"]["mfu"] is None


def test_the_line_of_a_row():
    full = row(20, accuracy=0.123, grad_norm=2.5, learning_rate=1e-3, tokens=9)
    times = {"tokens_per_s": 12345.6, "remaining_s": 75.2}
    line = plain_line(full | {"loss": 0.5, "time": times}, 1000)
    assert line == (
        "step   20/1000 train       loss 0.5000  accuracy 12.3%  grad 2.500  rate 1.00e-03  "
        "12,346 tokens/s  1:15 left"
    )
    assert plain_line({"step": 3, "split": "validation", "loss": math.nan}, 9) == (
        "step 3/9 validation  loss nan"
    )
    assert plain_line({"step": 3, "split": "train", "loss": None, "time": {}}, 9).endswith("loss ")


def test_off_a_terminal_a_row_is_a_line_unless_quiet(tmp_path, capsys):
    for quiet in (True, False):
        writer = MetricsWriter(tmp_path, 0, 10, quiet)
        writer.write(row(2))
        writer.say("resumed from [/runs]")
        writer.close()
        out = capsys.readouterr().out
        assert out == ("" if quiet else plain_line(row(2), 10) + "\nresumed from [/runs]\n")


def test_on_a_terminal_text_is_text(tmp_path, monkeypatch, capsys):
    # Catches: a folder's name read as markup, and an error raised for it.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    writer = MetricsWriter(tmp_path, 0, 10)
    writer.write(row(2, accuracy=0.5, learning_rate=None))
    writer.say("resumed from [/runs] and [red]")
    writer.close()
    out = capsys.readouterr().out
    assert "resumed from [/runs] and [red]" in out
    assert "50.0%" in out


def test_a_stopwatch_sums_by_purpose_and_starts_anew(monkeypatch):
    # Catches: spans that overwrite each other or survive `finish`.
    now = iter([0.0, 1.0, 3.0, 10.0, 10.5, 11.0, 14.0, 15.0, 20.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    for purpose in ("step", "data", "step"):
        with watch.measure(purpose):
            pass
    assert watch.finish() == {"elapsed_s": 15.0, "data_s": 0.5, "step_s": 5.0}
    assert watch.finish() == {"elapsed_s": 20.0}
