"""ProsQA: which of two concepts does a name reach in a directed acyclic graph of "is a" edges?

The data set of Coconut (arXiv 2412.06769). Its published files do not follow the generator that
its paper describes, so the generator here is one that we fitted to the statistics of the published
validation and test rows: node and edge counts, path lengths, shortest paths, leaves, reachable
nodes. Every default below that is not in the paper's text is that fit, not the authors' code:
  1. Of `n_nodes` nodes the first two start a family each; each later one has k ~ Poisson(1.5)
     parents (none: a new name, in no family).
  2. Its parents come from the nodes of the first family alone with probability .35; failing that,
     by a second draw, from those of the second alone with probability .70; else from all nodes.
  3. Parents are drawn without replacement with weight 1 + 1.5 * depth; a node's depth is one more
     than its shallowest parent's, its families are those of all its parents.
  4. Nodes without an edge are dropped and the rest renumbered, so that from < to on each edge.
  5. The root is the first node whose farthest leaf (of its family alone) is farther; ties by coin.
     Graphs in which that distance is not 3 to 6 are thrown away.
  6. The target is one of those farthest leaves, the wrong answer any leaf of the other family
     alone.
  7. The steps are one shortest path. Sentences and the two choices are shuffled.
The text form (sentences, names, concepts) is that of the published rows. The symbolic form follows
the first author's small-scale variant (arXiv 2505.12514): `a b | c d [Q] x y [R] root`; that `|`
stands between edges and not after each is our reading of it, and `relabel` is ours. The fused form
is the symbolic one with each edge as one word, `a>b c>d [Q] x y [R] root`.

The mirrored family is ours: two halves of one shape, so that neither depth nor degrees nor the
place in a half tell the target from the wrong answer. Each half is a root from which two chains of
equal length go out; the two choices end the same chain of either half.

A shortcut of the fitted family worth knowing: the target is deeper than the wrong answer (3.8
against 2.1 edges from their roots on the published rows), so that depth alone answers nine
questions in ten. `even_depth` (ours) keeps the questions whose two answers are equally deep.

`reshuffled` gives the same question in another order: free augmentation, of published rows too.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    require_bool,
    require_choice,
    require_int,
    require_number,
    require_range,
    require_strategy,
    right,
    show,
    too_long,
    wrong,
)

# fmt: off
NAMES = (
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly",
    "Rex", "Sally", "Sam", "Stella", "Tom", "Wren",
)
CONCEPTS = (
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus",
    "grimpus", "gwompus", "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus",
    "numpus", "quimpus", "rempus", "rompus", "rorpus", "scrompus", "shumpus", "sterpus", "storpus",
    "terpus", "timpus", "tumpus", "vumpus", "worpus", "wumpus", "yerpus", "yimpus", "yumpus",
    "zhorpus", "zumpus",
)
# fmt: on
FORMS = ("text", "symbolic", "fused")
FAMILIES = ("fitted", "mirrored")
STRATEGIES = ("direct", "bfs", "dfs")
MAX_SYMBOLIC_NODES = 200
_MAX_RESPONSE = 200
# The families of nodes 0 and 1 as bits; a node may be in none or in both.
_FAMILIES = (1, 2)
# Two halves, each a root and two chains: this many nodes but the roots for each hop.
_MIRRORED_WIDTH = 4
# Dials of the fitted generator, which a mirrored graph does not have.
_FITTED_DIALS = (
    "n_nodes", "parent_rate", "first_family", "second_family", "depth_weight", "even_depth",
)  # fmt: skip


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
class ProsQA:
    """Two choices, one reachable; see the module for the generator and where its numbers are from.

    form: "text" (`Every lempus is a rompus. ... Is Alex a gorpus or bompus?`, steps are sentences,
      the answer is `Alex is a gorpus.`), "symbolic" (`0 2 | 2 5 [Q] 5 4 [R] 0`, steps are the
      nodes of the path after the root, the answer is the target's number) or "fused" (an edge is
      one word, `0>2 2>5 [Q] 5 4 [R] 0`; steps and answer as in "symbolic").
    family: "fitted" graphs, or "mirrored" ones: 2 + 4 * hops nodes, hops drawn evenly from their
      range, always numbered at random. Only the dials of hops go with the latter.
    n_nodes: nodes before those without an edge are dropped. At most 38 as text: one concept each.
    min_hops, max_hops: the range of the distance from root to target, in edges.
    parent_rate: mean of the Poisson number of parents.
    first_family, second_family: the chances of the two draws for where parents come from.
    depth_weight: how much deeper nodes are preferred as parents.
    even_depth: only questions whose wrong answer is as far from its own root, and from the nearest
      node without parents, as the target is.
    labels: number nodes at random with some of 0 to labels - 1, so that a model can be asked about
      larger graphs than it was trained on; 0 takes as many as there are nodes. Not for text.
    relabel: number the nodes at random in the symbolic and fused forms; otherwise a fitted node's
      number grows with its depth, which tells something about the answer.
    """

    form: str = "text"
    family: str = "fitted"
    n_nodes: int = 28
    min_hops: int = 3
    max_hops: int = 6
    parent_rate: float = 1.5
    first_family: float = 0.35
    second_family: float = 0.70
    depth_weight: float = 1.5
    even_depth: bool = False
    relabel: bool = False
    labels: int = 0

    def __post_init__(self) -> None:
        require_choice(self.name, "form", self.form, FORMS)
        require_choice(self.name, "family", self.family, FAMILIES)
        require_int(self.name, "n_nodes", self.n_nodes, 4, MAX_SYMBOLIC_NODES)
        require_range(
            self.name, "min_hops", self.min_hops, "max_hops", self.max_hops, 1, MAX_SYMBOLIC_NODES
        )
        require_number(self.name, "parent_rate", self.parent_rate, 0.1, 10.0)
        require_number(self.name, "first_family", self.first_family, 0.0, 1.0)
        require_number(self.name, "second_family", self.second_family, 0.0, 1.0)
        require_number(self.name, "depth_weight", self.depth_weight, 0.0, 100.0)
        require_bool(self.name, "even_depth", self.even_depth)
        require_bool(self.name, "relabel", self.relabel)
        require_int(self.name, "labels", self.labels, 0, MAX_SYMBOLIC_NODES)
        most = self.n_nodes if self.family == "fitted" else 2 + _MIRRORED_WIDTH * self.max_hops
        if self.labels and (self.form == "text" or self.labels < most):
            raise TaskError(
                f"{self.name}: labels={self.labels}: leave it at 0 for form='text', else at least "
                f"{most}, one for every node"
            )
        if self.family == "mirrored":
            self._check_mirrored()
        else:
            self._check_fitted()

    def _check_fitted(self) -> None:
        if self.form == "text" and self.n_nodes > len(CONCEPTS):
            raise TaskError(
                f"{self.name}: n_nodes={self.n_nodes}: there are {len(CONCEPTS)} concepts to name "
                f"nodes with; at most {len(CONCEPTS)} as text, or form='symbolic'"
            )
        # Both first nodes and a leaf of the other family are off the path to the target.
        longest = self.n_nodes - 3
        if self.min_hops > longest:
            raise TaskError(
                f"{self.name}: min_hops={self.min_hops}: {self.n_nodes} nodes have no longer path "
                f"than {longest}"
            )

    def _check_mirrored(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for dial in _FITTED_DIALS:
            if getattr(self, dial) != defaults[dial]:
                raise TaskError(
                    f"{self.name}: {dial}={getattr(self, dial)} has no effect on "
                    f"family='mirrored'; leave it at {defaults[dial]}"
                )
        most = len(CONCEPTS) if self.form == "text" else MAX_SYMBOLIC_NODES - 2
        if self.max_hops > most // _MIRRORED_WIDTH:
            raise TaskError(
                f"{self.name}: max_hops={self.max_hops}: a mirrored graph of form={self.form!r} "
                f"has at most {most // _MIRRORED_WIDTH} hops"
            )

    @property
    def name(self) -> str:
        return "prosqa"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does.

        `data` has the keys of the published rows (idx_to_symbol, edges, root, target, neg_target),
        `nodes`, and `step_choices`, `frontiers` and `options` as an `Example` has them. Fitted
        problems with one graph and one question share a split whatever their names; mirrored ones,
        whose graph is always the same, where the names are the same too.
        """

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            graph = self._draw_graph(rng)
            symbols = self._draw_symbols(graph, rng) if graph else None
            if graph is None or symbols is None:
                return None
            return self._key(graph, symbols), self._write(graph, symbols, rng, seed, split)

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response, blanks around it aside, is the answer and no more."""
        if refusal := too_long(response, _MAX_RESPONSE):
            return refusal
        parsed = response.strip()
        if parsed == problem.answer:
            return right(parsed)
        data = problem.data
        if not parsed:
            return wrong("the response is empty")
        if parsed == self._answer(data["idx_to_symbol"], data["root"], data["neg_target"]):
            return wrong("the wrong one of the two choices", parsed)
        return wrong(f"{show(parsed)} is neither of the two choices' answers", parsed)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """A path from root to target as steps. Deterministic: the seed changes nothing.

        Strategies: "direct" is the reference path, "bfs" and "dfs" search from the root in the
        order of the edge list. `nodes` counts the nodes that were taken up.
        """
        require_strategy(self.name, strategy, STRATEGIES)
        data = problem.data
        symbols, root = data["idx_to_symbol"], data["root"]
        answer = self._answer(symbols, root, data["target"])
        if strategy == "direct":
            return Trace(problem.steps, answer, solved=True, nodes=len(problem.steps) + 1)
        path, nodes = _search(data["edges"], root, data["target"], depth_first=strategy == "dfs")
        return Trace(self._steps(symbols, path), answer, solved=True, nodes=nodes)

    def characters(self) -> str:
        joints = " >" if self.form == "fused" else " "
        return "".join(sorted(set(joints) | set("".join(self.words()))))

    def words(self) -> tuple[str, ...]:
        """As the protocol says; the fused form's `a>b` are not among them, but their halves are.

        `[A]` stands in no problem: it is there to announce an answer with.
        """
        if self.form != "text":
            marks = {"[Q]", "[R]", "[A]"} | ({"|"} if self.form == "symbolic" else set())
            return tuple(sorted(marks | set(self.noise_units())))
        ends = {concept + end for concept in CONCEPTS for end in ("", ".", "?")}
        return tuple(sorted({"Every", "Is", "is", "a", "or"} | set(NAMES) | ends))

    def noise_units(self) -> tuple[str, ...]:
        """The names of nodes, without punctuation."""
        if self.form != "text":
            mirrored = self.family == "mirrored"
            labels = 2 + _MIRRORED_WIDTH * self.max_hops if mirrored else self.n_nodes
            return tuple(sorted(map(str, range(self.labels or labels))))
        return (*NAMES, *CONCEPTS)

    def _key(self, graph: Graph, symbols: Sequence[str]) -> str:
        """What decides the split: the same for problems that are to share one."""
        asked = (graph.root, graph.target, graph.neg_target)
        if self.family == "fitted":
            return f"{graph.edges} {' '.join(map(str, asked))}"
        edges = sorted((symbols[start], symbols[end]) for start, end in graph.edges)
        return f"{edges} {' '.join(symbols[node] for node in asked)}"

    def _draw_graph(self, rng: np.random.Generator) -> Graph | None:
        if self.family == "mirrored":
            hops = int(rng.integers(self.min_hops, self.max_hops + 1))
            return _mirrored(hops, int(rng.integers(2)), int(rng.integers(2)))
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
        children: list[list[int]] = [[] for _ in range(n)]
        parents: list[list[int]] = [[] for _ in range(n)]
        for start, end in edges:
            children[start].append(end)
            parents[end].append(start)
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

    def _draw_symbols(self, graph: Graph, rng: np.random.Generator) -> list[str] | None:
        if self.form != "text":
            labels = self.labels or (graph.n if self.family == "mirrored" else self.n_nodes)
            shuffled = self.relabel or self.family == "mirrored" or self.labels > 0
            numbers = rng.permutation(labels) if shuffled else np.arange(labels)
            return [str(number) for number in numbers[: graph.n].tolist()]
        has_parent = {end for _, end in graph.edges}
        if graph.n - len(has_parent) > len(NAMES):
            return None
        names = iter(rng.permutation(len(NAMES)).tolist())
        concepts = iter(rng.permutation(len(CONCEPTS)).tolist())
        return [
            CONCEPTS[next(concepts)] if node in has_parent else NAMES[next(names)]
            for node in range(graph.n)
        ]

    def _write(
        self, graph: Graph, symbols: list[str], rng: np.random.Generator, seed: int, split: str
    ) -> Problem:
        facts = [self._fact(symbols, *graph.edges[i]) for i in rng.permutation(len(graph.edges))]
        choices = [symbols[graph.target], symbols[graph.neg_target]]
        first, second = choices if rng.integers(2) else reversed(choices)
        question = _LAYOUTS[self.form].write(facts, first, second, symbols[graph.root])
        return self._problem(graph, symbols, question, seed, split)

    def _problem(
        self, graph: Graph, symbols: list[str], question: str, seed: int, split: str
    ) -> Problem:
        answer, other = (
            self._answer(symbols, graph.root, end) for end in (graph.target, graph.neg_target)
        )
        choices, frontiers = self._next_steps(graph, symbols)
        return Problem(
            task=self.name,
            seed=seed,
            split=split,
            question=question,
            answer=answer,
            steps=self._steps(symbols, graph.path),
            difficulty=f"hops={len(graph.path) - 1}",
            data={
                "nodes": graph.n,
                "edges": [list(edge) for edge in graph.edges],
                "root": graph.root,
                "target": graph.target,
                "neg_target": graph.neg_target,
                "idx_to_symbol": symbols,
                "step_choices": choices,
                "frontiers": frontiers,
                "options": [answer, other],
            },
        )

    def _fact(self, symbols: Sequence[str], start: int, end: int) -> str:
        if self.form == "text":
            return _sentence(symbols, start, end)
        return f"{symbols[start]}{'>' if self.form == 'fused' else ' '}{symbols[end]}"

    def _steps(self, symbols: Sequence[str], path: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._step(symbols, *edge) for edge in itertools.pairwise(path))

    def _step(self, symbols: Sequence[str], start: int, end: int) -> str:
        return _sentence(symbols, start, end) if self.form == "text" else symbols[end]

    def _next_steps(
        self, graph: Graph, symbols: Sequence[str]
    ) -> tuple[list[list[str]], list[list[str]]]:
        """(choices, frontiers): for each step the texts, in the order of edges, of those on any
        shortest path, and of those that lead one edge farther from the root, wherever they end.
        """
        children: list[list[int]] = [[] for _ in range(graph.n)]
        parents: list[list[int]] = [[] for _ in range(graph.n)]
        for start, end in graph.edges:
            children[start].append(end)
            parents[end].append(start)
        behind, ahead = distances_from(children, graph.root), distances_from(parents, graph.target)
        hops = len(graph.path) - 1
        # Dicts: several edges into one node are one step in the symbolic form.
        choices: list[dict[str, None]] = [{} for _ in range(hops)]
        frontiers: list[dict[str, None]] = [{} for _ in range(hops)]
        for start, end in graph.edges:
            depth = behind.get(start, hops)
            if depth < hops and behind[end] == depth + 1:
                text = self._step(symbols, start, end)
                frontiers[depth][text] = None
                if end in ahead and depth + 1 + ahead[end] == hops:
                    choices[depth][text] = None
        return list(map(list, choices)), list(map(list, frontiers))

    def _answer(self, symbols: Sequence[str], root: int, target: int) -> str:
        return _sentence(symbols, root, target) if self.form == "text" else symbols[target]


class _Layout(NamedTuple):
    """How a form lays out a question. `fact` and `asked` are patterns; `closing` writes `asked`."""

    fact: str
    joint: str
    closing: str
    asked: str

    def write(self, facts: Sequence[str], first: str, second: str, root: str) -> str:
        closing = self.closing.format(first=first, second=second, root=root)
        return f"{self.joint.join(facts)} {closing}"


_NUMBERS = r"\[Q\] (?P<first>[0-9]+) (?P<second>[0-9]+) \[R\] (?P<root>[0-9]+)"
_LAYOUTS = {
    "text": _Layout(
        r"(?:Every [a-z]+|[A-Z][a-z]*) is a [a-z]+\.",
        " ",
        "Is {root} a {first} or {second}?",
        r"Is (?P<root>[A-Z][a-z]*) a (?P<first>[a-z]+) or (?P<second>[a-z]+)\?",
    ),
    "symbolic": _Layout("[0-9]+ [0-9]+", " | ", "[Q] {first} {second} [R] {root}", _NUMBERS),
    "fused": _Layout("[0-9]+>[0-9]+", " ", "[Q] {first} {second} [R] {root}", _NUMBERS),
}


class Fact(NamedTuple):
    """An edge as a question states it, of which `place` characters go up to the end of its end."""

    start: str
    end: str
    place: int


class Question(NamedTuple):
    """A question as it is written: its form, its edges and choices in their order, its root."""

    form: str
    facts: tuple[Fact, ...]
    choices: tuple[str, str]
    root: str


def parse_question(question: str) -> Question:
    """Read a question of any form, to the letter.

    Raises:
      TaskError: the text is no such question.
    """
    form, read = _match(question)
    facts = []
    for match in re.finditer(_LAYOUTS[form].fact, read["facts"]):
        words = re.split(r"[ >]", match[0].rstrip("."))
        # "Every a is a b", "Name is a b", "a b", "a>b".
        start = words[1] if words[0] == "Every" else words[0]
        facts.append(Fact(start, words[-1], match.start() + len(match[0].rstrip("."))))
    return Question(form, tuple(facts), (read["first"], read["second"]), read["root"])


def read_question(question: str) -> Problem:
    """The problem that a question of any form poses; its answer is the choice that can be reached,
    its steps are a shortest path. Nodes are numbered so that from < to on each edge, and `root` may
    be any of them.

    Raises:
      TaskError: the text is no question of the task; its edges are not a directed acyclic graph of
        moderate size with the root and both choices in it; the root reaches both choices or none.
    """
    asked = parse_question(question)
    pairs = [(fact.start, fact.end) for fact in asked.facts]
    symbols = _in_order(pairs)
    for name in (asked.root, *asked.choices):
        if name not in symbols:
            raise TaskError(f"prosqa: {show(name)} is asked for and is in no edge of the question")
    number = {symbol: node for node, symbol in enumerate(symbols)}
    edges = sorted(((number[a], number[b]) for a, b in pairs), key=lambda e: (e[1], e[0]))
    children: list[list[int]] = [[] for _ in symbols]
    parents: list[list[int]] = [[] for _ in symbols]
    for start, end in edges:
        children[start].append(end)
        parents[end].append(start)
    root = number[asked.root]
    depth = distances_from(children, root)
    reached = [name for name in asked.choices if number[name] in depth]
    if len(reached) != 1 or asked.root in asked.choices:
        raise TaskError(
            f"prosqa: of {asked.choices[0]} and {asked.choices[1]} exactly one must be reachable "
            f"from {asked.root}, and neither be it; reachable: {', '.join(reached) or 'none'}"
        )
    target = number[reached[0]]
    wrong_one = number[next(name for name in asked.choices if name != reached[0])]
    path = [target]
    while path[-1] != root:
        path.append(next(p for p in parents[path[-1]] if depth.get(p) == depth[path[-1]] - 1))
    graph = Graph(len(symbols), tuple(edges), root, target, wrong_one, tuple(reversed(path)))
    return ProsQA(form=asked.form)._problem(graph, symbols, question, 0, "train")


def _in_order(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The ends of edges, so that each edge's first comes before its second. Raises TaskError."""
    if len(set(pairs)) < len(pairs):
        twice = next(pair for i, pair in enumerate(pairs) if pair in pairs[:i])
        raise TaskError(f"prosqa: the edge from {twice[0]} to {twice[1]} is given twice")
    waiting = dict.fromkeys(symbol for pair in pairs for symbol in pair)
    if len(waiting) > MAX_SYMBOLIC_NODES:
        raise TaskError(f"prosqa: {len(waiting)} nodes, at most {MAX_SYMBOLIC_NODES} are read")
    found: list[str] = []
    while waiting:
        blocked = {end for start, end in pairs if start in waiting}
        free = [symbol for symbol in waiting if symbol not in blocked]
        if not free:
            raise TaskError(f"prosqa: the edges go in a circle through {next(iter(waiting))}")
        found += free
        for symbol in free:
            del waiting[symbol]
    return found


