"""The layout of search trees, and the page of a probe with hostile text in it."""

import itertools
import math

import numpy as np
import pytest

from reasoning_jax.analysis.graphs import CATEGORIES, GROUPS, Dag
from reasoning_jax.report.probe import write_probe
from reasoning_jax.report.tree import TreePanel, draw_tree, layout, probability
from reasoning_jax.tasks import make_task
from reasoning_jax.tasks.prosqa import read_question

HOSTILE = "<script>$x_{1}$</script>"


def dags():
    for dials in ({}, {"form": "symbolic", "n_nodes": 40}, {"form": "fused", "family": "mirrored"}):
        task = make_task("prosqa", **dials)
        for seed in range(15):
            yield Dag.of(read_question(task.problem(seed).question))


def test_nodes_do_not_overlap_and_layers_are_depths():
    # Catches: two nodes in one place, a node left out, a layer that is no distance from the root.
    for dag in dags():
        places, (left, right), depth = layout(dag)
        assert set(places) == set(range(len(dag.symbols)))
        level = {node: -y for node, (_, y) in places.items()}
        steps = sorted(set(level.values()))
        for node, distance in dag.depth.items():
            assert level[node] == pytest.approx(steps[distance])
        assert max(level.values()) == pytest.approx(steps[depth])
        for a, b in itertools.combinations(places, 2):
            if places[a][1] == places[b][1]:
                letters = len(dag.symbols[a]) + len(dag.symbols[b])
                assert abs(places[a][0] - places[b][0]) >= max(0.36, 0.066 * letters / 2)
        assert all(left <= x <= right for x, _ in places.values())
        # What is not reached stands beside, its edges all downwards.
        for start, end in dag.edges:
            if start not in dag.depth and end not in dag.depth:
                assert level[start] < level[end]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.334, ".33"), (1.0, "1.0"), (0.996, "1.0"), (0.994, ".99"), (0.004, ""), (math.nan, "")],
)
def test_probabilities_are_short(value, text):
    assert probability(value) == text


def test_a_tree_is_drawn_for_light_and_dark_pages():
    dag = next(dags())
    values = [math.nan, *np.linspace(0, 1, len(dag.symbols) - 1)]
    light, dark = draw_tree(dag, [TreePanel(HOSTILE, values)] * 3)
    assert light.startswith(b"\x89PNG")
    assert dark.startswith(b"\x89PNG")
    assert light != dark


def measure(value, n=4):
    return {"value": value, "stderr": 0.1 if n > 1 else None, "n": n}


def result():
    groups = {name: measure(0.2, n) for name, n in zip(GROUPS, (4, 0, 1, 4, 4))}
    categories = {name: measure(float(name == "hallucination")) for name in CATEGORIES}
    tree = {
        "question": HOSTILE, "answer": HOSTILE, "symbols": [HOSTILE, "1", "2", "3"],
        "edges": [[0, 2], [1, 3]], "root": 0, "target": 2, "neg_target": 3, "problem": None,
        "panels": [{"thoughts": 0, "what": "next concept", "values": [None, 0.1, 0.5, 0.2]}],
        "decoded": [[[HOSTILE, 0.9]]],
    }  # fmt: skip
    return {
        "run": HOSTILE, "step": 3, "stage": None, "split": "test", "problems": 4, "tree": tree,
        "k_sweep": [{"thoughts": 0, "accuracy": measure(0.5, 1), "categories": categories}],
        "next_concept": [{"thoughts": 0}], "parallelism": [],
        "height": {"longest": [], "shortest": []},
        "attention": [{"step": 1, "layer": 2, "groups": groups}],
        "inner_products": [{"step": 1, "groups": groups}],
        "decoded": [{"question": HOSTILE, "thoughts": [[[HOSTILE, 0.9]]]}],
        "thought_norm": {"steps": [], "values": []},
    }  # fmt: skip


def test_the_page_escapes_what_comes_from_data_and_leaves_out_what_is_not_there(tmp_path):
    # Catches: a token that is markup on the page; a picture of nothing.
    page = write_probe(result(), tmp_path).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert {p.stem for p in tmp_path.glob("*.png") if "_dark" not in p.stem} == {
        "tree", "k_sweep", "attention", "inner_products",
    }  # fmt: skip
    assert "default-src &#39;none&#39;" in page
