"""`checkpoint verify|list|diff|export`: what is told of a run's checkpoints, and how it exits."""

import shutil

import numpy as np
import pytest

from reasoning_jax import main
from reasoning_jax.commands import checkpoint as command
from reasoning_jax.commands import train
from tests.small import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, unoptimised):
    folder = tmp_path_factory.mktemp("run") / "run"
    config = tiny_run(
        train={"steps": 4, "checkpoint_every_steps": 2, "evaluate_every_steps": 0},
        evaluate={"problems": 2},
    )
    assert train.train(config, folder, [], quiet=True) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def call(capsys):
    def call(*words):
        code = main.run(["reasoning-jax", "checkpoint", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verify_tells_which_step_and_which_file(folder, call):
    # Catches: a step that is not looked at, an exit code that scripts cannot use.
    code, lines, _ = call("verify", folder)
    assert code == 0
    assert [line.split(",")[0] for line in lines] == [
        "step 2: intact", "step 4: intact", "2 of 2 intact",
    ]  # fmt: skip
    largest = max((folder / "checkpoints/4/params").rglob("*"), key=lambda p: p.stat().st_size)
    flip(largest)
    code, lines, _ = call("verify", folder)
    assert code == 1
    assert lines[1] == "step 4: DAMAGED"
    name = largest.relative_to(folder / "checkpoints/4").as_posix()
    assert lines[2:] == [f"  {name}: its content is not what was saved (hash differs)",
                         "1 of 2 intact"]  # fmt: skip
    assert call("verify", folder, "--checkpoint=2")[0] == 0
    assert call("verify", folder, "--checkpoint=4")[0] == 1


def test_list_says_what_there_is(folder, call):
    (folder / "checkpoints/4/manifest.json").unlink()
    shutil.copytree(folder / "checkpoints/2", folder / "checkpoints/3.damaged")
    code, lines, _ = call("list", folder)
    assert code == 0
    rows = [line.split() for line in lines[1:3]]
    assert [(row[0], row[5]) for row in rows] == [("2", "yes"), ("4", "no")]
    assert lines[3] == "3.damaged: was found damaged and put aside"


def test_diff_of_two_steps_and_of_one_with_itself(folder, call):
    assert call("diff", folder, f"{folder}@4") == (0, ["no difference"], "")
    code, lines, _ = call("diff", f"{folder}@2", f"{folder}@4")
    assert code == 1
    assert any(line.startswith("data.") for line in lines)
    assert lines[-1].startswith(f"{folder}@2 and {folder}@4: ")


def test_diff_counts_elements_and_says_how_far_they_are_apart():
    # Catches: shapes that are broadcast, bits that differ unseen because the values are equal.
    a = {"w": np.zeros((2, 3), np.float32), "v": np.zeros(2, np.float32)}
    b = {"w": np.array([[0, 0.5, 0], [0, 0, -2]], np.float32), "v": np.zeros((2, 1), np.float32)}
    assert command._array_lines("params", a, b) == [
        "params/v: float32(2,) against float32(2, 1)",
        "params/w: 2 of 6 differ, by 2 at most",
    ]
    negative = {"w": -a["w"]}
    assert len(command._array_lines("params", {"w": a["w"]}, negative)) == 1


def test_export_is_that_of_the_command_export(folder, tmp_path, call):
    assert call("export", folder, f"--out={tmp_path / 'a'}", "--checkpoint=2")[0] == 0
    assert main.run(["reasoning-jax", "export", f"--workdir={folder}", f"--out={tmp_path / 'b'}",
                     "--checkpoint=2"]) == 0  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "config.json" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["verify", "{run}", "--checkpoint=3"], 4, "step 3 is not in {run}/checkpoints; there are"),
        (["diff", "{run}@7", "{run}"], 4, "step 7 is not in"),
        (["verify", "{run}/checkpoints"], 2, "is it a run folder?"),
        (["list", "{run}", "--checkpoint=2"], 2, "list does not take --checkpoint"),
        (["verify", "{run}", "--out=x"], 2, "verify does not take --out"),
        (["export", "{run}"], 2, "export needs --out=DIR"),
        (["export", "{run}", "--out={run}/x", "--checkpoint=3"], 4, "there are 2, 4"),
        (["diff", "{run}"], 2, "checkpoint knows verify RUN"),
        ([], 2, "checkpoint knows verify RUN"),
    ],
)
def test_what_is_not_there_or_not_meant(trained, call, words, code, said):
    got, _, err = call(*(word.format(run=trained) for word in words))
    assert got == code
    assert said.format(run=trained) in err
    assert len(err.splitlines()) <= 6
