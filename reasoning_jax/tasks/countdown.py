"""Countdown: reach a target with + - * / from given numbers, each used exactly once.

Question, by grammar: `number (" " number)* " -> " number`, as in `3 7 25 50 -> 154`.
A response is right in either of two forms, and nothing else may stand beside it:
  operations   n - 1 lines `a op b = c` (blanks around the tokens are free). a and b are taken out
               of the numbers at hand, a multiset, and c is put in; the last c is the target.
  expression   the same as one term, `(50-7)*3+25`: + - * / with their usual precedence, left to
               right, and parentheses. The numbers in it are exactly the given ones.
In both, each result is a positive integer and each division leaves no remainder. Strictly so: no
`= 154` behind an expression, no LaTeX, no signs but + - * / ( ), no full stop. The reason of a
verdict names the first such thing and says what to write.
`Problem.steps` holds operations, `Problem.answer` an expression.

The game is that of Stream of Search (arXiv 2404.03683) and of "To Backtrack or Not to Backtrack"
(arXiv 2504.07052). Number and target ranges (1 to 99, 10 to 100) are those of the latter's public
code. Deviations, ours: problems are built forward from random operations instead of drawn and
filtered by a solver, which is faster and favours targets that many operations reach; a result of
zero is not allowed; no targets are held out beside the splits. The "dfs" strategy orders children
by their sum heuristic, but does not drop children above its threshold. The trace language of those
papers is not written here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    require_range,
    require_strategy,
    right,
    show,
    too_long,
    wrong,
)

MAX_VALUE = 1_000_000
MAX_NODES = 20_000
STRATEGIES = ("direct", "dfs", "bfs")
_OPERATORS = "+-*/"
_WEIGHT = {"(": 0, ")": 1, "+": 1, "-": 1, "*": 2, "/": 2}
_MAX_RESPONSE = 500
# Open parentheses and waiting operators; six numbers need ten at most.
_MAX_PENDING = 40
# Python's \d and \s match other scripts' digits and blanks; these match ASCII only.
_OPERATION = re.compile(r"[ \t]*([0-9]+)[ \t]*([-+*/])[ \t]*([0-9]+)[ \t]*=[ \t]*([0-9]+)[ \t]*")
_TOKEN = re.compile(r"[ \t]*(?:([0-9]+)|([-+*/()]))")
# Signs that are not read, and what is written for them.
_TYPESET = {
    "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2217": "*", "\u2715": "*", "\uff0a": "*",
    "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\uff0f": "/",
    "\u2212": "-", "\u2010": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-",
    "\uff0b": "+", "\uff1d": "=", "\uff08": "(", "\uff09": ")",
}  # fmt: skip
_GROUPED = re.compile(r"[0-9],[0-9]")
# A product of six numbers of at most 10^6 has 37 digits.
_MAX_NUMERAL = 40


class Move(NamedTuple):
    """One operation on two of the numbers at hand: its text, and the sorted numbers after it."""

    text: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Countdown:
    """Countdown with solvable problems only; see the module for question and response.

    min_numbers, max_numbers: how many numbers are given, uniform over this range (3 to 6).
    min_value, max_value: each given number is uniform over this range, before the problems that
      miss the target range are thrown away.
    min_target, max_target: the range of the target.
    """

    min_numbers: int = 4
    max_numbers: int = 4
    min_value: int = 1
    max_value: int = 99
    min_target: int = 10
    max_target: int = 100

    def __post_init__(self) -> None:
        for what, low, high in (("numbers", 3, 6), ("value", 1, MAX_VALUE), ("target", 1, 10**9)):
            least, most = f"min_{what}", f"max_{what}"
            require_range(
                self.name, least, getattr(self, least), most, getattr(self, most), low, high
            )

    @property
    def name(self) -> str:
        return "countdown"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            count = int(rng.integers(self.min_numbers, self.max_numbers + 1))
            numbers = rng.integers(self.min_value, self.max_value + 1, size=count).tolist()
            target, steps = _combine(numbers, rng.random((count - 1, 3)).tolist())
            if not self.min_target <= target <= self.max_target:
                return None
            listed = " ".join(map(str, numbers))
            key = f"{' '.join(map(str, sorted(numbers)))} -> {target}"
            return key, Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=f"{listed} -> {target}",
                answer=_as_expression(steps),
                steps=steps,
                difficulty=f"numbers={count}",
                data={"numbers": numbers, "target": target},
            )

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response is operations or an expression as the module lays down."""
        if refusal := too_long(response, _MAX_RESPONSE):
            return refusal
        parsed = response.strip()
        numbers, target = problem.data["numbers"], problem.data["target"]
        if "=" in parsed:
            reason = fault_in_operations(numbers, target, parsed.split("\n"))
        else:
            reason = fault_in_expression(numbers, target, parsed)
        return wrong(reason, parsed) if reason else right(parsed)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """Search for a solution. Deterministic: the seed changes nothing.

        Strategies:
          "direct": exhaustive depth-first search that never enters a set of numbers twice. Every
            solution has one operation fewer than there are numbers, so the first is a shortest.
          "dfs": depth-first, children nearest to the target first (mean distance), no memory.
          "bfs": breadth-first, no set of numbers twice.

        "dfs" and "bfs" give up after MAX_NODES. `nodes` counts the sets of numbers that were
        visited; `steps` holds the solution's operations alone.
        """
        require_strategy(self.name, strategy, STRATEGIES)
        numbers, target = tuple(sorted(problem.data["numbers"])), problem.data["target"]
        if strategy == "bfs":
            path, nodes = _search_breadth_first(numbers, target)
        elif strategy == "dfs":
            path, nodes = _search_depth_first(numbers, target, memory=False, limit=MAX_NODES)
        else:
            path, nodes = _search_depth_first(numbers, target, memory=True, limit=None)
        if path is None:
            return Trace(steps=(), answer="", solved=False, nodes=nodes)
        return Trace(steps=path, answer=_as_expression(path), solved=True, nodes=nodes)

    def characters(self) -> str:
        """Those of questions, steps and answers, and the line end between operations."""
        return "".join(sorted(" \n()*+-/=>0123456789"))

    def words(self) -> tuple[str, ...]:
        return ()

    def noise_units(self) -> tuple[str, ...]:
        return tuple("0123456789" + _OPERATORS)


