"""What readings of many problems say together, as plain values with standard errors over problems.

Pure numpy; knows no model. "value" is the model's probability of a node as the next concept after k
thoughts, "candidates" are the nodes that a search in breadth would take up then. A measure is
{"value", "stderr", "n"}; n counts problems, or nodes where it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reasoning_jax.analysis.graphs import CATEGORIES, GROUPS, Dag
from reasoning_jax.evaluate.accuracy import Measure

if TYPE_CHECKING:
    from jaxtyping import Float

TOP = 3


def measure(values: Sequence[float]) -> dict[str, Any]:
    return Measure([float(v) for v in values]).to_dict()


def category_shares(categories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The share of each category; together they are 1."""
    return {name: measure([c == name for c in categories]) for name in CATEGORIES}


def next_concepts(
    dags: Sequence[Dag], values: Sequence[Float[np.ndarray, " n"]], depths: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """How much of the next concept's probability is where, of the problems that have candidates.

    frontier_mass: on all candidates. optimal_mass: on those on a shortest path. correct_share: of
    the mass on candidates that of those which reach the target. best_is_frontier, best_is_optimal,
    best_is_correct: whether the most probable node is such a one.
    """
    found: dict[str, list[float]] = {}
    for dag, value, depth in zip(dags, values, depths):
        candidates = dag.at_depth(depth)
        if not candidates:
            continue
        kinds = {
            "frontier": candidates,
            "optimal": [v for v in candidates if dag.on_shortest_path(v)],
            "correct": [v for v in candidates if v in dag.ahead],
        }
        best = int(np.nanargmax(value))
        mass = {name: float(value[nodes].sum()) for name, nodes in kinds.items()}
        one = {
            "frontier_mass": mass["frontier"],
            "optimal_mass": mass["optimal"],
            "correct_share": mass["correct"] / mass["frontier"] if mass["frontier"] else 0.0,
            **{f"best_is_{name}": float(best in nodes) for name, nodes in kinds.items()},
        }
        for name, number in one.items():
            found.setdefault(name, []).append(number)
    return {name: measure(numbers) for name, numbers in found.items()}


def parallelism(
    dags: Sequence[Dag], values: Sequence[Float[np.ndarray, " n"]], depths: Sequence[int]
) -> dict[str, Any]:
    """The cumulative value of each problem's 1, 2, 3 best candidates: "curves" sorted over problems
    (for percentiles), "means" over them. Not normalised. Where the curves are far apart, more than
    one candidate is held; problems with a single candidate are left out.
    """
    sums: list[list[float]] = [[] for _ in range(TOP)]
    for dag, value, depth in zip(dags, values, depths):
        candidates = dag.at_depth(depth)
        if len(candidates) > 1:
            best = np.sort(value[candidates])[::-1]
            for k in range(TOP):
                sums[k].append(float(best[: k + 1].sum()))
    return {
        "curves": [sorted(numbers) for numbers in sums],
        "means": [measure(numbers) for numbers in sums],
    }


def by_height(
    dags: Sequence[Dag],
    values: Sequence[Float[np.ndarray, " n"]],
    depths: Sequence[int],
    kind: str,
) -> list[dict[str, Any]]:
    """Candidates' values by their height (`Dag.heights`), of correct nodes, which reach the target,
    and of others. n counts nodes, and the nodes of a problem are not independent.
    """
    found: dict[int, dict[bool, list[float]]] = {}
    for dag, value, depth in zip(dags, values, depths):
        heights = dag.heights(kind)
        for node in dag.at_depth(depth):
            of_height = found.setdefault(heights[node], {True: [], False: []})
            of_height[node in dag.ahead].append(float(value[node]))
    return [
        {"height": height, "correct": measure(both[True]), "incorrect": measure(both[False])}
        for height, both in sorted(found.items())
    ]


def by_group(
    groups: Sequence[Mapping[str, Sequence[Any]]], numbers: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """The mean of `numbers[i][member]` over the members of each of `GROUPS` in problem i, then over
    the problems in which the group has members.
    """
    found: dict[str, list[float]] = {name: [] for name in GROUPS}
    for of_problem, number in zip(groups, numbers):
        for name in GROUPS:
            if members := of_problem[name]:
                found[name].append(float(np.mean([number[member] for member in members])))
    return {name: measure(values) for name, values in found.items()}
