import collections
import re

import pytest

from reasoning_jax.tasks import make_task
from reasoning_jax.tasks.arithmetic import to_base

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@pytest.mark.parametrize("sign", OPERATIONS)
def test_answers_are_those_of_integer_arithmetic(sign):
    operation = {"+": "add", "-": "sub", "*": "mul"}[sign]
    task = make_task("arithmetic", operations=(operation,), max_digits=6)
    for seed in range(200):
        problem = task.problem(seed)
        left, right = problem.question.removesuffix("=").split(sign)
        assert problem.answer == str(OPERATIONS[sign](int(left), int(right)))
        assert problem.difficulty == f"{operation}:digits={max(len(left), len(right))}"


def test_base_answers_are_those_of_integer_arithmetic():
    task = make_task("add_or_sub_in_base", max_digits=6)
    pattern = re.compile(r"In base (\d+), what is (-?[0-9a-f]+) ([-+]) (-?[0-9a-f]+)\?")
    signs = collections.Counter()
    for seed in range(400):
        problem = task.problem(seed)
        base, left, sign, right = pattern.fullmatch(problem.question).groups()
        total = OPERATIONS[sign](int(left, int(base)), int(right, int(base)))
        assert int(problem.answer, int(base)) == total
        assert problem.answer == to_base(total, int(base))
        assert problem.difficulty == f"base={base}"
        signs[left[0] == "-", sign, right[0] == "-"] += 1
    assert len(signs) == 8


def test_numerals_invert_int():
    for base in range(2, 17):
        for value in (0, 1, -1, base - 1, base, -base, 12345, -98765):
            assert int(to_base(value, base), base) == value
    assert to_base(0, 7) == "0"
    assert to_base(-255, 16) == "-ff"


def test_digit_counts_are_uniform():
    # Uniform numbers instead would have two digits in nine of ten operands.
    task = make_task("arithmetic", max_digits=2)
    lengths = collections.Counter()
    for seed in range(1000):
        lengths.update(len(part) for part in task.problem(seed).question[:-1].split("+"))
    assert 0.46 < lengths[1] / lengths.total() < 0.54


def test_reverse_and_pad_fix_the_layout():
    plain = make_task("arithmetic", operations=("sub", "mul"), max_digits=3)
    reverse = make_task("arithmetic", operations=("sub", "mul"), max_digits=3, reverse=True)
    both = make_task("arithmetic", operations=("sub", "mul"), max_digits=3, reverse=True, pad=True)
    for seed in range(100):
        answer = plain.problem(seed).answer
        sign, digits = ("-", answer[1:]) if answer[0] == "-" else ("", answer)
        assert reverse.problem(seed).answer == sign + digits[::-1]
        padded = both.problem(seed)
        assert padded.answer == sign + digits.rjust(6, "0")[::-1]
        assert len(padded.question) == len("012*345=")
        assert not both.verify(padded, reverse.problem(seed).answer + "!").correct


def test_only_the_canonical_numeral_is_right():
    task = make_task("arithmetic", operations=("add", "sub"), max_digits=4)
    arabic = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
    wide = str.maketrans("0123456789", "０１２３４５６７８９")
    for seed in range(100):
        problem = task.problem(seed)
        answer = problem.answer
        minus_swapped = answer[1:] if answer[0] == "-" else "-" + answer
        mutants = {
            "0" + answer,
            "+" + answer,
            answer + "0",
            answer + ".0",
            answer + " " + answer,
            answer + "\n" + answer,
            answer.translate(arabic),
            answer.translate(wide),
            answer[:-1] + str((int(answer[-1]) + 1) % 10),
            answer[:-1],
            minus_swapped,
            answer.replace("-", "−") if answer[0] == "-" else f"{answer}_0",
            f"={answer}",
            f"{int(answer):,}+",
        }
        for mutant in mutants:
            assert not task.verify(problem, mutant).correct, mutant


@pytest.mark.parametrize(
    ("response", "told"),
    [
        ("", "empty"),
        ("009", "the sign or the leading zeros differ"),
        ("1a", "not a number in the digits 0123456789"),
        ("12345", "wanted 9"),
        ("9" * 1001, "at most 1,000 are read"),
    ],
)
def test_reasons_say_what_is_wrong(response, told):
    task = make_task("arithmetic", max_digits=1)
    problem = next(p for p in map(task.problem, range(500)) if p.answer == "9")
    assert told in task.verify(problem, response).reason


@pytest.mark.parametrize(
    ("name", "dials"),
    [
        ("arithmetic", {"operations": ("add",), "max_digits": 5}),
        ("arithmetic", {"operations": ("sub",), "max_digits": 5}),
        ("add_or_sub_in_base", {"max_digits": 5}),
    ],
)
def test_the_columns_spell_the_answer(name, dials):
    task = make_task(name, steps=True, **dials)
    for seed in range(200):
        problem = task.problem(seed)
        base = problem.data.get("base", 10)
        columns = [step for step in problem.steps if "(" not in step]
        carry, digits = "0", ""
        for column in columns:
            x, sign, y, sign_again, carry_in, _, carry_out, digit = column
            assert sign == sign_again
            assert carry_in == carry
            total = OPERATIONS[sign](OPERATIONS[sign](int(x, base), int(y, base)), int(carry_in))
            assert total == int(digit, base) + OPERATIONS[sign](0, 1) * int(carry_out) * base
            carry, digits = carry_out, digit + digits
        magnitude = to_base(int(carry + digits, base), base)
        assert magnitude == problem.answer.lstrip("-")
        if problem.answer[0] == "-":
            assert problem.steps[0].startswith("-(")


def test_products_are_worked_digit_by_digit():
    task = make_task("arithmetic", operations=("mul",), max_digits=4, steps=True)
    for seed in range(100):
        problem = task.problem(seed)
        for step in problem.steps:
            left, sign, right, result = re.fullmatch(r"(\d+)([+*])(\d+)=(\d+)", step).groups()
            assert OPERATIONS[sign](int(left), int(right)) == int(result)
        assert problem.steps[-1].endswith(f"={problem.answer}")
        assert len(problem.steps) == 2 * len(str(problem.data["b"])) - 1


@pytest.mark.parametrize(
    ("name", "dials"),
    [
        ("arithmetic", {"max_digits": 1}),
        ("add_or_sub_in_base", {"max_digits": 1, "min_base": 9, "max_base": 9}),
    ],
)
def test_mirrored_sums_share_a_split(name, dials):
    task = make_task(name, **dials)
    pairs = []
    for split in ("train", "validation", "test"):
        problems = [task.problem(seed, split).data for seed in range(120)]
        pairs.append(
            {
                frozenset((data["a"], -data["b"] if data["operation"] == "sub" else data["b"]))
                for data in problems
            }
        )
    assert not pairs[0] & (pairs[1] | pairs[2])
    assert not pairs[1] & pairs[2]


def test_differences_stay_non_negative_where_asked():
    task = make_task("arithmetic", operations=("sub",), negative=False)
    assert all(task.problem(seed).answer[0] != "-" for seed in range(200))
