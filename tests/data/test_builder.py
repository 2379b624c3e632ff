"""A data set on disk is what the task generates, is whole or not there, and no byte is trusted."""

import dataclasses
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import grain
import pytest

from reasoning_jax.data import builder
from reasoning_jax.data.builder import TfdsSource, build
from reasoning_jax.data.examples import DataError, TaskSource
from reasoning_jax.tasks.base import Problem

SIZES = {"train": 40, "test": 9}
DIALS = {"space": 30, "units": ("a", "b")}


@dataclass(frozen=True)
class Doubles:
    """Twice a number below `space`; "leak": the splits share questions; "data": of no JSON kind."""

    space: int = 30
    units: tuple[str, ...] = ("a", "b")
    fault: str = ""
    name = "doubles"

    def problem(self, seed, split="train"):
        number = random.Random(f"{seed}{split}").randrange(self.space)
        side = "" if self.fault == "leak" else split
        return Problem(
            task=self.name,
            seed=seed,
            split=split,
            question=f"{side} é 2*{number}=",
            answer=f"{2 * number}",
            steps=("twice", f"{number}+{number}") if number % 2 else (),
            difficulty=f"odd={number % 2}",
            data={"number": random if self.fault == "data" else number, "unit": ["ü"]},
        )


def make(out_dir, **changes):
    arguments = {"name": "doubles", "dials": DIALS, "sizes": SIZES, "seed": 5, **changes}
    return build(arguments.pop("task", Doubles()), out_dir=out_dir, **arguments)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data set with three shards of the training split; not to be changed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(builder, "SHARD_RECORDS", 16)
    path = make(tmp_path_factory.mktemp("built"))
    patch.undo()
    return path


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def test_reading_back_equals_generating(built):
    # Catches: shuffled or unordered shards, bytes left as bytes, another first seed.
    for split, size in SIZES.items():
        source = TfdsSource(built, split)
        direct = TaskSource(Doubles(), split, size, first_seed=5)
        assert list(grain.MapDataset.source(source)) == list(direct)
        assert [source[i] for i in reversed(range(size))] == list(direct)[::-1]
        problems = [dataclasses.replace(direct.problem(i), task="doubles") for i in range(size)]
        assert [source.problem(i) for i in range(size)] == problems
    assert len(list(built.glob("doubles-train*"))) == 3


def test_what_is_told_about_the_data_set(built):
    source = TfdsSource(built, "train")
    assert (source.task_name, source.dials, source.first_seed) == ("doubles", DIALS, 5)
    questions = {e.question for e in source}
    # 40 draws from 30 numbers: some question is there twice, and is counted once.
    assert source.distinct_questions == len(questions) < len(source)
    assert json.loads((built / "task.json").read_text())["package_version"]


def test_a_pickled_source_reads_on(built):
    source = TfdsSource(built, "test")
    source[0]
    copied = pickle.loads(pickle.dumps(source))
    assert list(copied) == list(source)
    assert repr(copied) == repr(source)


