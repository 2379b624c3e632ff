"""The story alone gives the equations; lines of a file come back as they were."""

import collections
import dataclasses
import re

import pytest

from reasoning_jax.data.examples import example_of
from reasoning_jax.data.jsonl import JsonlSource
from reasoning_jax.tasks import SPLITS, TaskError, make_task
from reasoning_jax.tasks.gsm_chain import EVENTS, MAX_STEPS, NAMES, SIGNS, THINGS, to_line

DIALS = {
    "default": {},
    "long": {"min_steps": 12, "max_steps": 12, "max_value": 100_000, "max_number": 500},
    "short": {"operations": ("sub", "div"), "long_steps": False},
}
# What sentences mean, by words that only such sentences have; the first that is found counts.
MEANING = (
    (r"times as many", "*"),
    (r"sells all", "*"),
    (r"evenly among", "/"),
    (r"into boxes of", "/"),
    (r"spends all the dollars on", "/"),
    (r"loses|spends|gives \d+ of the", "-"),
    (r"buys|gets|earns|gives \d+ more", "+"),
)


@pytest.fixture(scope="module", params=DIALS)
def problems(request):
    task = make_task("gsm_chain", **DIALS[request.param])
    return [task.problem(seed) for seed in range(300)]


def read(question):
    """The equations that the sentences of a question ask for, from its text, and the result."""
    opening, *events, closing = re.findall(r"[^.?]+[.?]", question)
    value = int(re.fullmatch(r"\w+ has (\d+) \w+\.", opening).group(1))
    steps = []
    for sentence in events:
        sign = next(sign for words, sign in MEANING if re.search(words, sentence))
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        assert numbers
        terms, before = sign.join(map(str, [value, *numbers])), value
        for number in numbers:
            if sign == "/":
                assert value % number == 0
                value //= number
            else:
                value = {"+": value + number, "-": value - number, "*": value * number}[sign]
        assert value > 0
        assert sign != "/" or value < before
        steps.append(f"<<{terms}={value}>>")
    assert re.fullmatch(r" How many \w+ does \w+ have now\?", closing)
    return tuple(steps), str(value)


def test_the_text_gives_the_steps_and_the_answer(problems):
    for problem in problems:
        assert read(problem.question) == (problem.steps, problem.answer)
        assert problem.difficulty == f"steps={len(problem.steps)}"
        assert all(re.fullmatch(r"<<\d+([-+*/]\d+){1,2}=\d+>>", step) for step in problem.steps)


def test_whom_and_what_it_is_about_is_who_and_what_was_told_last(problems):
    # Catches: a sentence that goes on with somebody who was never given anything.
    for problem in problems:
        *told, closing = re.findall(r"[^.?]+[.?]", problem.question)
        what, who = re.fullmatch(r" How many (\w+) does (\w+) have now\?", closing).groups()
        holder, things = re.fullmatch(r"(\w+) has \d+ (\w+)\.", told[0]).groups()
        for sentence in told[1:]:
            people = [name for name in NAMES if re.search(rf"\b{name}\b", sentence)]
            assert holder in people
            bought = re.search(r"spends all the dollars on (\w+) for", sentence)
            if re.search("times as many|one of whom", sentence):
                holder = next(name for name in people if name != holder)
            elif bought or "sells all" in sentence or "into boxes" in sentence:
                new = "dollars" if "sells all" in sentence else "boxes"
                things = bought.group(1) if bought else new
        assert (holder, things) == (who, what)


def test_dials_reach_the_numbers():
    task = make_task("gsm_chain", min_steps=2, max_steps=6, max_value=120, max_number=20)
    counts, operations, long_ones = collections.Counter(), collections.Counter(), 0
    for problem in (task.problem(seed) for seed in range(300)):
        counts[len(problem.steps)] += 1
        assert 2 <= problem.data["start"] <= 20
        for operation, quantities in problem.data["moves"]:
            operations[operation] += 1
            long_ones += len(quantities) == 2
            assert all(2 <= q <= (20 if operation in ("add", "sub") else 12) for q in quantities)
        assert all(2 <= int(step[2:-2].split("=")[1]) <= 120 for step in problem.steps)
    assert set(counts) == {2, 3, 4, 5, 6}
    assert min(counts.values()) > 30
    assert set(operations) == set(SIGNS)
    assert min(operations.values()) > 100
    assert long_ones > 100
    short = make_task("gsm_chain", long_steps=False, operations=("add",))
    for problem in (short.problem(seed) for seed in range(100)):
        assert all(re.fullmatch(r"<<\d+\+\d+=\d+>>", step) for step in problem.steps)


