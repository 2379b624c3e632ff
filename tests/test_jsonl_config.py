"""configs/jsonl.py: what it takes from a file fits that file, and is the same each time."""

import importlib.util
import json
from pathlib import Path

import pytest

from reasoning_jax import main
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.estimate import in_words
from reasoning_jax.config import ConfigError
from reasoning_jax.config_check import from_dict
from reasoning_jax.data.examples import DataError

PATH = Path(__file__).parent.parent / "configs" / "jsonl.py"


@pytest.fixture(scope="module")
def get_config():
    spec = importlib.util.spec_from_file_location("jsonl_config", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def rows(n, steps=True, word="pens"):
    for i in range(n):
        row = {"question": f"Tom has {i} {word} and buys {i % 7} more. How many?"}
        if steps:
            row["steps"] = [f"{i}+{i % 7}={i + i % 7}", "that is all"]
        yield {**row, "answer": str(i + i % 7)}


def write(path, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


FORMS = {
    "steps": lambda: rows(200),
    "no steps": lambda: rows(200, steps=False),
    "another script": lambda: rows(200, word="ペンとノート" * 9),
    "gsm8k": lambda: (
        {"question": r["question"], "answer": "\n".join([*r["steps"], f"#### {r['answer']}"])}
        for r in rows(200)
    ),
    "chat": lambda: (
        {"messages": [{"role": "user", "content": r["question"]},
                      {"role": "assistant", "content": r["answer"]}]}
        for r in rows(200)
    ),
    "one long": lambda: [*rows(199), {"question": "x" * 900, "answer": "1"}],
    "few": lambda: rows(60),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("objective", ["bc", "mle", "sequencematch"])
def test_everything_fits(tmp_path, get_config, form, objective):
    # Catches: a length or budget below what the data need, noise that cuts rows, text that touches.
    path = write(tmp_path / "a.jsonl", FORMS[form]())
    made = get_config(f"path={path},objective={objective}")
    assembly = assemble(from_dict(made.to_dict()))
    notes = "\n".join(assembly.notes)
    assert "do not fit" not in notes
    assert "noise makes" not in notes
    assert " rows: " in notes
    assert "evaluate.problems=" not in notes
    prompt, response = assembly.encoder.render(assembly.examples("train")[0])
    assert prompt.endswith("\n")
    assert ("#### " in response) == (
        form in ("steps", "another script", "gsm8k", "one long", "few")
    )
    assert assembly.config.vocab.kind == ("char" if form == "another script" else "byte")
    assert get_config(f"path={path},objective={objective}").to_dict() == made.to_dict()


def test_what_grows_with_the_file(tmp_path, get_config):
    few = get_config(f"path={write(tmp_path / 'a.jsonl', rows(100))}")
    many = get_config(f"path={write(tmp_path / 'b.jsonl', rows(2000))}")
    assert few.train.steps < many.train.steps
    # The same path with other content is not the file that was read before.
    again = get_config(f"path={write(tmp_path / 'a.jsonl', rows(2000))}")
    assert again.train.steps == many.train.steps
    given = get_config(f"path={tmp_path / 'a.jsonl'},steps=7,seed=3,seq_len=99")
    assert (given.train.steps, given.seed, given.data.seq_len) == (7, 3, 99)


def test_files_that_it_cannot_take(tmp_path, get_config):
    with pytest.raises(ConfigError, match="needs a file"):
        get_config("")
    with pytest.raises(DataError, match=r"no such file|cannot be read"):
        get_config(f"path={tmp_path / 'none.jsonl'}")
    bad = write(tmp_path / "bad.jsonl", [*rows(99), {"question": "q"}])
    with pytest.raises(DataError, match="line 100, field answer"):
        assemble(from_dict(get_config(f"path={bad}").to_dict()))
    long = write(tmp_path / "long.jsonl", [*rows(99), {"question": "x" * 3000, "answer": "1"}])
    with pytest.raises(DataError, match=r"line 100: needs 3\d+ positions, data.seq_len is 2048"):
        assemble(from_dict(get_config(f"path={long}").to_dict()))


def test_a_validation_file_of_its_own(tmp_path, get_config):
    train, held = write(tmp_path / "a.jsonl", rows(50)), write(tmp_path / "b.jsonl", rows(9))
    made = get_config(f"path={train},validation={held}")
    assembly = assemble(from_dict(made.to_dict()))
    assert (len(assembly.examples("train")), len(assembly.examples("validation"))) == (50, 9)
    assert made.evaluate.problems == 9
    assert any("50 rows to train on" in note for note in assembly.notes)
    assert any("9 rows to evaluate on" in note for note in assembly.notes)


def test_its_line_trains(tmp_path, capsys, quick_to_compile):
    path = write(tmp_path / "own.jsonl", rows(60, steps=False))
    line = ["train", f"--config={PATH}:path={path}", f"--workdir={tmp_path / 'run'}"]
    small = ["--config.train.steps=2", "--config.optimizer.warmup_steps=1",
             "--config.model.n_layers=1", "--config.model.d_model=16", "--config.model.d_ff=16",
             "--config.evaluate.problems=2", "--config.train.batch_rows=8"]  # fmt: skip
    assert main.run(["reasoning-jax", *line, *small]) == 0
    told = capsys.readouterr().out
    assert "own.jsonl: 60 rows: " in told
    assert "(an estimate)" in told
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["data"]["seq_len"] == 64


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (600, "10 minutes"), (7200, "2 hours")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
