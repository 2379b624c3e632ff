"""A user's file is read as it is, or refused with line and field; never a wrong record."""

import contextlib
import gzip
import json
import os
import pickle
import random
import zlib

import grain
import pytest

from reasoning_jax.data import files
from reasoning_jax.data import records as records_module
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
    assert len(pickled) < 300 * 21 + 1200
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
    "infinity": ('{"question": "q", "answer": -Infinity}', "got what is no JSON, -Infinity"),
    "object for answer": ('{"question": "q", "answer": {"a": 1}}', "field answer: got an object"),
    "list for answer": ('{"question": "q", "answer": ["a"]}', "field answer: got a list, ['a']"),
    "steps a number": ('{"question": "q", "steps": 1, "answer": "a"}', "steps: got a number, 1,"),
    "a step an object": ('{"question": "q", "steps": ["s", {}], "answer": "a"}', "field steps[1]"),
    "no turn of the assistant": ('{"messages": [{"role": "user", "content": "q"}]}', "of user"),
    "a role of nobody": ('{"messages": [{"role": "elf", "content": "q"}]}', "role 'elf'"),
    "messages a string": ('{"messages": "q"}', "field messages: got a string, 'q'"),
    "no question": ('{"answer": "a"}', "field question: got none"),
    "no answer": ('{"question": "q", "label": "a"}', "field answer: got none"),
    "null for answer": ('{"question": "q", "answer": null}', "field answer: got null"),
    "empty question": ('{"question": "", "answer": "a"}', "field question: got an empty string"),
    "blank answer": ('{"question": "q", "answer": " \\n"}', "field answer: got an empty string"),
    "misspelt": ('{"qestion": "q", "answer": "a"}', "field 'qestion'"),
    "misspelt beside": ('{"question": "q", "answer": "a", "STEPS": ["s"]}', "field 'STEPS'"),
    "the same key twice": ('{"question": "q", "answer": "a", "answer": "b"}', "field 'answer'"),
    "a NUL": (b'{"question": "q\0", "answer": "a"}', "NUL"),
    "an escaped NUL": ('{"question": "q", "answer": "\\u0000a"}', "field answer: got a string"),
    "half a surrogate pair": ('{"question": "\\ud800", "answer": "a"}', "field question: got"),
    "Latin-1": ('{"question": "é", "answer": "a"}'.encode("latin-1"), "invalid UTF-8 at byte 15"),
    "nested too deeply": ("[" * 100_000, "deeply"),
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
    f"[{GOOD}\n{GOOD}]": "line 2: got '{', wanted ',' or ']'",
    f"[{GOOD},\n]": "record 2 (line 2): got bad JSON",
    f"[{GOOD}": "got the end of the file",
    f"[{GOOD}]\n[]": "line 2: got text after the list",
    f'[{GOOD},\n\n{{"question": {{}}, "answer": "a"}}]': "record 2 (line 3), field question",
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
    monkeypatch.setattr(records_module, "MAX_RECORD_BYTES", 100)
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
        ("folder", "got a directory"),
        ("empty.jsonl", "got no records"),
        ("pipe.jsonl", "no regular file"),
        ("a.csv", "wanted one of .jsonl, .ndjson, .json, .txt"),
    ],
)
def test_what_is_no_file_of_records(tmp_path, name, wanted):
    write(tmp_path / "train.jsonl", GOOD)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.csv").touch()
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
        with pytest.raises(DataError, match=f"line {index + 1}"):
            source[index]


