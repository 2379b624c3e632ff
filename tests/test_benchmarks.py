"""Benchmarks run: at a size at which their numbers say nothing."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import (
    coconut,
    peers,
    sequencematch,
    speed,
    speed_ours,
    speed_rows,
    speed_start,
    worker,
)
from benchmarks.speed_rows import Arm, Goal, Row
from reasoning_jax import sharding


@pytest.fixture
def tiny(monkeypatch, quick_to_compile):
    for name, value in {"WARM_UP": 2, "BLOCK": 1, "BLOCKS": 2, "ROWS": 4}.items():
        monkeypatch.setattr(sequencematch, name, value)
    config_of = sequencematch.config_of

    def small(*how):
        config = config_of(*how)
        model = dataclasses.replace(
            config.model, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16
        )
        return dataclasses.replace(config, model=model)

    monkeypatch.setattr(sequencematch, "config_of", small)


def test_a_sequencematch_step_is_timed_in_every_arm(tiny, monkeypatch, tmp_path, capsys):
    # Catches: an arm that no longer starts, and rollouts that are not made where they are timed.
    for same_code in ("bc p1", "sm p2"):
        monkeypatch.delitem(sequencematch.ARMS, same_code)
    refreshed = []
    refresh = sequencematch.MatchedSource.refresh
    monkeypatch.setattr(
        sequencematch.MatchedSource, "refresh",
        lambda self, state, step: refreshed.append(step) or refresh(self, state, step),
    )  # fmt: skip
    out = tmp_path / "out.json"
    monkeypatch.setattr(
        "sys.argv", ["sequencematch", "--lengths=24", "--rates=0.1", f"--out={out}"]
    )
    sequencematch.main()
    (row,) = json.loads(out.read_text())
    assert (row["length"], row["rate"]) == (24, 0.1)
    assert list(row["seconds"]) == list(sequencematch.ARMS)
    assert all(0 < wall < 60 and cpu > 0 for cpu, wall in row["seconds"].values())
    # Once to begin with in each arm of SequenceMatch.
    assert refreshed.count(sequencematch.WARM_UP) == 2
    assert capsys.readouterr().out.splitlines()[-1].count("ms (") == len(sequencematch.ARMS)


def test_examples_leave_room_for_their_noise():
    # Catches: lengths at which noised rows are all cut, so that rates are not what they say.
    for length in (24, 128):
        for rate in (0.02, 0.3):
            source = sequencematch.RandomDigits(length, rate)
            longest = max(len(source[i].answer) for i in range(200))
            assert length / 3 < longest * (1 + 2 * rate) <= length - 4
            assert source[7] == source[7] != source[8]


# A reference's process that takes no time, and ours beside it: 4 tokens and 6 ms a run.
FAKE_PEER = """
import json, os, sys
hello = {"threads": 1, "cores": sorted(os.sched_getaffinity(0)), "argv": sys.argv}
print(json.dumps(hello), flush=True)
for line in sys.stdin:
    n = json.loads(line)["repeats"]
    print(json.dumps({"cpu": [0.03] * n, "wall": [0.04] * n, "tokens": [4] * n}), flush=True)
