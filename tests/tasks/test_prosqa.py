import collections
import re

import numpy as np
import pytest

from reasoning_jax.tasks import TaskError, make_task
from reasoning_jax.tasks.prosqa import CONCEPTS, NAMES, check_chain

# Mean over the 800 published validation and test rows, as the statistics below name them.
PUBLISHED = {
    "nodes": 22.81,
    "edges": 36.00,
    "path": 3.77,
    "shortest paths": 1.59,
    "entities": 2.56,
    "leaves": 7.37,
    "reachable": 13.36,
}
PUBLISHED_ROWS = 800


@pytest.fixture(scope="module")
def problems():
    task = make_task("prosqa")
    return [task.problem(seed) for seed in range(300)]


def adjacency(data):
    matrix = np.zeros((data["nodes"], data["nodes"]), np.int64)
    for start, end in data["edges"]:
        matrix[start, end] += 1
    return matrix


def walks(data, start):
    """Number of walks from `start` by length and node: (nodes, nodes)."""
    matrix, rows = adjacency(data), []
    row = np.eye(data["nodes"], dtype=np.int64)[start]
    for _ in range(data["nodes"]):
        rows.append(row)
        row = row @ matrix
    return np.array(rows)


def test_graphs_are_numbered_as_the_published_ones(problems):
    for problem in problems:
        data = problem.data
        edges = [tuple(edge) for edge in data["edges"]]
        assert len(set(edges)) == len(edges)
        assert all(start < end for start, end in edges)
        assert [end for _, end in edges] == sorted(end for _, end in edges)
        assert {node for edge in edges for node in edge} == set(range(data["nodes"]))
        assert data["root"] in (0, 1)
        symbols, has_parent = data["idx_to_symbol"], {end for _, end in edges}
        assert len(set(symbols)) == len(symbols) == data["nodes"]
        assert not has_parent & {0, 1}
        for node, symbol in enumerate(symbols):
            assert symbol in (CONCEPTS if node in has_parent else NAMES)


def test_the_target_and_only_it_is_reached_from_the_root(problems):
    for problem in problems:
        data = problem.data
        root, target, other = data["root"], data["target"], data["neg_target"]
        reach = [walks(data, start) for start in (root, 1 - root)]
        reached = [set(np.flatnonzero(rows.sum(0))) for rows in reach]
        leaves = set(np.flatnonzero(adjacency(data).sum(1) == 0))
        assert {target, other} <= leaves
        assert target in reached[0] - reached[1]
        assert other in reached[1] - reached[0]
        hops = int(np.flatnonzero(reach[0][:, target])[0])
        assert len(problem.steps) == hops
        assert problem.difficulty == f"hops={hops}"
        assert 3 <= hops <= 6
        # The deepest of the root's own leaves, and no shallower than the other family's.
        depth = [
            max(int(np.flatnonzero(rows[:, leaf])[0]) for leaf in leaves & (mine - others))
            for rows, mine, others in zip(reach, reached, reversed(reached))
        ]
        assert hops == depth[0] >= depth[1]


def test_the_text_says_what_the_graph_is(problems):
    sentence = re.compile(r"(?:Every )?(\w+) is a (\w+)\.")
    closing = re.compile(r"Is (\w+) a (\w+) or (\w+)\?$")
    right_first = in_order = 0
    for problem in problems:
        data, symbols = problem.data, problem.data["idx_to_symbol"]
        said = [tuple(pair) for pair in sentence.findall(problem.question)]
        edges = [(symbols[start], symbols[end]) for start, end in data["edges"]]
        assert sorted(said) == sorted(edges)
        in_order += said == edges
        root, first, second = closing.search(problem.question).groups()
        assert root == symbols[data["root"]]
        assert {first, second} == {symbols[data["target"]], symbols[data["neg_target"]]}
        right_first += first == symbols[data["target"]]
        assert problem.answer == f"{root} is a {symbols[data['target']]}."
        assert problem.steps[0].startswith(f"{root} is a ")
        assert all(step.startswith("Every ") for step in problem.steps[1:])
        assert set(problem.steps) <= set(re.findall(r"[A-Z][^.?]*\.", problem.question))
    assert in_order == 0
    assert 0.4 < right_first / len(problems) < 0.6


def statistics(problem):
    data = problem.data
    rows = walks(data, data["root"])
    return {
        "nodes": data["nodes"],
        "edges": len(data["edges"]),
        "path": len(problem.steps),
        "shortest paths": rows[len(problem.steps), data["target"]],
        "entities": data["nodes"] - len({end for _, end in data["edges"]}),
        "leaves": data["nodes"] - len({start for start, _ in data["edges"]}),
        "reachable": int((rows.sum(0) > 0).sum()),
    }


@pytest.mark.parametrize(
    "count", [600, pytest.param(3000, marks=pytest.mark.slow)], ids=["600", "3000"]
)
def test_statistics_are_those_of_the_published_rows(count):
    task = make_task("prosqa")
    samples = [statistics(task.problem(seed)) for seed in range(count)]
    for name, published in PUBLISHED.items():
        values = np.array([sample[name] for sample in samples], float)
        error = values.std() * np.sqrt(1 / PUBLISHED_ROWS + 1 / count)
        assert abs(values.mean() - published) < 3 * error, (name, values.mean(), published, error)


