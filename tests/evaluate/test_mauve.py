"""MAUVE against numbers of the reference implementation, its identities, and hostile features."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from reasoning_jax.evaluate.mauve import (
    curve_area,
    default_clusters,
    divergence_curve,
    histograms,
    mauve,
    mauve_of_histograms,
    principal_components,
)
from tests.golden.make_mauve import samples

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mauve.json").read_text())


# ---- the curve


@pytest.mark.parametrize("case", GOLDEN["histograms"])
def test_curve_and_area_equal_those_of_the_reference(case):
    # Catches: KL the other way, w for 1 - w, c left out, other mixture weights, one end missing.
    p, q = np.array(case["p"]), np.array(case["q"])
    curve = divergence_curve(p, q, case["scaling"])
    np.testing.assert_allclose(curve, case["curve"], rtol=0, atol=1e-10)
    assert curve_area(curve) == pytest.approx(case["area"], abs=1e-10)
    assert mauve_of_histograms(p, q, case["scaling"]) == curve_area(curve)
    star = mauve_of_histograms(p + 0.5, q + 0.5, case["scaling"])
    assert star == pytest.approx(case["star"], abs=1e-10)


def test_a_curve_by_hand():
    # Catches: an area over the wrong axis, the rectangles' rule.
    assert curve_area(np.array([(1, 0), (0.5, 0.5), (0, 1)])) == 0.5
    assert curve_area(np.array([(1, 0), (1, 1), (0, 1)])) == 1.0
    assert curve_area(np.array([(1, 0), (0.8, 0.4), (0, 1)])) == pytest.approx(0.04 + 0.56)
    # Disjoint sets, half of either: each KL to the mixture is log 2, so exp(-5 log 2) = 1/32.
    middle = divergence_curve(np.array([1, 0]), np.array([0, 1]), points=3)[2]
    np.testing.assert_allclose(middle, 1 / 32)


def test_equal_histograms_have_mauve_one():
    # Catches: ties of the curve sorted in any order, which loses a quarter of the area.
    rng = np.random.default_rng(0)
    for clusters in (1, 2, 7, 50):
        for _ in range(20):
            p = rng.multinomial(100, rng.dirichlet(np.ones(clusters)))
            assert mauve_of_histograms(p, 3 * p) == pytest.approx(1.0, abs=1e-12)


def test_roles_are_symmetric_and_clusters_have_no_order():
    # Catches: mixture weights that are not symmetric, anything that depends on the bin.
    rng = np.random.default_rng(1)
    for _ in range(20):
        p, q = (rng.multinomial(60, rng.dirichlet(np.full(12, 0.5))) for _ in range(2))
        np.testing.assert_allclose(
            divergence_curve(p, q), divergence_curve(q, p)[::-1, ::-1], atol=1e-12
        )
        order = rng.permutation(12)
        want = mauve_of_histograms(p, q)
        assert mauve_of_histograms(q, p) == pytest.approx(want, abs=1e-12)
        assert mauve_of_histograms(p[order], q[order]) == pytest.approx(want, abs=1e-12)


def test_mauve_falls_as_histograms_part():
    # Catches: a divergence that saturates, 1 - MAUVE.
    p = np.array([0.5, 0.5, 0.0])
    values = [
        mauve_of_histograms(p, np.array([0.5, 0.5 - t, t])) for t in (0.0, 0.1, 0.2, 0.3, 0.5)
    ]
    assert values[0] == pytest.approx(1.0)
    assert all(a > b + 0.01 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("p", "q"),
    [([1, 2], [1, 2, 3]), ([0, 0], [1, 1]), ([1, -1], [1, 1]), ([1, np.nan], [1, 1]), ([], [])],
)
def test_bad_histograms_are_refused(p, q):
    with pytest.raises(ValueError, match="histograms must be two vectors of one length"):
        divergence_curve(np.array(p), np.array(q))


# ---- from features


@pytest.mark.parametrize("case", GOLDEN["pipelines"], ids=lambda c: str(c["case"]))
def test_pipeline_is_within_the_seeds_of_the_reference(case):
    # Catches: PCA before scaling, no scaling, another share of variance or number of clusters.
    got = mauve(*samples(*case["case"]))
    assert got.clusters == case["clusters"]
    for ours, theirs in ((got.value, case["values"]), (got.star, case["stars"])):
        # Four standard errors of a mean over as many seeds as we take.
        bound = 4 * np.std(theirs, ddof=1) / len(got.values) ** 0.5
        assert ours == pytest.approx(np.mean(theirs), abs=bound)


def test_the_same_set_twice_has_mauve_one():
    # Catches: sets clustered apart, so that clusters of one are not those of the other.
    p, _ = samples(100, 8, 0.0)
    got = mauve(p, p)
    assert got.value == got.star == pytest.approx(1.0, abs=1e-12)
    assert got.spread == pytest.approx(0.0, abs=1e-12)
    assert got.samples == (100, 100)


def test_order_of_samples_and_roles_do_not_matter():
    # Catches: k-means that starts from rows by their place; P and Q not treated alike.
    p, q = samples(120, 8, 1.0)
    rng = np.random.default_rng(0)
    want = mauve(p, q, seeds=(0, 1))
    shuffled = mauve(rng.permutation(p), rng.permutation(q), seeds=(0, 1))
    swapped = mauve(q, p, seeds=(0, 1))
    for got in (shuffled, swapped):
        assert got.values == pytest.approx(want.values, abs=1e-12)
        assert got.star == pytest.approx(want.star, abs=1e-12)


def test_mauve_falls_as_sets_part():
    # Catches: features of one set used for both, labels of the wrong rows.
    values = [
        mauve(*samples(200, 6, t), seeds=(0, 1), restarts=2).value for t in (0.0, 1.0, 2.0, 4.0)
    ]
    assert values[0] > 0.9
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] < 0.05


def test_length_of_features_does_not_matter():
    # Catches: features left unscaled.
    p, q = samples(60, 5, 0.5)
    lengths = np.random.default_rng(1).uniform(0.5, 20, (60, 1))
    got = mauve(p * lengths, q, seeds=(0,))
    assert got.value == pytest.approx(mauve(p, q, seeds=(0,)).value, abs=0.02)
    assert got.spread is None


def test_fields_over_seeds():
    # Catches: the spread over n, values of the smoothed histograms, seeds that are not used.
    p, q = samples(100, 8, 1.0)
    got = mauve(p, q, seeds=(3, 4, 5), restarts=1)
    assert len(set(got.values)) > 1
    assert got.value == pytest.approx(np.mean(got.values))
    assert got.spread == pytest.approx(np.std(got.values, ddof=1))
    assert got.star > got.value
    assert got.values[1] == mauve(p, q, seeds=(4,), restarts=1).value
    assert set(got.to_dict()) == {
        "value", "spread", "star", "star_spread", "values", "clusters", "components", "samples"
    }  # fmt: skip


def test_components_hold_ninety_percent():
    # Catches: one component too few or too many.
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((400, 4))
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    for variances, want in (((80, 15, 4, 1), 2), ((91, 5, 3, 1), 1), ((50, 30, 9, 11), 3)):
        data = basis * np.sqrt(variances)
        assert principal_components(data).shape == (400, want)
    first = principal_components(basis * np.sqrt((91, 5, 3, 1)))[:, 0]
    assert np.square(first).sum() == pytest.approx(91)


def test_counts_by_cluster_and_their_number():
    # Catches: clusters that neither set is in left out; a tenth of both sets together.
    p, q = histograms(np.array([0, 0, 2]), np.array([2]), 4)
    assert (p.tolist(), q.tolist()) == ([2, 0, 1, 0], [0, 0, 1, 0])
    assert [default_clusters(*n) for n in ((2, 2), (100, 300), (300, 100), (256, 256))] == [
        2, 10, 10, 26,
    ]  # fmt: skip


# ---- hostile features

GOOD = np.random.default_rng(0).standard_normal((10, 3))


def broken(value):
    x = GOOD.copy()
    x[4, 1] = value
    return x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("p", "q", "changes", "message"),
    [
        (GOOD[:1], GOOD, {}, r"p_features must be a matrix \[samples >= 2.*got shape \(1, 3\)"),
        (GOOD, GOOD[:0], {}, r"q_features must be a matrix .*got shape \(0, 3\)"),
        (GOOD[0], GOOD, {}, r"got shape \(3,\)"),
        (GOOD, GOOD[:, :2], {}, "got 3 and 2 dimensions"),
        (GOOD, broken(np.nan), {}, "q_features must be finite; 1 of 10 rows.*first is row 4"),
        (broken(-np.inf), GOOD, {}, "p_features must be finite"),
        (np.ones((5, 3)), np.ones((5, 3)), {}, "all 10 features point in one direction"),
        (np.ones((5, 3)), 7 * np.ones((5, 3)), {}, "all 10 features point in one direction"),
        (np.zeros((5, 3)), np.zeros((5, 3)), {}, "all 10 features point in one direction"),
        (np.eye(3)[:2], np.eye(3)[1:], {"clusters": 4}, "3 different features cannot make 4"),
        (GOOD, GOOD, {"seeds": ()}, "needs a seed"),
        (GOOD, GOOD, {"clusters": 1}, "clusters 0 .automatic. or >= 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(p, q, changes, message):
    with pytest.raises(ValueError, match=message):
        mauve(p, q, **changes)


def test_few_and_collapsed_samples_are_measured():
    # Catches: a crash where one set is a single point, as of a model that repeats itself.
    p = np.random.default_rng(2).standard_normal((40, 6))
    got = mauve(p, np.tile(p[:1], (40, 1)))
    assert 0.0 < got.value < 0.2
    assert 0.0 < mauve(p[:2], p[2:4], seeds=(0,)).value <= 1.0
    apart = mauve(np.zeros((4, 2)), np.eye(2)[[0, 1, 0, 1]], clusters=3, seeds=(0,))
    assert apart.value == pytest.approx(mauve_of_histograms(np.array([1, 0]), np.array([0, 1])))
