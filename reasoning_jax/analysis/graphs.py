"""The graph behind a ProsQA question: depths, heights, groups of nodes and edges, and what a
completed text did on it (Coconut, arXiv 2412.06769, section 5; the groups are those of the first
author's arXiv 2505.12514).

Pure Python; knows no model. Definitions that the papers leave open are ours and stand here:
  * Groups are nested, as the published numbers imply (reachable and frontier agree at step 1).
  * The paper gives two definitions of height; both are here.
  * With thoughts, a written rest is judged by whether some beginning completes it, of any length.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning_jax.tasks.base import Problem
from reasoning_jax.tasks.prosqa_graph import distances_from, neighbours

CORRECT_PATH, LONGER_PATH = "correct path", "longer path"
CORRECT_LABEL, INCORRECT_LABEL = "correct label", "incorrect label"
WRONG_TARGET, HALLUCINATION = "wrong target", "hallucination"
CATEGORIES = (
    CORRECT_PATH, LONGER_PATH, CORRECT_LABEL, INCORRECT_LABEL, WRONG_TARGET, HALLUCINATION,
)  # fmt: skip
GROUPS = ("not reachable", "later", "reachable", "frontier", "optimal")
_SENTENCE = re.compile(r"(?:Every )?([A-Za-z]+) is a ([A-Za-z]+)\.")


@dataclass(frozen=True)
class Dag:
    """Nodes 0 .. n-1 with from < to on each edge, and what is asked of them."""

    symbols: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    neg_target: int

    @staticmethod
    def of(problem: Problem) -> Dag:
        data = problem.data
        edges = tuple((start, end) for start, end in data["edges"])
        asked = (data["root"], data["target"], data["neg_target"])
        return Dag(tuple(data["idx_to_symbol"]), edges, *asked)

    @property
    def is_text(self) -> bool:
        """Whether nodes are names and concepts, not numbers."""
        return not self.symbols[self.root].isdigit()

    @functools.cached_property
    def _neighbours(self) -> tuple[list[list[int]], list[list[int]]]:
        return neighbours(len(self.symbols), self.edges)

    @property
    def children(self) -> list[list[int]]:
        return self._neighbours[0]

    @property
    def parents(self) -> list[list[int]]:
        return self._neighbours[1]

    @functools.cached_property
    def depth(self) -> dict[int, int]:
        """Edges from the root, of the nodes that it reaches."""
        return distances_from(self.children, self.root)

    @functools.cached_property
    def ahead(self) -> dict[int, int]:
        """Edges to the target, of the nodes that reach it: the correct ones."""
        return distances_from(self.parents, self.target)

    @property
    def hops(self) -> int:
        """Edges of a shortest path from root to target."""
        return self.depth[self.target]

    def at_depth(self, depth: int) -> list[int]:
        return [node for node in range(len(self.symbols)) if self.depth.get(node) == depth]

    def on_shortest_path(self, node: int) -> bool:
        if node not in self.depth or node not in self.ahead:
            return False
        return self.depth[node] + self.ahead[node] == self.hops

    def heights(self, kind: str) -> list[int]:
        """Edges from each node to a leaf: to the one farthest along any path ("longest"; the
        paper's caption) or to the nearest ("shortest"; its text).
        """
        choose = {"longest": max, "shortest": min}[kind]
        found = [0] * len(self.symbols)
        for node in reversed(range(len(self.symbols))):
            if self.children[node]:
                found[node] = 1 + choose(found[child] for child in self.children[node])
        return found

    def node_groups(self, step: int) -> dict[str, list[int]]:
        """The nodes of each of `GROUPS` for thought number `step` (from 1).

        not reachable: the root never reaches it. later: it does, but in more than `step` edges.
        reachable: in at most `step` edges, the root itself among them. frontier: of these, those
        exactly `step` edges away. optimal: of these, those on a shortest path to the target.
        """
        groups: dict[str, list[int]] = {name: [] for name in GROUPS}
        for node in range(len(self.symbols)):
            depth = self.depth.get(node)
            if depth is None:
                groups["not reachable"].append(node)
            elif depth > step:
                groups["later"].append(node)
            else:
                groups["reachable"].append(node)
                if depth == step:
                    groups["frontier"].append(node)
                    if self.on_shortest_path(node):
                        groups["optimal"].append(node)
        return groups

    def edge_groups(self, step: int) -> dict[str, list[tuple[int, int]]]:
        """The edges of each of `GROUPS` for the column that thought number `step` (from 1) comes
        of: an edge is in the group in which its start was one thought ago, so that the frontier
        goes out from nodes `step` - 1 edges away. optimal: both its ends are on a shortest path.
        """
        nodes = {name: set(group) for name, group in self.node_groups(step - 1).items()}
        groups = {name: [e for e in self.edges if e[0] in group] for name, group in nodes.items()}
        groups["optimal"] = [e for e in groups["optimal"] if self.on_shortest_path(e[1])]
        return groups


def read_steps(dag: Dag, text: str, answer_prefix: str) -> list[str]:
    """The steps that a completed text has in front of its answer, of any form."""
    marker = answer_prefix.strip()
    body = text.rpartition(marker)[0] if marker and marker in text else text
    if not dag.is_text:
        return body.split()
    return [step for part in re.split(r"(?<=\.)|\n", body) if (step := part.strip())]


def process_category(dag: Dag, steps: Sequence[str], right: bool, thoughts: int) -> str:
    """Which of `CATEGORIES` a text is in: its steps, and whether its answer is `right`.

    The categories exclude each other. Without steps only the answer counts. With steps the chain
    counts, whatever the answer: "hallucination" if a step is not an edge or does not go on from the
    one before; else "wrong target" if it ends elsewhere than at the target; else "correct path" or
    "longer path" by its length from the root. With thoughts the chain may begin anywhere that the
    root reaches, and the shortest beginning that leads there is taken to have been thought;
    otherwise it must begin at the root.
    """
    if not steps:
        return CORRECT_LABEL if right else INCORRECT_LABEL
    number = {symbol: node for node, symbol in enumerate(dag.symbols)}
    edges = set(dag.edges)
    chain: list[int] = []
    for step in steps:
        sentence = _SENTENCE.fullmatch(step) if dag.is_text else None
        if dag.is_text and not sentence:
            return HALLUCINATION
        start, end = (number.get(x, -1) for x in (sentence.groups() if sentence else ("", step)))
        if end < 0 or (sentence and start < 0):
            return HALLUCINATION
        if not chain:
            begins = [start] if sentence else dag.parents[end]
            begins = [node for node in begins if node in dag.depth]
            if not thoughts:
                begins = [node for node in begins if node == dag.root]
            if not begins:
                return HALLUCINATION
            chain.append(min(begins, key=dag.depth.__getitem__))
        at = chain[-1]
        if (at, end) not in edges or (sentence and start != at):
            return HALLUCINATION
        chain.append(end)
    if chain[-1] != dag.target:
        return WRONG_TARGET
    length = dag.depth[chain[0]] + len(steps)
    return CORRECT_PATH if length == dag.hops else LONGER_PATH
