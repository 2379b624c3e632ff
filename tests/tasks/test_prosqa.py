import collections
import hashlib
import itertools
import json
import re
import time

import numpy as np
import pytest

from reasoning_jax.data.examples import TaskSource
from reasoning_jax.tasks import TaskError, make_task
from reasoning_jax.tasks.prosqa import check_chain, read_question
from reasoning_jax.tasks.prosqa_text import CONCEPTS, NAMES, parse_question, reshuffled

# The published rows: (mean, standard deviation) a row. Means are of all 800 validation and test
# rows. So are the deviations of nodes and edges; the others are those of the 300 validation rows,
# and of a share p it is sqrt(p (1 - p)).
PUBLISHED = {
    "nodes": (22.81, 1.98),
    "edges": (36.00, 5.75),
    "path": (3.77, 0.753),
    "shortest paths": (1.59, 0.868),
    "entities": (2.56, 0.729),
    "leaves": (7.37, 1.606),
    "reachable": (13.36, 2.729),
    "root's children": (2.94, 1.235),
    "words": (179.0, 27.8),
}
PUBLISHED_SHARES = {
    "root is node 1": 0.64,
    "path 3": 0.407,
    "path 4": 0.438,
    "path 5": 0.131,
    "path 6": 0.024,
}
PUBLISHED_ROWS = 800
FORMS = ("text", "symbolic", "fused")


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
        "root's children": int(rows[1].sum()),
        "words": len(problem.question.split()),
        "root is node 1": data["root"] == 1,
        **{f"path {hops}": len(problem.steps) == hops for hops in (3, 4, 5, 6)},
    }


def test_statistics_are_those_of_the_published_rows():
    # Catches: parents drawn without weights or from symmetric families, the coin for the root.
    count = 3000
    task = make_task("prosqa")
    samples = [statistics(task.problem(seed)) for seed in range(count)]
    shares = {name: (p, np.sqrt(p * (1 - p))) for name, p in PUBLISHED_SHARES.items()}
    for name, (published, deviation) in (PUBLISHED | shares).items():
        values = np.array([sample[name] for sample in samples], float)
        error = np.sqrt(deviation**2 / PUBLISHED_ROWS + values.var() / count)
        assert abs(values.mean() - published) < 3 * error, (name, values.mean(), published, error)


