"""Heights, groups and process categories on graphs that are drawn out by hand."""

import itertools

import pytest

from reasoning_jax.analysis.graphs import CATEGORIES, Dag, process_category, read_steps

# Shortest from 0 to 8: 0 2 6 8; longer: 0 3 5 6 8; dead ends: 4, 7; the other half: 1 9.
EDGES = ((0, 2), (0, 3), (2, 4), (2, 6), (3, 5), (5, 6), (3, 7), (6, 8), (1, 9))
NUMBERS = Dag(tuple(map(str, range(10))), EDGES, 0, 8, 9)
NAMES = (
    "Alex", "Bob", "bompus", "dumpus", "felpus", "gerpus", "hilpus", "impus", "jelpus", "numpus",
)  # fmt: skip
TEXT = Dag(NAMES, EDGES, 0, 8, 9)


def sentence(start, end):
    return f"{'Every ' if start > 1 else ''}{NAMES[start]} is a {NAMES[end]}."


def both(path, thoughts, right=True):
    """The category of a path of nodes, written from its second node on, in both forms."""
    numbers = [str(node) for node in path[1:]]
    sentences = [sentence(a, b) for a, b in itertools.pairwise(path)]
    found = process_category(NUMBERS, numbers, right, thoughts)
    assert found == process_category(TEXT, sentences, right, thoughts)
    return found


@pytest.mark.parametrize(
    ("path", "thoughts", "want"),
    [
        ((0, 2, 6, 8), 0, "correct path"),
        ((0, 3, 5, 6, 8), 0, "longer path"),
        ((0, 2, 4), 0, "wrong target"),
        ((0, 2, 6), 0, "wrong target"),
        ((0, 2, 8), 0, "hallucination"),
        # Right edges, but from nowhere near the root, with and without thoughts.
        ((1, 9), 0, "hallucination"),
        ((1, 9), 2, "hallucination"),
        # A rest of which only thoughts can be the beginning.
        ((2, 6, 8), 0, "hallucination"),
        ((2, 6, 8), 1, "correct path"),
        ((6, 8), 2, "correct path"),
        # 6 is two edges away, so that whatever led there, the shortest beginning counts.
        ((6, 8), 3, "correct path"),
        ((3, 7), 1, "wrong target"),
        ((2, 6, 7), 1, "hallucination"),
    ],
)  # fmt: skip
def test_categories(path, thoughts, want):
    # Catches: a chain that may begin anywhere without thoughts; a length without the thoughts; a
    # dead end taken for a hallucination.
    assert both(path, thoughts) == want


def test_a_number_s_step_takes_the_nearest_parent_as_its_beginning():
    # "6 8" comes from 2 (one edge away) or 5 (two): some beginning makes it a shortest path.
    assert process_category(NUMBERS, ["6", "8"], True, 1) == "correct path"
    # "5 6 8" has one beginning only, and so has a sentence.
    assert process_category(NUMBERS, ["5", "6", "8"], True, 1) == "longer path"
    steps = [sentence(5, 6), sentence(6, 8)]
    assert process_category(TEXT, steps, True, 1) == "longer path"


def test_the_answer_counts_only_without_steps():
    assert process_category(NUMBERS, [], True, 2) == "correct label"
    assert process_category(NUMBERS, [], False, 2) == "incorrect label"
    assert both((0, 2, 6, 8), 0, right=False) == "correct path"
    assert both((0, 2, 4), 0, right=True) == "wrong target"


def test_a_sentence_must_go_on_from_the_one_before():
    # Both are edges, and 6 is reached; but the second begins elsewhere.
    steps = [sentence(0, 2), sentence(3, 5), sentence(5, 6), sentence(6, 8)]
    assert process_category(TEXT, steps, True, 0) == "hallucination"


@pytest.mark.parametrize(
    "junk", ["", "x", "8 8", "Every Zed is a bompus.", "²", "[A]", "Alex", "dumpus"]
)
def test_any_text_has_a_category(junk):
    # Catches: a concept alone taken for a step, as a number is.
    for dag in (NUMBERS, TEXT):
        for thoughts in (0, 2):
            assert process_category(dag, [junk], False, thoughts) == "hallucination"
    assert process_category(NUMBERS, ["0"], False, 1) in CATEGORIES


def test_steps_are_what_stands_before_the_answer():
    assert read_steps(NUMBERS, "2 6 8 [A] 8", " [A] ") == ["2", "6", "8"]
    assert read_steps(NUMBERS, "[A] 8", " [A] ") == []
    text = f"{sentence(0, 2)}\n{sentence(2, 6)}\n### Alex is a jelpus."
    assert read_steps(TEXT, text, "### ") == [sentence(0, 2), sentence(2, 6)]
    assert read_steps(TEXT, text.replace("\n", " "), "### ") == [sentence(0, 2), sentence(2, 6)]
    # Without an answer all of it is steps.
    assert read_steps(TEXT, sentence(0, 2) + " Every", "### ") == [sentence(0, 2), "Every"]


def test_heights():
    # Catches: the two definitions exchanged; a leaf that is not at 0.
    longest, shortest = NUMBERS.heights("longest"), NUMBERS.heights("shortest")
    assert [longest[v] for v in (8, 4, 7, 6, 5, 2, 3, 0, 1)] == [0, 0, 0, 1, 2, 2, 3, 4, 1]
    assert [shortest[v] for v in (8, 4, 7, 6, 5, 2, 3, 0, 1)] == [0, 0, 0, 1, 2, 1, 1, 2, 1]


def test_node_groups_are_nested_and_follow_the_step():
    # Catches: a frontier that is off by one; optimal nodes that are not on a shortest path.
    assert NUMBERS.node_groups(1) == {
        "not reachable": [1, 9], "later": [4, 5, 6, 7, 8], "reachable": [0, 2, 3],
        "frontier": [2, 3], "optimal": [2],
    }  # fmt: skip
    second = NUMBERS.node_groups(2)
    assert (second["frontier"], second["optimal"]) == ([4, 5, 6, 7], [6])
    assert second["reachable"] == [0, 2, 3, 4, 5, 6, 7]
    # Beyond the target nothing is optimal, and the end of a longer path is no frontier.
    assert NUMBERS.node_groups(4)["frontier"] == NUMBERS.node_groups(4)["optimal"] == []


def test_edge_groups_go_out_from_the_nodes_of_one_thought_ago():
    first = NUMBERS.edge_groups(1)
    assert first["reachable"] == first["frontier"] == [(0, 2), (0, 3)]
    assert first["optimal"] == [(0, 2)]
    assert first["not reachable"] == [(1, 9)]
    second = NUMBERS.edge_groups(2)
    assert second["frontier"] == [(2, 4), (2, 6), (3, 5), (3, 7)]
    assert second["optimal"] == [(2, 6)]
    assert second["reachable"] == [(0, 2), (0, 3), *second["frontier"][:3], (3, 7)]
    assert second["later"] == [(5, 6), (6, 8)]
