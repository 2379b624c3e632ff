"""What the tables claim: which run is better, which keys differ, where the time went."""

import math

import pytest

from reasoning_jax.report.load import Estimate, load_run, load_runs
from reasoning_jax.report.tables import (
    best,
    config_differences,
    difficulty_tables,
    duration,
    elapsed_seconds,
    estimate,
    evaluation_table,
    metric_names,
    natural_key,
    number,
    phase_seconds,
    throughput_table,
)
from tests.report.runs import write_lines


def values(*pairs):
    return [None if p is None else Estimate(p[0], p[1], 100) for p in pairs]


@pytest.mark.parametrize(
    ("metric", "pairs", "marked"),
    [
        ("exact_match", [(0.9, 0.02), (0.8, 0.03)], 0),
        # Exactly the summed errors apart is not more than them. Mutation: >=.
        ("exact_match", [(0.75, 0.125), (0.5, 0.125)], None),
        # 0.1 apart is more than 0.08 and more than sqrt(0.06² + 0.06²), less than 0.12.
        # Mutations: the larger error alone; errors in quadrature.
        ("exact_match", [(0.9, 0.06), (0.8, 0.06)], None),
        # It must beat every other run. Mutation: compare with the first or the last only.
        ("exact_match", [(0.9, 0.01), (0.5, 0.01), (0.89, 0.01)], None),
        ("exact_match", [(0.2, 0.01), (0.9, 0.01), (0.5, 0.01)], 1),
        # Mutation: higher is always better.
        ("backspace_clean", [(0.5, 0.01), (0.1, 0.01)], 1),
        ("truncated", [(0.0, 0.0), (0.1, 0.01)], 0),
        ("pass@64", [(0.5, 0.01), (0.1, 0.01)], 0),
        # Mutation: mark metrics that have no direction.
        ("backspaces_per_completion", [(0.5, 0.01), (0.1, 0.01)], None),
        ("never_heard_of", [(0.5, 0.01), (0.1, 0.01)], None),
        # Mutation: an unknown error counts as none.
        ("exact_match", [(0.9, None), (0.1, 0.01)], None),
        ("exact_match", [(0.9, 0.01), (0.1, None)], None),
        # One measured run is not better than no run.
        ("exact_match", [(0.9, 0.01), None], None),
        ("exact_match", [(0.9, 0.01), (math.nan, 0.01)], None),
        ("exact_match", [(0.9, 0.01), None, (0.1, 0.01)], 0),
    ],
)
def test_bold_means_better_beyond_the_errors(metric, pairs, marked):
    assert best(metric, values(*pairs)) == marked


def test_evaluation_table_marks_by_that_rule_and_keeps_unknown_metrics(make_run):
    runs = load_runs([make_run("a", retracts=0.0), make_run("b", retracts=0.95, seed=1)])
    lines = {line.label: line for line in evaluation_table(runs)}
    assert [cell.mark for cell in lines["corrupted_exact_match"].cells] == [False, True]
    assert lines["corrupted_exact_match"].cells[0].aside == "n = 512"
    assert set(lines) == set(runs[0].evaluations[-1].metrics)


def test_tables_show_the_latest_evaluation(make_run):
    # Mutation: take the first.
    (run,) = load_runs([make_run(evaluations=3)])
    shown = {line.label: line.cells[0].text for line in evaluation_table([run])}
    assert shown["exact_match"] == estimate(run.evaluations[-1].metrics["exact_match"])
    assert run.evaluations[-1].step == 200


def test_difficulties_are_in_natural_order(make_run):
    # Mutation: sort as text, which puts 10 before 2.
    (run,) = load_runs([make_run()])
    labels = [line.label for line in dict(difficulty_tables([run]))["exact_match"]]
    assert labels == [f"digits={d}" for d in (1, 2, 3, 4, 10)]
    assert sorted(["a²", "a10", "a2", "٣", ""], key=natural_key)[:3] == ["", "a2", "a10"]


