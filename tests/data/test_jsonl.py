"""A user's file is read as it is, or refused with line and field; never a wrong record."""

import json
import os
import pickle
import random

import grain
import pytest

from reasoning_jax.data import jsonl
from reasoning_jax.data.examples import DataError, Example
from reasoning_jax.data.jsonl import JsonlSource
from tests.data.edits import edit_unseen, overwrite, replace

GOOD = '{"question": "1+1=", "steps": ["one", "one"], "answer": "2"}'


def write(path, *lines):
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return path


def records(n):
    rng = random.Random(0)
    return [
        {
            "question": f"q{i} é{'x' * rng.randrange(40)}",
            "steps": [f"s{j}" for j in range(i % 4)],
            "answer": f"a{i}",
            "idx": i,
        }
        for i in range(n)
    ]


def example(record, index):
    return Example(record["question"], tuple(record["steps"]), record["answer"], index=index)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("tail", [b"", b"\r\n", b"\n \n\n"])
def test_random_access_is_the_order_of_the_file(tmp_path, end, mark, tail):
    # Catches: an offset that leaves out the byte order mark, or counts characters for bytes.
    wanted = records(30)
    text = end.join(json.dumps(r, ensure_ascii=False) for r in wanted)
    (tmp_path / "a.jsonl").write_bytes(mark + text.encode() + tail)
    source = JsonlSource(tmp_path / "a.jsonl")
    assert len(source) == 30
    order = random.Random(1).sample(range(30), 30)
    assert [source[i] for i in order] == [example(wanted[i], i) for i in order]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_and_a_jsonl_file_are_the_same_source(tmp_path, indent):
    wanted = records(25)
    text = json.dumps(wanted, ensure_ascii=False, indent=indent)
    (tmp_path / "a.json").write_text(f"\ufeff{text}\n", encoding="utf-8")
    write(tmp_path / "a.jsonl", *(json.dumps(r) for r in wanted))
    assert list(JsonlSource(tmp_path / "a.json")) == list(JsonlSource(tmp_path / "a.jsonl"))


