"""The question alone decides the answer, the deduction is sound, and no shortcut answers it."""

import collections
import math
import re

import pytest

from reasoning_jax.tasks import SPLITS, make_task
from reasoning_jax.tasks.prontoqa import PROPERTIES
from reasoning_jax.tasks.prosqa_text import CONCEPTS, NAMES

SENTENCE = re.compile(r"(?:(?:Every|Each) )?(\w+) (is not|is an|is a|is) (\w+)\.")
DIALS = {
    "default": {},
    "wide": {"min_hops": 1, "max_hops": 4, "distractors": 4, "branches": 3, "order": "forward"},
    "bare": {"min_hops": 2, "branches": 0, "property_rate": 0.0, "order": "forward"},
    "full": {"branches": 4, "property_rate": 1.0},
}


@pytest.fixture(scope="module", params=DIALS)
def problems(request):
    task = make_task("prontoqa", **DIALS[request.param])
    return [task.problem(seed) for seed in range(300)]


def read(question):
    """The question's sentences as (subject, verb, object), and the queried one, from its text."""
    facts, query = question.split(" True or false: ")
    said = SENTENCE.findall(facts)
    assert " ".join(SENTENCE.sub("", facts).split()) == ""
    return said, SENTENCE.fullmatch(query).groups()


def consequences(said):
    """All that holds of each subject, as (verb, object): the rules until none gives more."""
    known = collections.defaultdict(set)
    for subject, verb, other in said:
        known[subject].add((verb, other))
    new = True
    while new:
        new = False
        for things in known.values():
            for verb, other in list(things):
                if verb in ("is a", "is an") and not known.get(other, set()) <= things:
                    things |= known[other]
                    new = True
    return known


def test_the_text_decides_the_answer_without_contradiction(problems):
    for problem in problems:
        said, (entity, verb, asked) = read(problem.question)
        known = consequences(said)
        opposite = {"is": "is not", "is not": "is"}[verb]
        assert ((verb, asked) in known[entity]) == (problem.answer == "True")
        assert ((opposite, asked) in known[entity]) == (problem.answer == "False")
        for things in known.values():
            assert not any(("is not", other) in things for is_, other in things if is_ == "is")


def test_each_step_is_a_known_sentence_and_a_rule_that_applies_to_it(problems):
    for problem in problems:
        said, (entity, _, asked) = read(problem.question)
        hops = int(problem.difficulty.removeprefix("hops="))
        *pairs, last = problem.steps
        assert len(pairs) == hops
        known = said[-1]
        assert known[0] == entity
        for step in pairs:
            premise, rule = SENTENCE.findall(step)
            assert premise == known
            assert rule in said
            assert rule[0] == premise[2]
            known = (entity, *rule[1:])
        assert SENTENCE.findall(last) == [known]
        assert known[2] == asked
        # The rules stand in the steps as they stand in the question.
        assert all(step.split(". ")[1] in problem.question for step in pairs)


def test_five_hops_are_eleven_sentences_in_six_steps():
    steps = make_task("prontoqa").problem(0).steps
    assert [step.count(".") for step in steps] == [2, 2, 2, 2, 2, 1]


def rate(problems, guess):
    """How often a guess from the text is right, in standard errors from one half."""
    hits = sum(guess(problem) == (problem.answer == "True") for problem in problems)
    return (hits / len(problems) - 0.5) * 2 * math.sqrt(len(problems))


def mentions(problem):
    """The verbs of the queried property in the order of the text, and the queried verb."""
    said, (_, verb, asked) = read(problem.question)
    return [v for _, v, other in said if other == asked], verb


SHORTCUTS = {
    "always true": lambda problem: True,
    "a not in the query": lambda problem: mentions(problem)[1] == "is not",
    "the first mention": lambda problem: mentions(problem)[0][0] == mentions(problem)[1],
    "the last mention": lambda problem: mentions(problem)[0][-1] == mentions(problem)[1],
    "the majority of mentions": lambda problem: (
        2 * mentions(problem)[0].count(mentions(problem)[1]) > len(mentions(problem)[0])
    ),
    "the parity of nots": lambda problem: problem.question.count(" not ") % 2 == 0,
    "more nots than not": lambda problem: (
        2 * problem.question.count(" not ") > problem.question.count(". ")
    ),
}


