"""The algebra of edits that the viewer shows."""

import numpy as np
import pytest

from reasoning_jax.report import replay
from tests.report.runs import action

BACKSPACE, EOS = action("", "backspace"), action("", "eos")


def test_backspace_undoes_the_newest_token_only():
    # Mutation: pop from the front, or clear.
    tokens = [action(text) for text in ("1", "2\n", "", "3")]
    assert replay([*tokens, BACKSPACE]) == ["1", "12\n", "12\n", "12\n3", "12\n"]


def test_state_after_token_and_backspace_is_the_state_before():
    # Mutation: a backspace that also drops the token below, or a token pushed twice.
    rng = np.random.default_rng(0)
    stream: list[dict] = []
    for _ in range(200):
        stream.append(BACKSPACE if rng.random() < 0.4 else action(str(rng.integers(10))))
        before = replay(stream, ["x", "yz"])
        assert replay([*stream, action("new"), BACKSPACE], ["x", "yz"])[-1] == before[-1]
        assert replay(stream[:-1], ["x", "yz"]) == before[:-1]


def test_deletable_prompt_goes_last_token_first_and_then_nothing():
    # Mutations: delete `deletable` before what was written; from its front; fail when it is empty.
    stream = [action("a"), *[BACKSPACE] * 4, action("b")]
    assert replay(stream, ["7", "89"]) == ["789a", "789", "7", "", "", "b"]


def test_nothing_happens_after_the_end():
    # Mutation: do not latch the end.
    assert replay([action("4"), EOS, action("2"), BACKSPACE]) == ["4"] * 4


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="action 1: kind must be one of token, backspace, eos"):
        replay([action("a"), action("b", "undo")])
