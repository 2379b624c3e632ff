"""Regenerate mauve.json beside this file from the reference implementation, which no test needs.

    pip install mauve-text faiss-cpu scikit-learn      # in a venv of its own
    python tests/golden/make_mauve.py

`histograms`: counts of two sets, the scaling, and the reference's curve and area; `star` is the
area with half a count added. `pipelines`: MAUVE and MAUVE* that the reference gives to `samples`,
with its own k-means, by seed. Nothing here is used to make our numbers.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent

# Clusters, samples of P, samples of Q, concentration of the Dirichlet, scaling.
HISTOGRAMS = (
    (2, 10, 10, 1.0, 5.0),
    (5, 40, 100, 0.2, 5.0),
    (20, 200, 200, 10.0, 5.0),
    (50, 500, 300, 0.5, 1.0),
    (100, 1000, 1000, 1.0, 5.0),
)
SEEDS = 40
# Samples, dimensions, distance between the means.
PIPELINES = ((200, 16, 0.0), (200, 16, 1.0), (400, 48, 0.5), (400, 48, 2.0))


def samples(n: int, dimensions: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of Gaussian features with falling scales, apart in the first dimension."""
    rng = np.random.default_rng(n + dimensions)
    scales = 1 / np.sqrt(1 + np.arange(dimensions))
    p, q = (rng.standard_normal((n, dimensions)) * scales + 0.3 for _ in range(2))
    q[:, 0] += shift
    return p.astype(np.float32), q.astype(np.float32)


def counts() -> list[tuple[list[int], list[int], float]]:
    rng = np.random.default_rng(0)
    drawn = []
    for clusters, n, m, concentration, scaling in HISTOGRAMS:
        p, q = (
            rng.multinomial(size, rng.dirichlet(np.full(clusters, concentration))).tolist()
            for size in (n, m)
        )
        drawn.append((p, q, scaling))
    return [*drawn, ([3, 0, 2], [0, 4, 0], 5.0)]


def main() -> None:
    # The package hides this module behind a function of the same name.
    reference = importlib.import_module("mauve.compute_mauve")
    from sklearn.metrics import auc

    def curve_and_area(p: np.ndarray, q: np.ndarray, scaling: float) -> tuple[list, float]:
        weights = np.linspace(1e-6, 1 - 1e-6, 25)
        p, q = p / p.sum(), q / q.sum()
        curve = reference.get_divergence_curve_for_multinomials(p, q, weights, scaling)
        x, y = curve.T
        i, j = np.argsort(x), np.argsort(y)
        return curve.tolist(), 0.5 * float(auc(x[i], y[i]) + auc(y[j], x[j]))

    histograms = []
    for p, q, scaling in counts():
        curve, area = curve_and_area(np.array(p), np.array(q), scaling)
        _, star = curve_and_area(np.array(p) + 0.5, np.array(q) + 0.5, scaling)
        case = {"p": p, "q": q, "scaling": scaling, "curve": curve, "area": area, "star": star}
        histograms.append(case)
    pipelines = []
    for case in PIPELINES:
        p, q = samples(*case)
        found = [reference.compute_mauve(p, q, seed=seed) for seed in range(SEEDS)]
        values, stars = ([float(getattr(f, k)) for f in found] for k in ("mauve", "mauve_star"))
        pipelines.append({"case": case, "clusters": found[0].num_buckets, "values": values,
                          "stars": stars})  # fmt: skip
    text = json.dumps({"histograms": histograms, "pipelines": pipelines})
    (GOLDEN / "mauve.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
