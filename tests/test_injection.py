"""Text is data: what looks like code, a shell line or a path leaves no file, process or socket.

An audit hook sees every file opened for writing, every process, socket and piece of source text
that the interpreter is asked to compile. A hook cannot be taken away, so all of it is done in a
process of its own: first with harmless strings, which load what is loaded late, then with others.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.hostile import INJECTIONS

ROOT = Path(__file__).parent.parent
DRIVER = r'''
import json, os, sys
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KINDS = ("subprocess.", "socket.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
         "os.remove", "os.rename", "os.mkdir", "os.putenv", "shutil.", "ctypes.", "pty.", "urllib.",
         "marshal.", "pickle.", "webbrowser.", "ftplib.", "code.__new__")
seen, armed = [], False

def hook(event, args):
    if not armed:
        return
    if event == "open":
        if isinstance(args[2], int) and args[2] & WRITING:
            seen.append(f"open {args[0]!r}")
    elif event == "compile":
        # Of a string, not of a module that is imported; annotations of our own are none either.
        source = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
        if str(args[1]).strip("b'").startswith("<") and source not in ANNOTATIONS:
            seen.append(f"compile {args[0]!r}")
    elif event.startswith(KINDS):
        seen.append(f"{event} {args!r}")

import dataclasses
from reasoning_jax import config, vocab as V
from reasoning_jax.commands.assemble import _matches, assemble
from reasoning_jax.commands.sample import printable, read_prompts
from reasoning_jax.config import ConfigError, parse_arg
from reasoning_jax.config_check import from_dict
from reasoning_jax.data.examples import DataError
from reasoning_jax.tasks import TASKS, TaskError, make_task
from reasoning_jax.tasks.prosqa_text import parse_question

def annotations(cls):
    for f in dataclasses.fields(cls):
        yield f.type
        if dataclasses.is_dataclass(getattr(config, f.type, None)):
            yield from annotations(getattr(config, f.type))

ANNOTATIONS = set(annotations(config.Config))

def attempt(function, *args, **named):
    """Call it; a refusal in our own words is an answer, too."""
    try:
        return function(*args, **named)
    except (ConfigError, DataError, TaskError, V.VocabError):
        return None

def exercise(texts, rows, prompts):
    for name in TASKS:
        if name == "reasoning_gym":
            continue
        task = make_task(name)
        problem = task.problem(0)
        for text in texts:
            task.verify(problem, text)
            task.verify(problem, problem.answer + text)
            attempt(make_task, text)
            attempt(make_task, name, **{text: 1})
    for text in texts:
        _matches("12", "", text)
        printable(text)
        attempt(parse_question, text)
        attempt(parse_arg, text, a=1, b="x")
        attempt(parse_arg, f"b={text}", a=1, b="x")
        attempt(from_dict, {text: 1})
        attempt(from_dict, {"task": {"name": text, text: text}})
        for codec in ({"kind": text}, {"kind": "char", "characters": text}, {"kind": "word",
                      "words": text.split()}, {"kind": "tokenizer", "tokenizer_json": text}):
            attempt(V.Vocab.from_dict, {"codec": codec, "specials": {text: 0}})
        for codec in (V.ByteCodec(), V.CharCodec("".join(sorted(set(text)))),
                      V.WordCodec(tuple(dict.fromkeys(text.split())) or ("a",))):
            vocab = V.make_vocab(codec)
            ids = attempt(vocab.encode, text)
            if ids is not None:
                vocab.decode(ids)
    read_prompts(prompts)
    made = assemble(from_dict({
        "data": {"source": "jsonl", "path": rows, "seq_len": 512, "answer_prefix": "### "},
        "vocab": {"kind": "byte"}, "noise": {"source": "random"},
    }))
    source = made.examples("train")
    for i in range(len(source)):
        made.encoder.split_ids(source[i])
        for text in texts:
            made.judge(source, i)(text)

files = sys.argv[1:]
exercise(["1", "a b"], files[0], files[1])
before = sorted(os.listdir("."))
sys.addaudithook(hook)
armed = True
exercise(json.load(sys.stdin), files[2], files[3])
armed = False
if "--trip" in sys.argv:
    armed = True
    open("made", "w").close(); eval("1"); os.system("true")
    import socket; socket.socket().close()
    armed = False
children = []
for name in os.listdir("/proc"):
    if name.isdigit():
        try:
            parent = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children += [name] if int(parent) == os.getpid() else []
print(json.dumps([seen, sorted(set(os.listdir(".")) - set(before)), children]))
'''


def run(tmp_path, *more):
    here = tmp_path / "here"
    here.mkdir()
    names = []
    for name, texts in (("plain", ["1", "a b"]), ("rows", INJECTIONS)):
        rows = [{"question": t, "steps": [t], "answer": t or "x"} for t in texts for _ in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        text = "\n".join(t.replace("\n", " ") for t in texts)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        names += [tmp_path / f"{name}.jsonl", tmp_path / f"{name}.txt"]
    done = subprocess.run(
        [sys.executable, "-B", "-c", DRIVER, *map(str, names), *more], input=json.dumps(INJECTIONS),
        capture_output=True, text=True, timeout=100, check=False, cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_injections_leave_no_file_process_or_socket(tmp_path):
    """Catches: eval, exec, a shell or a file anywhere between a text and its verdict."""
    seen, left, children = run(tmp_path)
    assert (seen, left, children) == ([], [], [])


def test_the_hook_sees_what_it_is_there_for(tmp_path):
    seen, left, _ = run(tmp_path, "--trip")
    assert left == ["made"]
    for words in ("open 'made'", "compile", "os.system", "socket."):
        assert any(event.startswith(words) for event in seen), words


@pytest.mark.parametrize("dataset", ["countdown", "string_insertion", "chain_sum"])
def test_injections_into_the_worker_of_reasoning_gym_leave_nothing(dataset, tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    from reasoning_jax.tasks import gym, make_task

    monkeypatch.chdir(tmp_path)
    gym._worker.cache_clear()  # a worker whose folder is this one
    try:
        task = make_task("reasoning_gym", dataset=dataset)
        problem = task.problem(0)
        for text in INJECTIONS:
            assert not task.verify(problem, text).correct
            assert not task.verify(problem, f"{problem.answer} {text}").correct
    finally:
        worker = gym._worker(gym.os.getpid())
        worker.close()
        gym._worker.cache_clear()
    assert list(tmp_path.iterdir()) == []