def test_icot_lines(tmp_path):
    path = write(tmp_path / "a.txt", "How many?||<<1+1=2>> <<2*3=6>> #### 6", "None?|| #### 0")
    assert list(JsonlSource(path)) == [
        Example("How many?", ("<<1+1=2>>", "<<2*3=6>>"), "6", index=0),
        Example("None?", (), "0", index=1),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_icot_lines_keep_what_the_published_files_have_in_them(tmp_path, end):
    # Commas in answers, negative and decimal numbers, brackets, no steps, non-ASCII quotes.
    lines = {
        "Mia’s  pay | tax?  ||<<5*1,000=5,000>> #### 5,000": (("<<5*1,000=5,000>>",), "5,000"),
        "How cold?||<<4-7=-3>>  <<-3-.5=-3.5>> #### -3.5": (
            ("<<4-7=-3>>", "<<-3-.5=-3.5>>"),
            "-3.5",
        ),
        "Half #3?||<<3*(16.50+2)/100=.555>> <<8=8>>####0.50 ": (
            ("<<3*(16.50+2)/100=.555>>", "<<8=8>>"),
            "0.50",
        ),
        "None?|| #### 1,450,000": ((), "1,450,000"),
    }
    (tmp_path / "a.txt").write_bytes(end.join(line.encode() for line in lines))
    wanted = [
        Example(line.split("||")[0].strip(), steps, answer, index=index)
        for index, (line, (steps, answer)) in enumerate(lines.items())
    ]
    assert list(JsonlSource(tmp_path / "a.txt")) == wanted


def test_a_grain_pipeline_takes_it(tmp_path):
    path = write(tmp_path / "a.jsonl", *(json.dumps(r) for r in records(10)))
    source = JsonlSource(path)
    assert list(grain.MapDataset.source(source)) == list(source)
    shuffled = [e.index for e in grain.MapDataset.source(source).seed(1).shuffle()]
    assert sorted(shuffled) == list(range(10))
    assert shuffled != list(range(10))


def test_a_pickled_source_reads_on(tmp_path):
    source = JsonlSource(write(tmp_path / "a.jsonl", *(json.dumps(r) for r in records(300))))
    pickled = pickle.dumps(source)
    # Catches: records, rather than their places, kept in memory.
    assert len(pickled) < 300 * 16 + 1000
    copy = pickle.loads(pickled)
    assert list(copy) == list(source)
    assert repr(copy) == repr(source)


# What is wrong -> (the bytes of line 2, the field or the words that the message must hold).
DEFECTS = {
    "bad JSON": ('{"question": "a", "answer": }', "column 29"),
    "cut off": ('{"question": "a", "ans', "bad JSON"),
    "two objects": (GOOD + GOOD, "Extra data"),
    "a list": ('["q", "a"]', "a list"),
    "a string": ('"q"', "a string"),
    "null": ("null", "got null"),
    "NaN": ('{"question": "q", "answer": NaN}', "NaN"),
    "infinity elsewhere": ('{"question": "q", "answer": "a", "x": [-Infinity]}', "-Infinity"),
    "no question": ('{"answer": "a"}', "field question: got none"),
    "no answer": ('{"question": "q", "label": "a"}', "field answer: got none"),
    "number for question": ('{"question": 5, "answer": "a"}', "field question: got a number, 5"),
    "truth for answer": ('{"question": "q", "answer": true}', "field answer: got a truth value"),
    "null for answer": ('{"question": "q", "answer": null}', "field answer: got null"),
    "empty question": ('{"question": "", "answer": "a"}', "field question: got an empty string"),
    "blank answer": ('{"question": "q", "answer": " \\n"}', "field answer: got an empty string"),
    "steps a string": ('{"question": "q", "steps": "s", "answer": "a"}', "field steps: got"),
    "steps null": ('{"question": "q", "steps": null, "answer": "a"}', "field steps: got null"),
    "a step a number": ('{"question": "q", "steps": ["s", 1], "answer": "a"}', "field steps[1]"),
    "an empty step": ('{"question": "q", "steps": [""], "answer": "a"}', "field steps[0]"),
    "misspelt": ('{"qestion": "q", "answer": "a"}', "field 'qestion'"),
    "misspelt beside": ('{"question": "q", "answer": "a", "STEPS": ["s"]}', "field 'STEPS'"),
    "the same key twice": ('{"question": "q", "answer": "a", "answer": "b"}', "field 'answer'"),
    "a NUL": (b'{"question": "q\0", "answer": "a"}', "NUL"),
    "an escaped NUL": ('{"question": "q", "answer": "\\u0000a"}', "field answer: got a string"),
    "half a surrogate pair": ('{"question": "\\ud800", "answer": "a"}', "field question: got"),
    "Latin-1": ('{"question": "é", "answer": "a"}'.encode("latin-1"), "invalid UTF-8 at byte 15"),
    "nested too deeply": ("[" * 100_000, "deeply"),
    "too long a number": ('{"question": %s}' % ("9" * 5000), "too long a number"),
    "an empty line": ("", "an empty line"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_with_line_and_field(tmp_path, name):
    defect, wanted = DEFECTS[name]
    with pytest.raises(DataError) as caught:
        JsonlSource(write(tmp_path / "a.jsonl", GOOD, defect, GOOD))
    message = str(caught.value)
    assert wanted in message
    assert "a.jsonl: 1 bad of 3 records" in message
    assert "line 2" in message
    assert len(message.splitlines()) <= 6


# As above, for one line of an iCoT file.
ICOT_DEFECTS = {
    "q <<1>> #### 1": "field question: got 0 '||'",
    "q||a||b #### 1": "field question: got 2 '||'",
    "q||<<1>>": "field answer: got 0 '####'",
    "q||a #### 1 #### 2": "field answer: got 2 '####'",
    "||a #### 1": "field question: got an empty string",
    "q||a ####": "field answer: got an empty string",
}


@pytest.mark.parametrize("line", ICOT_DEFECTS)
def test_a_defect_in_an_icot_line(tmp_path, line):
    with pytest.raises(DataError) as caught:
        JsonlSource(write(tmp_path / "a.txt", "q||s #### a", line))
    assert f"line 2, {ICOT_DEFECTS[line]}" in str(caught.value)


# Text of a .json file -> what the message must hold.
LIST_DEFECTS = {
    GOOD: "line 1: got '{', wanted '['",
    f"[{GOOD}\n{GOOD}]": "line 2: got '{', wanted ',' or ']'",
    f"[{GOOD},\n]": "line 2: got bad JSON",
    f"[{GOOD}": "got the end of the file",
    f"[{GOOD}]\n[]": "line 2: got text after the list",
    f'[{GOOD},\n\n{{"question": 1, "answer": "a"}}]': "line 3, field question",
    "[" * 100_000: "deeply",
    "[]": "got no records",
    " ": "got no records",
}


@pytest.mark.parametrize("text", LIST_DEFECTS)
def test_a_defect_in_a_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as caught:
        JsonlSource(tmp_path / "a.json")
    assert LIST_DEFECTS[text] in str(caught.value)


def test_three_defects_are_listed_and_all_are_counted(tmp_path):
    with pytest.raises(DataError) as caught:
        JsonlSource(write(tmp_path / "a.jsonl", GOOD, *["{}"] * 9))
    message = str(caught.value)
    assert "9 bad of 10 records; the first 3" in message
    assert [f"line {i}," in message for i in (2, 3, 4, 5)] == [True, True, True, False]
    assert len(message.splitlines()) <= 6


def test_a_line_above_the_cap_is_refused_and_the_next_line_is_found(tmp_path, monkeypatch):
    # Catches: reading on in the middle of the long line.
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 100)
    longest = '{"question": "%s", "answer": "a"}' % ("q" * 69)
    assert len(longest) == 100
    assert len(JsonlSource(write(tmp_path / "a.jsonl", longest, GOOD))) == 2
    path = write(tmp_path / "b.jsonl", GOOD, longest + " ", "x" * 1000, "x" * 201, GOOD, "{")
    with pytest.raises(DataError, match="4 bad of 6 records") as caught:
        JsonlSource(path)
    assert str(caught.value).count("more than 100 bytes") == 3


def test_keys_unlike_a_known_one_are_ignored(tmp_path):
    line = '{"question": "q", "answer": "a", "edges": [[0, 1]], "root": 0, "id": {"a": 1}, "é": 1}'
    assert list(JsonlSource(write(tmp_path / "a.jsonl", line))) == [Example("q", (), "a")]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("trian.jsonl", "Did you mean 'train.jsonl'"),
        ("none/at/all.jsonl", "no such file"),
        ("folder.jsonl", "got a directory"),
        ("empty.jsonl", "got no records"),
        ("pipe.jsonl", "no regular file"),
        ("a.csv", "wanted one of .jsonl, .json, .txt"),
    ],
)
def test_what_is_no_file_of_records(tmp_path, name, wanted):
    write(tmp_path / "train.jsonl", GOOD)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError) as caught:
        JsonlSource(tmp_path / name)
    assert wanted in str(caught.value)


def append(path):
    path.write_text(path.read_text() + GOOD)


@pytest.mark.parametrize("change", [overwrite, append, replace, edit_unseen, os.remove])
def test_a_file_that_changed_is_refused_when_it_is_read(tmp_path, change):
    # Catches (edit_unseen): trusting size and time stamp without the checksum.
    path = write(tmp_path / "a.jsonl", GOOD, GOOD)
    source = JsonlSource(path)
    assert source[0].answer == "2"
    change(path)
    for index in (0, 1):
        with pytest.raises(DataError, match=f"record {index}"):
            source[index]
