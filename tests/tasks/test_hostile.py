"""Verifiers answer any string, soon: R12 of what must never happen."""

import random
import time
from importlib import util

import pytest

from reasoning_jax.tasks import make_task

TASKS = {
    "arithmetic": ("arithmetic", {"operations": ("add", "sub", "mul")}),
    "base": ("add_or_sub_in_base", {}),
    "countdown": ("countdown", {"min_numbers": 3, "max_numbers": 6}),
    "prosqa": ("prosqa", {}),
    "prosqa symbolic": ("prosqa", {"form": "symbolic"}),
    "prosqa fused": ("prosqa", {"form": "fused", "family": "mirrored"}),
    "prontoqa": ("prontoqa", {}),
    "gsm_chain": ("gsm_chain", {}),
    "gym chain_sum": ("reasoning_gym", {}),
    "gym graph_color": ("reasoning_gym", {"dataset": "graph_color"}),
    "gym countdown": ("reasoning_gym", {"dataset": "countdown"}),
}
HOSTILE = {
    "nothing": "",
    "blanks": " \t\r\n\v\f\u2003\u3000" * 10,
    "a megabyte": "a" * 1_000_000,
    "a megabyte of blanks": " " * 1_000_000,
    "a megabyte of line ends": "\n" * 1_000_000,
    "a megabyte of open parentheses": "(" * 1_000_000,
    "deep parentheses": "(" * 400 + "1" + ")" * 400,
    "deep brackets": "[" * 5_000 + "]" * 5_000,
    "deep json": '{"a":' * 1_900 + "1" + "}" * 1_900,
    "deep minus": "-" * 450 + "1",
    "a huge integer": "9" * 100_000,
    "an integer above the limit of int()": "9" * 4_301,
    "a long integer": "9" * 400,
    "a huge operation": "9" * 150 + "*" + "9" * 150 + "=" + "9" * 150,
    "operations without end": "1+1=2\n" * 80,
    "equals signs": "=" * 400,
    "an exponent tower": "9**9**9**9**9",
    "an exponent tower with carets": "9^9^9^9",
    "a big float": "1e999999999",
    "a big fraction": "1/" + "3" * 450,
    "not a number": "nan",
    "infinity": "-inf",
    "Arabic-Indic digits": "١٢٣",
    "full-width digits": "１２＋３",
    "superscript digits": "²³",
    "a right-to-left mark": "\u200f12\u200f",
    "a right-to-left override": "\u202e21",
    "a zero-width space": "1\u200b2",
    "a byte order mark": "\ufeff12",
    "NULs": "\0" * 400,
    "a NUL inside": "1\x002",
    "a lone surrogate": "\ud800",
    "surrogates": "\udfff\ud800" * 200,
    "combining marks": "a" + "\u0301" * 450,
    "control characters": "".join(map(chr, range(32))),
    "an import": "__import__('os').system('true')",
    "an attribute walk": "().__class__.__base__.__subclasses__()",
    "a loop": "[x for x in range(10**9)]",
    "a format string": "{0.__class__}%s%n${7*7}",
    "a regular expression's worst case": "a" * 450 + "!",
    "alternating digits and blanks": "1 " * 240,
    "many lines": "\n".join("1" for _ in range(240)),
    "quotes": "'\"`" * 150,
    "backslashes": "\\" * 450,
    "an almost chain": "Every lempus is a lempus. " * 18,
}


def build(name):
    task_name, dials = TASKS[name]
    if task_name == "reasoning_gym" and util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")
    return make_task(task_name, **dials)


@pytest.fixture(params=TASKS)
def task(request):
    return build(request.param)


def test_hostile_strings_are_wrong_within_a_second(task):
    problem = task.problem(0)
    assert task.verify(problem, problem.answer).correct
    for title, response in HOSTILE.items():
        start = time.perf_counter()
        score = task.verify(problem, response)
        assert time.perf_counter() - start < 1.0, title
        assert (score.correct, score.value < 1.0) == (False, True), title
        assert score.reason, title
        # A verdict can be stored whatever the response was.
        (score.parsed + score.reason).encode("utf-8")
        assert len(score.reason) < 1_000, title
    assert task.verify(problem, problem.answer).correct


def test_hostile_wrapping_does_not_make_an_answer_right(task):
    problem = task.problem(1)
    for before, after in (
        ("\0", ""),
        ("", "\0"),
        ("\u200f", ""),
        ("", "\u200b"),
        ("\ufeff", ""),
        ("", "\ud800"),
        ("", "x" * 1_000_000),
    ):
        assert not task.verify(problem, before + problem.answer + after).correct


ALPHABETS = (
    "0123456789",
    "0123456789+-*/()= \n",
    "0123456789abcdef-",
    "".join(map(chr, range(128))),
    "٠١٢٣１２²\u200b\u200f\u202e\ufeff\0\ud800\udfff\u0301é\U0001f600",
    "Every lempus is a rompus. Alex",
)


def fuzz(problem, count, seed):
    """Random strings over several alphabets, and right answers with a few random edits."""
    rng = random.Random(seed)
    for index in range(count):
        alphabet = rng.choice(ALPHABETS)
        if index % 2:
            text = list(problem.answer)
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randrange(2)] = rng.choices(alphabet, k=rng.randrange(3))
            yield "".join(text)
        else:
            yield "".join(rng.choices(alphabet, k=min(int(rng.expovariate(0.02)), 2_000)))


def measure(task, count):
    """Seconds a response, sorted."""
    problem = task.problem(2)
    spent = []
    for response in fuzz(problem, count, seed=0):
        start = time.perf_counter()
        score = task.verify(problem, response)
        spent.append(time.perf_counter() - start)
        assert score.correct == (score.value == 1.0) == (score.reason == "")
    return sorted(spent)


def test_fuzzed_strings_are_judged_without_an_exception(task):
    spent = measure(task, 300)
    assert spent[-1] < 1.0


@pytest.mark.slow
def test_a_hundred_thousand_strings_are_judged_in_time(task):
    spent = measure(task, 100_000)
    print(f"p99.9 {1e3 * spent[-101]:.2f} ms, worst {1e3 * spent[-1]:.1f} ms")
    assert spent[-101] <= 0.010
    assert spent[-1] <= 1.0
