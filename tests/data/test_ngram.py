"""Noise from bigram counts is wrong, has the counted frequencies, and follows its generator."""

import itertools
import pickle

import numpy as np
import pytest

from reasoning_jax import backspace
from reasoning_jax.data import ngram
from reasoning_jax.data.examples import DataError
from reasoning_jax.data.ngram import NgramNoise, draw_ngram_noise

TEXT_IDS = range(2, 12)


def frequencies(tokens, size):
    return np.bincount(tokens, minlength=size) / len(tokens)


def sequences(n=50, length=40, seed=0):
    """Markov chains on the text ids with few continuations each, after a start token 0."""
    rng = np.random.default_rng(seed)
    followers = {i: rng.choice(TEXT_IDS, 4) for i in (0, *TEXT_IDS)}
    out = []
    for _ in range(n):
        chain = [0]
        for _ in range(length):
            chain.append(int(rng.choice(followers[chain[-1]])))
        out.append([*chain, 1])
    return out


def law(counted, text_ids, smoothing, previous, excluded=None):
    """p(z | previous) with plain dictionaries."""
    weights = {z: smoothing / len(text_ids) for z in text_ids}
    for sequence in counted:
        for a, b in itertools.pairwise(sequence):
            if a == previous and b in weights:
                weights[b] += 1
    weights.pop(excluded, None)
    if not sum(weights.values()):
        weights = dict.fromkeys(weights, 1)
    return {z: w / sum(weights.values()) for z, w in weights.items()}


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("previous", [0, 3, 7, 99])
def test_the_law_is_that_of_the_counts(smoothing, previous):
    # Catches: counts off by one row, pairs across sequences, an excluded token that keeps its mass
    # or gives it to its neighbour, smoothing per token in place of per row.
    counted = sequences()
    noise = NgramNoise.from_sequences(counted, TEXT_IDS, smoothing=smoothing)
    n = 2000
    grid = (np.arange(n) + 0.5) / n
    for excluded in (*TEXT_IDS, 1, 500):
        drawn = [noise._continuation(u, previous, excluded) for u in grid]
        wanted = law(counted, TEXT_IDS, smoothing, previous, excluded)
        found = frequencies(drawn, 12)
        for z in TEXT_IDS:
            assert abs(found[z] - wanted.get(z, 0.0)) < 4 / n, (excluded, z)
        assert excluded not in drawn


def test_a_run_is_a_chain():
    # Catches: all tokens of a run drawn given the clean token, or none of them ever the right one.
    counted = sequences()
    noise = NgramNoise.from_sequences(counted, TEXT_IDS, smoothing=0.5)
    rng = np.random.default_rng(0)
    runs = np.array([noise.draw(rng, previous=3, right=4, run=3) for _ in range(10_000)])
    assert not np.any(runs[:, 0] == 4)
    assert np.any(runs[:, 1] == 4)
    for place in (1, 2):
        for z in TEXT_IDS:
            after = runs[runs[:, place - 1] == z, place]
            if len(after) > 500:
                wanted = law(counted, TEXT_IDS, 0.5, z)
                expected = np.array([wanted.get(i, 0.0) for i in range(12)])
                assert np.abs(frequencies(after, 12) - expected).max() < 5 / len(after) ** 0.5


def test_only_text_ids_are_drawn():
    # Catches: <eos> and <bos>, which training sequences hold, as noise.
    noise = NgramNoise.from_sequences(sequences(), [5, 2, 5, 7], smoothing=0.3)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([noise.draw(rng, 3, 2, 4) for _ in range(500)])
    assert set(drawn.tolist()) == {2, 5, 7}


def test_without_a_choice_there_is_no_noise():
    noise = NgramNoise.from_sequences([[5, 5, 5]], [5])
    rng = np.random.default_rng(0)
    assert noise.draw(rng, 5, 5, 2) is None
    assert noise.draw(rng, 5, 4, 2).tolist() == [5, 5]
    assert noise.draw(rng, None, 4, 2).tolist() == [5, 5]
    noised, _ = draw_ngram_noise(rng, np.array([5, 4, 5]), 1.0, 2, noise, None)
    assert noised.tolist() == [False, True, False]


def test_a_token_that_only_the_right_one_follows_falls_back_to_uniform():
    # Catches: the excluded token drawn all the same, or a division by zero.
    noise = NgramNoise.from_sequences([[2, 3]] * 9, TEXT_IDS, smoothing=0.0)
    drawn = [noise._continuation(u, 2, 3) for u in np.linspace(0, 1, 901, endpoint=False)]
    assert set(drawn) == set(TEXT_IDS) - {3}
    assert np.ptp(np.bincount(drawn)[[2, *range(4, 12)]]) <= 2
    assert noise._continuation(0.999, 2, 4) == 3


@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval(u):
    # Catches: an index one beyond a row or beyond the text ids.
    # Above 1e16 a sum of counts and smoothing is rounded by more than a count.
    for smoothing in (0.0, 1e-9, 1.0, *np.geomspace(1e16, 2e16, 20)):
        noise = NgramNoise.from_sequences(sequences(3), TEXT_IDS, smoothing=smoothing)
        for previous in (None, 0, 1, *TEXT_IDS, 99):
            for excluded in (None, 1, *TEXT_IDS):
                z = noise._continuation(u, previous, excluded)
                assert z in TEXT_IDS
                assert z != excluded


