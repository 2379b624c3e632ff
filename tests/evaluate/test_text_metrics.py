"""Counts by hand, limits that must hold, and perplexity against a softmax written out."""

import math
import subprocess
import sys

import numpy as np
import pytest

from reasoning_jax.evaluate.text_metrics import (
    CorpusMeasure,
    corpus_diversity,
    corpus_entropy,
    corpus_rep_n,
    diversity,
    log_one_minus_exp,
    measure_texts,
    ngram_entropy,
    ngrams,
    perplexity,
    rep_n,
)

# Bigrams 12 23 31 12 23: three of five differ. Trigrams 123 231 312 123; four-grams all differ.
LOOP = [1, 2, 3, 1, 2, 3]


# ---- n-grams


def test_rep_n_and_diversity_by_hand():
    # Catches: the last n-gram left out (2/4 of bigrams would differ), unique and total exchanged.
    assert rep_n(LOOP, 2) == pytest.approx(100 * (1 - 3 / 5))
    assert rep_n(LOOP, 3) == pytest.approx(100 * (1 - 3 / 4))
    assert rep_n(LOOP, 4) == 0.0
    assert diversity(LOOP) == pytest.approx(3 / 5 * 3 / 4)
    assert rep_n([5, 5], 1) == 50.0
    assert rep_n([5, 6, 5, 6], 2) == pytest.approx(100 / 3)


def test_the_last_ngram_counts():
    # Catches: a loop that ends one early, which finds four different bigrams of four here.
    assert rep_n([1, 2, 3, 4, 1, 2], 2) == pytest.approx(20.0)
    assert ngrams([1, 2], 2) == {(1, 2): 1}


def test_limits_of_diversity():
    # Catches: percentages not divided by 100, an order of 1 or 5 among the factors.
    assert diversity(range(50)) == 1.0
    for length in (4, 10, 1000):
        want = 1 / ((length - 1) * (length - 2) * (length - 3))
        assert diversity([7] * length) == pytest.approx(want)


def test_units_are_what_is_given():
    # Catches: splitting or joining tokens, as by a text of the ids (1, 11 against 11, 1).
    words = ["a", "rose", "is", "a", "rose", "is", "a", "rose"]
    assert rep_n(words, 2) == pytest.approx(100 * (1 - 3 / 7))
    assert rep_n(np.array(LOOP, np.int32), 2) == rep_n(LOOP, 2)
    assert len(ngrams([1, 11, 1, 1, 11], 2)) == 3
    assert rep_n([1, 11, 11, 1], 2) == 0.0


def test_pooled_is_of_sums_and_mean_of_sequences():
    # Catches: one for the other, n-grams across sequences, a union of unique n-grams.
    short, long = [4, 4, 4], [*LOOP, *LOOP]
    got = corpus_rep_n([short, long], 2)
    # 1 of 2 and 3 of 11 bigrams.
    assert got.pooled == pytest.approx(100 * (1 - 4 / 13))
    parts = [rep_n(short, 2), rep_n(long, 2)]
    assert got.mean == pytest.approx(sum(parts) / 2)
    assert got.stderr == pytest.approx(abs(parts[0] - parts[1]) / 2)
    assert (got.n, got.skipped) == (2, 0)
    twice = corpus_rep_n([long, long], 2)
    assert twice.pooled == twice.mean == pytest.approx(rep_n(long, 2))


def test_pooled_diversity_is_the_product_of_pooled_fractions():
    # Catches: a product over sequences; sequences without four-grams left out of the bigrams.
    got = corpus_diversity([LOOP, [9, 9, 9]])
    assert got.pooled == pytest.approx((3 + 1) / (5 + 2) * (3 + 1) / (4 + 1) * 3 / 3)
    assert got.mean == pytest.approx(diversity(LOOP))
    assert (got.n, got.skipped, got.stderr) == (1, 1, None)


