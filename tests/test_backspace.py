"""Packing against the list oracle and the worked examples; collapse; noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import backspace
from tests import oracle

BKID = 9
START = 7


def to_ids(actions):
    return [BKID if a == oracle.BK else a for a in actions]


def rows(start, actions, width, segment=1, floor=0):
    """One batch row of a single segment, padded to `width`."""
    ids = [start, *to_ids(actions)]
    pad = width - len(ids)
    return (
        np.array([ids + [0] * pad]),
        np.array([[segment] * len(ids) + [0] * pad]),
        np.full((1, width), floor),
    )


def attended(mask):
    return [np.flatnonzero(row).tolist() for row in np.asarray(mask)]


def letters(text):
    return [oracle.BK if c == "<" else ord(c) - ord("a") for c in text]


def test_worked_example_main():
    # a b c ⌫ ⌫ d ⌫ ⌫ ⌫ e $ with $ written as f; the third consecutive ⌫ finds nothing to delete.
    packed = backspace.pack(*rows(START, letters("abc<<d<<<ef"), 12), BKID)
    assert packed.tokens[0].tolist() == [7, 0, 1, 2, 1, 0, 3, 0, 7, 7, 4, 5]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 2, 1, 2, 1, 0, 0, 1, 2]
    assert attended(packed.mask[0]) == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 5], [0, 1, 6], [0, 7], [8], [9],
        [0, 10], [0, 10, 11],
    ]  # fmt: skip
    dedup = backspace.deduplicate(*rows(START, letters("abc<<d<<<ef"), 12), BKID, 7)
    assert dedup.tokens[0].tolist() == [7, 0, 1, 2, 3, 4, 5]
    assert dedup.positions[0].tolist() == [0, 1, 2, 3, 2, 1, 2]
    assert attended(dedup.mask[0]) == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 5], [0, 5, 6],
    ]  # fmt: skip
    assert dedup.pointer[0].tolist() == [0, 1, 2, 3, 2, 1, 4, 1, 0, 0, 5, 6]
    assert dedup.rows.tolist() == [7]


def test_worked_example_start():
    packed = backspace.pack(*rows(START, letters("<<af"), 5), BKID)
    assert packed.tokens[0].tolist() == [7, 7, 7, 0, 5]
    assert packed.positions[0].tolist() == [0, 0, 0, 1, 2]
    assert attended(packed.mask[0]) == [[0], [1], [2], [0, 3], [0, 3, 4]]
    dedup = backspace.deduplicate(*rows(START, letters("<<af"), 5), BKID, 5)
    assert dedup.pointer[0].tolist() == [0, 0, 0, 1, 2]


def random_actions(rng, n, backspace_rate):
    return [
        oracle.BK if rng.random() < backspace_rate else int(rng.integers(0, 6)) for _ in range(n)
    ]


@pytest.mark.parametrize("backspace_rate", [0.0, 0.3, 0.6, 1.0])
def test_packings_equal_the_oracle(backspace_rate):
    rng = np.random.default_rng(int(backspace_rate * 10))
    pack = jax.jit(backspace.pack, static_argnums=3)
    deduplicate = jax.jit(backspace.deduplicate, static_argnums=(3, 4))
    width = 24
    for _ in range(40):
        actions = random_actions(rng, int(rng.integers(0, width)), backspace_rate)
        floor = int(rng.integers(0, 4))
        batch = rows(START, actions, width, floor=floor)
        n = len(actions) + 1
        packed = pack(*batch, BKID)
        tokens, positions, attends = oracle.pack_p1(START, actions, floor)
        assert packed.tokens[0, :n].tolist() == tokens
        assert packed.positions[0, :n].tolist() == positions
        assert attended(packed.mask[0])[:n] == attends
        assert attended(packed.mask[0])[n:] == [[i] for i in range(n, width)]
        dedup = deduplicate(*batch, BKID, width)
        tokens, positions, attends, pointers = oracle.pack_p2(START, actions, floor)
        assert dedup.tokens[0, : len(tokens)].tolist() == tokens
        assert dedup.positions[0, : len(tokens)].tolist() == positions
        assert attended(dedup.mask[0])[: len(tokens)] == attends
        assert dedup.pointer[0, :n].tolist() == pointers
        assert int(dedup.rows[0]) == len(tokens)


def test_segments_are_islands():
    rng = np.random.default_rng(0)
    parts = [random_actions(rng, n, 0.4) for n in (5, 0, 9)]
    floors = [0, 0, 3]
    single = [rows(START, p, len(p) + 1, s + 1, f) for s, (p, f) in enumerate(zip(parts, floors))]
    joined = tuple(np.concatenate([x[i] for x in single], axis=1) for i in range(3))
    packed = backspace.pack(*joined, BKID)
    dedup = backspace.deduplicate(*joined, BKID, joined[0].shape[1])
    begin, begin_p2 = 0, 0
    for part, floor in zip(parts, floors):
        tokens, positions, attends = oracle.pack_p1(START, part, floor)
        end = begin + len(tokens)
        assert packed.tokens[0, begin:end].tolist() == tokens
        assert packed.positions[0, begin:end].tolist() == positions
        assert attended(packed.mask[0])[begin:end] == [[begin + j for j in a] for a in attends]
        tokens, positions, attends, pointers = oracle.pack_p2(START, part, floor)
        assert dedup.pointer[0, begin:end].tolist() == [begin_p2 + p for p in pointers]
        end_p2 = begin_p2 + len(tokens)
        assert attended(dedup.mask[0])[begin_p2:end_p2] == [
            [begin_p2 + j for j in a] for a in attends
        ]
        begin, begin_p2 = end, end_p2


def test_collapse_equals_the_oracle():
    rng = np.random.default_rng(1)
    batch = [random_actions(rng, 15, 0.5) for _ in range(50)]
    lengths = rng.integers(0, 16, 50)
    tokens, counts = jax.jit(backspace.collapse, static_argnums=2)(
        jnp.array([to_ids(a) for a in batch]), jnp.array(lengths), BKID
    )
    for actions, n, row, count in zip(batch, lengths, tokens, counts):
        want = oracle.states(START, actions[:n])[-1][1:]
        assert row[: int(count)].tolist() == want
        assert not row[int(count) :].any()


@pytest.mark.parametrize("run", [1, 2, 3])
@pytest.mark.parametrize("xp", [np, jnp])
def test_noise_equals_the_oracle_and_collapses_to_the_clean_text(run, xp):
    rng = np.random.default_rng(run)
    T = 12
    for _ in range(12):
        length = int(rng.integers(0, T + 1))
        clean = rng.integers(0, 6, T)
        noised, noise = backspace.draw_noise(rng, clean, 0.4, run, np.arange(6))
        executed, labels, total = backspace.insert_noise(
            xp.asarray(clean), length, xp.asarray(noised), xp.asarray(noise), BKID, xp
        )
        inserted = [noise[i].tolist() if noised[i] else [] for i in range(length)]
        want = tuple(map(to_ids, oracle.insert_noise(clean[:length].tolist(), inserted)))
        assert executed[: int(total)].tolist() == want[0]
        assert labels[: int(total)].tolist() == want[1]
        assert not executed[int(total) :].any()
        actions = [oracle.BK if a == BKID else a for a in want[0]]
        assert oracle.states(START, actions)[-1][1:] == clean[:length].tolist()


def test_the_label_before_noise_is_the_true_token():
    executed, labels, n = backspace.insert_noise(
        np.array([1, 2, 3, 4]), 4, np.array([0, 0, 1, 0], bool), np.full((4, 1), 5), BKID, np
    )
    assert executed[:n].tolist() == [1, 2, 5, BKID, 3, 4]
    assert labels[:n].tolist() == [1, 2, 3, BKID, 3, 4]


def test_drawn_noise_is_wrong_and_has_the_asked_rate():
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 4, 20_000)
    noised, noise = backspace.draw_noise(rng, clean, 0.1, 1, np.arange(4))
    assert (noise[noised, 0] != clean[noised]).all()
    assert abs(noised.mean() - 0.1) < 4 * np.sqrt(0.09 / 20_000)
    noised, _ = backspace.draw_noise(rng, clean, 1.0, 1, np.array([2]))
    assert (noised == (clean != 2)).all()
