"""Shortcuts of ProsQA questions: features by hand, what they find, and where there is nothing."""

import numpy as np
import pytest

from reasoning_jax.analysis.shortcuts import FEATURES, contrasts, features, shortcuts
from reasoning_jax.data.examples import DataError, Example, TaskSource
from reasoning_jax.tasks import make_task
from reasoning_jax.tasks.prosqa_text import parse_question

#     0 -> 2 -> 4 -> 6, 0 -> 6; 1 -> 3 -> 5
QUESTION = "2 4 | 0 2 | 1 3 | 4 6 | 3 5 | 0 6 [Q] 5 6 [R] 0"


def examples(n, split="train", **dials):
    return list(map(TaskSource(make_task("prosqa", **dials), split, n).__getitem__, range(n)))


def test_features_of_a_small_graph():
    first, second = (
        dict(zip(FEATURES, row)) for row in features(parse_question(QUESTION)).tolist()
    )
    assert first == {
        "in-degree": 1, "out-degree": 0, "ancestors": 2, "sources above it": 1, "depth": 2,
        "greatest depth": 2, "first mention": 4, "last mention": 4, "name": 5, "named first": 0,
    }  # fmt: skip
    assert second == {
        "in-degree": 2, "out-degree": 0, "ancestors": 3, "sources above it": 1, "depth": 1,
        "greatest depth": 3, "first mention": 3, "last mention": 5, "name": 6, "named first": -1,
    }  # fmt: skip


def test_a_graph_with_a_cycle_ends():
    rows = features(parse_question("0 1 | 1 2 | 2 1 [Q] 2 3 [R] 0"))
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("form", ["text", "symbolic", "fused"])
def test_a_contrast_does_not_depend_on_which_choice_comes_first(form):
    # Catches: an answer that is read from another place than the choices, a sign.
    for example in examples(20, form=form):
        difference, right = contrasts([example])
        first, second = parse_question(example.question).choices
        layout = {"text": f" a {second} or {first}?"}.get(form, f"[Q] {second} {first} [R]")
        old = {"text": f" a {first} or {second}?"}.get(form, f"[Q] {first} {second} [R]")
        assert old in example.question
        turned = Example(example.question.replace(old, layout), (), example.answer)
        difference_turned, right_turned = contrasts([turned])
        np.testing.assert_array_equal(difference[:, :-1], -difference_turned[:, :-1])
        assert right[0] != right_turned[0]


@pytest.mark.parametrize(
    ("dials", "low", "high"),
    [
        ({}, 0.85, 0.99),
        ({"family": "mirrored", "min_hops": 3, "max_hops": 3}, 0.44, 0.56),
        pytest.param(
            {"n_nodes": 14, "max_hops": 3, "even_depth": True, "form": "fused"},
            0.44,
            0.56,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_depth_answers_fitted_questions_and_nothing_answers_even_ones(dials, low, high):
    """Judged on 700 questions, 3 standard errors are 5.7 %."""
    found = shortcuts(examples(700, **dials), examples(700, "test", **dials))
    assert low < found.linear < high
    assert low < found.alone["depth"] < high
    assert (found.fitted, found.tested) == (700, 700)


def test_a_classifier_sums_up_what_each_feature_tells_a_little_of():
    """Mentions are planted: the right choice comes first in the edges or has the smaller name."""
    rng, rows = np.random.default_rng(0), []
    for i in range(600):
        names = rng.permutation(20)[:6].tolist()
        a, b = (names[4], names[5]) if rng.random() < 0.8 else (names[5], names[4])
        small, big = min(a, b), max(a, b)
        right = small if rng.random() < 0.75 else big
        edges = [f"{names[0]} {a}", f"{names[1]} {b}"]
        question = f"{edges[0]} | {edges[1]} [Q] {names[4]} {names[5]} [R] {names[0]}"
        rows.append(Example(question, (), str(right), index=i))
    found = shortcuts(rows[:300], rows[300:])
    assert found.alone["depth"] == 0.5  # always a tie
    assert 0.65 < found.alone["name"] < 0.85
    assert found.linear > 0.65


@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [("1 + 2 =", "3", "record 0"), (QUESTION, "2", "neither"), (QUESTION, "", "neither")],
)
def test_other_questions_are_refused(question, answer, says):
    with pytest.raises(DataError, match=says):
        contrasts([Example(question, (), answer)])