def reshuffled(question: str, rng: np.random.Generator) -> str:
    """The same question, of any form, with its edges and its two choices in another order.

    Raises:
      TaskError: the text is not a ProsQA question, to the letter.
    """
    form, read = _match(question)
    layout = _LAYOUTS[form]
    facts = re.findall(layout.fact, read["facts"])
    choices = [read["first"], read["second"]]
    first, second = choices if rng.integers(2) else reversed(choices)
    order = rng.permutation(len(facts))
    return layout.write([facts[i] for i in order], first, second, read["root"])


def _match(question: str) -> tuple[str, re.Match[str]]:
    """(form, what its patterns read) of a question, to the letter. Raises TaskError."""
    for form, layout in _LAYOUTS.items():
        fact, joint = layout.fact, re.escape(layout.joint)
        read = re.fullmatch(f"(?P<facts>{fact}(?:{joint}{fact})*) {layout.asked}", question)
        if read is not None:
            return form, read
    raise TaskError(
        f"prosqa: {show(question)} is not a question of the task in any of its forms "
        f"({', '.join(FORMS)})"
    )


def check_chain(problem: Problem, steps: Sequence[str]) -> Score:
    """Are these steps an unbroken chain of edges of the problem's graph from root to target?

    Takes steps of any form. `value` is the share of steps before the first bad one if the chain
    is wrong, `parsed` those steps; `reason` names the first fault. Any strings are safe.
    """
    data = problem.data
    symbols, root = data["idx_to_symbol"], data["root"]
    if not steps:
        return wrong("no steps")
    is_text = not symbols[root].isdigit()
    ends: dict[tuple[int, str], int] = {}
    for start, end in data["edges"]:
        ends[start, _sentence(symbols, start, end) if is_text else symbols[end]] = end
    known = {step for _, step in ends}
    at, good, fault = root, 0, ""
    for step in steps:
        if (at, step) not in ends:
            lacks = f"does not go on from {symbols[at]}" if step in known else "is not in the graph"
            fault = f"step {good + 1}: {show(step)} {lacks}"
            break
        at, good = ends[at, step], good + 1
    if not fault and at == data["target"]:
        return right("\n".join(steps))
    fault = fault or f"the chain ends at {symbols[at]}, not at {symbols[data['target']]}"
    return wrong(fault, "\n".join(steps[:good]), good / len(steps))


def _sentence(symbols: Sequence[str], start: int, end: int) -> str:
    # Names are the only symbols with a capital letter; each other subject stands after "Every".
    subject = symbols[start]
    return f"{'' if subject[0].isupper() else 'Every '}{subject} is a {symbols[end]}."


def _mirrored(hops: int, root: int, chain: int) -> Graph:
    """Two halves of a root and two chains, asked for the end of one chain of that root's half.

    Nodes are numbered by depth, so that from < to: root r, then 2 + 4 (depth - 1) + 2 r + chain.
    """

    def node(half: int, line: int, depth: int) -> int:
        return half if depth == 0 else 2 + _MIRRORED_WIDTH * (depth - 1) + 2 * half + line

    edges = tuple(
        (node(half, line, depth - 1), node(half, line, depth))
        for depth in range(1, hops + 1)
        for half in (0, 1)
        for line in (0, 1)
    )
    path = tuple(node(root, chain, depth) for depth in range(hops + 1))
    n = 2 + _MIRRORED_WIDTH * hops
    return Graph(n, edges, root, path[-1], node(1 - root, chain, hops), path)


def _pick(nodes: Sequence[int], rng: np.random.Generator) -> int:
    return nodes[int(rng.integers(len(nodes)))]


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


def _search(
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
