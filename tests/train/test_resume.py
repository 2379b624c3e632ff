"""Stop anywhere, resume, and nothing differs from the run that never stopped."""

import dataclasses
import json
import os
import signal

import pytest

from reasoning_jax.commands import train as command
from reasoning_jax.commands.runfolder import read_horizon
from reasoning_jax.config import ConfigError
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.rl import horizon
from reasoning_jax.rl.matched import MatchedSource
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from tests.faults.harness import assert_same, everything_in, metrics_of
from tests.small import matching_run, tiny_run


def preempt_after(monkeypatch, steps, source=SupervisedSource):
    """SIGTERM to ourselves when the source is asked for batch `steps` of this process."""
    original = source.next
    calls = {"n": 0}

    def next_and_kill(self, state=None):
        calls["n"] += 1
        if calls["n"] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state)

    monkeypatch.setattr(source, "next", next_and_kill)


@pytest.mark.parametrize(("pack", "stops"), [(False, (1, 2)), (True, (5,))])
def test_resumed_equals_unbroken(tmp_path, monkeypatch, stops, pack):
    """Steps 1, 3 (inside a logging interval, no scheduled checkpoint) and 5; data, too."""
    config = tiny_run(
        data={"seq_len": 16, "pack_examples": pack},
        train={"evaluate_every_steps": 3, "checkpoint_every_steps": 100},
    )
    assert command.train(config, tmp_path / "unbroken", [], quiet=True) == 0
    for stop in stops:
        with monkeypatch.context() as patch:
            preempt_after(patch, stop)
            assert command.train(config, tmp_path / "broken", [], quiet=True) == 42
    assert command.train(config, tmp_path / "broken", [], quiet=True) == 0
    assert_same(tmp_path / "unbroken", tmp_path / "broken", 6)


@pytest.mark.parametrize("paired", [False, True])
def test_a_run_with_rollouts_resumes_as_if_unbroken(tmp_path, monkeypatch, paired):
    """Stopped after step 1 (in the bc phase), 2 (right before the first refresh), 3 (right after
    it), 4 (between two) and 7 (inside a logging interval of 3).

    Catches: a buffer, a counter or a key that starts anew; a buffer saved while it changes; a
    horizon that is measured again.
    """
    config = matching_run(
        sequencematch={"horizon": "auto"},
        train={"steps": 9, "log_every_steps": 3, "checkpoint_every_steps": 100},
        replay={"sample_every_steps": 3, "noise_rate": 0.1, "paired_prompts": paired},
    )
    assert command.train(config, tmp_path / "unbroken", [], quiet=True, debug=True) == 0
    # Batches of each process: 1, then up to 2, 3, 4 and 7.
    for stop in (1, 1, 1, 1, 3):
        with monkeypatch.context() as patch:
            preempt_after(patch, stop, MatchedSource)
            assert command.train(config, tmp_path / "broken", [], quiet=True) == 42
        # As if the data were measured otherwise by now: the run keeps its number.
        monkeypatch.setattr(horizon, "measure", lambda *_: horizon.Lengths(40.0, 40.0, 1))
    assert command.train(config, tmp_path / "broken", [], quiet=True) == 0
    assert_same(tmp_path / "unbroken", tmp_path / "broken", 9)
    saved = [read_horizon(tmp_path / name) for name in ("unbroken", "broken")]
    assert saved[0] == saved[1] != 40
    arrays, _, _ = everything_in(tmp_path / "broken", 9)
    assert len([path for path in arrays if "replay" in path]) == 8
    assert arrays["['replay']['pushed']"] == 24
    logged = [row for row in metrics_of(tmp_path / "broken") if row["split"] == "train"]
    assert [row["step"] for row in logged] == [3, 6, 9]
    assert [row["trajectories_cut"] for row in logged] == [0.0] * 3


def test_another_seed_is_another_run(tmp_path):
    config = tiny_run(train={"steps": 2})
    other = dataclasses.replace(config, seed=1)
    for name, c in (("a", config), ("b", config), ("c", other)):
        assert command.train(c, tmp_path / name, [], quiet=True) == 0
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert metrics_of(tmp_path / "a") != metrics_of(tmp_path / "c")


def test_a_longer_run_continues_and_a_changed_one_is_refused(tmp_path):
    config = tiny_run(train={"steps": 2})
    assert command.train(config, tmp_path, [], quiet=True) == 0
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    assert command.train(longer, tmp_path, [], quiet=True) == 0
    assert [row["step"] for row in metrics_of(tmp_path) if row["split"] == "train"] == [2, 4]
    faster = dataclasses.replace(
        longer, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5)
    )
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        command.train(faster, tmp_path, [], quiet=True)
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_with_only_broken_checkpoints_never_starts_again(tmp_path):
    config = tiny_run(train={"steps": 2})
    assert command.train(config, tmp_path, [], quiet=True) == 0
    for file in (tmp_path / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"no intact (.|\n)*were saved"):
        command.train(config, tmp_path, [], quiet=True)
    for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
        (tmp_path / "checkpoints" / "2" / name).unlink(missing_ok=True)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "2.damaged")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        command.train(config, tmp_path, [], quiet=True)


def test_a_first_save_that_was_cut_off_is_no_step(tmp_path):
    """Nothing was complete there, so the run begins anew and ends as one that never stopped."""
    config = tiny_run(train={"steps": 2})
    assert command.train(config, tmp_path / "whole", [], quiet=True) == 0
    cut = tmp_path / "cut" / "checkpoints" / "2.orbax-checkpoint-tmp" / "params"
    cut.mkdir(parents=True)
    (tmp_path / "cut" / "config.json").write_bytes(
        (tmp_path / "whole" / "config.json").read_bytes()
    )
    (tmp_path / "cut" / "vocab.json").write_bytes((tmp_path / "whole" / "vocab.json").read_bytes())
    assert command.train(config, tmp_path / "cut", [], quiet=True) == 0
    want, got = (everything_in(tmp_path / name, 2)[0] for name in ("whole", "cut"))
    assert all(x.tobytes() == got[path].tobytes() for path, x in want.items())


def test_a_folder_of_the_time_before_a_key_was_renamed(tmp_path):
    """Catches: a run that can no longer be continued, evaluated or sampled."""
    from reasoning_jax.commands.saved_config import get_config

    config = tiny_run(train={"steps": 2, "keep_last": 2})
    assert command.train(config, tmp_path, [], quiet=True) == 0
    values = json.loads((tmp_path / "config.json").read_text())
    values["train"]["keep_checkpoints"] = values["train"].pop("keep_last")
    del values["watchdog"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert get_config(str(tmp_path)).train.keep_last == 2
    assert command.train(config, tmp_path, [], quiet=True) == 0
    assert json.loads((tmp_path / "config.json").read_text())["train"]["keep_last"] == 2


def test_parameters_alone_and_a_step_that_is_not_there(tmp_path):
    from reasoning_jax.commands.load import load_trained

    config = tiny_run(train={"steps": 4, "checkpoint_every_steps": 2})
    assert command.train(config, tmp_path, [], quiet=True) == 0
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [2, 4]
    assert load_trained(config, tmp_path, None).step == 4
    assert load_trained(config, tmp_path, 2).step == 2
    with pytest.raises(CheckpointError, match=r"step 3 is not in .*there are 2, 4"):
        load_trained(config, tmp_path, 3)