def moves(numbers: Sequence[int]) -> list[Move]:
    """All legal operations on two of the numbers, without repeats.

    Of a - b and a / b only the larger number first: the other way gives no positive integer, but
    for a / a.
    """
    found = {}
    for i in range(len(numbers)):
        for j in range(i):
            big, small = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            rest = [*numbers[:j], *numbers[j + 1 : i], *numbers[i + 1 :]]
            for operator in _OPERATORS:
                result = _apply(big, operator, small)
                if isinstance(result, int):
                    text = f"{big}{operator}{small}={result}"
                    found[text] = Move(text, tuple(sorted([*rest, result])))
    return list(found.values())


def fault_in_operations(numbers: Iterable[int], target: int, lines: Sequence[str]) -> str:
    """Why these operations do not turn the numbers into the target, or "" if they do."""
    at_hand = Counter(numbers)
    wanted = at_hand.total() - 1
    if len(lines) != wanted:
        got = "one line" if len(lines) == 1 else f"{len(lines)} lines"
        return (
            f"got {got} with an '='; wanted an expression alone, without '= {target}' behind it, "
            f"or {wanted} operations a op b = c, one a line{_advice(lines[0])}"
        )
    result = 0
    for number, line in enumerate(lines, 1):
        match = _OPERATION.fullmatch(line.rstrip("\r"))
        if match is None:
            return f"line {number}: {show(line)} is not of the form a op b = c{_advice(line)}"
        first, operator, second, written = match.groups()
        if long := _misshapen((first, second, written)):
            return f"line {number}: {long}"
        a, b = int(first), int(second)
        for taken in (a, b):
            if at_hand[taken] == 0:
                return f"line {number}: {taken} is not among {_listed(at_hand)}"
            at_hand[taken] -= 1
        result = _apply(a, operator, b)
        if isinstance(result, str):
            return f"line {number}: {result}"
        if result != int(written):
            return f"line {number}: {a}{operator}{b} is {result}, not {written}"
        at_hand[result] += 1
    return "" if result == target else f"the last result is {result}, not {target}"


