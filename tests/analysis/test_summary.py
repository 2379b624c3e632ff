"""What is made of hand-written probabilities."""

import numpy as np
import pytest

from reasoning_jax.analysis import summary
from reasoning_jax.analysis.graphs import CATEGORIES, GROUPS
from tests.analysis.test_graphs import NUMBERS

# Nodes 2 and 3 are one edge from the root, 2 is on the shortest path, both reach the target 8.
# Of the nodes two edges away (4, 5, 6, 7) 6 is on it, and 5 and 6 reach the target.


def values(**of_nodes):
    """Probabilities of the ten nodes: `values(n2=.5)`."""
    out = np.zeros(10)
    for name, value in of_nodes.items():
        out[int(name[1:])] = value
    return out


def numbers(measures):
    return {name: pytest.approx(m["value"]) for name, m in measures.items()}


def test_next_concepts():
    # Catches: shortest paths and correct nodes confused; mass outside the frontier counted.
    rows = [values(n4=0.1, n5=0.3, n6=0.2, n9=0.4), values(n6=0.5, n7=0.5)]
    found = summary.next_concepts([NUMBERS] * 2, rows, [2, 2])
    assert numbers(found) == {
        "frontier_mass": (0.6 + 1.0) / 2, "optimal_mass": 0.35, "correct_share": (5 / 6 + 0.5) / 2,
        "best_is_frontier": 0.5, "best_is_optimal": 0.5, "best_is_correct": 0.5,
    }  # fmt: skip
    assert found["frontier_mass"]["n"] == 2
    assert found["frontier_mass"]["stderr"] == pytest.approx(0.2)
    # Beyond the last depth there is nothing to say.
    assert summary.next_concepts([NUMBERS], rows[:1], [4]) == {}


def test_parallelism_sorts_sums_of_the_best():
    # Catches: sums over unsorted candidates, problems sorted by one curve for all.
    rows = [values(n4=0.1, n5=0.3, n6=0.2, n9=0.4), values(n6=0.9), values(n4=0.25, n5=0.25)]
    found = summary.parallelism([NUMBERS] * 3, rows, [2, 2, 2])
    want = [[0.25, 0.3, 0.9], [0.5, 0.5, 0.9], [0.5, 0.6, 0.9]]
    np.testing.assert_allclose(found["curves"], want)
    assert [m["value"] for m in found["means"]] == pytest.approx([1.45 / 3, 1.9 / 3, 2.0 / 3])
    # One candidate tells nothing of parallelism.
    assert summary.parallelism([NUMBERS], [values(n8=1.0)], [3])["curves"] == [[], [], []]


def test_by_height_splits_correct_and_incorrect():
    # Heights, longest (shortest): 4 0 (0), 7 0 (0), 6 1 (1), 5 2 (2).
    row = values(n4=0.1, n5=0.3, n6=0.2, n7=0.4)
    found = summary.by_height([NUMBERS], [row], [2], "longest")
    assert [r["height"] for r in found] == [0, 1, 2]
    assert [r["incorrect"]["n"] for r in found] == [2, 0, 0]
    assert found[0]["incorrect"]["value"] == pytest.approx(0.25)
    assert [r["correct"]["value"] for r in found[1:]] == pytest.approx([0.2, 0.3])
    # 2 and 3: two edges at most and three from a leaf, one edge at least.
    row = values(n2=0.6, n3=0.4)
    longest = summary.by_height([NUMBERS], [row], [1], "longest")
    shortest = summary.by_height([NUMBERS], [row], [1], "shortest")
    assert [(r["height"], r["correct"]["value"]) for r in longest] == [(2, 0.6), (3, 0.4)]
    assert [(r["height"], r["correct"]["value"]) for r in shortest] == [(1, 0.5)]


def test_by_group_is_a_mean_over_problems_that_have_the_group():
    # Catches: a mean over members of all problems at once; empty groups counted as zero.
    groups = [dict.fromkeys(GROUPS, ()) | {"frontier": [0, 1]}, dict.fromkeys(GROUPS, ())]
    groups.append(dict.fromkeys(GROUPS, ()) | {"frontier": [2]})
    found = summary.by_group(groups, [np.array([1.0, 3.0, 9.0])] * 3)
    assert found["frontier"]["value"] == pytest.approx((2.0 + 9.0) / 2)
    assert found["frontier"]["n"] == 2
    assert found["optimal"] == {"value": 0.0, "stderr": None, "n": 0}


def test_category_shares_are_one_together():
    found = summary.category_shares(["correct path", "correct path", "hallucination"])
    assert list(found) == list(CATEGORIES)
    assert sum(m["value"] for m in found.values()) == pytest.approx(1.0)
    assert found["correct path"]["value"] == pytest.approx(2 / 3)