def test_the_same_settings_reuse_and_others_are_refused(built, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_write", lambda *_: pytest.fail("built again"))
    out_dir = built.parent.parent
    assert make(out_dir, sizes=dict(reversed(SIZES.items()))) == built
    for change, told in (
        ({"dials": {**DIALS, "space": 31}}, "dials is"),
        ({"sizes": {**SIZES, "train": 41}}, "sizes is"),
        ({"seed": 6}, "seed is 5 there and 6 here"),
        # The same settings, but the code now makes other problems.
        ({"task": Doubles(space=29)}, "other problems"),
    ):
        with pytest.raises(DataError, match=told):
            make(out_dir, **change)


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def stop(split, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=stop)
    with pytest.raises(DataError, match=r"4 questions are both in train and in test"):
        make(tmp_path, task=Doubles(space=4, fault="leak"))
    with pytest.raises(DataError, match="data of seed 5, train, must be JSON"):
        make(tmp_path, task=Doubles(fault="data"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="must be JSON"):
        make(tmp_path / "new" / "folder", task=Doubles(fault="data"))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from reasoning_jax.data.builder import build
from reasoning_jax.tasks import make_task
kill = lambda split, *_: os.kill(os.getpid(), signal.SIGKILL) if split == "test" else None
build(make_task("arithmetic"), name="arithmetic", dials={}, out_dir=sys.argv[1],
      sizes={"train": 30, "test": 5}, progress=kill)
"""


def test_a_killed_build_is_not_taken_for_complete_and_is_built_anew(tmp_path):
    # Catches: writing in the final folder, or task.json before the data.
    from reasoning_jax.tasks import make_task

    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*train.array_record*"))
    assert not list(tmp_path.rglob("task.json"))
    assert not (tmp_path / "arithmetic").exists()
    task = make_task("arithmetic")
    path = build(
        task, name="arithmetic", dials={}, out_dir=tmp_path, sizes={"train": 30, "test": 5}
    )
    assert list(TfdsSource(path, "train")) == list(TaskSource(task, "train", 30))
    assert not (tmp_path / ".arithmetic.partial").exists()


def test_progress_counts_each_split_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_PROGRESS_EVERY", 25)
    seen = []
    make(tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("train", 25, 40), ("train", 40, 40), ("test", 9, 9)]


# A seed for the positions; most bytes of so small a shard are padding, so both kinds are met.
@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_is_found_or_does_no_harm(built, copy, seed):
    wanted = list(TfdsSource(built, "train"))
    rng = random.Random(seed)
    path = rng.choice(sorted(copy.glob("doubles-train*")))
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(64, 3000) if seed % 4 else rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    source, found = TfdsSource(copy, "train"), []
    for i, example in enumerate(wanted):
        try:
            assert source[i] == example
        except DataError as error:
            found.append(str(error))
    assert all(path.name in message and "record " in message for message in found)
    # Catches: an error that is swallowed, or one that takes down the sound records.
    assert len(found) == 1 if seed % 4 else len(found) in (0, 1, len(wanted))


def cut(path):
    # To a multiple of array_record's blocks, which it takes for a file without records.
    os.truncate(path, 65536)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("doubles-train.array_record-00001-of-00003", cut, "got 65,536 bytes"),
        ("doubles-test.array_record-00000-of-00001", os.remove, "got no file"),
        ("dataset_info.json", flip, "damaged"),
        ("features.json", os.remove, "missing"),
        ("task.json", flip, "damaged"),
        ("task.json", os.remove, "no data set of a task"),
    ],
)
def test_a_damaged_file_is_named(copy, name, damage, told):
    damage(copy / name)
    with pytest.raises(DataError, match=told) as caught:
        TfdsSource(copy, "train")
    assert name in str(caught.value)


def test_swapped_shards_are_found(copy):
    # Catches: trusting a record because its own checksum is right.
    first, second = sorted(copy.glob("doubles-train*"))[:2]
    for source, target in ((first, copy / "x"), (second, first), (copy / "x", second)):
        os.rename(source, target)
    with pytest.raises(DataError, match=r"record 3: got the problem of seed 24, wanted .* 8"):
        TfdsSource(copy, "train")[3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "Doubles"}, "name must"),
        ({"name": "../doubles"}, "name must"),
        ({"sizes": {}}, "no sizes"),
        ({"sizes": {"trian": 4}}, "Did you mean 'train'"),
        ({"sizes": {"train": 0}}, "size of train"),
        ({"seed": -1}, "seed must"),
        ({"dials": {"f": len}}, "dials must be JSON"),
        ({"dials": {"rate": float("nan")}}, "dials must be JSON"),
    ],
)
def test_arguments_that_cannot_be_built(tmp_path, change, told):
    with pytest.raises(DataError, match=told):
        make(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_unknown_splits_and_folders_name_the_nearest(built, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'train'"):
        TfdsSource(built, "trian")
    with pytest.raises(DataError, match=r"did you mean .*/doubles/1\.0\.0"):
        TfdsSource(built.parent.parent, "train")
    with pytest.raises(DataError, match="no data set"):
        TfdsSource(tmp_path / "nowhere", "train")
