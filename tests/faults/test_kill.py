"""SIGKILL at any moment, many of them inside a save: in the end nothing differs."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reasoning_jax.commands import train as command
from tests.faults import trainer
from tests.train.test_resume import assert_same

ROOT = Path(__file__).parents[2]


def start(workdir, kind):
    # The devices (XLA_FLAGS) are those of the unbroken run, and so are the last bits.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.trainer", str(workdir), kind],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_until(workdir, kind, word, count, delay_s):
    """Kill the process `delay_s` after it said `word` for the `count`th time. Returns its exit code
    and what it said; it may be done before.
    """
    process, said = start(workdir, kind), []
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] == word and said.count(word) == count:
                time.sleep(delay_s)
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
        return process.wait(), said
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def kill_and_compare(tmp_path, kills, kind="match"):
    assert command.train(trainer.config(kind), tmp_path / "unbroken", [], quiet=True) == 0
    for word, count, delay_s in kills:
        code, said = run_until(tmp_path / "broken", kind, word, count, delay_s)
        assert code in (-signal.SIGKILL, 0), said
        if code == 0:
            break
    code, said = run_until(tmp_path / "broken", kind, "never", 1, 0)
    assert code == 0, said
    assert_same(tmp_path / "unbroken", tmp_path / "broken", trainer.STEPS)


def test_killed_inside_saves_and_between_refreshes(tmp_path):
    """Catches: a half-written step taken for whole, a buffer older or newer than its parameters,
    metrics of a lost future.
    """
    kill_and_compare(tmp_path, [("saving", 3, 0.01), ("batch", 2, 0.0)])


@pytest.mark.slow
def test_killed_between_the_stages_of_a_curriculum(tmp_path):
    """After step 7 (of stage 2) was trained, back to step 4, of stage 1.

    Catches: a stage, or an optimizer, of a lost future.
    """
    kill_and_compare(tmp_path, [("drawn", 8, 0.0)], "stages")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random(tmp_path, seed):
    """20 kills in all, at least half of them within the fraction of a second that a save takes."""
    rng = random.Random(seed)
    # From the third save on: by then one is complete (see the next test).
    kills = [("saving", rng.randint(3, 4), rng.uniform(0, 0.3)) for _ in range(2)]
    kills += [(rng.choice(["batch", "refresh", "drawn"]), rng.randint(1, 4), rng.uniform(0, 0.1))
              for _ in range(2)]  # fmt: skip
    rng.shuffle(kills)
    kill_and_compare(tmp_path, kills)


@pytest.mark.slow
def test_killed_inside_the_first_save(tmp_path):
    kill_and_compare(tmp_path, [("saving", 1, 0.01)])