# First 16 digits of the hash of 20 training and 20 validation problems, before there were families
# and step choices: published numbers rest on them.
RECORDED = {
    "text": ({}, "a90d1e2b627db142"),
    "symbolic": ({"form": "symbolic"}, "b3f10cfd712ee2d5"),
    "relabelled": ({"form": "symbolic", "relabel": True, "n_nodes": 40}, "5d63a179b59bbc43"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_old_dials_give_the_old_problems(name):
    # Catches: any further draw, or draws in another order.
    dials, recorded = RECORDED[name]
    task, digest = make_task("prosqa", **dials), hashlib.sha256()
    for split in ("train", "validation"):
        for seed in range(20):
            p = task.problem(seed, split)
            told = [p.question, p.answer, p.steps, p.difficulty]
            digest.update(json.dumps(told).encode())
    assert digest.hexdigest()[:16] == recorded


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


@pytest.mark.parametrize("relabel", [False, True])
def test_the_fused_form_is_the_symbolic_one_with_edges_as_words(relabel):
    # Catches: a separator left in, ends swapped, or draws that depend on the form.
    fused, symbolic = (
        make_task("prosqa", form=form, relabel=relabel) for form in ("fused", "symbolic")
    )
    for seed in range(50):
        ours, theirs = fused.problem(seed), symbolic.problem(seed)
        facts, asked = ours.question.split(" [Q] ")
        apart = " | ".join(fact.replace(">", " ") for fact in facts.split(" "))
        assert f"{apart} [Q] {asked}" == theirs.question
        assert (ours.steps, ours.answer, ours.data) == (theirs.steps, theirs.answer, theirs.data)
    assert "0>1" not in fused.words()
    assert {"[A]", "[Q]", "[R]"} <= set(fused.words())
    assert set(symbolic.words()) - set(fused.words()) == {"|"}
    assert ">" in fused.characters()


@pytest.mark.parametrize("family", ["fitted", "mirrored"])
@pytest.mark.parametrize("form", FORMS)
def test_step_choices_are_all_that_lie_on_a_shortest_path(form, family):
    # Catches: any child taken, nodes off the shortest paths, levels off by one, edges not told.
    task = make_task("prosqa", form=form, family=family)
    several = 0
    for seed in range(80):
        problem = task.problem(seed)
        data, symbols = problem.data, problem.data["idx_to_symbol"]
        hops, target = len(problem.steps), data["target"]
        ways = walks(data, data["root"])
        assert len(data["step_choices"]) == hops
        for k, choices in enumerate(data["step_choices"]):
            assert problem.steps[k] in choices
            wanted = {
                (start, end)
                for start, end in data["edges"]
                if ways[k, start] and walks(data, end)[hops - k - 1, target]
            }
            texts = {
                check_form(form, symbols[start], symbols[end]) for start, end in sorted(wanted)
            }
            assert sorted(choices) == sorted(texts)
            several += len(choices) > 1
        if form != "text":
            assert data["step_choices"][-1] == [problem.answer]
    assert (several > 0) == (family == "fitted")


def check_form(form, start, end):
    if form != "text":
        return end
    return f"{'' if start in NAMES else 'Every '}{start} is a {end}."


@pytest.mark.parametrize("form", FORMS)
def test_examples_know_their_choices_and_options(form):
    # Catches: the order of the options, lists left, a wrong option that is judged right.
    task = make_task("prosqa", form=form)
    source = TaskSource(task, "train", 20)
    for seed, example in enumerate(source):
        problem = source.problem(seed)
        assert example.step_choices == tuple(map(tuple, problem.data["step_choices"]))
        right, wrong = example.options
        assert right == example.answer
        assert task.verify(problem, right).correct
        assert "wrong one of the two" in task.verify(problem, wrong).reason
        hash(example)
    bare = TaskSource(task, "train", 1, with_steps=False)[0]
    assert (bare.steps, bare.step_choices) == ((), ())
    assert bare.options
    other = TaskSource(make_task("arithmetic"), "train", 1)[0]
    assert (other.step_choices, other.options) == ((), ())


def parts(question):
    """(sorted facts, sorted choices, root), by other means than the task's."""
    if question.endswith("?"):
        facts, root, first, second = re.search(
            r"^(.*) Is (\w+) a (\w+) or (\w+)\?$", question
        ).groups()
        return sorted(facts.split(". ")), {first, second}, root
    facts, rest = question.split(" [Q] ")
    choices, root = rest.split(" [R] ")
    return sorted(facts.split(" | " if "|" in facts else " ")), set(choices.split(" ")), root


@pytest.mark.parametrize("form", FORMS)
def test_a_reshuffled_question_is_the_same_question_in_another_order(form):
    # Catches: a fact lost or doubled, the root moved, choices or facts that stay in their place.
    def canonical(question):
        facts, choices, root = parts(question)
        return sorted(fact.rstrip(".") for fact in facts), choices, root

    task, rng = make_task("prosqa", form=form), np.random.default_rng(0)
    turned = 0
    for seed in range(40):
        question = task.problem(seed).question
        other = reshuffled(question, rng)
        assert other != question
        assert canonical(other) == canonical(question)
        assert len(other) == len(question)
        turned += other.split(" ")[-4:] != question.split(" ")[-4:]
        same = [reshuffled(question, np.random.default_rng(seed)) for _ in range(2)]
        assert same[0] == same[1]
    assert 8 < turned < 32


TEXT = "Alex is a lempus. Every lempus is a gorpus. Is Alex a gorpus or bompus?"


@pytest.mark.parametrize(
    "question",
    [
        "",
        "1 + 2 =",
        TEXT[:-1],
        TEXT + "\n",
        " " + TEXT,
        TEXT.replace(". ", ".  "),
        TEXT.replace("Every ", ""),
        TEXT.replace("is a lempus", "is an lempus"),
        TEXT.replace(" or bompus", ""),
        "Is Alex a gorpus or bompus?",
        TEXT + " " + TEXT,
        "0 2 | 2 5 [Q] 5 4 [R]",
        "0 2 2 5 [Q] 5 4 [R] 0",
        "0 2 | [Q] 5 4 [R] 0",
        "0 2 | 2 5 [Q] 5 [R] 0",
        "0>2 | 2>5 [Q] 5 4 [R] 0",
        "0>2 2 5 [Q] 5 4 [R] 0",
        "0>2 2>5 [Q] 5 4 [R] \u0660",
        "[Q] 5 4 [R] 0",
        "0>2 " * 50_000,
        "Every a is a b. " * 50_000,
    ],
)
def test_what_is_no_question_is_not_reshuffled(question):
    start = time.process_time()
    with pytest.raises(TaskError, match="not a question of the task"):
        reshuffled(question, np.random.default_rng(0))
    assert time.process_time() - start < 2
    assert reshuffled(TEXT, np.random.default_rng(0)).startswith(("Alex is", "Every lempus"))


@pytest.mark.parametrize("form", FORMS)
def test_mirrored_halves_differ_in_nothing_but_names(form):
    # Catches: ends of different chains or depths, a root or choice that is always the first, labels
    # that are not permuted, a hop too few.
    task = make_task("prosqa", form=form, family="mirrored", min_hops=2, max_hops=4)
    seen = collections.Counter()
    for seed in range(300):
        problem = task.problem(seed)
        data, symbols = problem.data, problem.data["idx_to_symbol"]
        hops = len(problem.steps)
        assert (data["nodes"], len(data["edges"])) == (2 + 4 * hops, 4 * hops)
        matrix = adjacency(data)
        root, target, other = data["root"], data["target"], data["neg_target"]
        assert list(matrix.sum(1)[[0, 1]]) == [2, 2]
        assert sorted(matrix.sum(0)) == [0, 0] + [1] * (4 * hops)
        reach = [walks(data, start) for start in (root, 1 - root)]
        assert reach[0][hops, target] == reach[1][hops, other] == 1
        assert reach[0].sum() == reach[1].sum() == 1 + 2 * hops
        assert not (reach[0].sum(0) & reach[1].sum(0)).any()
        # The same node of the other half: two numbers away in each layer.
        assert abs(target - other) == 2
        if form != "text":
            assert sorted(map(int, symbols)) == list(range(data["nodes"]))
        choices = re.findall(r"\w+", problem.question.partition("[Q]")[2] or problem.question)
        first = choices[-3] if form == "text" else choices[0]
        seen.update(
            [problem.difficulty, f"root {root}", f"target {target % 2}", f"{symbols[0]} is 0"]
        )
        seen["right first"] += first == symbols[target]
        seen["root is smaller"] += symbols[root] < symbols[1 - root]
    for hops in (2, 3, 4):
        assert 70 < seen[f"hops={hops}"] < 130
    for name in ("root 0", "root 1", "target 0", "target 1", "right first", "root is smaller"):
        assert 110 < seen[name] < 190, name
    assert sum(" is 0" in name for name in seen) > 8


def test_mirrored_splits_share_no_labelled_question():
    # One hop leaves so few labelled questions that each comes often; catches a key that forgets the
    # labels (then most splits are empty) or knows more than the question says.
    def labelled(question):
        facts, choices, root = parts(question)
        return str([facts, sorted(choices), root])

    task = make_task("prosqa", form="fused", family="mirrored", min_hops=1, max_hops=1)
    keys = [
        {labelled(task.problem(seed, split).question) for seed in range(200)}
        for split in ("train", "validation", "test")
    ]
    for one, another in itertools.combinations(keys, 2):
        assert not one & another
    assert len(keys[0]) > 50


@pytest.mark.parametrize("family", ["fitted", "mirrored"])
@pytest.mark.parametrize("form", FORMS)
def test_chains_are_followed_edge_by_edge(form, family):
    task = make_task("prosqa", form=form, family=family)
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


@pytest.mark.parametrize(
    ("dials", "hops", "edges"),
    [
        ({"min_hops": 7, "max_hops": 8, "n_nodes": 38}, {7, 8}, 40),
        ({"form": "symbolic", "min_hops": 7, "max_hops": 8, "n_nodes": 60}, {7, 8}, 70),
        ({"form": "fused", "min_hops": 8, "max_hops": 8, "n_nodes": 60}, {8}, 70),
        ({"parent_rate": 2.5}, {3, 4, 5, 6}, 48),
        ({"parent_rate": 2.5, "n_nodes": 38}, {3, 4, 5, 6}, 70),
        ({"form": "symbolic", "parent_rate": 2.5, "n_nodes": 100, "min_hops": 7, "max_hops": 8},
         {7, 8}, 200),
    ],
)  # fmt: skip
def test_harder_graphs_are_within_reach(dials, hops, edges):
    # Catches: a cap below the dials, or a generator that slows down (medians were 1 to 25 ms).
    task, spent, problems = make_task("prosqa", **dials), [], []
    for seed in range(15):
        start = time.process_time()
        problems.append(task.problem(seed))
        spent.append(time.process_time() - start)
    assert sorted(spent)[7] < 0.1
    assert {len(problem.steps) for problem in problems} <= hops
    assert np.mean([len(problem.data["edges"]) for problem in problems]) > edges
    assert all(check_chain(problem, problem.steps).correct for problem in problems)


def test_even_depth_makes_both_answers_equally_deep():
    # Catches: a depth from the other root, one that passes over names that are in no family.
    task = make_task("prosqa", n_nodes=16, even_depth=True)
    for seed in range(40):
        data = task.problem(seed).data
        parents = collections.defaultdict(list)
        for start, end in data["edges"]:
            parents[end].append(start)

        def up(node, parents=parents):
            """How far away each node above is, and whether it is one without parents."""
            found, queue = {node: 0}, [node]
            for v in queue:
                for p in parents[v]:
                    if p not in found:
                        found[p] = found[v] + 1
                        queue.append(p)
            return found

        above = up(data["target"]), up(data["neg_target"])
        roots = data["root"], 1 - data["root"]
        assert above[0][roots[0]] == above[1][roots[1]]
        depth, other = (min(d for v, d in found.items() if not parents[v]) for found in above)
        assert depth == other


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


@pytest.mark.parametrize(
    "dials",
    [{}, {"form": "symbolic", "relabel": True}, {"form": "fused", "family": "mirrored"}],
    ids=["text", "symbolic", "fused"],
)
def test_a_question_says_all_of_its_problem(dials):
    # Catches: edges read the wrong way round, the choices exchanged, places off by the full stop.
    task = make_task("prosqa", **dials)
    for seed in range(40):
        problem = task.problem(seed)
        read = read_question(problem.question)
        assert (read.answer, read.difficulty) == (problem.answer, problem.difficulty)
        assert check_chain(problem, read.steps).correct
        assert read.data["options"] == problem.data["options"]
        for name in ("step_choices", "frontiers"):
            assert list(map(sorted, read.data[name])) == list(map(sorted, problem.data[name]))
        assert all(start < end for start, end in read.data["edges"])
        for fact in parse_question(problem.question).facts:
            assert problem.question[: fact.place].endswith(fact.end)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("", "not a question"),
        ("0>1 1>2 [Q] 2 3 [R] 0 ", "not a question"),
        ("0>1 1>2 2>0 [Q] 2 1 [R] 0", "in a circle"),
        ("0>0 1>2 [Q] 2 0 [R] 1", "in a circle"),
        ("0>1 0>1 2>3 [Q] 1 3 [R] 0", "given twice"),
        ("0>1 2>3 [Q] 1 9 [R] 0", "'9' is asked for"),
        ("0>1 0>2 [Q] 1 2 [R] 0", "reachable: 1, 2"),
        ("0>1 2>3 2>4 [Q] 3 4 [R] 0", "reachable: none"),
        ("0>1 2>3 [Q] 0 3 [R] 0", "neither be it"),
        ("Every Alex is a bompus. Is Alex a bompus or x?", "not a question"),
        (" | ".join(f"{i} {i + 1}" for i in range(300)) + " [Q] 1 2 [R] 0", "at most 200"),
    ],
)
def test_what_is_no_question_is_refused(question, reason):
    with pytest.raises(TaskError, match=re.escape(reason)):
        read_question(question)


@pytest.mark.parametrize("family", ["fitted", "mirrored"])
def test_labels_leave_room_for_larger_graphs(family):
    """A run with spare labels can be asked about graphs that it has not been trained on."""
    # Catches: labels that follow the graph; a vocabulary without the spare ones.
    small, large = (
        make_task("prosqa", form="fused", family=family, labels=40, min_hops=h, max_hops=h)
        for h in (3, 4)
    )
    assert small.words() == large.words()
    seen = {n for s in range(40) for n in small.problem(s).data["idx_to_symbol"]}
    assert max(map(int, seen)) > 30
    assert seen <= {str(n) for n in range(40)}
    assert all(
        len(set(p.data["idx_to_symbol"])) == p.data["nodes"] for p in map(large.problem, range(9))
    )
    with pytest.raises(TaskError, match=r"labels=3: .* at least"):
        make_task("prosqa", form="fused", family=family, labels=3)
    with pytest.raises(TaskError, match="leave it at 0 for form='text'"):
        make_task("prosqa", labels=40)