"""
FAKE_OURS = """
import sys
import jax.numpy as jnp
from benchmarks import coconut
coconut.PEER = sys.argv.pop(1)
coconut.our_step = coconut.our_decode = lambda *_: lambda: int(jnp.ones((2, 2)).sum())
coconut.our_temporaries = lambda shape: 2_000_000
coconut.timed = lambda run: {"cpu": [0.006], "wall": [0.006], "tokens": [run()]}
coconut.main()
"""


def test_coconut_and_its_reference_take_turns_on_one_core(tmp_path):
    # Catches: threads that are not pinned, a ratio upside down, a row that only one side has.
    peer, out = tmp_path / "peer.py", tmp_path / "out.json"
    peer.write_text(FAKE_PEER)
    flags = [f"--reference={tmp_path}", "--rounds=3", f"--out={out}"]
    run = subprocess.run(
        [sys.executable, "-c", FAKE_OURS, peer, *flags],
        capture_output=True, text=True, check=True, cwd=Path(coconut.__file__).parents[1],
    )  # fmt: skip
    lines = run.stdout.splitlines()[2:]
    assert lines[4] == "| step, 6 thoughts | 6 ms | 30 ms | 5.00x |"
    assert (
        lines[9]
        == "| decoding 16 tokens, ours 32 rows, reference 1 | 667 tokens/s | 133 tokens/s | 5.00x |"
    )
    assert lines[-1] == "| temporaries of a step, 6 thoughts | 2 MB | | |"
    whole = json.loads(out.read_text())
    assert whole["about"]["reference"]["argv"][1:] == [f"--reference={tmp_path}", "--threads=1"]
    for row in whole["rows"]:
        assert {len(row[side][clock]) for side in coconut.SIDES for clock in ("cpu", "wall")} == {3}


def test_a_request_that_the_reference_cannot_answer_ends_the_run(tmp_path):
    # Catches: an error that is taken for a time, waiting for a process that is gone, and what a
    # library prints on import that is taken for an answer.
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import json\nprint('[NO-OP] x\\n[1]\\n{\"a\": 1}')\ninput()\n"
        "print(json.dumps({'error': 'no room'}))"
    )
    process = worker.Worker([sys.executable, peer], {})
    assert process.hello == {"a": 1}
    with pytest.raises(RuntimeError, match="no room"):
        process.ask({"work": "step"})
    process.process.wait()
    with pytest.raises(RuntimeError, match="ended with 0"):  # whether or not the pipe broke first
        process.ask({"work": "step"})
    process.close()


FAKE_REFERENCE = """
import torch
from collections import namedtuple
Outputs = namedtuple("Outputs", "loss")
class Coconut(torch.nn.Module):
    def __init__(self, base, thought, start, end, eos):
        super().__init__()
        self.base, self.markers = base, [start, thought, thought, end]
    def forward(self, ids, mask, labels, positions):
        assert ids[:, 4:8].tolist() == [self.markers] * 2
        assert (labels != -100).sum(1).tolist() == [4, 4] and (labels[:, 8:] == ids[:, 8:]).all()
        return Outputs(self.base(ids, labels=labels).loss)
    def generate(self, ids, mask, max_new_tokens):
        assert ids.shape == (1, 8) and ids[0, -4:].tolist() == self.markers
        return torch.cat([ids, ids[:, :max_new_tokens]], 1)
"""


@pytest.mark.parity
def test_the_reference_is_given_the_rows_it_trains_on(tmp_path):
    # Catches: markers or labels at the wrong columns, times outside the protocol.
    (tmp_path / "coconut.py").write_text(FAKE_REFERENCE)
    small = {"thoughts": 2, "layers": 1, "width": 8, "heads": 1, "vocab": 12, "repeats": 2}
    peer = worker.Worker([sys.executable, coconut.PEER, f"--reference={tmp_path}"], {})
    step = peer.ask({"work": "step", "batch": 2, "length": 12, "prefix": 4} | small)
    assert step["tokens"] == [24, 24]
    assert all(seconds > 0 for seconds in step["cpu"] + step["wall"])
    assert peer.ask({"work": "generate", "prompt": 8, "new_tokens": 3} | small)["tokens"] == [3, 3]
    with pytest.raises(RuntimeError, match="exceed length 5"):
        peer.ask({"work": "step", "batch": 2, "length": 5, "prefix": 4} | small)
    peer.close()


class Scripted:
    """Stands for a worker's process: a run takes the next of its seconds, or fails."""

    def __init__(self, seconds, tokens=100, asked=None, **more):
        self.seconds, self.tokens, self.more = list(seconds), tokens, more
        self.asked = [] if asked is None else asked

    def ask(self, request):
        n = request["repeats"]
        self.asked += [request["who"]] * n
        walls = [self.seconds.pop(0) for _ in range(n)]
        if None in walls:
            raise RuntimeError("no room")
        return {
            "cpu": [2 * w for w in walls], "wall": walls, "tokens": [self.tokens] * n,
            "temporaries": 0, "facts": {}, **self.more,
        }  # fmt: skip


def row_of(*arms, **more):
    return Row("row", "a row", {"work": "w"}, tuple(Arm(a, a, {"who": a}) for a in arms), **more)


@pytest.fixture
def modules(monkeypatch):
    for name in ("fast", "slow", "broken"):
        monkeypatch.setitem(speed.MODULES, name, (name, "no.module"))


