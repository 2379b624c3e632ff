"""What every task promises, checked on small and on unusual dials of each."""

import dataclasses
import itertools
import json
from importlib import util

import pytest

from reasoning_jax.tasks import SPLITS, TaskError, make_task

CASES = {
    "arithmetic": ("arithmetic", {"operations": ("add", "sub", "mul"), "steps": True}),
    "arithmetic plain": ("arithmetic", {}),
    "arithmetic padded": (
        "arithmetic",
        {"operations": ("add", "sub"), "pad": True, "reverse": True, "max_digits": 5},
    ),
    "arithmetic non-negative": ("arithmetic", {"operations": ("sub",), "negative": False}),
    "base": ("add_or_sub_in_base", {"steps": True}),
    "base unsigned": ("add_or_sub_in_base", {"signed": False, "max_base": 9}),
    "countdown": ("countdown", {"min_numbers": 3, "max_numbers": 6}),
    "prosqa": ("prosqa", {}),
    "prosqa symbolic": ("prosqa", {"form": "symbolic", "relabel": True, "n_nodes": 40}),
    "prosqa fused": ("prosqa", {"form": "fused", "relabel": True}),
    "prosqa mirrored": ("prosqa", {"form": "fused", "family": "mirrored", "max_hops": 4}),
    "prosqa mirrored text": ("prosqa", {"family": "mirrored", "min_hops": 1, "max_hops": 9}),
    "prontoqa": ("prontoqa", {}),
    "prontoqa wide": (
        "prontoqa",
        {"min_hops": 1, "max_hops": 4, "distractors": 4, "branches": 3, "order": "forward"},
    ),
    "prontoqa bare": ("prontoqa", {"min_hops": 2, "branches": 0, "property_rate": 0.0}),
    "gsm_chain": ("gsm_chain", {}),
    "gsm_chain long": ("gsm_chain", {"min_steps": 12, "max_steps": 12, "max_value": 10_000}),
    "gsm_chain short": ("gsm_chain", {"operations": ("sub", "div"), "long_steps": False}),
    "gym chain_sum": ("reasoning_gym", {"dials": (("max_terms", 3),)}),
    "gym basic_arithmetic": ("reasoning_gym", {"dataset": "basic_arithmetic"}),
    "gym graph_color": ("reasoning_gym", {"dataset": "graph_color", "dials": '{"num_colors": 4}'}),
}


@pytest.fixture(params=CASES)
def task(request):
    name, dials = CASES[request.param]
    if name == "reasoning_gym" and util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")
    return make_task(name, **dials)


def test_a_problem_is_a_function_of_seed_and_split(task):
    again = dataclasses.replace(task)
    for split in SPLITS:
        problems = [task.problem(seed, split) for seed in range(20)]
        assert problems == [again.problem(seed, split) for seed in reversed(range(20))][::-1]
        assert len({problem.question for problem in problems}) > 15
        assert all(
            (problem.task, problem.seed, problem.split) == (task.name, seed, split)
            for seed, problem in enumerate(problems)
        )


def test_splits_share_no_question(task):
    questions = [
        {task.problem(seed, split).question for seed in range(count)}
        for split, count in zip(SPLITS, (200, 40, 40))
    ]
    assert not questions[0] & questions[1]
    assert not questions[0] & questions[2]
    assert not questions[1] & questions[2]


def test_reference_answers_and_solutions_are_right(task):
    for seed in range(60):
        problem = task.problem(seed)
        assert task.verify(problem, problem.answer).correct
        assert task.verify(problem, f" \t{problem.answer}\n").correct
        trace = task.solve(problem)
        assert trace.solved
        score = task.verify(problem, trace.answer)
        assert score.correct
        assert score.value == 1.0
        assert score.reason == ""


def test_another_problems_answer_is_wrong_with_a_reason(task):
    problems = [task.problem(seed) for seed in range(40)]
    for problem, other in itertools.pairwise(problems):
        if other.answer != problem.answer:
            score = task.verify(problem, other.answer)
            # A colouring may fit two graphs; nothing else here is right by luck.
            if not score.correct:
                assert score.value < 1.0
                assert score.reason
            else:
                assert "graph_color" in problem.difficulty


def test_texts_stay_within_characters_and_words(task):
    characters, words = set(task.characters()), set(task.words())
    assert task.characters() == "".join(sorted(characters))
    assert task.words() == tuple(sorted(words))
    for seed in range(60):
        problem = task.problem(seed)
        texts = (problem.question, problem.answer, *problem.steps, *task.solve(problem).steps)
        assert set("".join(texts)) <= characters
        assert not any("\n" in step for step in problem.steps)
        if words:
            # A fused edge need not be listed, if the words that it joins are.
            found = {w for word in " ".join(texts).split() for w in word.split(">")}
            assert found <= words
    assert set("".join(task.noise_units())) <= characters


def test_a_problem_survives_json(task):
    problem = task.problem(3)
    stored = dataclasses.asdict(problem) | {"data": json.loads(json.dumps(problem.data))}
    assert stored["data"] == problem.data
    restored = dataclasses.replace(problem, data=stored["data"])
    assert task.verify(restored, problem.answer).correct
    assert task.solve(restored) == task.solve(problem)


def test_requests_that_make_no_sense_are_refused(task):
    with pytest.raises(TaskError, match="split must be one of train"):
        task.problem(0, "dev")
    with pytest.raises(TaskError, match="seed must be >= 0"):
        task.problem(-1)
    with pytest.raises(TaskError, match="Did you mean 'direct'"):
        task.solve(task.problem(0), "directly")


def test_too_few_distinct_problems_are_told():
    # The six sums of two digits in base 3 all hash into the training split.
    six = make_task(
        "add_or_sub_in_base",
        min_base=3,
        max_base=3,
        max_digits=1,
        signed=False,
        operations=("add",),
    )
    assert six.problem(0, "train").split == "train"
    with pytest.raises(TaskError, match="too few distinct problems"):
        six.problem(0, "validation")