def test_counting_in_parts_changes_nothing(monkeypatch):
    # Catches: counts of a pair that is in two parts lost or doubled.
    whole = NgramNoise.from_sequences(sequences(), TEXT_IDS)
    monkeypatch.setattr(ngram, "_PART", 10)
    parts = NgramNoise.from_sequences((np.array(s, np.int32) for s in sequences()), TEXT_IDS)
    assert repr(parts) == repr(whole)
    for name in ("text_ids", "previous_ids", "starts", "next_ids", "cumulative"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))


def test_reading_stops_at_the_bound():
    # Catches: an endless source read for ever, or a sequence counted beyond the bound.
    def endless():
        while True:
            yield [2, 3, 4]

    noise = NgramNoise.from_sequences(endless(), TEXT_IDS, max_tokens=8)
    # 2 3 4 | 2 3 4 | 2 3
    assert noise.cumulative.tolist() == [0, 3, 5]
    assert noise.next_ids.tolist() == [3, 4]


@pytest.mark.parametrize(("T", "run", "rate"), [(0, 1, 0.5), (1, 3, 1.0), (200, 2, 0.3)])
def test_the_contract_of_draw_noise(T, run, rate):
    # Catches: shapes, types or ids that `insert_noise` cannot take; noise equal to its token; the
    # token before taken from a wrong place.
    counted = sequences()
    noise = NgramNoise.from_sequences(counted, TEXT_IDS, smoothing=0.0)
    clean = np.array(counted[0][1 : T + 1] * (T // 40 + 1))[:T].astype(np.int64)
    noised, drawn = draw_ngram_noise(np.random.default_rng(1), clean, rate, run, noise, 0)
    like = backspace.draw_noise(np.random.default_rng(1), clean, rate, run, np.array(TEXT_IDS))
    assert [(a.shape, a.dtype) for a in (noised, drawn)] == [(a.shape, a.dtype) for a in like]
    assert np.array_equal(noised, like[0])
    assert np.isin(drawn, TEXT_IDS).all()
    assert not np.any(drawn[noised, 0] == clean[noised])
    for i in np.flatnonzero(noised):
        before = int(clean[i - 1]) if i else 0
        assert law(counted, TEXT_IDS, 0.0, before, int(clean[i])).get(int(drawn[i, 0]), 0) > 0
    if T:
        executed, labels, n = backspace.insert_noise(clean, T, noised, drawn, 99, np)
        left, length = backspace.collapse(executed[None, :n], np.array([n]), 99)
        assert left[0, : int(length[0])].tolist() == clean.tolist()
        assert (labels[:n] == 99).sum() == (2 * run - 1) * noised.sum()


def test_noise_is_a_function_of_the_generator():
    # Catches: a hidden generator, or a place whose noise depends on how many places have any.
    noise = NgramNoise.from_sequences(sequences(), TEXT_IDS)
    clean = np.array(sequences()[0][1:])

    def draw(rate, seed=3, source=noise):
        return draw_ngram_noise(np.random.default_rng(seed), clean, rate, 3, source, 0)

    some, all_ = draw(0.3), draw(1.0)
    assert 0 < some[0].sum() < len(clean)
    assert np.array_equal(some[1][some[0]], all_[1][some[0]])
    assert not np.array_equal(all_[1], draw(1.0, seed=4)[1])
    copy = pickle.loads(pickle.dumps(noise))
    assert np.array_equal(draw(1.0, source=copy)[1], all_[1])
    assert repr(copy) == repr(noise)
    assert repr(noise) != repr(NgramNoise.from_sequences(sequences(seed=1), TEXT_IDS))


@pytest.mark.parametrize(
    ("counted", "text_ids", "options", "wanted"),
    [
        ([], TEXT_IDS, {}, "got no pairs"),
        ([[2], [], [3]], TEXT_IDS, {}, "got no pairs"),
        ([[0, 1]], TEXT_IDS, {}, "got no pairs"),
        ([[2, 3]], TEXT_IDS, {"max_tokens": 0}, "got no pairs"),
        ([[2, 3]], [], {}, "no text ids"),
        ([[2, -3]], TEXT_IDS, {}, "from -3 to 2"),
        ([[2, 1 << 31]], TEXT_IDS, {}, "wanted them from 0"),
        ([[2, 3.0]], TEXT_IDS, {}, "float64"),
        ([[2, True]], ["a"], {}, "wanted a sequence of integers"),
        ([[[2, 3]]], TEXT_IDS, {}, "shape (1, 2)"),
        ([[2, 3]], TEXT_IDS, {"smoothing": -1.0}, "smoothing"),
        ([[2, 3]], TEXT_IDS, {"smoothing": float("nan")}, "smoothing"),
    ],
)
def test_what_cannot_be_counted_is_refused(counted, text_ids, options, wanted):
    with pytest.raises(DataError) as caught:
        NgramNoise.from_sequences(counted, text_ids, **options)
    assert wanted in str(caught.value)
