"""Whatever is wrong with a record, it is refused before the first step or left out and counted."""

import gzip
import json
import random
import re
import shutil

import numpy as np
import pytest

from reasoning_jax import config as C
from reasoning_jax import main, sharding
from reasoning_jax.commands import records
from reasoning_jax.commands.assemble import assemble, evaluation_items
from reasoning_jax.config_check import from_dict
from reasoning_jax.data import builder, measured
from reasoning_jax.data.examples import DataError
from reasoning_jax.data.pipeline import Stream, SupervisedSource
from reasoning_jax.tasks import make_task
from tests.small import tiny_run

# What stands in the place of a good line.
FAULTS = {
    "long": '{"question": "%s", "answer": "1"}' % ("x" * 90),
    "long answer": '{"question": "q", "answer": "%s"}' % ("1" * 90),
    "long steps": '{"question": "q", "steps": ["%s"], "answer": "1"}' % ("1" * 90),
    "other characters": '{"question": "日本", "answer": "1"}',
    "malformed": '{"question": "q", "answer": ',
    "no object": "[1]",
    "null": "null",
    "no answer": '{"question": "q"}',
    "no question": '{"answer": "1"}',
    "misspelt": '{"qestion": "q", "answer": "1"}',
    "null answer": '{"question": "q", "answer": null}',
    "object": '{"question": "q", "answer": {}}',
    "steps a number": '{"question": "q", "steps": 7, "answer": "1"}',
    "blank": '{"question": " ", "answer": "1"}',
    "own answer is wrong": '{"question": "q", "answer": "1 ### "}',
    "answer holds the prefix": '{"question": "q", "answer": "1 ### 2"}',
    "twice": '{"question": "q", "answer": "1", "answer": "2"}',
    "NUL": '{"question": "q\\u0000", "answer": "1"}',
    "half a pair": '{"question": "\\udfff", "answer": "1"}',
    "nested": '{"question": "q", "answer": "1", "x": ' + "[" * 9999 + "]" * 9999 + "}",
    "NaN": '{"question": "q", "answer": NaN}',
    "no turn": '{"messages": []}',
    # Nothing is wrong with these.
    "many digits": '{"question": "q", "answer": "1", "x": %s}' % ("9" * 5000),
    "other columns": '{"question": "q", "answer": 1, "answers": [NaN], "step": 1}',
}
SOUND = {"many digits", "other columns"}


def good_rows(n, seed=0):
    rng = random.Random(seed)
    pairs = [(rng.randrange(90), rng.randrange(9)) for _ in range(n)]
    return [
        json.dumps({"question": f"q {a} and {b}", "steps": [f"{a}+{b}"], "answer": f"{a + b}"})
        for a, b in pairs
    ]


def write(path, lines):
    text = "\n".join(lines) + "\n"
    if ".json." in f"{path.name}.":
        text = "[" + ",\n".join(lines) + "]"
    body = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


def config(path, bad_rows="refuse", **sections):
    base = {
        "data": {"source": "jsonl", "path": str(path), "seq_len": 48, "answer_prefix": "### ",
                 "bad_rows": bad_rows},
        "vocab": {"kind": "byte"},
        "noise": {"rate": 0.2, "source": "random"},
        "sampling": {"max_actions": 32},
        "evaluate": {"problems": 4},
    }  # fmt: skip
    return tiny_run(**{k: {**base.get(k, {}), **sections.get(k, {})} for k in {**base, **sections}})


def everything_runs(assembly):
    """Every row of two epochs is made, and every problem of the evaluated split is posed."""
    source = assembly.examples("train")
    stream = Stream(source, assembly.encoder, assembly.config.seed)
    for position in range(2 * len(source)):
        if assembly.staged is None:
            row = stream[position]
        else:
            rng = np.random.default_rng(position)
            stage = position % (assembly.staged.curriculum.last + 1)
            row = assembly.staged.encode(stream.example(position), stage, rng)
        assert len(row["actions"]) <= assembly.config.data.seq_len
    evaluation_items(assembly, "validation", 1 << 20)
    return len(source)


