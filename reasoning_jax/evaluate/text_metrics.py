"""Repetition, diversity and n-gram entropy of generated text, and perplexity of given text.

Works on token ids and log-probabilities that others have made; runs no model and loads no JAX.

rep-n = 100 (1 - unique n-grams / all n-grams), diversity = prod_{n=2..4} (1 - rep-n / 100), the
formulas of Su et al. 2022 (arXiv 2202.06417). The widely copied script of that paper differs in
what it counts, so numbers of different programs compare only where these choices agree:

  * Units are token ids. It splits text at whitespace; `text.split()` can be given here too.
  * All n-grams count. It stops one early, and so leaves out the last n-gram of every text.
  * `pooled` is from sums of unique and of all n-grams over the sequences, as there: an n-gram that
    occurs once in each of two sequences is unique in both. `mean` is over the single sequences.

The n-gram entropy is our definition, since papers that print such a number seldom give theirs:
Shannon entropy in nats of the relative frequencies of n-grams. `pooled` is that of all sequences'
n-grams together and grows with the size of the corpus; `mean` is over the sequences and grows with
their length. Compare neither across unequal sizes or tokenizers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

Tokens = Sequence[int] | Sequence[str] | np.ndarray

DIVERSITY_ORDERS = (2, 3, 4)
ENTROPY_ORDERS = (1, 2, 3)

# A probability of <backspace> above 1 - this is 1 in float32.
_LEFT_OVER = 2.0**-24
# What rounding may add to a log-probability of 0.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class CorpusMeasure:
    """One measure of many sequences.

    `pooled` is over all counts together. `mean` and its standard error are over the `n` sequences
    that are long enough; `skipped` are not. None where nothing, or one sequence, was measured.
    """

    pooled: float | None
    mean: float | None
    stderr: float | None
    n: int
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-probability over `tokens` (a sum of weights).

    `value` has the mass of `<backspace>` in the softmax; `without_backspace` is renormalised to the
    other actions (None where log p(<backspace>) was not given). Standard errors are over rows
    (delta method), None with fewer than two. `saturated` positions gave `<backspace>` all
    probability that float32 can tell; their part of `without_backspace` is an upper bound.
    """

    value: float
    stderr: float | None
    tokens: float
    without_backspace: float | None = None
    without_backspace_stderr: float | None = None
    saturated: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[Any, ...]]:
    """How often each n-gram occurs; empty if there are fewer than n tokens.

    Raises:
      ValueError: n below 1, a text in place of its tokens, or tokens that are not ids or words.
    """
    if n < 1:
        raise ValueError(f"n-grams need n >= 1, got {n}")
    if isinstance(tokens, str):
        raise ValueError(f"got the text {tokens[:20]!r}; give its token ids, or text.split()")
    items = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
    for item in items:
        if not isinstance(item, int | np.integer | str):
            raise ValueError(f"a token is an id (int) or a word (str), got {item!r}")
    return Counter(zip(*(items[i:] for i in range(n))))


def rep_n(tokens: Tokens, n: int) -> float:
    """Percentage of a sequence's n-grams that repeat another one: 0 if all differ.

    Raises:
      ValueError: fewer than n tokens.
    """
    return 100.0 * (1.0 - _distinct(_some_ngrams(tokens, n)))


def diversity(tokens: Tokens) -> float:
    """prod_{n=2..4} (1 - rep-n / 100) of a sequence: 1 if no bigram repeats.

    Raises:
      ValueError: fewer than four tokens.
    """
    return math.prod(_distinct(_some_ngrams(tokens, n)) for n in DIVERSITY_ORDERS)


def ngram_entropy(tokens: Tokens, n: int) -> float:
    """Shannon entropy in nats of a sequence's n-gram frequencies.

    Raises:
      ValueError: fewer than n tokens.
    """
    return _entropy(_some_ngrams(tokens, n))


def corpus_rep_n(sequences: Sequence[Tokens], n: int) -> CorpusMeasure:
    """rep-n of many sequences, in percent."""
    left = _pooled_distinct(sequences, n)
    pooled = None if left is None else 100.0 * (1.0 - left)
    return _corpus(sequences, n, lambda s: rep_n(s, n), pooled)


def corpus_diversity(sequences: Sequence[Tokens]) -> CorpusMeasure:
    """Diversity of many sequences; `pooled` is the product of the pooled fractions."""
    pooled = [_pooled_distinct(sequences, n) for n in DIVERSITY_ORDERS]
    known = [p for p in pooled if p is not None]
    value = math.prod(known) if len(known) == len(pooled) else None
    return _corpus(sequences, max(DIVERSITY_ORDERS), diversity, value)


def corpus_entropy(sequences: Sequence[Tokens], n: int) -> CorpusMeasure:
    """n-gram entropy of many sequences, in nats; n-grams do not reach across sequences."""
    together: Counter[tuple[Any, ...]] = Counter()
    for s in sequences:
        together.update(ngrams(s, n))
    pooled = _entropy(together) if together else None
    return _corpus(sequences, n, lambda s: ngram_entropy(s, n), pooled)


def measure_texts(sequences: Sequence[Tokens]) -> dict[str, CorpusMeasure]:
    """Diversity, rep_2..4 and ngram_entropy_1..3; without sequences all are None, over n = 0."""
    return {
        "diversity": corpus_diversity(sequences),
        **{f"rep_{n}": corpus_rep_n(sequences, n) for n in DIVERSITY_ORDERS},
        **{f"ngram_entropy_{n}": corpus_entropy(sequences, n) for n in ENTROPY_ORDERS},
    }