# A line -> (question, steps, answer) that are read from it.
READ = {
    '{"question": "q", "answer": 42.0}': ("q", (), "42.0"),
    '{"question": "q", "answer": 1e3}': ("q", (), "1e3"),
    '{"question": 7, "answer": -0.50}': ("7", (), "-0.50"),
    '{"question": "q", "answer": %s}' % ("9" * 5000): ("q", (), "9" * 5000),
    '{"question": "q", "answer": true}': ("q", (), "true"),
    '{"question": "q", "steps": null, "answer": "a"}': ("q", (), "a"),
    '{"question": "q", "steps": NaN, "answer": "a"}': ("q", (), "a"),
    '{"question": "q", "steps": [], "answer": "a"}': ("q", (), "a"),
    '{"question": "q", "steps": [""], "answer": "a"}': ("q", (), "a"),
    '{"question": "q", "steps": "", "answer": "a"}': ("q", (), "a"),
    '{"question": "q", "steps": "49+97=146", "answer": "a"}': ("q", ("49+97=146",), "a"),
    '{"question": "q", "steps": "s\\n\\nt", "answer": "a"}': ("q", ("s", "t"), "a"),
    '{"question": "q", "steps": ["s", 1.50], "answer": "a"}': ("q", ("s", "1.50"), "a"),
    '{"question": "q", "answer": "a", "x": NaN, "y": [-Infinity, {"z": NaN}]}': ("q", (), "a"),
    '{"question": "q", "answer": "a", "x": 1, "x": 2, "y": {"z": 1, "z": 2}}': ("q", (), "a"),
    '{"question": "q", "answer": "a", "x": "\\ud800", "y": "\\u0000"}': ("q", (), "a"),
    '{"question": "q", "steps": ["s"], "answer": "a", "answers": ["a"]}': ("q", ("s",), "a"),
    '{"question": "q", "answer": "a", "step": 3, "stem": "b", "Question": ""}': ("q", (), "a"),
    '{"question": "q", "steps": ["s"], "answer": "a", "STEPS": ["t"]}': ("q", ("s",), "a"),
    '{"prompt": "p", "completion": "c"}': ("p", (), "c"),
    '{"prompt": "p", "response": "c", "step": 1}': ("p", (), "c"),
    '{"question": "q", "answer": "a", "prompt": "p", "response": "r"}': ("q", (), "a"),
    '{"question": null, "answer": "a", "prompt": "p"}': ("p", (), "a"),
    '{"instruction": "i", "input": "", "output": "o"}': ("i", (), "o"),
    '{"instruction": "i", "input": "x", "output": "o"}': ("i\nx", (), "o"),
    '{"instruction": "i", "context": "x", "response": "r"}': ("i\nx", (), "r"),
    '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}': (
        "q", (), "a",
    ),
    '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}': (
        "q", (), "a",
    ),
    '{"prompt_id": 1, "prompt": "q", "messages": [{"role": "system", "content": "s"}, '
    '{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, '
    '{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]}': (
        "s\nq\na\nr", (), "b",
    ),
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, '
    '{"role": "assistant", "content": "a"}]}': ("q", (), "a"),
    '{"prompt": [{"role": "user", "content": "q"}], '
    '"completion": [{"role": "assistant", "content": "a"}]}': ("q", (), "a"),
    '{"question": "q", "answer": "He sold 48/2 = <<48/2=24>>24.\\nIn all 72.\\n#### 72"}': (
        "q", ("He sold 48/2 = <<48/2=24>>24.", "In all 72."), "72",
    ),
    '{"question": "q", "answer": "#### 72"}': ("q", (), "72"),
    '{"question": "q", "answer": "a #### b"}': ("q", (), "a #### b"),
    '{"question": "q", "steps": ["s"], "answer": "x\\n#### 72"}': ("q", ("s",), "x\n#### 72"),
}  # fmt: skip


@pytest.mark.parametrize("line", READ)
def test_what_a_line_is_read_as(tmp_path, line):
    # Catches: a guess that refuses valid input, a number that is written anew.
    wanted = Example(READ[line][0], READ[line][1], READ[line][2])
    assert list(JsonlSource(write(tmp_path / "a.jsonl", line))) == [wanted]
    assert list(JsonlSource(write(tmp_path / "b.json", "[" + line + "]"))) == [wanted]
    assert JsonlSource(write(tmp_path / "c.json", line, line))[0] == wanted