SECTIONS = (
    {},
    {"vocab": {"kind": "char"}},
    {"objective": {"name": "sequencematch"}, "sequencematch": {"bc_steps": 2, "anneal_steps": 2}},
    {
        "vocab": {"kind": "byte", "backspace": False, "latent": True},
        "objective": {"name": "mle"},
        "noise": {"rate": 0.0},
        "latent": {"mode": "coconut", "max_latent_stage": 2, "uniform_prob": 0.3, "c_thought": 2},
        "evaluate": {"corrupt_tokens": 0},
    },
)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_place_or_left_out(tmp_path, name, fault, request):
    # Catches: any fault that only training would meet, a place that is not told, a lost record.
    lines = good_rows(60)
    rng = random.Random(f"{name} {fault}")
    at = rng.randrange(len(lines))
    lines[at] = FAULTS[fault]
    sections = rng.choice(SECTIONS)
    path = write(tmp_path / name, lines)
    # In a list, what is no JSON at all ends the reading; in a line it is one bad record.
    ends = name == "a.json" and fault in ("malformed", "nested")
    fits = fault in SOUND or (fault == "other characters")
    if fits:
        assert everything_runs(assemble(config(path, **sections))) > 20
        return
    with pytest.raises(DataError) as caught:
        assemble(config(path, **sections))
    told = str(caught.value)
    where = f"record {at + 1}" if name == "a.json" else f"line {at + 1}"
    assert str(path) in told
    assert re.search(rf"\b{where}\b", told), told
    assert len(told.splitlines()) <= 6
    if ends:
        return
    assembly = assemble(config(path, "skip", **sections))
    everything_runs(assembly)
    notes = "\n".join(assembly.notes)
    assert f"59 rows: {len(assembly.examples('train'))} train" in notes
    assert re.search(rf"left out: {where}\b", notes), notes


def test_many_faults_are_counted_and_the_kept_rows_are_those_of_the_file_without_them(tmp_path):
    # Catches: an order or a split that depends on what was left out.
    good = good_rows(80)
    bad = [FAULTS[fault] for fault in FAULTS if fault not in {*SOUND, "other characters"}]
    mixed = [*good]
    for i, line in enumerate(bad):
        mixed.insert(7 * (i % 11), line)
    for kind in ("byte", "char"):
        sections = {"vocab": {"kind": kind}}
        some = assemble(config(write(tmp_path / "b.jsonl", mixed), "skip", **sections))
        clean = assemble(config(write(tmp_path / "a.jsonl", good), **sections))
        for split in ("train", "validation"):
            assert list(some.examples(split)) == list(clean.examples(split))
    with pytest.raises(
        DataError, match=rf"{len(bad) - 5} bad of {len(mixed)} records; the first 3"
    ):
        assemble(config(tmp_path / "b.jsonl"))


def test_nothing_left_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "a.jsonl", [FAULTS["long"]] * 9)
    with pytest.raises(DataError, match="all 9 records of the train split are left out: line 1"):
        assemble(config(path, "skip"))


def test_a_finding_is_used_again_and_forgotten_with_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "_KEPT_FROM_S", 0.0)
    path = write(tmp_path / "a.jsonl", good_rows(60))
    first = assemble(config(path))
    made = []
    maker = records._row_maker
    monkeypatch.setattr(records, "_row_maker", lambda *a: made.append(a) or maker(*a))
    calls = []
    monkeypatch.setattr(measured, "measure", lambda *a, **k: calls.append(a) or first_found)
    first_found = first.sources.measured(first, "train")
    assert assemble(config(path)).sources.measured(first, "train") == first_found
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(path, moved / "b.jsonl")
    assert calls == []
    for changed in (
        config(path, data={"seq_len": 64}), config(path, vocab={"kind": "char"}),
        config(path, data={"answer_prefix": "#### "}),
        config(write(path, good_rows(60, seed=1))),
    ):  # fmt: skip
        assemble(changed)
        assert len(calls) == 1
        calls.clear()