def test_every_sentence_is_told_and_nobody_comes_in_twice():
    assert len(NAMES) > MAX_STEPS
    assert len(THINGS) > MAX_STEPS
    task = make_task("gsm_chain", max_steps=6)
    text = " ".join(task.problem(seed).question for seed in range(500))
    for event in EVENTS:
        pattern = re.sub(r"\\{\w+\\}", r"\\w+", re.escape(event.text))
        assert re.search(pattern, text), event.text


def test_problems_of_the_same_equations_share_a_split():
    task = make_task("gsm_chain", max_steps=1, max_number=20)
    chains = [{task.problem(seed, split).steps for seed in range(400)} for split in SPLITS]
    assert not chains[0] & (chains[1] | chains[2])
    assert not chains[1] & chains[2]
    assert len(chains[0]) < 400


def test_too_few_chains_are_told():
    with pytest.raises(TaskError, match="too few distinct problems"):
        make_task("gsm_chain", operations=("div",), min_steps=8, max_steps=8).problem(0)


def test_an_answer_is_right_with_commas_between_its_thousands_and_no_more():
    task = make_task("gsm_chain", min_steps=1, max_number=5000, max_value=10**6)
    problem = next(p for p in map(task.problem, range(100)) if len(p.answer) == 4)
    answer = problem.answer
    with_comma = f"{answer[0]},{answer[1:]}"
    for response in (answer, with_comma, f" {with_comma}\n"):
        assert task.verify(problem, response).correct
        assert task.verify(problem, response).parsed == answer
    told = {
        "": "empty",
        ",": "not a number alone",
        f"{answer[:2]},{answer[2:]}": "not a number alone",
        f"{answer},": "not a number alone",
        f"{answer} dollars": "not a number alone",
        f"{answer}\n{answer}": "not a number alone",
        f"#### {answer}": "not a number alone",
        f"0+{answer}": "not a number alone",
        "٢": "not a number alone",
        f"{answer}.0": f"wanted {answer}",
        f"0{answer}": f"wanted {answer}",
        f"-{answer}": f"wanted {answer}",
    }
    for response, reason in told.items():
        score = task.verify(problem, response)
        assert not score.correct
        assert reason in score.reason


def test_a_written_file_is_read_back(tmp_path, problems):
    path = tmp_path / "chains.txt"
    path.write_text("".join(to_line(problem) + "\n" for problem in problems), encoding="utf-8")
    wanted = [example_of(problem, index) for index, problem in enumerate(problems)]
    # Such a file has no room for the difficulty.
    wanted = [dataclasses.replace(example, difficulty="") for example in wanted]
    assert list(JsonlSource(path)) == wanted


def test_a_line_is_that_of_the_published_files():
    problem = make_task("gsm_chain").problem(0)
    plain = dataclasses.replace(problem, question="Q?", steps=("<<16-3=13>>",), answer="13")
    assert to_line(plain) == "Q?||<<16-3=13>> #### 13"
    assert to_line(dataclasses.replace(plain, steps=())) == "Q?|| #### 13"


@pytest.mark.parametrize(
    "change",
    [
        {"steps": ("1 + 1",)},
        {"steps": ("",)},
        {"steps": ("a####b",)},
        {"question": "a || b"},
        {"question": "a\nb"},
        {"answer": "1 #### 2"},
    ],
    ids=str,
)
def test_what_a_line_cannot_hold_is_refused(change):
    problem = dataclasses.replace(make_task("gsm_chain").problem(0), **change)
    with pytest.raises(TaskError, match=r"write a \.jsonl file instead"):
        to_line(problem)