def perplexity(
    log_probs: Float[np.ndarray, "B T"],
    weights: Float[np.ndarray, "B T"],
    backspace_log_probs: Float[np.ndarray, "B T"] | None = None,
) -> Perplexity:
    """Perplexity of clean sequences, one a row, from log p(label) in nats and weights (0: padding).

    With log p(<backspace>) at the same states, also with the softmax renormalised without it:
    log p - log(1 - p_backspace). No label may be `<backspace>`. What stands where the weight is 0
    is not looked at. A label of probability 0 makes the perplexity infinite.

    Raises:
      ValueError: unequal shapes, no weight, a negative or non-finite weight, and at a state that
        counts NaN or a log-probability above 0.
    """
    log_p, w = (np.atleast_2d(np.asarray(x, np.float64)) for x in (log_probs, weights))
    if log_p.ndim != 2 or log_p.shape != w.shape:
        raise ValueError(
            "log_probs and weights must both be [sequences, tokens], got "
            f"{np.shape(log_probs)} and {np.shape(weights)}"
        )
    if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError(
            f"weights must be finite, >= 0 and not all 0; {w.size} were given, of sum {w.sum()}"
        )
    log_p = _checked(log_p, w, "log_probs")
    value, stderr = _perplexity(log_p, w)
    if backspace_log_probs is None:
        return Perplexity(value, stderr, float(w.sum()))
    log_b = np.atleast_2d(np.asarray(backspace_log_probs, np.float64))
    if log_b.shape != w.shape:
        raise ValueError(
            f"backspace_log_probs must have the shape of log_probs, {np.shape(log_probs)}, got "
            f"{np.shape(backspace_log_probs)}"
        )
    log_b = _checked(log_b, w, "backspace_log_probs")
    saturated = (log_b > -_LEFT_OVER) & (w > 0)
    others = log_one_minus_exp(np.minimum(log_b, -_LEFT_OVER))
    # Rounding may leave the label more than all the others together have.
    without, without_stderr = _perplexity(np.minimum(log_p - others, 0.0), w)
    return Perplexity(
        value, stderr, float(w.sum()), without, without_stderr, int(saturated.sum())
    )  # fmt: skip


def log_one_minus_exp(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """log(1 - exp(x)) for x < 0, exact to rounding at both ends (Mächler 2012)."""
    small = x < -math.log(2.0)
    return np.where(
        small,
        np.log1p(-np.exp(np.where(small, x, -1.0))),
        np.log(-np.expm1(np.where(small, -1.0, x))),
    )


def _some_ngrams(tokens: Tokens, n: int) -> Counter[tuple[Any, ...]]:
    counts = ngrams(tokens, n)
    if not counts:
        raise ValueError(
            f"{len(tokens)} tokens have no {n}-gram; leave such sequences out, or use corpus_*, "
            "which skips and counts them"
        )
    return counts


def _distinct(*counts: Counter[tuple[Any, ...]]) -> float:
    """Unique n-grams of each, by all n-grams there are."""
    return sum(map(len, counts)) / sum(c.total() for c in counts)


def _pooled_distinct(sequences: Sequence[Tokens], n: int) -> float | None:
    counts = [ngrams(s, n) for s in sequences]
    return _distinct(*counts) if any(counts) else None


def _entropy(counts: Counter[tuple[Any, ...]]) -> float:
    # Sorted, so that the sum does not depend on the order of the sequences.
    p = np.sort(np.fromiter(counts.values(), np.float64)) / counts.total()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _corpus(
    sequences: Sequence[Tokens],
    shortest: int,
    measure: Callable[[Tokens], float],
    pooled: float | None,
) -> CorpusMeasure:
    values = [measure(s) for s in sequences if len(s) >= shortest]
    n = len(values)
    mean = math.fsum(values) / n if n else None
    stderr = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return CorpusMeasure(pooled, mean, stderr, n, len(sequences) - n)


def _checked(log_probs: np.ndarray, weights: np.ndarray, name: str) -> np.ndarray:
    """The log-probabilities at most 0, and 0 where the weight is."""
    counted = np.where(weights > 0, log_probs, 0.0)
    wrong = np.isnan(counted) | (counted > _ROUNDING)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must be log-probabilities (<= 0) wherever the weight is above 0; got "
            f"{counted[row, column]} at [{row}, {column}] and {int(wrong.sum())} such in all"
        )
    return np.minimum(counted, 0.0)


def _perplexity(log_probs: np.ndarray, weights: np.ndarray) -> tuple[float, float | None]:
    """Perplexity, and its standard error over the rows that have weight."""
    losses = -(log_probs * weights).sum(1)
    totals = weights.sum(1)
    loss = losses.sum() / totals.sum()
    rows = int((totals > 0).sum())
    # Beyond the largest float: infinite, as a label of probability 0 makes it.
    value = math.exp(loss) if loss < math.log(np.finfo(np.float64).max) else math.inf
    if rows < 2 or math.isinf(value):
        return value, None
    squares = np.square(losses - loss * totals).sum() * rows / (rows - 1)
    return value, value * math.sqrt(squares) / float(totals.sum())