@pytest.mark.parametrize(
    ("columns", "line", "wanted"),
    [
        (("question=in", "answer=a"), '{"in": "q", "a": 1, "steps": ["s"]}', ("q", ("s",), "1")),
        (("answer=answers",), '{"question": "q", "answer": "a", "answers": "b"}', ("q", (), "b")),
        (("steps=cot",), '{"question": "q", "cot": ["s"], "answer": "a"}', ("q", ("s",), "a")),
        (("steps=",), '{"question": "q", "STEPS": ["s"], "answer": "a"}', ("q", (), "a")),
        (("question=a b=c", "answer=é"), '{"a b=c": "q", "é": "a"}', ("q", (), "a")),
        (("messages=chat",), '{"chat": [{"role": "user", "content": "q"}, {"role": "assistant", '
         '"content": "a"}], "question": "x", "answer": "y"}', ("q", (), "a")),
    ],
)  # fmt: skip
def test_columns_are_named(tmp_path, columns, line, wanted):
    (example,) = JsonlSource(write(tmp_path / "a.jsonl", line), columns)
    assert (example.question, example.steps, example.answer) == wanted


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (("question",), "wanted FIELD=COLUMN with FIELD one of question, steps, answer, messages"),
        (("qestion=a",), "wanted FIELD=COLUMN"),
        (("answer=",), "wanted a column's name"),
        (("answer=a", "answer=b"), "names answer twice"),
        (("answer=a", "messages=b"), "names messages"),
        (("answer=out",), "field answer (column 'out'): got none (keys: 'question, answer')"),
    ],
)
def test_columns_that_name_nothing(tmp_path, columns, wanted):
    with pytest.raises(DataError) as caught:
        JsonlSource(
            write(tmp_path / "a.jsonl", GOOD.replace('"steps": ["one", "one"], ', "")), columns
        )
    assert wanted in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_columns_of_a_file_that_has_none(tmp_path):
    with pytest.raises(DataError, match=r"names columns, and a \.txt file"):
        JsonlSource(write(tmp_path / "a.txt", "q||s #### a"), ("answer=x",))


def test_an_answer_is_parted_at_the_answer_prefix_too(tmp_path):
    line = '{"question": "q", "answer": "1+1=2\\n### 2"}'
    path = write(tmp_path / "a.jsonl", line)
    assert JsonlSource(path, marker="### ")[0] == Example("q", ("1+1=2",), "2")
    assert JsonlSource(path)[0].answer == "1+1=2\n### 2"
    # Catches: a prefix that is a word's beginning.
    path = write(tmp_path / "b.jsonl", '{"question": "q", "answer": "x\\nApple"}')
    assert JsonlSource(path, marker="A")[0].answer == "x\nApple"


def test_what_was_done_to_read_it_is_told(tmp_path):
    lines = [
        '{"question": "q", "answer": "a\\n#### 1"}', '{"question": "q", "answer": "1"}',
        '{"prompt": "q", "answer": "1"}', '{"question": 1}',
    ]  # fmt: skip
    source = JsonlSource(write(tmp_path / "a.jsonl", *lines), skip=True)
    notes = "\n".join(source.notes)
    assert "1 bad records are left out: line 4, field answer: got none" in notes
    assert "answer parted at '####' into steps and answer (1 of 3 records)" in notes
    assert "prompt is the question, answer the answer (1 of 3 records)" in notes
    assert JsonlSource(write(tmp_path / "b.jsonl", GOOD)).notes == ()


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".txt", ".JSONL"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_suffix_plain_and_packed(tmp_path, suffix, packed):
    text = "q||s #### 1\nr|| #### 2\n"
    if suffix != ".txt":
        lines = ['{"question": "q", "steps": ["s"], "answer": 1}', '{"question": "r", "answer": 2}']
        text = "[" + ",".join(lines) + "]" if suffix == ".json" else "\r\n".join(lines)
    body = b"\xef\xbb\xbf" + text.encode()
    path = tmp_path / f"a.b{suffix}{'.gz' if packed else ''}"
    # Two members, as `cat a.gz b.gz` makes them.
    path.write_bytes(gzip.compress(body[:9]) + gzip.compress(body[9:]) if packed else body)
    source = pickle.loads(pickle.dumps(JsonlSource(path)))
    assert list(source) == [Example("q", ("s",), "1"), Example("r", (), "2", index=1)]