def test_budgets_that_answers_do_not_fit_are_told(tmp_path, capsys):
    # "12+3\n### 15" and <eos> are 12 actions.
    lines = [
        json.dumps({"question": f"q{i}", "steps": ["12+3"], "answer": "15"}) for i in range(90)
    ]
    path = write(tmp_path / "a.jsonl", lines)
    fits = {"sampling": {"max_actions": 12}, "evaluate": {"problems": 99}}
    notes = "\n".join(assemble(config(path, **fits)).notes)
    assert "do not fit" not in notes
    assert "evaluate.problems=99, the validation split has" in notes
    for sampling, key in (
        ({"max_actions": 11}, "max_actions=11"),
        ({"max_actions": 64, "max_new_tokens": 10}, "max_new_tokens=10"),
    ):
        capsys.readouterr()
        assemble(config(path, sampling=sampling))
        warned = capsys.readouterr().err
        assert re.search(rf"all of \d+ reference .* do not fit sampling\.{key}, the lon", warned)
        assert "no sample can be right; set --config.sampling." in warned
    lines[:45] = [json.dumps({"question": f"q{i}", "answer": "15"}) for i in range(45)]
    write(path, lines)
    notes = "\n".join(assemble(config(path, sampling={"max_actions": 11})).notes)
    assert re.search(r"\d+ of \d+ reference answers \(validation split\) do not fit", notes)


def test_noise_that_cuts_rows_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", good_rows(60))
    assert not any("noise makes" in note for note in assemble(config(path)).notes)
    tight = config(path, data={"seq_len": 26}, noise={"rate": 0.5})
    assert any("rows longer than data.seq_len=26" in note for note in assemble(tight).notes)


def test_settings_that_do_not_fit_the_file_are_told(tmp_path):
    path = write(tmp_path / "a.jsonl", good_rows(60))
    same = write(tmp_path / "b.jsonl", good_rows(60))
    notes = assemble(config(path, data={"seq_len": 32})).notes
    (passes,) = [note for note in notes if "passes over" in note]
    assert passes.startswith("6 steps of 8 rows: ")
    assert not any("padding" in note or "trained on" in note for note in notes)
    roomy = config(path, data={"seq_len": 256, "validation_path": str(same)})
    notes = "\n".join(assemble(roomy).notes)
    assert re.search(r"the longest row takes \d+ of data.seq_len=256 positions", notes)
    assert "what is evaluated on is trained on" in notes


def test_a_long_generated_problem_gives_its_place_to_another(capsys):
    # Some sums of three digits take 13 positions. Catches: a run that dies at the first of them, a
    # place that a second reading fills anew.
    task = {"name": "arithmetic", "max_digits": 3}
    sections = {"task": task, "data": {"seq_len": 12, "train_problems": 5000},
                "noise": {"rate": 0.0}, "objective": {"name": "mle"}}  # fmt: skip
    with pytest.raises(C.ConfigError, match=r"an example needs 13 positions"):
        assemble(tiny_run(**sections))
    sections["data"]["bad_rows"] = "skip"
    assembly = assemble(tiny_run(**sections))
    stream = Stream(assembly.examples("train"), assembly.encoder, 0)
    rows = [stream[i] for i in range(100)]
    assert max(len(row["actions"]) for row in rows) <= 12
    again = Stream(assembly.examples("train"), assembly.encoder, 0)
    for i in (99, 3, 50):
        np.testing.assert_array_equal(again[i]["actions"], rows[i]["actions"])
    told = capsys.readouterr().err
    assert re.search(r"left out: problem \d+ of the training data needs 13 positions", told)
    assert told.count("left out: problem") <= 8


def run(*arguments):
    return main.run(["reasoning-jax", *map(str, arguments)])


