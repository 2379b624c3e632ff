"""Benchmarks run: at a size at which their numbers say nothing."""

import dataclasses
import json

import pytest

from benchmarks import sequencematch


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