def test_metrics_keep_their_order_and_unknown_ones_come_last(make_run):
    (run,) = load_runs([make_run()])
    names = metric_names([run])
    assert names[:4] == ["exact_match", "corrupted_exact_match", "pass@1", "pass@4"]


def test_config_differences_are_all_of_them_and_no_other():
    # Mutations: compare sections as a whole; miss keys that the first run lacks; 1 == True.
    first = {"seed": 0, "model": {"d": 8, "deep": {"x": [1, 2]}}, "flag": 1, "empty": {}}
    second = {"seed": 0, "model": {"d": 16, "deep": {"x": [1, 3]}}, "flag": True, "new": None}
    lines = {line.label: line.cells for line in config_differences([first, second])}
    shown = {label: tuple(cell.text for cell in cells) for label, cells in lines.items()}
    assert shown == {
        "model.d": ("8", "16"),
        "model.deep.x": ("[1, 2]", "[1, 3]"),
        "flag": ("1", "true"),
        "empty": ("{}", "absent"),
        "new": ("absent", "null"),
    }
    assert all([cell.mark for cell in cells] == [False, True] for cells in lines.values())


def test_config_differences_of_equal_configs_are_none():
    config = {"a": {"b": math.nan}, "c": [1.0]}
    assert config_differences([config, {"a": {"b": math.nan}, "c": [1.0]}]) == []


def timed(make_run, rows):
    path = make_run(evaluations=0)
    write_lines(
        path / "metrics.jsonl",
        [{"step": i + 1, "split": "train", "time": time} for i, time in enumerate(rows)],
    )
    return load_run(path, "run")


def test_time_split_is_the_same_from_row_times_and_from_totals(make_run):
    # Mutations: always sum; always take the last.
    own = [{"elapsed_s": 10.0 * i, "data_s": 1.0, "step_s": 7.0} for i in (1, 2, 3, 4)]
    totals = [{**r, "data_s": 1.0 * i, "step_s": 7.0 * i} for i, r in enumerate(own, 1)]
    wanted = {"data": 4.0, "step": 28.0, "evaluate": 0.0, "checkpoint": 0.0, "other": 8.0}
    wanted["rollout"] = 0.0
    assert phase_seconds(timed(make_run, own)) == wanted
    assert phase_seconds(timed(make_run, totals)) == wanted


def test_elapsed_time_counts_every_start(make_run):
    # Mutation: take the last value, or the largest.
    clock = [{"elapsed_s": s} for s in (5.0, 60.0, 4.0, 30.0, 2.0, 7.0)]
    assert elapsed_seconds(timed(make_run, clock)) == 60.0 + 30.0 + 7.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (number(0.12345), "0.1235"),
        (number(2000), "2,000"),
        (number(1e-5), "1.000e-05"),
        (number(math.nan), "–"),
        (estimate(Estimate(0.91234, 0.0123, 9)), "0.912\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.012"),
        (estimate(Estimate(0.5, None, None)), "0.5000"),
        (estimate(Estimate(12.3456, 1.2, 9)), "12.3\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.2"),
        (duration(59.96), "60.0 s"),
        (duration(119.7), "2 min 00 s"),
        (duration(3 * 3600 + 59.9 * 60), "4 h 00 min"),
        (duration(50 * 3600), "2 d 2 h"),
        (duration(math.nan), "–"),
    ],
)
def test_numbers_are_written_to_their_precision(text, wanted):
    assert text == wanted


def test_throughput_sums_tokens_and_takes_middle_rates(make_run):
    # Mutations: the last row's tokens; mean instead of median; NaN that spreads.
    path = make_run(evaluations=0)
    rates = (100.0, None, 300.0, 9000.0)
    rows = [
        {"step": i, "split": "train", "tokens": 500, "time": {"tokens_per_s": rate, "mfu": None}}
        for i, rate in enumerate(rates)
    ]
    write_lines(path / "metrics.jsonl", rows)
    _, ((_, tokens, rate, mfu),) = throughput_table([load_run(path, "run")])
    assert (tokens, rate, mfu) == ("2,000", "300", "–")