def test_entropy_of_known_distributions():
    # Catches: bits for nats, counts for frequencies, types for tokens.
    assert ngram_entropy([1, 2, 3, 4], 1) == pytest.approx(math.log(4))
    assert ngram_entropy([1, 1, 1, 2], 1) == pytest.approx(
        -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    )
    assert ngram_entropy([8] * 30, 2) == 0.0
    got = corpus_entropy([[1, 1], [2, 2], []], 1)
    assert got.pooled == pytest.approx(math.log(2))
    assert (got.mean, got.n, got.skipped) == (0.0, 2, 1)
    # Bigrams 12 and 21: none reaches from one sequence into the next.
    assert corpus_entropy([[1, 2], [2, 1]], 2).pooled == pytest.approx(math.log(2))


def test_order_of_sequences_and_names_of_tokens_do_not_matter():
    # Catches: anything that reads values of ids, or state kept from one sequence to the next.
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 5, int(n)).tolist() for n in rng.integers(0, 30, 20)]
    renamed = [[(3 * t + 1) % 5 + 100 for t in text] for text in texts[::-1]]
    for name, want in measure_texts(texts).items():
        got = measure_texts(renamed)[name]
        assert (got.n, got.skipped) == (want.n, want.skipped)
        for part in ("pooled", "mean", "stderr"):
            assert getattr(got, part) == pytest.approx(getattr(want, part), abs=1e-12), name


def test_nothing_to_measure_is_none_not_zero():
    # Catches: 0 % repetition, or a division by zero, for a model that writes nothing.
    assert corpus_diversity([]) == CorpusMeasure(None, None, None, 0, 0)
    for measure in measure_texts([[], []]).values():
        assert measure.to_dict() == {
            "pooled": None, "mean": None, "stderr": None, "n": 0, "skipped": 2,
        }  # fmt: skip
    assert set(measure_texts([])) == {
        "diversity", "rep_2", "rep_3", "rep_4",
        "ngram_entropy_1", "ngram_entropy_2", "ngram_entropy_3",
    }  # fmt: skip
    only_short = corpus_diversity([[1, 2, 3]])
    assert (only_short.pooled, only_short.skipped) == (None, 1)
    just_long_enough = corpus_diversity([[1, 2, 3, 4]])
    assert (just_long_enough.mean, just_long_enough.n) == (1.0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rep_n([1], 2), "1 tokens have no 2-gram"),
        (lambda: diversity([1, 2, 3]), "3 tokens have no 4-gram"),
        (lambda: ngram_entropy([], 1), "0 tokens have no 1-gram"),
        (lambda: rep_n([1, 2], 0), "n >= 1, got 0"),
        (lambda: rep_n("a text", 2), "got the text 'a text'"),
        (lambda: corpus_diversity(["a text"]), "got the text 'a text'"),
        (lambda: rep_n([1, math.nan], 1), "got nan"),
        (lambda: rep_n(np.ones((2, 2), int), 1), r"got \[1, 1\]"),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- perplexity


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_perplexity_of_uniform_guesses_is_their_number():
    # Catches: bits, a sum for a mean, a mean over padding.
    log_p = np.full((3, 4), -math.log(7.0))
    weights = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    log_p[weights == 0] = -123.0
    got = perplexity(log_p, weights)
    assert got.value == pytest.approx(7.0)
    assert got.stderr == pytest.approx(0.0, abs=1e-12)
    assert (got.tokens, got.without_backspace) == (6.0, None)


def test_without_backspace_is_a_softmax_over_the_other_actions():
    # Catches: the sign of the correction, log p for p, backspace of the next state.
    rng = np.random.default_rng(1)
    z = 3 * rng.standard_normal((4, 6, 9))
    labels, back = rng.integers(0, 8, (4, 6, 1)), 8
    weights = rng.integers(0, 2, (4, 6))
    full = log_softmax(z)
    log_p = np.take_along_axis(full, labels, -1)[..., 0]
    others = np.take_along_axis(log_softmax(z[..., :back]), labels, -1)[..., 0]
    got = perplexity(log_p, weights, full[..., back])
    want, plain = perplexity(others, weights), perplexity(log_p, weights)
    assert got.without_backspace == pytest.approx(want.value, rel=1e-12)
    assert got.without_backspace_stderr == pytest.approx(want.stderr, rel=1e-9)
    assert (got.value, got.stderr, got.saturated) == (plain.value, plain.stderr, 0)
    assert got.without_backspace < got.value


