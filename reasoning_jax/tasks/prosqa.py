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

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

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
from reasoning_jax.tasks.prosqa_graph import (
    MIRRORED_WIDTH,
    Fitted,
    Graph,
    distances_from,
    mirrored,
    neighbours,
    search,
)
from reasoning_jax.tasks.prosqa_text import (
    CONCEPTS,
    FORMS,
    LAYOUTS,
    MAX_SYMBOLIC_NODES,
    NAMES,
    in_order,
    parse_question,
    write_edge,
    write_step,
)

FAMILIES = ("fitted", "mirrored")
STRATEGIES = ("direct", "bfs", "dfs")
_MAX_RESPONSE = 200
# Dials of the fitted generator, which a mirrored graph does not have.
_FITTED_DIALS = (
    "n_nodes", "parent_rate", "first_family", "second_family", "depth_weight", "even_depth",
)  # fmt: skip


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
        most = self.n_nodes if self.family == "fitted" else 2 + MIRRORED_WIDTH * self.max_hops
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
        defaults = {f.name: f.default for f in fields(self)}
        for dial in _FITTED_DIALS:
            if getattr(self, dial) != defaults[dial]:
                raise TaskError(
                    f"{self.name}: {dial}={getattr(self, dial)} has no effect on "
                    f"family='mirrored'; leave it at {defaults[dial]}"
                )
        most = len(CONCEPTS) if self.form == "text" else MAX_SYMBOLIC_NODES - 2
        if self.max_hops > most // MIRRORED_WIDTH:
            raise TaskError(
                f"{self.name}: max_hops={self.max_hops}: a mirrored graph of form={self.form!r} "
                f"has at most {most // MIRRORED_WIDTH} hops"
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
        if parsed == write_step(self.form, data["idx_to_symbol"], data["root"], data["neg_target"]):
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
        answer = write_step(self.form, symbols, root, data["target"])
        if strategy == "direct":
            return Trace(problem.steps, answer, solved=True, nodes=len(problem.steps) + 1)
        path, nodes = search(data["edges"], root, data["target"], depth_first=strategy == "dfs")
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
            labels = 2 + MIRRORED_WIDTH * self.max_hops if mirrored else self.n_nodes
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
            return mirrored(hops, int(rng.integers(2)), int(rng.integers(2)))
        return self._fitted.draw(rng)

    @functools.cached_property
    def _fitted(self) -> Fitted:
        return Fitted(**{field.name: getattr(self, field.name) for field in fields(Fitted)})

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
        facts = [
            write_edge(self.form, symbols, *graph.edges[i])
            for i in rng.permutation(len(graph.edges))
        ]
        choices = [symbols[graph.target], symbols[graph.neg_target]]
        first, second = choices if rng.integers(2) else reversed(choices)
        question = LAYOUTS[self.form].write(facts, first, second, symbols[graph.root])
        return self._problem(graph, symbols, question, seed, split)

    def _problem(
        self, graph: Graph, symbols: list[str], question: str, seed: int, split: str
    ) -> Problem:
        answer, other = (
            write_step(self.form, symbols, graph.root, end)
            for end in (graph.target, graph.neg_target)
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

    def _steps(self, symbols: Sequence[str], path: Sequence[int]) -> tuple[str, ...]:
        return tuple(write_step(self.form, symbols, *edge) for edge in itertools.pairwise(path))

    def _next_steps(
        self, graph: Graph, symbols: Sequence[str]
    ) -> tuple[list[list[str]], list[list[str]]]:
        """(choices, frontiers): for each step the texts, in the order of edges, of those on any
        shortest path, and of those that lead one edge farther from the root, wherever they end.
        """
        children, parents = neighbours(graph.n, graph.edges)
        behind, ahead = distances_from(children, graph.root), distances_from(parents, graph.target)
        hops = len(graph.path) - 1
        # Dicts: several edges into one node are one step in the symbolic form.
        choices: list[dict[str, None]] = [{} for _ in range(hops)]
        frontiers: list[dict[str, None]] = [{} for _ in range(hops)]
        for start, end in graph.edges:
            depth = behind.get(start, hops)
            if depth < hops and behind[end] == depth + 1:
                text = write_step(self.form, symbols, start, end)
                frontiers[depth][text] = None
                if end in ahead and depth + 1 + ahead[end] == hops:
                    choices[depth][text] = None
        return list(map(list, choices)), list(map(list, frontiers))


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
    symbols = in_order(pairs)
    for name in (asked.root, *asked.choices):
        if name not in symbols:
            raise TaskError(f"prosqa: {show(name)} is asked for and is in no edge of the question")
    number = {symbol: node for node, symbol in enumerate(symbols)}
    edges = sorted(((number[a], number[b]) for a, b in pairs), key=lambda e: (e[1], e[0]))
    children, parents = neighbours(len(symbols), edges)
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
        ends[start, write_step("text" if is_text else "symbolic", symbols, start, end)] = end
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
