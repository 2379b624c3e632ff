"""The graphs of ProsQA: drawn, and searched. `prosqa.py` says what they are fitted to."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The families of nodes 0 and 1 as bits; a node may be in none or in both.
_FAMILIES = (1, 2)
# Two halves, each a root and two chains: this many nodes but the roots for each hop.
MIRRORED_WIDTH = 4


class Graph(NamedTuple):
    """A question on a graph: nodes 0 .. n-1, edges (from, to) with from < to, sorted by `to`.

    `root` is 0 or 1; `target` is reachable from it, `neg_target` is not; `path` is a shortest one.
    """

    n: int
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    neg_target: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """The fitted generator; its fields are dials of `ProsQA`."""

    n_nodes: int
    min_hops: int
    max_hops: int
    parent_rate: float
    first_family: float
    second_family: float
    depth_weight: float
    even_depth: bool

    def draw(self, rng: np.random.Generator) -> Graph | None:
        """One graph with its question, or None if this one has none in range."""
        parents = self._grow(rng)
        has_child = {parent for others in parents for parent in others}
        kept = [node for node in range(self.n_nodes) if parents[node] or node in has_child]
        number = {node: place for place, node in enumerate(kept)}
        # Both families need their first node, so 0 and 1 keep their numbers.
        if kept[:2] != [0, 1]:
            return None
        edges = tuple((number[parent], number[node]) for node in kept for parent in parents[node])
        return self._ask(len(kept), edges, rng)

    def _grow(self, rng: np.random.Generator) -> list[list[int]]:
        """The parents of each of `n_nodes` nodes (steps 1 to 3)."""
        n = self.n_nodes
        counts = rng.poisson(self.parent_rate, size=n).tolist()
        draws = rng.random((n, 2)).tolist()
        # The k smallest of Exp(1) / weight are k draws without replacement by weight.
        clocks = rng.exponential(size=(n, n)).tolist()
        parents: list[list[int]] = [[], []]
        families: list[int] = list(_FAMILIES)
        # The nodes of the one family alone, in order.
        alone: dict[int, list[int]] = {family: [i] for i, family in enumerate(_FAMILIES)}
        weights, depths = [1.0, 1.0], [0, 0]
        for node in range(2, n):
            first, second = draws[node]
            candidates: Sequence[int] = range(node)
            if first < self.first_family:
                candidates = alone[_FAMILIES[0]]
            elif second < self.second_family:
                candidates = alone[_FAMILIES[1]]
            # As many as there are weights: those of the nodes before this one.
            waits = list(map(operator.truediv, clocks[node], weights))
            chosen = sorted(candidates, key=waits.__getitem__)[: counts[node]]
            family = 0
            for parent in chosen:
                family |= families[parent]
            depth = 1 + min(depths[parent] for parent in chosen) if chosen else 0
            parents.append(chosen)
            families.append(family)
            if family in alone:
                alone[family].append(node)
            depths.append(depth)
            weights.append(1.0 + self.depth_weight * depth)
        return parents

    def _ask(
        self, n: int, edges: tuple[tuple[int, int], ...], rng: np.random.Generator
    ) -> Graph | None:
        """A question about this graph (steps 5 to 7), or None if it has none in range."""
        children, parents = neighbours(n, edges)
        distances = (distances_from(children, 0), distances_from(children, 1))
        leaves = [
            [v for v in distances[r] if v > 1 and not children[v] and v not in distances[1 - r]]
            for r in (0, 1)
        ]
        if not leaves[0] or not leaves[1]:
            return None
        farthest = [max(distances[r][leaf] for leaf in leaves[r]) for r in (0, 1)]
        coin = int(rng.integers(2))
        root = coin if farthest[0] == farthest[1] else int(farthest[1] > farthest[0])
        if not self.min_hops <= farthest[root] <= self.max_hops:
            return None
        from_root = distances[root]
        target = _pick([leaf for leaf in leaves[root] if from_root[leaf] == farthest[root]], rng)
        others = leaves[1 - root]
        if self.even_depth:
            depths: list[int] = []
            for v in range(n):
                depths.append(1 + min(depths[p] for p in parents[v]) if parents[v] else 0)
            level = (from_root[target], depths[target])
            others = [v for v in others if (distances[1 - root][v], depths[v]) == level]
            if not others:
                return None
        neg_target = _pick(others, rng)
        path = [target]
        while path[-1] != root:
            nearer = from_root[path[-1]] - 1
            path.append(_pick([p for p in parents[path[-1]] if from_root.get(p) == nearer], rng))
        return Graph(n, edges, root, target, neg_target, tuple(reversed(path)))


def mirrored(hops: int, root: int, chain: int) -> Graph:
    """Two halves of a root and two chains, asked for the end of one chain of that root's half.

    Nodes are numbered by depth, so that from < to: root r, then 2 + 4 (depth - 1) + 2 r + chain.
    """

    def node(half: int, line: int, depth: int) -> int:
        return half if depth == 0 else 2 + MIRRORED_WIDTH * (depth - 1) + 2 * half + line

    edges = tuple(
        (node(half, line, depth - 1), node(half, line, depth))
        for depth in range(1, hops + 1)
        for half in (0, 1)
        for line in (0, 1)
    )
    path = tuple(node(root, chain, depth) for depth in range(hops + 1))
    n = 2 + MIRRORED_WIDTH * hops
    return Graph(n, edges, root, path[-1], node(1 - root, chain, hops), path)


def _pick(nodes: Sequence[int], rng: np.random.Generator) -> int:
    return nodes[int(rng.integers(len(nodes)))]


def neighbours(n: int, edges: Iterable[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(children, parents) of each of n nodes, in the order of the edges."""
    children: list[list[int]] = [[] for _ in range(n)]
    parents: list[list[int]] = [[] for _ in range(n)]
    for start, end in edges:
        children[start].append(end)
        parents[end].append(start)
    return children, parents


def distances_from(children: Sequence[Sequence[int]], root: int) -> dict[int, int]:
    """How many edges it is from root to each node that it reaches, itself among them."""
    found = {root: 0}
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for child in children[node]:
            if child not in found:
                found[child] = found[node] + 1
                queue.append(child)
    return found


def search(
    edges: Sequence[Sequence[int]], root: int, target: int, *, depth_first: bool
) -> tuple[tuple[int, ...], int]:
    """A path and the number of nodes taken up until the target was."""
    children: dict[int, list[int]] = {}
    for start, end in edges:
        children.setdefault(start, []).append(end)
    came_from = {root: root}
    frontier = deque([(root, root)])
    taken: set[int] = set()
    while frontier:
        node, parent = frontier.pop() if depth_first else frontier.popleft()
        if node in taken:
            continue
        taken.add(node)
        came_from[node] = parent
        if node == target:
            break
        following = children.get(node, [])
        # The last one in comes off a stack first.
        frontier.extend((child, node) for child in (following[::-1] if depth_first else following))
    path = [target]
    while path[-1] != root:
        path.append(came_from[path[-1]])
    return tuple(reversed(path)), len(taken)