def fault_in_expression(numbers: Iterable[int], target: int, text: str) -> str:
    """Why this expression over the numbers does not give the target, or "" if it does."""
    tokens = _tokens(text)
    if isinstance(tokens, str):
        return tokens
    used = Counter(token for token in tokens if isinstance(token, int))
    given = Counter(numbers)
    if used != given:
        missing, extra = _listed(given - used), _listed(used - given)
        return f"each number once: missing {missing or 'none'}, too many {extra or 'none'}"
    value = _value(tokens)
    if isinstance(value, str):
        return value
    return "" if value == target else f"the expression is {value}, not {target}"


def _combine(
    numbers: Sequence[int], chances: Sequence[Sequence[float]]
) -> tuple[int, tuple[str, ...]]:
    """Random pairs combined by random legal operations until one number is left."""
    at_hand = list(numbers)
    operations = []
    for first, second, choice in chances:
        a = at_hand.pop(int(first * len(at_hand)))
        b = at_hand.pop(int(second * len(at_hand)))
        a, b = max(a, b), min(a, b)
        legal = [(op, c) for op in _OPERATORS if isinstance(c := _apply(a, op, b), int)]
        operator, result = legal[int(choice * len(legal))]
        operations.append(f"{a}{operator}{b}={result}")
        at_hand.append(result)
    return at_hand[0], tuple(operations)


def _apply(a: int, operator: str, b: int) -> int | str:
    """a op b, or why the rules do not allow it."""
    match operator:
        case "+":
            return a + b
        case "*":
            return a * b
        case "-":
            return a - b if a > b else f"{a}-{b} is not positive"
        case "/":
            return a // b if a % b == 0 else f"{a}/{b} leaves a remainder"
    raise TaskError(f"no operator {show(operator)}")


def _misshapen(numerals: Iterable[str]) -> str:
    for numeral in numerals:
        if len(numeral) > _MAX_NUMERAL:
            return f"a number of {len(numeral)} digits is out of reach"
        if numeral[0] == "0":
            return f"{numeral}: numbers are positive and have no leading zeros"
    return ""


def _advice(text: str) -> str:
    """ "; write ..." for what a response holds in place of, or beside, the signs of the game."""
    for character in text:
        if plain := _TYPESET.get(character):
            name = unicodedata.name(character).lower()
            return f"; it has the {name}, write {plain}"
    if "\\" in text or "$" in text:
        return "; it has LaTeX, write plain text as in (50-7)*3+25"
    if text.endswith("."):
        return "; it ends in a full stop, leave that out"
    if _GROUPED.search(text):
        return "; write numbers without commas"
    if any(character.isalpha() for character in text):
        return "; it has words, write the expression or the operations alone"
    return ""


def _listed(counts: Counter[int]) -> str:
    return " ".join(map(str, sorted(counts.elements())))


def _tokens(text: str) -> list[int | str] | str:
    """The expression's numbers and signs, or why it has none."""
    if not text:
        return "the response is empty"
    tokens: list[int | str] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return f"{show(text[place])} does not belong in an expression{_advice(text)}"
        numeral, sign = match.groups()
        if numeral and (fault := _misshapen([numeral])):
            return fault
        tokens.append(int(numeral) if numeral else sign)
        place = match.end()
    return tokens


