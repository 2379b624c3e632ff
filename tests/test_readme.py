"""Each command of the README's list runs, shrunk, in the order in which it stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from reasoning_jax import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rj (.+)$", README, flags=re.MULTILINE)
# What a stranger would wait for is cut down; what the commands do is not.
SHRUNK = {
    "train": [
        "--config.train.steps=4", "--config.train.evaluate_every_steps=0",
        "--config.train.batch_rows=8", "--config.evaluate.problems=4",
    ],
    "evaluate": ["--config.evaluate.problems=4"],
    "probe": ["--problems=4"],
}  # fmt: skip


def run(command, folder):
    command = command.replace("runs/", f"{folder}/").replace("=FILE", f"={folder}/own.jsonl")
    command = command.replace("=FOLDER", f"={folder}/texts").replace("=cpu", "=smoke")
    words = shlex.split(command)
    shrunk = SHRUNK.get(words[0], [])
    if "objective=sequencematch" in command:
        shrunk = [*shrunk, "--config.sequencematch.bc_steps=2"]
    return main.run(["reasoning-jax", *words, *shrunk])


def test_the_list(tmp_path, monkeypatch, capsys, quick_to_compile):
    monkeypatch.chdir(ROOT)
    # The second run of the report line is what `make quickstart` leaves.
    quick = "train --config=configs/quickstart.py:objective=bc --workdir=runs/quickstart/bc"
    assert run(quick, tmp_path) == 0
    rows = [{"question": f"{i}+1", "steps": ["count"], "answer": f"{i + 1}"} for i in range(99)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts").mkdir()
    for i in range(12):
        text = f"Chapter {i}. " + "It was the best of times, it was the worst of times. " * 9
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    small = [c for c in COMMANDS if "smollm2" not in c]
    assert len(small) == len(COMMANDS) - 1
    for command in small:
        assert run(command, tmp_path) == 0, (command, capsys.readouterr().err)
    assert (tmp_path / "compare.html").stat().st_size > 10_000
    assert (tmp_path / "deep" / "exported" / "config.json").exists()
    assert "27+58=" in capsys.readouterr().out


@pytest.mark.slow
def test_the_real_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = [c for c in COMMANDS if "smollm2" in c]
    assert run(command, tmp_path) == 0


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link
