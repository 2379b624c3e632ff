"""Benchmarks run: at a size at which their numbers say nothing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import coconut, sequencematch, speed, worker


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
    # Catches: an error that is taken for a time, and waiting for a process that is gone.
    peer = tmp_path / "peer.py"
    peer.write_text("import json; print('{}'); input(); print(json.dumps({'error': 'no room'}))")
    process = worker.Worker([sys.executable, peer], {})
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
