"""MAUVE: how close a set of generated texts is to a set of real ones, from features of both.

Pillutla et al. 2021 (arXiv 2102.01454): quantise the features of both sets together, and measure
the area under the curve of KL divergences from either histogram to their mixtures.
Says nothing about where features come from (`features.py` makes some) and reads no text.

With R_w = w P + (1 - w) Q and scaling c, the curve is (exp(-c KL(Q|R_w)), exp(-c KL(P|R_w))) for w
from 0 to 1, with (1, 0) and (0, 1) at its ends; MAUVE is the area under it. 1: equal histograms.

What differs from other numbers called MAUVE:

  * The features are what the caller gives. The paper's are GPT-2 large's; papers that only cite a
    MAUVE value, SequenceMatch (arXiv 2306.05426) among them as far as our sources tell, do not
    always name the model. Values of different feature models or sample counts do not compare.
  * k-means is scikit-learn's from k-means++ starts; the authors' program has FAISS's from random
    points. Of the same histograms both make the same number to rounding, except where P equals
    Q: sorting the curve's ties in any order, that program may then give 0.75. Here it is 1.
  * The result is a mean over several k-means seeds with its standard deviation. That is the spread
    of the quantisation alone, not of drawing other texts.
  * Samples are sorted first, so that neither their order nor which set is called P matters.

Two samples of one distribution do not reach 1: with n/10 clusters the histograms hold ten samples a
cluster, whose noise counts as difference. Compare with a value between two halves of real data.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SCALING = 5.0
CURVE_POINTS = 25
EXPLAINED_VARIANCE = 0.9
SEEDS = (0, 1, 2, 3, 4)

# The outermost mixture weights, besides the ends of the curve themselves.
_MARGIN = 1e-6
# Pseudo-count a cluster of Krichevsky and Trofimov.
_PSEUDO_COUNT = 0.5
# Unit vectors whose total variance is below this are one vector with float32 rounding.
_LEAST_VARIANCE = 1e-12
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Mauve:
    """MAUVE over the k-means seeds: mean and standard deviation (None with one seed).

    `star` is the same with half a count added to every cluster of either set (MAUVE*, Pillutla et
    al. 2023, arXiv 2212.14578). `values` are those of the single seeds, without smoothing.
    """

    value: float
    spread: float | None
    star: float
    star_spread: float | None
    values: tuple[float, ...]
    clusters: int
    components: int
    samples: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mauve(
    p_features: Float[np.ndarray, "n D"],
    q_features: Float[np.ndarray, "m D"],
    *,
    clusters: int = 0,
    seeds: Sequence[int] = SEEDS,
    restarts: int = 5,
    scaling: float = SCALING,
) -> Mauve:
    """MAUVE of two sets of features.

    Rows are scaled to length 1 (rows of zeros stay), projected on the principal components of both
    sets together that hold 90 % of the variance, and clustered together.

    Args:
      clusters: 0 takes max(2, a tenth of the smaller set).
      restarts: k-means starts a seed; the best one is kept.

    Raises:
      ValueError: not two matrices of one width, fewer than two rows, NaN or infinity, rows that
        are all alike, fewer different rows than clusters, no seed.
    """
    p, q = _matrix(p_features, "p_features"), _matrix(q_features, "q_features")
    if p.shape[1] != q.shape[1]:
        raise ValueError(
            f"both sets need features of one model; got {p.shape[1]} and {q.shape[1]} dimensions"
        )
    if not seeds or restarts < 1 or clusters < 0 or clusters == 1:
        raise ValueError(
            "mauve needs a seed, restarts >= 1 and clusters 0 (automatic) or >= 2; got "
            f"seeds={tuple(seeds)}, restarts={restarts}, clusters={clusters}"
        )
    clusters = clusters or default_clusters(len(p), len(q))
    data, is_p, distinct = _sorted_union(_unit_rows(p), _unit_rows(q))
    if data.var(0).sum() < _LEAST_VARIANCE:
        raise ValueError(
            f"all {len(data)} features point in one direction, so nothing can be compared; "
            "check the feature model and that the texts differ"
        )
    if distinct < clusters:
        raise ValueError(
            f"{distinct} different features cannot make {clusters} clusters; give more texts, or "
            f"clusters={distinct} or fewer"
        )
    data = principal_components(data)
    pairs = [
        histograms(labels[is_p], labels[~is_p], clusters)
        for labels in (_cluster(data, clusters, seed, restarts) for seed in seeds)
    ]
    values = tuple(mauve_of_histograms(p, q, scaling) for p, q in pairs)
    stars = [
        mauve_of_histograms(p + _PSEUDO_COUNT, q + _PSEUDO_COUNT, scaling) for p, q in pairs
    ]  # fmt: skip
    return Mauve(
        statistics.fmean(values), _deviation(values), statistics.fmean(stars), _deviation(stars),
        values, clusters, data.shape[1], (len(p), len(q)),
    )  # fmt: skip


def default_clusters(n: int, m: int) -> int:
    """A tenth of the smaller number of samples, at least 2."""
    return max(2, round(min(n, m) / 10))


def mauve_of_histograms(
    p: Float[np.ndarray, " k"], q: Float[np.ndarray, " k"], scaling: float = SCALING
) -> float:
    """MAUVE of two histograms, of counts or of probabilities; symmetric, in (0, 1].

    Raises:
      ValueError: as `divergence_curve`.
    """
    return curve_area(divergence_curve(p, q, scaling))


def divergence_curve(
    p: Float[np.ndarray, " k"],
    q: Float[np.ndarray, " k"],
    scaling: float = SCALING,
    points: int = CURVE_POINTS,
) -> Float[np.ndarray, "points+2 2"]:
    """The curve from (1, 0) to (0, 1): the first coordinate falls, the second rises.

    Exchanging p and q reverses it and exchanges its coordinates.

    Raises:
      ValueError: histograms of unequal size, with a negative or non-finite entry or without mass.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.ndim != 1 or p.shape != q.shape or not (_is_histogram(p) and _is_histogram(q)):
        raise ValueError(
            "histograms must be two vectors of one length, finite, >= 0 and not all 0; got shapes "
            f"{p.shape} and {q.shape}, sums {p.sum()} and {q.sum()}"
        )
    p, q = p / p.sum(), q / q.sum()
    # Not w and 1 - w: a mixture of equal histograms must be that histogram to the last bit.
    weights = np.linspace(_MARGIN, 1.0 - _MARGIN, points)
    inner = [
        (np.exp(-scaling * _kl(q, r)), np.exp(-scaling * _kl(p, r)))
        for r in (q + w * (p - q) for w in weights)
    ]
    return np.array([(1.0, 0.0), *inner, (0.0, 1.0)])