def test_names_and_concepts_are_drawn_evenly(problems):
    counts = collections.Counter(s for problem in problems for s in problem.data["idx_to_symbol"])
    assert set(counts) == set(NAMES) | set(CONCEPTS)
    for group in (NAMES, CONCEPTS):
        mean = sum(counts[symbol] for symbol in group) / len(group)
        assert all(0.5 * mean < counts[symbol] < 1.5 * mean for symbol in group)


@pytest.mark.parametrize("relabel", [False, True])
def test_the_symbolic_form_is_the_graph_in_numbers(relabel):
    task = make_task("prosqa", form="symbolic", relabel=relabel)
    ordered = 0
    for seed in range(100):
        problem = task.problem(seed)
        data, symbols = problem.data, problem.data["idx_to_symbol"]
        facts, rest = problem.question.split(" [Q] ")
        choices, root = rest.split(" [R] ")
        edges = [tuple(fact.split(" ")) for fact in facts.split(" | ")]
        assert sorted(edges) == sorted((symbols[a], symbols[b]) for a, b in data["edges"])
        assert set(choices.split(" ")) == {symbols[data["target"]], symbols[data["neg_target"]]}
        assert root == symbols[data["root"]]
        assert problem.answer == symbols[data["target"]] == problem.steps[-1]
        assert all(edge in edges for edge in zip((root, *problem.steps), problem.steps))
        assert len(set(symbols)) == data["nodes"]
        ordered += all(int(a) < int(b) for a, b in edges)
    assert ordered == (0 if relabel else 100)


@pytest.mark.parametrize("form", ["text", "symbolic"])
def test_chains_are_followed_edge_by_edge(form):
    task = make_task("prosqa", form=form)
    for seed in range(60):
        problem = task.problem(seed)
        steps = list(problem.steps)
        assert check_chain(problem, steps).correct
        for strategy in ("bfs", "dfs"):
            trace = task.solve(problem, strategy)
            assert check_chain(problem, trace.steps).correct
            assert (len(trace.steps) == len(steps)) or strategy == "dfs"
        broken = {
            "no steps": [],
            "the chain ends at": steps[:-1],
            "does not go on from": [steps[0], *steps],
            "step 2: 'x' is not in the graph": [steps[0], "x", *steps[1:]],
            f"step 1: {steps[1]!r} does not go on": steps[::-1][-2:-1] + steps,
            f"step {len(steps) + 1}": [*steps, "\ud800" * 100],
        }
        for told, chain in broken.items():
            score = check_chain(problem, chain)
            assert not score.correct
            assert told in score.reason
            assert 0 <= score.value <= 1
        assert check_chain(problem, [*steps, "x"]).value == len(steps) / (len(steps) + 1)
        assert check_chain(problem, [problem.answer]).correct is False


def test_steps_of_the_other_form_are_no_chain():
    problem = make_task("prosqa").problem(0)
    bare = [step.rstrip(".").split()[-1] for step in problem.steps]
    assert not check_chain(problem, bare).correct


def test_wrong_answers_are_told_apart():
    task = make_task("prosqa")
    problem = task.problem(0)
    symbols, data = problem.data["idx_to_symbol"], problem.data
    other = f"{symbols[data['root']]} is a {symbols[data['neg_target']]}."
    assert "wrong one of the two" in task.verify(problem, other).reason
    for response in (problem.answer[:-1], problem.answer.lower(), f"{problem.answer} {other}"):
        assert "neither" in task.verify(problem, response).reason
    assert "empty" in task.verify(problem, " ").reason


def test_dials_reach_the_generator():
    deep = make_task("prosqa", min_hops=5, max_hops=5)
    assert {deep.problem(seed).difficulty for seed in range(20)} == {"hops=5"}
    dense = make_task("prosqa", parent_rate=4.0, min_hops=1)
    edges = [len(dense.problem(seed).data["edges"]) for seed in range(20)]
    assert np.mean(edges) > 50
    big = make_task("prosqa", form="symbolic", n_nodes=60, max_hops=20)
    assert max(big.problem(seed).data["nodes"] for seed in range(10)) > 40
    # A generator that never draws from the first family gives it no leaf to ask about.
    with pytest.raises(TaskError, match="no train problem"):
        make_task("prosqa", first_family=0.0, second_family=1.0, n_nodes=12).problem(0)


def test_renamed_problems_share_a_split():
    # Small graphs, so that many problems have the same graph and question.
    task = make_task("prosqa", n_nodes=6, min_hops=1)
    keys = [
        {
            str([problem.data[key] for key in ("edges", "root", "target", "neg_target")])
            for problem in (task.problem(seed, split) for seed in range(150))
        }
        for split in ("train", "validation", "test")
    ]
    assert not keys[0] & (keys[1] | keys[2])
    assert not keys[1] & keys[2]