def test_a_packed_file_is_bounded_and_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    for body, wanted in (
        (gzip.compress(GOOD.encode(), mtime=0)[:-3], "is no whole gzip file"),
        (b"no gzip at all", "is no whole gzip file"),
        (gzip.compress(GOOD.encode(), mtime=0)[:20] + bytes(9), "is no whole gzip file"),
        (gzip.compress(b"", mtime=0), "got no records"),
    ):
        path.write_bytes(body)
        with pytest.raises(DataError, match=wanted):
            JsonlSource(path)
    monkeypatch.setattr(files, "MAX_HELD_BYTES", 1 << 16)
    path.write_bytes(gzip.compress(b" " * (1 << 26)))
    with pytest.raises(DataError, match="unpacks to more than 65,536 bytes; unpack it"):
        JsonlSource(path)
    (tmp_path / "b.json").write_bytes(b"[" + b" " * (1 << 17))
    with pytest.raises(DataError, match="a list of more than 65,536 bytes"):
        JsonlSource(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (gzip.compress(GOOD.encode()), "name it *.gz"), (GOOD.encode("utf-16"), "it is UTF-16"),
        (b"PK\x03\x04", "unpack it"), (zlib.compress(GOOD.encode()), "invalid UTF-8"),
    ],
    ids=("gzip", "utf-16", "zip", "zlib"),
)  # fmt: skip
def test_what_is_packed_or_encoded_otherwise_is_named(tmp_path, body, wanted):
    (tmp_path / "a.jsonl").write_bytes(body)
    with pytest.raises(DataError) as caught:
        JsonlSource(tmp_path / "a.jsonl")
    assert wanted in str(caught.value)


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {
        "question": ["q", "r", "s"],
        "answer": [1.0, 2.5, float("nan")],
        "steps": [["a", "b"], None, []],
        "image": [b"x" * 100] * 3,
    }
    parquet.write_table(arrow.table(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 3, field answer: got what is no JSON, NaN"):
        JsonlSource(tmp_path / "a.parquet")
    source = pickle.loads(pickle.dumps(JsonlSource(tmp_path / "a.parquet", skip=True)))
    assert list(source) == [Example("q", ("a", "b"), "1.0"), Example("r", (), "2.5", index=1)]
    chat = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]
    parquet.write_table(arrow.table({"messages": chat}), tmp_path / "b.parquet")
    assert list(JsonlSource(tmp_path / "b.parquet")) == [Example("q", (), "a")]
    parquet.write_table(arrow.table({"text": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="got the columns 'text', wanted question and answer"):
        JsonlSource(tmp_path / "c.parquet")
    short = {"question": ["q"], "answer": arrow.array([0.1], arrow.float32())}
    parquet.write_table(arrow.table(short), tmp_path / "e.parquet")
    assert JsonlSource(tmp_path / "e.parquet")[0].answer == "0.1"
    whole = (tmp_path / "a.parquet").read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        hostile = bytearray(whole[: rng.randrange(4, len(whole) + 1)])
        hostile[rng.randrange(len(hostile))] ^= 1 << rng.randrange(8)
        (tmp_path / "d.parquet").write_bytes(hostile)
        # Whatever it is, nothing but a DataError comes out.
        with contextlib.suppress(DataError):
            JsonlSource(tmp_path / "d.parquet", skip=True)


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        JsonlSource(tmp_path / "a.parquet")
    assert "pip install 'reasoning-jax[parquet]'" in str(caught.value)
    assert "\n" not in str(caught.value)