def test_arms_take_turns_and_ratios_are_of_rounds(modules):
    # Catches: one arm before the other throughout; a ratio upside down, or one of medians; tokens
    # that are not taken into account; CPU seconds in the wall column.
    asked = []
    row = row_of("ours", "slow", goals={"slow": Goal("faster", 2.5)})
    workers = {
        "ours": Scripted([1.0, 2.0, 4.0], asked=asked),
        "slow": Scripted([3.0, 4.0, 20.0], asked=asked),
    }
    times, failed = speed.measure(row, workers, 3)
    assert asked == ["ours", "slow", "slow", "ours", "ours", "slow"]
    assert failed == {}
    assert times["slow"]["cpu"] == [6.0, 8.0, 40.0]
    # Of the rounds 3, 2 and 5; of the medians it would be 2.
    assert speed.ratio(times, "slow", "wall") == 3
    assert speed.lines(row, times, {}) == [
        "| a row: ours | 25 | 50 | 25 to 100 |  |  |  |",
        "| a row: slow | 12 | 25 | 5 to 33 |  | 3.00x / 3.00x | >= 2.5x |",
    ]
    times["slow"]["tokens"] = [50] * 3
    assert speed.ratio(times, "slow", "wall") == 6
    assert len(speed.HEAD.split("|")) == len(speed.lines(row, times, {})[0].split("|"))


def test_lines_of_shares_seconds_and_temporaries():
    # Catches: a cost with the wrong sign, a limit that stands at another arm.
    def of(*seconds, temporaries=0):
        return {
            "cpu": seconds, "wall": seconds, "tokens": [100] * len(seconds),
            "temporaries": temporaries,
        }  # fmt: skip

    bare = row_of("ours", "slow", goals={"slow": Goal("share", 0.02)})
    assert (
        "| +10.0 % / +10.0 % | <= 2 % |"
        in speed.lines(bare, {"ours": of(1.1), "slow": of(1.0)}, {})[1]
    )
    start = row_of("ours", "slow", goals={"ours": Goal("seconds", 15)}, unit="s")
    assert speed.lines(start, {"ours": of(3.0, 4.0), "slow": of(7.0, 7.0)}, {}) == [
        "| a row: ours | 3.50 s | 3.50 s | 4.00 s to 3.00 s |  |  | <= 15 s |",
        "| a row: slow | 7.00 s | 7.00 s | 7.00 s to 7.00 s |  | 2.04x / 2.04x |  |",
    ]
    loss = row_of("ours", "slow", goals={"slow": Goal("temporaries", 0.25)})
    both = {"ours": of(1.0, temporaries=20_000_000), "slow": of(1.0, temporaries=200_000_000)}
    first, second = speed.lines(loss, both, {})
    assert "| 20 MB |" in first
    assert "| 200 MB | 1.00x / 1.00x | temporaries <= 0.25x (0.100x) |" in second


def test_a_peer_that_fails_is_left_out_and_ours_is_not(modules):
    # Catches: a failure that ends the run, one that is taken for a time, one of ours passed over.
    row = row_of("ours", "slow", "broken")
    workers = {
        "ours": Scripted([1.0] * 3), "slow": Scripted([1.0] * 3),
        "broken": Scripted([1.0, None, 1.0]),
    }  # fmt: skip
    times, failed = speed.measure(row, workers, 3)
    assert list(times) == ["ours", "slow"]
    assert failed == {"broken": "failed: no room"}
    assert len(times["slow"]["wall"]) == 3
    assert speed.lines(row, times, failed)[2] == "| a row: broken | failed: no room | | | | | |"
    with pytest.raises(RuntimeError, match="a row: ours: no room"):
        speed.measure(row, {"ours": Scripted([1.0, None])}, 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokens": 90}, "tokens is 100 of 'ours' and 90 of 'slow'"),
        ({"facts": {"parameters": 8, "loss": 6.2}}, "parameters is 7 of 'ours' and 8 of 'slow'"),
        ({"facts": {"parameters": 7, "loss": 5.0}}, "the loss at the start is 6.2"),
        ({"facts": {"parameters": 7, "loss": 6.3}}, None),
        ({"facts": {}}, None),
        ({"facts": {"training loss": 6.2}}, "the loss of 'slow' does not fall"),
        ({"facts": {"distinct": 1}}, "all tokens of 'slow' are the same"),
    ],
)
def test_arms_that_do_not_do_the_same_work_are_refused(modules, other, message):
    # Catches: a comparison of a smaller model, or of fewer tokens, that looks like a faster one.
    facts = {"parameters": 7, "loss": 6.2}
    workers = {
        "ours": Scripted([1.0], facts=facts),
        "slow": Scripted([1.0], **{"facts": facts, **other}),
    }
    refused = pytest.raises(ValueError, match=message) if message else contextlib.nullcontext()
    with refused:
        speed.measure(row_of("ours", "slow"), workers, 1)


