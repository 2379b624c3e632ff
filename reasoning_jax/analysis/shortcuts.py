"""How far a ProsQA question is answered without any search: a linear classifier on features of the
two choices that know nothing of the root.

A model that is right no more often than this may have learnt no more than this (published graphs:
the target is deeper than the wrong answer). Ours; the papers report no such baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasoning_jax.data.examples import DataError, Example
from reasoning_jax.tasks.prosqa_graph import distances_from, neighbours
from reasoning_jax.tasks.prosqa_text import Question, parse_question, write_step

FEATURES = (
    "in-degree", "out-degree", "ancestors", "sources above it", "depth", "greatest depth",
    "first mention", "last mention", "name", "named first",
)  # fmt: skip
# Keeps the weights of features that always agree at 0, and perfect ones finite.
_RIDGE = 1e-3


class Shortcuts(NamedTuple):
    """Accuracies in [0, 1] on `tested` questions; `alone` is each feature's, in the direction that
    is right more often on the `fitted` ones, with half of the ties.
    """

    linear: float
    alone: dict[str, float]
    fitted: int
    tested: int


def features(question: Question) -> np.ndarray:
    """[2, len(FEATURES)] of the two choices, in the order in which they are named.

    Depths count edges from a node without parents (a "source"), over the shortest and the longest
    way; mentions are places among the edges; a name is its place in the order of all names.
    """
    names = {name for fact in question.facts for name in (fact.start, fact.end)}
    ordered = sorted(names | set(question.choices), key=lambda name: (len(name), name))
    number = {name: place for place, name in enumerate(ordered)}
    edges = [(number[fact.start], number[fact.end]) for fact in question.facts]
    children, parents = neighbours(len(ordered), edges)
    rows = []
    for place, choice in enumerate(question.choices):
        node = number[choice]
        above = distances_from(parents, node)
        sources = [distance for v, distance in above.items() if not parents[v]]
        here = [place for place, edge in enumerate(edges) if node in edge] or [len(edges)]
        rows.append([
            len(parents[node]), len(children[node]), len(above) - 1, len(sources),
            min(sources, default=0), _longest(parents, node, len(above)),
            here[0], here[-1], node, -place,
        ])  # fmt: skip
    return np.array(rows, float)


def _longest(parents: Sequence[Sequence[int]], node: int, limit: int) -> int:
    """Edges of the longest way up, at most `limit` (user graphs may have cycles)."""
    here, length = {node}, 0
    while length < limit and (here := {p for v in here for p in parents[v]}):
        length += 1
    return length


def contrasts(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """First choice's features less the second's [n, F], and whether the first is right [n].

    Raises:
      DataError: an example that is no ProsQA question, or whose answer is neither choice.
    """
    differences, right = [], []
    for example in examples:
        try:
            question = parse_question(example.question)
        except ValueError as error:
            raise DataError(f"record {example.index}: {error}") from None
        answers = [
            write_step(question.form, (question.root, choice), 0, 1) for choice in question.choices
        ]
        if example.answer.strip() not in answers:
            raise DataError(
                f"record {example.index}: the answer {example.answer[:40]!r} is neither "
                f"{answers[0]!r} nor {answers[1]!r}"
            )
        first, second = features(question)
        differences.append(first - second)
        right.append(example.answer.strip() == answers[0])
    return np.array(differences), np.array(right)


def shortcuts(fitted: Sequence[Example], tested: Sequence[Example]) -> Shortcuts:
    """Fit on the one, judge on the other. Raises: see `contrasts`."""
    x, y = contrasts(fitted)
    x_test, y_test = contrasts(tested)
    scale = np.maximum(np.abs(x).max(axis=0), 1e-9)
    weights = _logistic(x / scale, y)
    alone = {}
    for name, seen, held_out in zip(FEATURES, x.T, x_test.T):
        direction = 1 if _agreement(seen, y) >= 0.5 else -1
        alone[name] = _agreement(direction * held_out, y_test)
    linear = _agreement(x_test / scale @ weights, y_test)
    return Shortcuts(linear, alone, len(y), len(y_test))


def _agreement(score: np.ndarray, right: np.ndarray) -> float:
    """How often a positive score means the first choice; a score of 0 is half right."""
    return float(np.where(score == 0, 0.5, (score > 0) == right).mean())


def _logistic(x: np.ndarray, y: np.ndarray, steps: int = 25) -> np.ndarray:
    """Weights of a logistic regression without intercept, by Newton's method."""
    weights = np.zeros(x.shape[1])
    ridge = _RIDGE * len(x)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + ridge * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(weights))
        weights = weights - np.linalg.solve(curvature, gradient)
    return weights
