"""What was measured is kept with the content it was found of, and believed for nothing else."""

import dataclasses
import json
import os

import pytest

from reasoning_jax.data import measured
from reasoning_jax.data.examples import Example
from reasoning_jax.data.measured import Measured, Row, RowFault


@pytest.fixture(autouse=True)
def _no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def measure(count=10, **options):
    source = [Example(f"q{i}", (), "a" * i) for i in range(count)]

    def row(i, example):
        if i % 5 == 3:
            fault = RowFault("needs\n99 positions", "raise it")
            fault.needs = 99
            raise fault
        return Row(20 + i, len(example.answer), cut=i == 1)

    options = {"name": "f", "place": lambda i: f"line {i + 1}", **options}
    return measured.measure(source, count, row, **options)


def test_what_is_found():
    found = measure(20, group=lambda i: "ab"[i % 2])
    assert (found.records, found.bad, found.needs, found.cut) == (20, [3, 8, 13, 18], 99, 1)
    assert found.faults == [f"  line {i}: needs 99 positions" for i in (4, 9, 14)]
    assert found.counts().total() == 16
    assert set(found.counts("a")) == {i for i in range(0, 20, 2) if i % 5 != 3}


def test_a_finding_comes_back_for_its_key_alone(tmp_path):
    path, found = str(tmp_path / "data.jsonl"), measure()
    for n in range(12):
        measured.keep(path, f"key{n}", dataclasses.replace(found, cut=n), seconds=9)
    assert measured.read(path, "key11", 10) == dataclasses.replace(found, cut=11)
    # Of many the last ones are kept.
    assert [measured.read(path, f"key{n}", 10) is not None for n in (0, 3, 4, 11)] == [0, 0, 1, 1]
    assert measured.read(path, "other", 10) is None
    assert measured.read(path, "key11", 9) is None
    assert measured.read(str(tmp_path / "other.jsonl"), "key11", 10) is None
    assert [p.name for p in tmp_path.iterdir()] == [".data.jsonl.measured.json"]


def test_what_was_found_at_once_leaves_no_file(tmp_path):
    measured.keep(str(tmp_path / "data.jsonl"), "key", measure(), seconds=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20], lambda text: "", lambda text: "[]", lambda text: "{" * 99_999,
        lambda text: text.replace("[3, 8]", "[3]"), lambda text: text.replace("99", "98", 1),
        lambda text: text.replace('"bad"', '"bed"'), lambda text: '{"key": {"found": {}}}',
        lambda text: "\0" + text,
        lambda text: json.dumps({"key": {"check": measured._check(None), "found": None}}),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_no_finding(tmp_path, damage):
    path = str(tmp_path / "data.jsonl")
    measured.keep(path, "key", measure(), seconds=9)
    kept = tmp_path / ".data.jsonl.measured.json"
    text = kept.read_text()
    assert damage(text) != text
    kept.write_text(damage(text))
    assert measured.read(path, "key", 10) is None
    measured.keep(path, "key", measure(), seconds=9)
    assert measured.read(path, "key", 10) == measure()


def test_where_nothing_can_be_written_beside_the_data(tmp_path, monkeypatch):
    path = str(tmp_path / "data.jsonl")
    # A folder stands where the file would be; root may write everywhere else.
    (tmp_path / ".data.jsonl.measured.json").mkdir()
    (tmp_path / ".data.jsonl.measured.json" / "x").touch()
    measured.keep(path, "key", measure(), seconds=9)
    assert measured.read(path, "key", 10) == measure()
    (kept,) = (tmp_path / "cache" / "reasoning_jax").iterdir()
    os.remove(kept)
    kept.mkdir()
    (kept / "x").touch()
    measured.keep(path, "key", measure(), seconds=9)
    assert measured.read(path, "key", 10) is None


def test_the_cost_is_told_where_there_is_one(capsys, monkeypatch):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(measured.time, "monotonic", lambda: next(clock))
    measure(1000)
    told = capsys.readouterr().err
    assert "measuring 1,000 records of f: about 4 s (200 a second, an estimate)" in told
    clock = iter([0.0, 0.01])
    measure(1000)
    assert capsys.readouterr().err == ""


def test_keys_differ_with_what_decides():
    a = {"vocab": {"kind": "byte"}, "data": {"seq_len": 8}}
    assert measured.key_of(a) == measured.key_of(dict(reversed(a.items())))
    assert measured.key_of(a) != measured.key_of({**a, "data": {"seq_len": 9}})
    assert Measured(3).counts().total() == 0