LLAMA = {"vocab": 32, "width": 16, "layers": 1, "heads": 2, "inner": 16}
TINY = {
    "training": {"batch": 2, "length": 8},
    # As large as group, so that one program serves both.
    "sampling": {"batch": 6, "prompt": 4, "new_tokens": 3},
    "queue": {"rows": 6, "batch": 2, "prompt": 3, "median": 4, "p90": 6, "most": 7},
    "group": {"prompts": 2, "completions": 3, "prompt": 4, "new_tokens": 3},
    "loss": {"batch": 2, "length": 8, "width": 8, "vocab": 2100},
    "safety": {"batch": 2, "length": 8, "steps": 3},
}
# The tokens of a run.
WORK = {"training": 16, "sampling": 18, "group": 18, "loss": 16, "safety": 48}


@pytest.fixture(scope="module")
def one_device():
    device = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: device)
        patch.setattr(jax, "device_count", lambda: 1)
        with jax.set_mesh(sharding.make_mesh()):
            yield


# One row of each work, since all are shrunk to the same size.
OUR_ARMS = {
    f"{row.request['work']} {dict(arm.extra)}": (row, arm)
    for row in speed.ROWS
    for arm in row.arms
    if arm.worker == speed_rows.OURS
}


@pytest.mark.parametrize(("row", "arm"), list(OUR_ARMS.values()), ids=list(OUR_ARMS))
def test_each_work_of_ours_runs_and_counts_its_tokens(
    row, arm, one_device, unoptimised, monkeypatch
):
    # Catches: an arm that no longer starts, one that counts what it does not do, a request of the
    # table that its worker does not take, arms that differ in name alone.
    name = row.request["work"]
    request = {**row.request, **TINY[name], **arm.extra, "repeats": 1}
    request |= {key: value for key, value in LLAMA.items() if name != "loss"}
    assert {*request} == {*row.request, *arm.extra, "repeats"}
    made, loops = {}, []
    train = speed_ours.loop.train
    monkeypatch.setattr(speed_ours.loop, "train", lambda *a, **k: loops.append(1) or train(*a, **k))
    got = worker.answer(request, speed_ours.WORKS, made)
    (run,) = made.values()
    assert len(loops) == (2 if arm.extra.get("bare") is False else 0)
    lengths = speed_ours.trace_lengths(6, 4, 6, 7)
    assert got["tokens"] == [WORK.get(name, int(lengths.sum()))]
    assert got["cpu"][0] > 0
    assert got["wall"][0] > 0
    assert got["facts"]["dtype"] == "float32"
    if name in ("training", "sampling"):
        # Embedding and unembedding, four of attention, three of the MLP, three norms.
        assert got["facts"]["parameters"] == 2 * 32 * 16 + 4 * 16 * 16 + 3 * 16 * 16 + 3 * 16
    if name == "training":
        first = got["facts"]["training loss"]
        later = worker.answer({**request, "repeats": 20}, speed_ours.WORKS, made)
        assert later["facts"]["training loss"] < first < 1.2 * np.log(32)
    if name == "sampling":
        assert got["facts"]["distinct"] > 1
    if name == "queue":
        places, sample = [], run.sample
        run.sample = lambda *a: places.append(len(a[1])) or sample(*a)
        run()
        assert places == ([6] if arm.extra["continuous"] else [2, 2, 2])
        assert (run.batch_rows, *run.limit) == (2, *lengths)
    if name == "group":
        assert len(run.prompts) == (2 if arm.extra["shared"] else 6)
        assert len(np.unique(run.prompts, axis=0)) == 2
    if name == "loss":
        assert got["facts"]["loss"] == pytest.approx(np.log(2100), rel=0.05)


def test_lengths_have_the_quantiles_that_the_row_names():
    # Catches: a spread that is not that of the named quantiles, an order by length.
    wanted = speed_rows.QUEUE.request
    lengths = speed_ours.trace_lengths(
        wanted["rows"], wanted["median"], wanted["p90"], wanted["most"]
    )
    assert len(lengths) == 256
    assert abs(np.quantile(lengths, [0.5, 0.9]) - [337, 824]).max() < 8
    assert 1 <= lengths.min() < lengths.max() == 2048
    assert (lengths == 2048).mean() < 0.01
    longest = lengths.reshape(-1, 32).max(1)
    assert (longest > 2 * 337).all()  # as in a queue that nobody has sorted