def _value(tokens: Sequence[int | str]) -> int | str:
    """The value of an expression by the rules of the game, or why it has none.

    Two stacks instead of recursion: parentheses cost no Python frames. The caller has checked
    which numbers there are, so that no value can outgrow their product.
    """
    values: list[int] = []
    pending: list[str] = []

    def reduce_while(weight: int) -> str:
        while pending and _WEIGHT[pending[-1]] >= weight:
            b, a = values.pop(), values.pop()
            result = _apply(a, pending.pop(), b)
            if isinstance(result, str):
                return result
            values.append(result)
        return ""

    number_next = True
    for token in tokens:
        opens = token == "(" or isinstance(token, int)
        if opens != number_next:
            missing = "a number" if number_next else "an operator"
            return f"{missing} is missing before {token}"
        if isinstance(token, int):
            values.append(token)
            number_next = False
        elif token == "(":
            if len(pending) >= _MAX_PENDING:
                return "too many parentheses"
            pending.append(token)
        elif fault := reduce_while(_WEIGHT[token]):
            return fault
        elif token == ")":
            if not pending:
                return "a ) has no ("
            pending.pop()
        else:
            pending.append(token)
            number_next = True
    if number_next:
        return "a number is missing at the end"
    if fault := reduce_while(1):
        return fault
    return "a ( is not closed" if pending else values[0]


def _as_expression(operations: Iterable[str]) -> str:
    """The expression that carries out these operations, with no needless parentheses."""
    # value -> the texts of the results not yet used, each with its outermost operator.
    made: dict[int, list[tuple[str, str]]] = {}
    text = ""
    for line in operations:
        first, operator, second, result = _parts(line)
        a, a_operator = made[first].pop() if made.get(first) else (str(first), "")
        b, b_operator = made[second].pop() if made.get(second) else (str(second), "")
        weight = _WEIGHT[operator]
        if a_operator and _WEIGHT[a_operator] < weight:
            a = f"({a})"
        same = b_operator == operator and operator in "+*"
        if b_operator and not same and _WEIGHT[b_operator] <= weight:
            b = f"({b})"
        text = f"{a}{operator}{b}"
        made.setdefault(result, []).append((text, operator))
    return text


def _parts(operation: str) -> tuple[int, str, int, int]:
    match = _OPERATION.fullmatch(operation)
    if match is None:
        raise TaskError(f"{show(operation)} is not of the form a op b = c")
    first, operator, second, result = match.groups()
    return int(first), operator, int(second), int(result)


def _search_depth_first(
    numbers: tuple[int, ...], target: int, *, memory: bool, limit: int | None
) -> tuple[tuple[str, ...] | None, int]:
    """(operations or None, sets of numbers visited); children nearest to the target first."""
    entered: set[tuple[int, ...]] = set()
    nodes = 0

    def distance(move: Move) -> float:
        return sum(abs(number - target) for number in move.numbers) / len(move.numbers)

    def visit(state: tuple[int, ...]) -> tuple[str, ...] | None:
        nonlocal nodes
        nodes += 1
        if len(state) == 1:
            return () if state[0] == target else None
        if memory:
            entered.add(state)
        for move in sorted(moves(state), key=distance):
            if limit is not None and nodes >= limit:
                return None
            if move.numbers in entered:
                continue
            rest = visit(move.numbers)
            if rest is not None:
                return (move.text, *rest)
        return None

    return visit(numbers), nodes


def _search_breadth_first(
    numbers: tuple[int, ...], target: int
) -> tuple[tuple[str, ...] | None, int]:
    paths: dict[tuple[int, ...], tuple[str, ...]] = {numbers: ()}
    queue = deque([numbers])
    nodes = 0
    while queue and nodes < MAX_NODES:
        state = queue.popleft()
        nodes += 1
        if state == (target,):
            return paths[state], nodes
        for move in moves(state):
            if move.numbers not in paths:
                paths[move.numbers] = (*paths[state], move.text)
                queue.append(move.numbers)
    return None, nodes