@pytest.mark.parametrize("dials", [{}, {"distractors": 3}, {"order": "forward"}], ids=str)
def test_no_bag_of_words_answers(dials):
    # Catches: a distractor whose sign follows the answer's, or which comes after the true chain.
    task = make_task("prontoqa", **dials)
    problems = [task.problem(seed) for seed in range(1200)]
    told = {name: rate(problems, guess) for name, guess in SHORTCUTS.items()}
    assert all(abs(errors) < 4 for errors in told.values()), told


def test_what_holds_what_is_asked_and_the_answer_are_fair_coins():
    # Catches: a property that is only ever asked for without a "not".
    coins = collections.Counter(
        (mentions(problem)[1], problem.answer)
        for problem in map(make_task("prontoqa").problem, range(1200))
    )
    assert len(coins) == 4
    assert all(250 < count < 350 for count in coins.values())


def test_both_chains_look_alike_but_for_the_name():
    # Nothing but the sentence about the name: with it taken away, either chain may be the true one.
    lengths = collections.Counter()
    for problem in (make_task("prontoqa").problem(seed) for seed in range(100)):
        said, (entity, _, asked) = read(problem.question)
        parents = {other: subject for subject, verb, other in said if verb.startswith("is a")}
        for subject, _, other in said:
            if other == asked:
                length, at = 1, subject
                while parents.get(at, entity) != entity:
                    at, length = parents[at], length + 1
                lengths[length] += 1
    assert lengths == {5: 200}


def test_dials_reach_the_text():
    wide = make_task("prontoqa", min_hops=3, max_hops=3, distractors=2, branches=2)
    for problem in (wide.problem(seed) for seed in range(50)):
        said, (_, _, asked) = read(problem.question)
        assert sum(verb.startswith("is a") for _, verb, _ in said[:-1]) == 3 * (2 + 2)
        assert len(mentions(problem)[0]) == 3
        assert set(mentions(problem)[0]) == {"is", "is not"}
        others = [other for _, verb, other in said if verb in ("is", "is not") and other != asked]
        assert len(set(others)) == len(others)
        assert len(others) <= 3 * (2 + 2)
    forward = make_task("prontoqa", order="forward")
    for problem in (forward.problem(seed) for seed in range(50)):
        places = [problem.question.index(step.split(". ")[1]) for step in problem.steps[:-1]]
        assert places == sorted(places)
    full = make_task("prontoqa", branches=0, property_rate=1.0)
    assert len(read(full.problem(0).question)[0]) == 2 * (4 + 5) + 1


def test_names_concepts_and_properties_are_words_of_one_kind():
    assert len(set(PROPERTIES)) == len(PROPERTIES) == len(CONCEPTS)
    assert not set(PROPERTIES) & set(CONCEPTS)
    assert len({*NAMES, *CONCEPTS, *PROPERTIES}) == len(make_task("prontoqa").noise_units())


def test_a_renamed_or_negated_problem_stays_in_its_split():
    # Two concepts and no branch: few enough problems that ontologies come again.
    task = make_task("prontoqa", min_hops=1, max_hops=1, branches=0)
    ontologies = [
        {
            (frozenset(rule[1] for rule in problem.data["rules"]), problem.data["query"][1])
            for problem in (task.problem(seed, split) for seed in range(1500))
        }
        for split in SPLITS
    ]
    assert not ontologies[0] & (ontologies[1] | ontologies[2])
    assert not ontologies[1] & ontologies[2]
    assert len(ontologies[1]) < 1500


def test_wrong_answers_are_told_apart():
    task = make_task("prontoqa")
    problem = task.problem(0)
    other = {"True": "False", "False": "True"}[problem.answer]
    assert task.verify(problem, other).reason == f"wanted {problem.answer}"
    told = "neither True nor False"
    for response in (problem.answer.lower(), f"{problem.answer}.", "True False", "True\nFalse"):
        assert told in task.verify(problem, response).reason
    assert "empty" in task.verify(problem, " ").reason