def test_a_table_without_peers(tmp_path, monkeypatch, capsys):
    # Catches: a missing peer that ends the run or goes unnamed, cores that are not those asked
    # for, a file that is not beside the table.
    row = Row(
        "import", "an import", {"work": "import"},
        (
            Arm("ours", "start", {"module": "reasoning_jax"}),
            Arm("peer", "transformers", {"module": ""}),
            Arm("other", "tunix", {"module": ""}),
        ),
        {"ours": Goal("seconds", 0.2)}, "s",
    )  # fmt: skip
    monkeypatch.setattr(speed, "ROWS", (row,))
    (tmp_path / "tunix.failed").write_text("ERROR: No matching\ndistribution | found")
    core, out = max(os.sched_getaffinity(0)), tmp_path / "deep" / "out.json"
    flags = [f"--peers={tmp_path}", "--rounds=2", f"--cores={core}", f"--out={out}"]
    monkeypatch.setattr("sys.argv", ["speed", *flags])
    before = os.sched_getaffinity(0)
    try:
        speed.main()
    finally:
        os.sched_setaffinity(0, before)
    *_, ours, peer, other = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| an import: ours (\| [0-9.]+ s ){2}\| .* \| <= 0.2 s \|", ours)
    assert peer == "| an import: peer | not installed: `make bench` does it | | | | | |"
    assert "not installed: ERROR: No matching distribution / found |" in other
    whole = json.loads(out.read_text())
    assert whole["about"]["cores"] == whole["about"]["workers"]["start"]["cores"] == [core]
    assert whole["about"]["machine"]["python"]
    (kept,) = whole["rows"]
    assert len(kept["arms"]["ours"]["wall"]) == 2
    assert list(kept["absent"]) == ["peer", "other"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--rows=train,trian", "no row trian; there are train, sample"),
        ("--arms=ours,numpy", "no worker numpy; there are ours, start"),
        ("--rounds=0", "--rounds must be at least 1"),
    ],
)
def test_what_the_table_does_not_have_is_refused(flag, said, monkeypatch, capsys):
    # Catches: a table of nothing, after a wrong word.
    monkeypatch.setattr("sys.argv", ["speed", "--list", flag])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$*" >> {log}; {then} ;;
esac
"""


def test_installing_a_peer(tmp_path, monkeypatch):
    # Catches: half an environment that is taken for a whole one, a reason that is lost, an
    # environment that stays when its requirements change.
    into, log, python = tmp_path / "into", tmp_path / "log", tmp_path / "python"
    listed = tmp_path / "requirements.txt"
    listed.write_text("some==1\n")
    monkeypatch.setattr(peers, "requirements", lambda peer: listed)

    def install(then, more=()):
        python.write_text(FAKE_PYTHON.format(log=log, then=then))
        python.chmod(0o755)
        return peers.install("tunix", str(python), more, into)

    assert "No such file" in peers.install("tunix", str(tmp_path / "none"), (), into)
    fails = "echo WARNING: slow; echo ERROR: no such release >&2; exit 1"
    assert install(fails) == "ERROR: no such release"
    assert peers.missing(into, "tunix") == "not installed: ERROR: no such release"
    assert install("exit 0", ("--no-deps",)) == peers.missing(into, "tunix") == ""
    assert log.read_text().splitlines()[-1].endswith(f"--no-deps -r {listed}")
    runs = len(log.read_text().splitlines())
    assert install(fails) == ""  # there already
    assert len(log.read_text().splitlines()) == runs
    listed.write_text("some==2\n")
    assert install(fails) != ""
    assert not peers.python_of(into, "tunix").exists()


@pytest.mark.parametrize("peer", peers.PEERS)
def test_requirements_of_peers_are_pinned(peer):
    # Catches: a version that is whatever is newest, an address of an index, a peer without a list.
    lines = peers.requirements(peer).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", pin) for pin in pins)
    assert len(pins) > 20
    assert {peer for peer, _ in speed.MODULES.values()} == {"", *peers.PEERS}


def test_rows_of_metrics_while_they_are_written(tmp_path):
    # Catches: waiting for a first step that takes an evaluation or half a line for it.
    assert speed_start.train_steps(tmp_path) == []
    rows = [{"step": 0, "split": "validation"}, {"step": 1, "split": "train"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = tmp_path / "metrics.jsonl"
    file.write_text(text[:-1])
    assert speed_start.train_steps(tmp_path) == []
    file.write_text(text + '{"step": 2, "spl')
    assert speed_start.train_steps(tmp_path) == [1]


def test_cpu_seconds_of_children_count():
    # Catches: a start that seems to cost nothing, since a process of its own does the work.
    def run():
        busy = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)
        return 1

    assert 0.3 <= worker.timed(run)["cpu"][0] < 5