def test_log_of_what_is_left_is_exact_at_both_ends():
    # Catches: log(1 - exp(x)), which is -inf or 0 there.
    x = np.array([-1e-12, -0.5, -math.log(2), -3.0, -60.0, -800.0])
    want = [math.log(1e-12), math.log(1 - math.exp(-0.5)), -math.log(2),
            math.log1p(-math.exp(-3.0)), -math.exp(-60.0), 0.0]  # fmt: skip
    np.testing.assert_allclose(log_one_minus_exp(x), want, rtol=1e-11)
    # Almost all is backspace; of the rest, the label has half.
    almost = math.log1p(-1e-6)
    got = perplexity(np.array([[math.log(0.5e-6)]]), np.ones((1, 1)), np.array([[almost]]))
    assert got.without_backspace == pytest.approx(2.0, rel=1e-8)


def test_a_backspace_of_probability_one_is_bounded_and_counted():
    # Catches: infinity minus infinity, and a perplexity below 1.
    log_p, weights = np.array([[-40.0, -1.0]]), np.array([[1.0, 0.0]])
    got = perplexity(log_p, weights, np.zeros((1, 2)))
    assert got.saturated == 1
    assert got.without_backspace == pytest.approx(math.exp(40 - 24 * math.log(2)))
    assert perplexity(np.array([[-3.0]]), np.ones((1, 1)), np.zeros((1, 1))).without_backspace == 1


def test_standard_error_is_that_of_resampled_rows():
    # Catches: tokens taken for independent, n for n - 1, the error of the loss for that of its exp.
    rng = np.random.default_rng(2)
    row = rng.standard_normal((300, 1))
    log_p = -np.abs(2 + 0.5 * row + 0.1 * rng.standard_normal((300, 8)))
    weights = (np.arange(8) < rng.integers(1, 9, (300, 1))).astype(float)
    picks = [rng.integers(0, 300, 300) for _ in range(2000)]
    spread = np.std([perplexity(log_p[i], weights[i]).value for i in picks])
    assert perplexity(log_p, weights).stderr == pytest.approx(spread, rel=0.1)
    assert perplexity(log_p[:1], weights[:1]).stderr is None
    # Two rows of equal weight: the mean of 1 and 3 has standard error 1.
    assert perplexity(np.array([[-1.0], [-3.0]]), np.ones((2, 1))).stderr == pytest.approx(
        math.exp(2)
    )


def test_padding_may_hold_anything_and_a_zero_probability_is_infinite():
    # Catches: 0 * NaN, 0 * -inf, and -inf taken for padding.
    weights = np.array([[1.0, 0.0, 0.0]])
    got = perplexity(np.array([[-1.0, np.nan, -np.inf]]), weights, np.array([[-2.0, np.nan, 5.0]]))
    assert got.value == pytest.approx(math.e)
    assert got.without_backspace == pytest.approx(math.e * (1 - math.exp(-2)))
    assert perplexity(np.array([-np.inf, -1.0]), np.ones(2)).value == math.inf
    assert perplexity(np.array([[-1e4]]), np.ones((1, 1))).value == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[-1.0]], [[0.0]]), "not all 0; 1 were given"),
        (([], []), "not all 0; 0 were given"),
        (([[-1.0]], [[-1.0]]), "weights must be finite, >= 0"),
        (([[-1.0]], [[math.nan]]), "weights must be finite"),
        (([[-1.0, -1.0]], [[1.0]]), r"got \(1, 2\) and \(1, 1\)"),
        (([[-1.0, math.nan]], [[1.0, 1.0]]), r"got nan at \[0, 1\] and 1 such"),
        (([[0.5]], [[1.0]]), r"log_probs must be .* got 0.5 at \[0, 0\]"),
        (([[-1.0]], [[1.0]], [[math.nan]]), "backspace_log_probs must be .* got nan"),
        (([[-1.0]], [[1.0]], [[-1.0, -1.0]]), "must have the shape of log_probs"),
    ],
)
def test_bad_log_probabilities_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perplexity(*arguments)


def test_importing_the_measures_loads_neither_jax_nor_scikit_learn():
    # Catches: an import that moved to the top, which costs every command a second.
    program = (
        "import sys, reasoning_jax.evaluate.text_metrics, reasoning_jax.evaluate.mauve;"
        "sys.exit(bool({'jax', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
