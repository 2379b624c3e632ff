"""A step is saved before it is evaluated, and nothing that an evaluation does costs a step."""

import json

import pytest

from reasoning_jax.commands import train as command
from reasoning_jax.exit_codes import EXIT_EVALUATION
from reasoning_jax.train.attempt import DEATHS_LIMIT, NOTE, attempt
from tests.faults.harness import metrics_of
from tests.small import tiny_run

CONFIG = {"steps": 4, "evaluate_every_steps": 2, "checkpoint_every_steps": 2}


def without_failed(workdir):
    return [row for row in metrics_of(workdir) if "failed" not in row]


def fail_evaluations(monkeypatch, workdir, *errors):
    """Raise one after the other instead of evaluating; notes which steps were saved by then."""
    original, left, seen = command.run_evaluation, list(errors), []

    def evaluate(*args):
        saved = workdir / "checkpoints"
        seen.append(sorted(int(p.name) for p in saved.iterdir() if p.name.isdecimal()))
        if left and (error := left.pop(0)) is not None:
            raise error
        return original(*args)

    monkeypatch.setattr(command, "run_evaluation", evaluate)
    return seen


def test_a_failed_evaluation_costs_no_step_and_is_made_up_at_the_end(
    tmp_path, monkeypatch, capsys, quick_to_compile
):
    """At step 0, in the middle and at the end. Catches: an evaluation before the save, an error
    that ends training or meets every restart, a failure that only the log tells.
    """
    config = tiny_run(train=CONFIG)
    whole, broken = tmp_path / "whole", tmp_path / "broken run"
    assert command.train(config, whole, [], quiet=True) == 0
    errors = (
        ZeroDivisionError("division by zero"), MemoryError(), OSError(28, "No space left on device")
    )  # fmt: skip
    with monkeypatch.context() as patch:
        seen = fail_evaluations(patch, broken, *errors)
        assert command.train(config, broken, [], quiet=True) == EXIT_EVALUATION
    assert seen == [[], [2], [2, 4]]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("evaluating step 0 failed: ZeroDivisionError: division by zero; ")
    assert said[1] == (
        "evaluating step 2 failed: MemoryError: no message; training goes on; evaluate "
        f"--workdir='{broken}' --checkpoint=2 makes up for it"
    )
    assert "3 evaluation(s) failed; exit 5" in said[3]
    assert len(said) == 4
    failed = [row["step"] for row in metrics_of(broken) if "failed" in row]
    assert failed == [0, 2, 4]
    # The failure of the last step alone is met again, where there is nothing else to do.
    with monkeypatch.context() as patch:
        seen = fail_evaluations(patch, broken, None)
        assert command.train(config, broken, [], quiet=True) == 0
    assert seen == [[2, 4]]
    assert [row["step"] for row in metrics_of(broken) if "failed" in row] == [0, 2]
    kept = [row for row in metrics_of(whole) if row["split"] == "train" or row["step"] == 4]
    assert without_failed(broken) == kept
    assert not (broken / NOTE).exists()


def test_an_evaluation_that_was_not_made_is_made_when_the_run_goes_on(
    tmp_path, monkeypatch, quick_to_compile
):
    """Ended between the save and the evaluation of steps 2 and 4, the rows are those of a run that
    was not. Catches: an evaluation that is lost, or stands behind later rows.
    """
    config = tiny_run(train=CONFIG)
    assert command.train(config, tmp_path / "whole", [], quiet=True) == 0
    for errors in ((None, SystemExit(9)), (None, SystemExit(9)), (SystemExit(9),)):
        with monkeypatch.context() as patch:
            fail_evaluations(patch, tmp_path / "cut", *errors)
            with pytest.raises(SystemExit):
                command.train(config, tmp_path / "cut", [], quiet=True)
    assert command.train(config, tmp_path / "cut", [], quiet=True) == 0
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def test_a_process_that_dies_of_an_evaluation_does_so_three_times_only(tmp_path):
    """As of memory: nothing can be caught then. Catches: a run that never gets past a step."""
    begun = []

    def dies():
        begun.append(json.loads((tmp_path / NOTE).read_text())["begun"])
        return {"loss": 1.0}

    for died in range(DEATHS_LIMIT):
        (tmp_path / NOTE).write_text(json.dumps({"step": 7, "begun": died}))
        assert attempt(tmp_path, 7, dies) == {"loss": 1.0}
    assert begun == [1, 2, 3]
    (tmp_path / NOTE).write_text(json.dumps({"step": 7, "begun": DEATHS_LIMIT}))
    assert attempt(tmp_path, 8, dies) == {"loss": 1.0}
    (tmp_path / NOTE).write_text(json.dumps({"step": 7, "begun": DEATHS_LIMIT}))
    assert attempt(tmp_path, 7, dies) == {"failed": "the process ended 3 times while it was made"}
    # The next one begins to count anew.
    assert attempt(tmp_path, 7, dies) == {"loss": 1.0}


def test_a_check_for_nan_is_an_error(tmp_path):
    def measure():
        raise FloatingPointError("invalid value (nan) encountered in jit(f)")

    with pytest.raises(FloatingPointError, match="invalid value"):
        attempt(tmp_path, 1, measure)
    assert not (tmp_path / NOTE).exists()
