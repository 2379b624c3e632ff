"""A folder in which no step was made is no run: what is refused leaves nothing behind."""

import fcntl
import json
import os
import threading

import pytest

from reasoning_jax.commands import runfolder
from reasoning_jax.commands import train as command
from reasoning_jax.config import ConfigError, to_dict
from reasoning_jax.data.examples import DataError
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.durable import open_locked
from reasoning_jax.train import loop
from reasoning_jax.train.checkpoint import CheckpointError
from reasoning_jax.vocab import CharCodec, make_vocab
from tests.small import tiny_run, with_a_step


def refuse(*_args, **_kwargs):
    raise DataError("refused")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (command, "check_machine"), (command, "load_pretrained"), (command, "make_source"),
        (command, "make_evaluate"), (loop, "restore_if_any"), (loop, "check_space"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_a_refused_start_leaves_nothing(tmp_path, monkeypatch, quick_to_compile, owner, name):
    """Whoever refuses it. Catches: a config.json that the corrected line does not agree with."""
    monkeypatch.setattr(owner, name, refuse)
    for workdir in (tmp_path / "new" / "run", tmp_path):
        with pytest.raises(DataError, match="refused"):
            command.train(tiny_run(train={"steps": 2}), workdir, [], quiet=True)
        assert list(tmp_path.iterdir()) == []


def test_what_was_in_the_folder_stays(tmp_path, monkeypatch, quick_to_compile):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(command, "make_evaluate", refuse)
    with pytest.raises(DataError):
        command.train(tiny_run(), tmp_path, [], quiet=True)
    assert {p.name for p in tmp_path.iterdir()} <= {"notes.txt", "lock"}


def test_a_run_that_failed_in_its_first_step_takes_another_config(
    tmp_path, monkeypatch, quick_to_compile
):
    """Also after an evaluation of step 0. Catches: a vocabulary, a config or rows of the first."""
    first = tiny_run(train={"steps": 2, "evaluate_every_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedSource, "next", refuse)
        with pytest.raises(DataError):
            command.train(first, tmp_path, [], quiet=True)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 0
    before = runfolder.read_vocab(tmp_path)
    second = tiny_run(
        train={"steps": 2}, noise={"rate": 0.0}, objective={"name": "mle"}, vocab={"kind": "byte"},
        data={"seq_len": 12},
    )  # fmt: skip
    assert command.train(second, tmp_path, [], quiet=True) == 0
    assert runfolder.read_json(tmp_path / "config.json") == json.loads(json.dumps(to_dict(second)))
    assert runfolder.read_vocab(tmp_path).to_dict() != before.to_dict()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(2, "train"), (2, "validation")]
    with pytest.raises(ConfigError, match="another config"):
        runfolder.check_same_run(tmp_path, first)


def test_from_the_first_step_on_it_is_a_run(tmp_path):
    config, other = tiny_run(), tiny_run(seed=1)
    runfolder.write_json(tmp_path / "config.json", to_dict(config))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "split": "validation"}\n{"step": 3, "lo')
    runfolder.check_same_run(tmp_path, other)
    with_a_step(tmp_path / "logged")
    (tmp_path / "saved" / "checkpoints" / "0").mkdir(parents=True)
    for name in ("logged", "saved"):
        runfolder.write_json(tmp_path / name / "config.json", to_dict(config))
        runfolder.check_same_run(tmp_path / name, config)
        with pytest.raises(ConfigError, match="changed: seed"):
            runfolder.check_same_run(tmp_path / name, other)


def test_damaged_checkpoints_stay_a_run(tmp_path):
    (tmp_path / "checkpoints" / "2.damaged").mkdir(parents=True)
    vocab = make_vocab(CharCodec("\n+-=0123456789"))
    runfolder.open_run(tmp_path, tiny_run(), [], vocab, tiny_run().model)
    with pytest.raises(ConfigError, match="changed: seed"):
        runfolder.check_same_run(tmp_path, tiny_run(seed=1))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        command.train(tiny_run(), tmp_path, [], quiet=True)
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()


def test_a_lock_that_its_owner_removes_is_nobodys(tmp_path):
    """Who waited for it takes the next one. Catches: two owners of one lock."""
    path, taken, go_on = tmp_path / "lock", threading.Event(), threading.Event()

    def wait():
        with open_locked(path, wait=True) as file:
            assert file is not None
            taken.set()
            go_on.wait()

    with open_locked(path, wait=False) as file:
        assert file is not None
        with open_locked(path, wait=False) as other:
            assert other is None
        thread = threading.Thread(target=wait)
        thread.start()
        path.unlink()
    assert taken.wait(20)
    with open_locked(path, wait=False) as other:
        assert other is None
    descriptor = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    go_on.set()
    thread.join()