def curve_area(curve: Float[np.ndarray, "n 2"]) -> float:
    """Area under a curve that goes from (1, 0) to (0, 1), by trapezoids.

    Along the path, the area to one axis equals that to the other, so one of them is enough.
    """
    x, y = curve.T
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2)


def principal_components(
    data: Float[np.ndarray, "n D"], explained: float = EXPLAINED_VARIANCE
) -> Float[np.ndarray, "n d"]:
    """The fewest leading principal components that hold `explained` of the variance."""
    from sklearn.decomposition import PCA

    pca = PCA(random_state=0).fit(data)
    held = np.cumsum(pca.explained_variance_ratio_)
    components = min(int(np.searchsorted(held, explained)) + 1, len(held))
    return pca.transform(data)[:, :components]


def histograms(
    p_labels: Int[np.ndarray, " n"], q_labels: Int[np.ndarray, " m"], clusters: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Counts of each set in each cluster."""
    p, q = (np.bincount(labels, minlength=clusters) for labels in (p_labels, q_labels))
    return p.astype(np.float64), q.astype(np.float64)


def _cluster(data: np.ndarray, clusters: int, seed: int, restarts: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    k_means = KMeans(
        clusters,
        n_init=restarts,  # pyright: ignore[reportArgumentType]  # the stubs know only "auto"
        max_iter=_MAX_ITERATIONS,
        random_state=seed,
    )
    return k_means.fit_predict(data)


def _kl(p: np.ndarray, r: np.ndarray) -> float:
    """KL(p|r) in nats; r has mass wherever p has. Rounding never makes it negative."""
    at = p > 0
    return max(0.0, float((p[at] * np.log(p[at] / r[at])).sum()))


def _is_histogram(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all() and (x >= 0).all() and x.sum() > 0)


def _matrix(features: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
        raise ValueError(f"{name} must be a matrix [samples >= 2, dimensions], got shape {x.shape}")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(
            f"{name} must be finite; {int(bad.sum())} of {len(x)} rows have NaN or infinity, the "
            f"first is row {int(bad.argmax())}; check the feature model"
        )
    return x


def _unit_rows(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1.0)


def _sorted_union(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Both sets in an order that depends on values alone, what is of p, how many rows differ."""
    data = np.concatenate([p, q])
    is_p = np.arange(len(data)) < len(p)
    different, place = np.unique(data, axis=0, return_inverse=True)
    order = np.argsort(place.reshape(-1), kind="stable")
    return data[order], is_p[order], len(different)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
