"""Run folders as they are found: whole, torn, resumed, corrupt, or no run at all."""

import json
import math

import pytest

from reasoning_jax.report import ReportError
from reasoning_jax.report.load import load_run, load_runs
from tests.report.runs import action, sample, write_json, write_lines


def row(step, **values):
    return {"step": step, "split": "train", **values}


def refused(path):
    with pytest.raises(ReportError) as caught:
        load_run(path, "run")
    message = str(caught.value)
    assert len(message.splitlines()) <= 6
    return message


def test_what_was_written_is_what_is_read(make_run):
    run = load_run(make_run(steps=100, every=20, evaluations=2, samples=3), "run")
    steps, loss = run.series("train", "loss")
    assert steps.tolist() == [20, 40, 60, 80, 100]
    assert loss.shape == (5,)
    assert run.last("train", "loss") == loss[-1]
    assert run.series("train", "time.step_s")[0].size == 5
    assert [e.step for e in run.evaluations] == [50, 100]
    assert run.evaluations[0].metrics["exact_match"].n == 512
    assert len(run.samples) == 6
    assert run.notes == ()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_folder_without_its_two_files_is_not_a_run(make_run, name):
    # Mutation: check for one of the two.
    path = make_run()
    (path / name).unlink()
    assert f"it has no {name}" in refused(path)


def test_missing_folder_and_file_as_folder(make_run, tmp_path):
    assert "does not exist; wanted a run folder" in refused(tmp_path / "absent")
    assert "is a file" in refused(make_run() / "config.json")


def test_run_needs_no_evaluations_samples_or_environment(make_run):
    path = make_run(evaluations=0)
    (path / "env.json").unlink()
    (path / "overrides.json").unlink()
    run = load_run(path, "run")
    assert (run.evaluations, run.samples, run.overrides, dict(run.env)) == ((), (), (), {})
    assert any("no env.json" in note for note in run.notes)
    assert any("no overrides.json" in note for note in run.notes)


@pytest.mark.parametrize("cut", [1, 7, 25])
def test_torn_last_line_is_left_out_and_noted(make_run, cut):
    # Mutations: raise, or drop the line without a note.
    path = make_run()
    whole = json.dumps(row(220, loss=1.0, name="ü")).encode()
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(whole[:-cut])
    run = load_run(path, "run")
    assert run.series("train", "loss")[0].max() == 200
    assert any("metrics.jsonl: the last line" in note and "torn" in note for note in run.notes)


def test_last_line_torn_within_a_character(make_run):
    # Mutation: decode the file as a whole.
    path = make_run()
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 220, "note": "ü'.encode()[:-1])
    assert any("torn" in note for note in load_run(path, "run").notes)


def test_whole_last_line_without_line_end_counts(make_run):
    # Mutation: leave out whatever follows the last line end.
    path = make_run()
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(220, loss=1.0)))
    run = load_run(path, "run")
    assert run.series("train", "loss")[0].max() == 220
    assert run.notes == ()


def test_corrupt_line_is_named_with_file_and_number(make_run):
    # Mutations: tolerate corruption anywhere; count lines from zero.
    path = make_run()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace(":", ";", 1)
    (path / "metrics.jsonl").write_text("".join(lines))
    message = refused(path)
    assert f"{path / 'metrics.jsonl'} line 3: corrupt JSON" in message


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("config.json", '{\n"a": 1,\n"b" 2}', "config.json line 3: corrupt JSON"),
        ("config.json", "[1, 2]", "config.json: must hold an object, got [1, 2]"),
        ("config.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("env.json", "\ufeff{}", "env.json"),
        ("overrides.json", "{}", "overrides.json: must hold a list"),
        ("metrics.jsonl", '{"step": true}\n', "line 1: step must be an integer"),
        ("metrics.jsonl", '{"step": -1}\n', "line 1: step must be an integer"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1: step must be an integer"),
        ("metrics.jsonl", '{"step": 1' + "0" * 5000 + "}\n", "line 1: corrupt JSON"),
        ("metrics.jsonl", '{"step": 1, "time": 3}\n', "line 1: time must be an object, got 3"),
        ("eval/step_00000001.json", '{"step": 1}', "metrics must be an object, got nothing"),
        (
            "eval/step_00000001.json",
            '{"step": 1, "metrics": {"a": {"value": "x"}}}',
            "metrics, a: value and stderr must be numbers or null",
        ),
        (
            "samples/step_00000001.jsonl",
            json.dumps(sample(1, [action("a")]) | {"actions": [{"kind": "undo"}]}) + "\n",
            "line 1, action 0: kind must be one of token, backspace, eos, got 'undo'",
        ),
        (
            "samples/step_00000001.jsonl",
            json.dumps(sample(1, []) | {"prompt": 5}) + "\n",
            "line 1: prompt must be a string, got 5",
        ),
    ],
)
def test_corrupt_files_are_refused_by_name(make_run, file, text, wanted):
    path = make_run()
    (path / file).write_text(text)
    assert wanted in refused(path)