def test_through_the_command(tmp_path, capsys, quick_to_compile):
    path = write(tmp_path / "a.jsonl", [*good_rows(90), FAULTS["long"], *good_rows(5, 1)])
    values = C.to_dict(config(path))
    text = (
        "from ml_collections import config_dict\n\n\n"
        "def get_config(arg=''):\n"
        f"    return config_dict.ConfigDict({values!r}, convert_dict=True)\n"
    )
    (tmp_path / "c.py").write_text(text, encoding="utf-8")
    train = ("train", f"--config={tmp_path / 'c.py'}", "--quiet")
    assert run(*train, f"--workdir={tmp_path / 'a'}") == 2
    told = capsys.readouterr().err
    assert "1 bad of 96 records" in told
    assert "line 91: needs " in told
    assert "--config.data.bad_rows=skip" in told
    assert not (tmp_path / "a" / "config.json").exists()
    skip = (*train, "--config.data.bad_rows=skip", "--config.train.steps=2")
    assert run(*skip, f"--workdir={tmp_path / 'b'}") == 0
    assert "exact_match" in (tmp_path / "b" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("pack", [False, True])
def test_rows_that_are_left_out_do_not_move_the_place(tmp_path, pack):
    path = write(tmp_path / "a.jsonl", [*good_rows(40), FAULTS["long"], *good_rows(40, 1)])

    def source():
        assembly = assemble(config(path, "skip"))
        mesh = sharding.make_mesh()
        return SupervisedSource(
            assembly.examples("train"), assembly.encoder, batch_rows=8, seed=0, mesh=mesh,
            pack_examples=pack,
        )  # fmt: skip

    unbroken, stopped, continued = source(), source(), source()
    for _ in range(13):
        unbroken.next(), stopped.next()
    continued.restore(json.loads(json.dumps(stopped.save())))
    for _ in range(13):
        np.testing.assert_array_equal(unbroken.next().actions, continued.next().actions)


def test_configs_of_columns():
    for columns, source in ((("question=a",), "task"), (("question=a",), "text")):
        values = C.to_dict(C.Config())
        values["data"] |= {
            "columns": columns,
            "source": source,
            "path": "" if source == "task" else "x",
        }
        with pytest.raises(C.ConfigError, match=r"data\.columns="):
            from_dict(values)


def test_a_data_set_and_text_are_measured_too(tmp_path):
    task = {"max_digits": 3}
    sizes = {"train": 60, "validation": 20, "test": 20}
    folder = builder.build(
        make_task("arithmetic", **task), name="arithmetic", dials=task, out_dir=tmp_path,
        sizes=sizes,
    )  # fmt: skip
    data = {"source": "tfds", "path": str(folder), "seq_len": 12}
    sections = {"data": data, "noise": {"rate": 0.0}, "objective": {"name": "mle"}}
    with pytest.raises(DataError, match=r"train, record \d+: needs 13 positions"):
        assemble(tiny_run(**sections))
    data["bad_rows"] = "skip"
    assembly = assemble(tiny_run(**sections))
    assert 0 < everything_runs(assembly) < 60
    assert any("of 60 records are left out" in note for note in assembly.notes)
    # A vocabulary of a run's own, and text that has grown since.
    words = " ".join(f"some words and others {i}" for i in range(400))
    (tmp_path / "t.txt").write_text(words, encoding="utf-8")
    values = {
        "data": {"source": "text", "path": str(tmp_path / "t.txt"), "seq_len": 16},
        "noise": {"source": "random"},
    }
    vocab = assemble(tiny_run(**values)).vocab
    (tmp_path / "t.txt").write_text(words + "äö" * 2000, encoding="utf-8")
    with pytest.raises(DataError, match=r"byte [\d,]+: character 'ä' at \d+ is not in the vocab"):
        assemble(tiny_run(**values), vocab)
    values["data"]["bad_rows"] = "skip"
    assert any("are left out" in note for note in assemble(tiny_run(**values), vocab).notes)
