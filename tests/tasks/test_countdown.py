import ast
import collections

import numpy as np
import pytest

from reasoning_jax.tasks import Problem, make_task
from reasoning_jax.tasks.countdown import MAX_NODES, moves

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def given(numbers, target):
    return Problem("countdown", 0, "train", "", "", data={"numbers": numbers, "target": target})


def compute(a, operator, b):
    """The rules once more, by other means: None where they do not allow it."""
    if operator == "/":
        return a // b if b and not a % b else None
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return value if value > 0 else None


def expression_is_right(problem, text):
    """Python's own parser as an oracle for expressions."""
    numbers = []

    def value_of(node):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            a, b = value_of(node.left), value_of(node.right)
            return None if None in (a, b) else compute(a, OPERATORS[type(node.op)], b)
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 0:
            numbers.append(node.value)
            return node.value
        return None

    try:
        value = value_of(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        return False
    return value == problem.data["target"] and sorted(numbers) == sorted(problem.data["numbers"])


def operations_are_right(problem, text):
    """Reads only lines without blanks, by splitting."""
    at_hand = list(problem.data["numbers"])
    result = None
    for line in text.strip().split("\n"):
        left, _, result = line.partition("=")
        operator = next((sign for sign in "+-*/" if sign in left), None)
        parts = left.split(operator) if operator else []
        numerals = [*parts, result]
        if len(parts) != 2 or not all(
            n.isascii() and n.isdigit() and n[0] != "0" for n in numerals
        ):
            return False
        a, b, result = map(int, numerals)
        for number in (a, b):
            if number not in at_hand:
                return False
            at_hand.remove(number)
        if compute(a, operator, b) != result:
            return False
        at_hand.append(result)
    return at_hand == [problem.data["target"]]


def mutants(text, alphabet, rng, count):
    """Texts one or two edits away."""
    for _ in range(count):
        mutant = text
        for _ in range(int(rng.integers(1, 3))):
            place = int(rng.integers(len(mutant)))
            letter = alphabet[int(rng.integers(len(alphabet)))]
            edit = int(rng.integers(4))
            if edit == 0:
                mutant = mutant[:place] + mutant[place + 1 :]
            elif edit == 1:
                mutant = mutant[:place] + letter + mutant[place:]
            elif edit == 2:
                mutant = mutant[:place] + letter + mutant[place + 1 :]
            else:
                other = int(rng.integers(len(mutant)))
                low, high = min(place, other), max(place, other)
                mutant = mutant[:low] + mutant[low:high][::-1] + mutant[high:]
            if not mutant:
                break
        if mutant:
            yield mutant


@pytest.mark.parametrize(
    ("right", "alphabet", "write"),
    [
        (expression_is_right, "0123456789+-*/()", lambda problem: problem.answer),
        (operations_are_right, "0123456789+-*/=\n", lambda problem: "\n".join(problem.steps)),
    ],
    ids=["expressions", "operations"],
)
def test_the_verifier_agrees_with_an_oracle_near_right_answers(right, alphabet, write):
    # Small numbers, so that a good share of the mutants is right.
    task = make_task("countdown", min_numbers=3, max_value=6, min_target=1, max_target=12)
    rng = np.random.default_rng(0)
    verdicts = collections.Counter()
    for seed in range(60):
        problem = task.problem(seed)
        assert right(problem, write(problem))
        for mutant in mutants(write(problem), alphabet, rng, 60):
            if right is expression_is_right and ("=" in mutant or "**" in mutant or "//" in mutant):
                continue
            verdict = task.verify(problem, mutant)
            assert verdict.correct == right(problem, mutant), (problem, mutant, verdict)
            verdicts[verdict.correct] += 1
    assert verdicts[True] > 20
    assert verdicts[False] > 1000


@pytest.mark.parametrize(
    ("response", "told"),
    [
        ("", "empty"),
        ("(50-7)*3", "missing 25"),
        ("(50-7)*3+25+25", "too many 25"),
        ("3-7*25+50", "3-175 is not positive"),
        ("50/7*3+25", "50/7 leaves a remainder"),
        ("50+7*3+25", "the expression is 96, not 154"),
        ("(50-7)*3+25=154", "got one line with an '='; wanted an expression alone"),
        ("((50-7)*3+25", "a ( is not closed"),
        ("(50-7)*3+25)", "a ) has no ("),
        ("(50-7)3+25", "an operator is missing before 3"),
        ("(50-7)*3+25-", "a number is missing at the end"),
        ("-(50-7)*3+25", "a number is missing before -"),
        ("(050-7)*3+25", "no leading zeros"),
        ("(50−7)*3+25", "does not belong in an expression"),
        ("(50-7)*٣+25", "does not belong in an expression"),
        ("__import__", "does not belong in an expression"),
        ("50-7=43\n43*3=129", "got 2 lines with an '='"),
        ("50-7=43\n43*3=129\n129+25=155", "line 3: 129+25 is 154, not 155"),
        ("50-7=43\n43*3=129\n129-25=104", "the last result is 104, not 154"),
        ("50-7=43\n50*3=150\n129+25=154", "line 2: 50 is not among 3 25 43"),
        ("50-7=43\n43*43=1849\n129+25=154", "line 2: 43 is not among 3 25"),
        ("50-7=43\n7-25=18\n129+25=154", "line 2: 7 is not among 3 25 43"),
        ("50-7=43\n\n43*3=129", "line 2: '' is not of the form"),
        ("50-50=0\n43*3=129\n129+25=154", "line 1: 0: numbers are positive"),
        ("50-7=43 43*3=129 129+25=154", "or 3 operations a op b = c, one a line"),
        ("9" * 60 + "*3=1\n43*3=129\n129+25=154", "a number of 60 digits is out of reach"),
    ],
)
def test_reasons_say_what_is_wrong(response, told):
    score = make_task("countdown").verify(given([3, 7, 25, 50], 154), response)
    assert not score.correct
    assert score.value == 0.0
    assert told in score.reason


@pytest.mark.parametrize(
    "response",
    [
        "(50-7)*3+25",
        " ( 50 - 7 ) * 3 + 25 ",
        "25+3*(50-7)",
        "50-7=43\n43*3=129\n129+25=154",
        " 50 - 7 = 43 \r\n3*43=129\r\n25+129=154\n",
    ],
)
def test_both_forms_are_taken(response):
    assert make_task("countdown").verify(given([3, 7, 25, 50], 154), response).correct


def test_a_number_given_twice_may_be_used_twice_and_no_more():
    task = make_task("countdown")
    assert task.verify(given([5, 5, 2], 20), "(5+5)*2").correct
    assert not task.verify(given([5, 4, 2], 20), "(5+5)*2").correct
    # The intermediate result 5 is not the given 5.
    assert task.verify(given([5, 3, 2], 25), "3+2=5\n5*5=25").correct
    assert not task.verify(given([3, 2, 4], 25), "3+2=5\n5*5=25").correct


def solvable(numbers, target):
    """Exhaustive search without memory."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
                results = (compute(a, operator, b) for operator in "+-*/")
                if any(r is not None and solvable([*rest, r], target) for r in results):
                    return True
    return False


@pytest.mark.parametrize("strategy", ["direct", "dfs", "bfs"])
def test_searches_find_a_solution_exactly_where_there_is_one(strategy):
    task = make_task("countdown")
    rng = np.random.default_rng(1)
    found = collections.Counter()
    for _ in range(120):
        numbers = rng.integers(1, 12, size=int(rng.integers(3, 5))).tolist()
        problem = given(numbers, int(rng.integers(10, 100)))
        trace = task.solve(problem, strategy)
        assert trace.solved == solvable(numbers, problem.data["target"])
        found[trace.solved] += 1
        if trace.solved:
            assert len(trace.steps) == len(numbers) - 1
            assert task.verify(problem, "\n".join(trace.steps)).correct
            assert task.verify(problem, trace.answer).correct
    assert min(found.values()) > 20


@pytest.mark.parametrize("strategy", ["dfs", "bfs"])
def test_bounded_searches_give_up(strategy):
    # 997 is prime and out of reach; six numbers have far more than MAX_NODES states.
    trace = make_task("countdown").solve(given([1, 1, 1, 2, 2, 2], 997), "direct")
    assert not trace.solved
    trace = make_task("countdown").solve(given([90, 91, 92, 93, 94, 95], 999_983), strategy)
    assert not trace.solved
    assert trace.nodes == MAX_NODES


def test_moves_are_the_legal_operations():
    texts = {move.text for move in moves((6, 3))}
    assert texts == {"6+3=9", "6-3=3", "6*3=18", "6/3=2"}
    assert {move.text for move in moves((5, 3))} == {"5+3=8", "5-3=2", "5*3=15"}
    assert {move.text for move in moves((4, 4))} == {"4+4=8", "4*4=16", "4/4=1"}
    assert all(move.numbers == tuple(sorted(move.numbers)) for move in moves((9, 2, 5)))


def test_generated_problems_keep_to_their_ranges():
    task = make_task(
        "countdown", min_numbers=3, max_numbers=5, min_value=2, max_value=20, max_target=40
    )
    counts = collections.Counter()
    for seed in range(300):
        problem = task.problem(seed)
        numbers, target = problem.data["numbers"], problem.data["target"]
        assert problem.question == f"{' '.join(map(str, numbers))} -> {target}"
        assert all(2 <= number <= 20 for number in numbers)
        assert 10 <= target <= 40
        assert len(problem.steps) == len(numbers) - 1
        assert task.verify(problem, "\n".join(problem.steps)).correct
        assert problem.difficulty == f"numbers={len(numbers)}"
        counts[len(numbers)] += 1
    assert set(counts) == {3, 4, 5}


def test_the_order_of_the_numbers_does_not_move_a_problem_between_splits():
    task = make_task("countdown", min_numbers=3, max_numbers=3, max_value=4, max_target=12)
    keys = [
        {
            (*sorted(problem.data["numbers"]), problem.data["target"])
            for problem in (task.problem(seed, split) for seed in range(100))
        }
        for split in ("train", "validation", "test")
    ]
    assert not keys[0] & (keys[1] | keys[2])
    assert not keys[1] & keys[2]
