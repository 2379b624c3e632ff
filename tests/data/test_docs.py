"""What docs/data.md shows is what happens."""

import re
from pathlib import Path

import pytest

from reasoning_jax.commands.assemble import assemble
from reasoning_jax.data.examples import DataError
from reasoning_jax.data.jsonl import JsonlSource
from tests.small import tiny_run

PAGE = (Path(__file__).parent.parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_lines_are_read_alike(tmp_path):
    (lines,) = [text for kind, text in BLOCKS if kind == "json"]
    path = tmp_path / "a.jsonl"
    path.write_text(lines, encoding="utf-8")
    read = list(JsonlSource(path))
    assert len(read) == 7
    assert {example.answer for example in read} == {"146"}
    questions = {" ".join(example.question.split()).strip(":") for example in read}
    assert questions == {"add 49 and 97"}


def test_the_columns_are_understood(tmp_path):
    (columns,) = re.findall(r"--config\.data\.columns=\"\((.*)\)\"", PAGE)
    (tmp_path / "a.jsonl").write_text('{"task": "q", "solution": "a", "steps": ["s"]}\n')
    named = [entry.strip("'") for entry in columns.split(",")]
    (example,) = JsonlSource(tmp_path / "a.jsonl", named)
    assert (example.question, example.steps, example.answer) == ("q", (), "a")


def test_the_refusal_is_the_one_that_is_shown(tmp_path, monkeypatch):
    (shown,) = [text for _, text in BLOCKS if "bad of 206" in text]
    monkeypatch.chdir(tmp_path)
    rows = ['{"question": "q", "answer": "1"}'] * 205
    rows.insert(200, '{"question": "%s", "answer": "1"}' % ("x" * 400))
    Path("late.jsonl").write_text("\n".join(rows))
    config = tiny_run(
        data={"source": "jsonl", "path": "late.jsonl", "seq_len": 128, "answer_prefix": "### "},
        vocab={"kind": "byte"}, noise={"source": "random"}, sampling={"max_actions": 16},
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        assemble(config)
    assert f"{caught.value}\n" == shown
