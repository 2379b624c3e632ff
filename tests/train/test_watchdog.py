"""A run that hangs is ended with its stacks; one that is slow or was stopped is not."""

import time

import pytest

from reasoning_jax.config import WatchdogConfig
from reasoning_jax.train import watchdog
from reasoning_jax.train.watchdog import STUCK, Watchdog
from tests.faults import harness


class Left(Exception):
    pass


def watched(tmp_path, **limits):
    left = []
    config = WatchdogConfig(**{"step_s": 0.2, "compile_s": 0.6, **limits})
    return Watchdog(config, tmp_path, left.append), left


def test_a_stuck_step_is_ended_with_stacks(tmp_path, capfd):
    dog, left = watched(tmp_path)
    with dog:
        dog.begin("step", 7)
        time.sleep(0.6)
    assert left == [STUCK]
    text = (tmp_path / "stuck_00000007.txt").read_text()
    assert "test_a_stuck_step_is_ended_with_stacks" in text
    assert "step 7" in text
    error = capfd.readouterr().err
    assert "test_watchdog.py" in error
    assert "exit 134" in error


def test_a_run_that_gets_on_is_left_alone(tmp_path):
    """Catches: a limit from the start of the run, a compile that counts as a step, a limit that
    does not follow slow steps.
    """
    dog, left = watched(tmp_path, step_medians=10.0)
    with dog:
        dog.begin("compile", 1)
        time.sleep(0.4)
        for step in range(2, 12):
            dog.begin("step", step)
            time.sleep(0.08)
            dog.step_done(0.08)
        # Ten medians are 0.8 s.
        assert dog.limit_s() == pytest.approx(0.8)
        time.sleep(0.4)
        with dog.phase("evaluate", 12):
            assert dog.limit_s() == WatchdogConfig().evaluate_s
        dog.begin("step", 13)
        dog._heard("/jax/core/compile/jaxpr_trace_duration", 0.1)
        assert dog.limit_s() == 0.6
    assert not left


def test_time_in_which_the_process_stood_still_is_not_its_own(tmp_path, monkeypatch):
    """As after SIGSTOP, or a laptop's sleep. Catches: a run that is ended when it wakes up."""
    now, slept = time.monotonic, 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now() + slept)
    dog, left = watched(tmp_path, step_s=2.0)
    with dog:
        dog.begin("step", 1)
        time.sleep(0.7)
        slept = 100.0
        time.sleep(0.7)
        assert dog._since > now() + 90
    assert not left


def test_it_can_be_turned_off(tmp_path):
    dog, left = watched(tmp_path, enabled=False)
    with dog:
        dog.begin("step", 1)
        time.sleep(0.4)
    assert not left


def test_a_run_that_hangs_exits_with_134_and_goes_on_later(tmp_path):
    config = harness.changed(harness.mle(), watchdog={"step_s": 1.0, "step_medians": 1.0})
    outcome = harness.run(config, tmp_path, "hang@data:8")
    assert outcome.code == STUCK
    assert "in phase 'step' of step 8" in outcome.output
    # The stack says where: in the planned fault.
    assert "faults.py" in (tmp_path / "stuck_00000008.txt").read_text()
    assert harness.run(config, tmp_path, "hang@data:8").code == 0


def test_a_save_that_hangs_is_ended_too(tmp_path):
    config = harness.changed(harness.mle(), watchdog={"checkpoint_s": 1.0})
    outcome = harness.run(config, tmp_path, "hang@seal:12")
    assert outcome.code == STUCK
    assert "in phase 'checkpoint'" in outcome.output