def test_a_sample_is_right_wrong_or_neither(make_run):
    # Mutations: null taken for wrong; a missing verdict taken for none.
    path = make_run(evaluations=0)
    verdicts = [True, False, None]
    lines = [sample(1, [action("a")]) | {"correct": verdict} for verdict in verdicts]
    write_lines(path / "samples/step_00000001.jsonl", lines)
    assert [s.correct for s in load_run(path, "run").samples] == verdicts
    for wrong in (0, "yes", ...):
        line = {**lines[0], "correct": wrong}
        if wrong is ...:
            del line["correct"]
        write_lines(path / "samples/step_00000001.jsonl", [line])
        assert "line 1: correct must be true or false, got" in refused(path)


def test_numbers_that_are_none_or_not_finite(make_run):
    # Mutations: fail on null; take true for 1; say nothing about NaN.
    path = make_run(evaluations=0)
    write_lines(path / "metrics.jsonl", [row(1, loss=2.0, flag=True, text="x"), row(2, loss=None)])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split": "train", "loss": NaN, "time": {"mfu": null}}\n')
        file.write('{"step": 4, "split": "train", "loss": -Infinity, "huge": 1' + "0" * 400 + "}\n")
    run = load_run(path, "run")
    loss = run.series("train", "loss")[1]
    assert loss[0] == 2.0
    assert not any(math.isfinite(value) for value in loss[1:])
    assert run.last("train", "loss") == 2.0
    assert run.series("train", "flag")[0].size == run.series("train", "text")[0].size == 0
    assert "train loss is not finite in 3 rows, first at step 2." in run.notes
    assert not any("mfu" in note for note in run.notes)


def test_resumed_run_shows_its_last_past_only(make_run):
    # Mutations: keep both; keep the first; drop rows of the other split too.
    path = make_run(evaluations=0)
    before = [row(10, loss=1.0), row(20, loss=2.0), row(30, loss=3.0)]
    validation = {"step": 20, "split": "validation", "loss": 9.0}
    write_lines(path / "metrics.jsonl", [*before, validation, row(20, loss=5.0)])
    run = load_run(path, "run")
    steps, loss = run.series("train", "loss")
    assert (steps.tolist(), loss.tolist()) == ([10, 20], [1.0, 5.0])
    assert run.series("validation", "loss")[1].tolist() == [9.0]
    assert any("2 overwritten rows are left out" in note for note in run.notes)


def test_names_are_distinct_and_folders_given_once(make_run):
    # Mutation: name a run by its folder alone.
    paths = [make_run("a/seed"), make_run("b/seed")]
    assert [run.name for run in load_runs(paths)] == ["a/seed", "b/seed"]
    with pytest.raises(ReportError, match="given twice"):
        load_runs([paths[0], paths[0] / ".." / "seed"])
    with pytest.raises(ReportError, match="no run folder given"):
        load_runs([])


def test_evaluations_come_in_order_of_step(make_run):
    # Mutation: trust the order of file names.
    path = make_run(evaluations=0)
    for name, step in (("step_00000001.json", 900), ("step_00000002.json", 100)):
        write_json(path / "eval" / name, {"step": step, "split": "test", "metrics": {}})
    assert [e.step for e in load_run(path, "run").evaluations] == [100, 900]
