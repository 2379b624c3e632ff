"""Integer arithmetic: `12+45=` -> `57`, and sums and differences in bases 2 to 16.

`Arithmetic` is the small setting in which backspace training is first tried. `AddOrSubInBase`
follows the kind of question of the module of the same name in the DeepMind mathematics data set
(Saxton et al. 2018, "Analysing Mathematical Reasoning Abilities of Neural Models"), which reviews
of the SequenceMatch paper name as its arithmetic task (we have not read that in the paper itself).
The way operands are drawn, the dials and the format of the working are ours: that data set draws
numbers by an entropy budget, which is not reproduced here.

Working (`Problem.steps`, and what `solve` writes), in the base of the question:
  `-(45-12)`      first, only where the columns are not those of the question as it is written
  `8+7+1=16`      a column of a sum, least significant first: digit + digit + carry in = carry out
                  and digit, always two digits
  `2-5-0=17`      a column of a difference: digit - digit - borrow in = borrow out and digit
  `123*40=4920`   a product with one digit of the second operand, least significant first, then
  `615+4920=5535` the running sum, from the second digit on
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    require_bool,
    require_range,
    require_strategy,
    require_subset,
    right,
    show,
    too_long,
    wrong,
)

DIGITS = "0123456789abcdef"
SIGNS = {"add": "+", "sub": "-", "mul": "*"}
MAX_DIGITS = 64
# The longest answer of any dial has 2 * MAX_DIGITS digits and a sign; the rest is room for blanks.
_MAX_RESPONSE = 1_000


@dataclass(frozen=True)
class Arithmetic:
    """`a+b=`, `a-b=` or `a*b=` in decimal, non-negative operands.

    operations: which of "add", "sub", "mul", drawn uniformly.
    min_digits, max_digits: each operand's digit count is uniform over this range (1 to 64).
    reverse: the answer is written least significant digit first (a minus sign stays in front).
    pad: operands are zero-padded to `max_digits` and answers to the widest answer that the dials
      allow (the sign not counted), so that every question and answer has one width.
    negative: a difference may be negative; otherwise the larger operand comes first.
    steps: problems carry the working (see the module) as their reference steps.
    """

    operations: tuple[str, ...] = ("add",)
    min_digits: int = 1
    max_digits: int = 3
    reverse: bool = False
    pad: bool = False
    negative: bool = True
    steps: bool = False

    def __post_init__(self) -> None:
        require_subset(self.name, "operations", self.operations, SIGNS)
        require_range(
            self.name, "min_digits", self.min_digits, "max_digits", self.max_digits, 1, MAX_DIGITS
        )
        for dial in ("reverse", "pad", "negative", "steps"):
            require_bool(self.name, dial, getattr(self, dial))

    @property
    def name(self) -> str:
        return "arithmetic"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            operation = self.operations[int(rng.integers(len(self.operations)))]
            a, a_digits = _draw_operand(rng, self.min_digits, self.max_digits, 10)
            b, b_digits = _draw_operand(rng, self.min_digits, self.max_digits, 10)
            if operation == "sub" and not self.negative and a < b:
                a, b = b, a
            # a+b and b+a are one problem, so that no split holds the mirror of another's question.
            low, high = (a, b) if operation == "sub" else sorted((a, b))
            key = f"{operation} {low} {high}"
            width = self.max_digits if self.pad else 0
            sign = SIGNS[operation]
            return key, Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=f"{a:0{width}d}{sign}{b:0{width}d}=",
                answer=self._write(_result(operation, a, b)),
                steps=_working(operation, a, b, 10) if self.steps else (),
                difficulty=f"{operation}:digits={max(a_digits, b_digits)}",
                data={"operation": operation, "a": a, "b": b},
            )

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response, blanks around it aside, is the canonical answer and no more."""
        return _judge(problem.answer, response, 10, self.reverse)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """The working and the answer; "direct" is the only strategy. `nodes` counts its lines."""
        require_strategy(self.name, strategy, ("direct",))
        operation, a, b = (problem.data[key] for key in ("operation", "a", "b"))
        working = _working(operation, a, b, 10)
        answer = self._write(_result(operation, a, b))
        return Trace(steps=working, answer=answer, solved=True, nodes=len(working))

    def characters(self) -> str:
        signs = {SIGNS[operation] for operation in self.operations} | {"="}
        # What the working needs besides: running sums, and the line before negative differences.
        signs |= {"+"} if "mul" in self.operations else set()
        signs |= set("()") if "sub" in self.operations and self.negative else set()
        return "".join(sorted(signs | set(DIGITS[:10])))

    def words(self) -> tuple[str, ...]:
        return ()

    def noise_units(self) -> tuple[str, ...]:
        return tuple(DIGITS[:10])

    def _write(self, value: int) -> str:
        widths = {"add": self.max_digits + 1, "sub": self.max_digits, "mul": 2 * self.max_digits}
        width = max(widths[operation] for operation in self.operations) if self.pad else 0
        magnitude = f"{abs(value):0{width}d}"
        return ("-" if value < 0 else "") + (magnitude[::-1] if self.reverse else magnitude)


@dataclass(frozen=True)
class AddOrSubInBase:
    """`In base 7, what is -1234 + 56?` -> `-1145`: signed operands, digits above 9 as letters.

    operations: which of "add", "sub", drawn uniformly.
    min_base, max_base: the base is uniform over this range (2 to 16).
    min_digits, max_digits: each operand's digit count, in its base, is uniform over this range.
    signed: operands are negative half of the time.
    steps: problems carry the working (see the module) as their reference steps.
    """

    operations: tuple[str, ...] = ("add", "sub")
    min_base: int = 2
    max_base: int = 16
    min_digits: int = 1
    max_digits: int = 4
    signed: bool = True
    steps: bool = False

    def __post_init__(self) -> None:
        require_subset(self.name, "operations", self.operations, ("add", "sub"))
        require_range(self.name, "min_base", self.min_base, "max_base", self.max_base, 2, 16)
        require_range(
            self.name, "min_digits", self.min_digits, "max_digits", self.max_digits, 1, MAX_DIGITS
        )
        require_bool(self.name, "signed", self.signed)
        require_bool(self.name, "steps", self.steps)

    @property
    def name(self) -> str:
        return "add_or_sub_in_base"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            base = int(rng.integers(self.min_base, self.max_base + 1))
            operation = self.operations[int(rng.integers(len(self.operations)))]
            a, _ = _draw_operand(rng, self.min_digits, self.max_digits, base)
            b, _ = _draw_operand(rng, self.min_digits, self.max_digits, base)
            if self.signed:
                flip_a, flip_b = rng.integers(2, size=2)
                a, b = (-a if flip_a else a), (-b if flip_b else b)
            # x - y and x + (-y) add the same two numbers, in whichever order: one problem.
            low, high = sorted((a, b if operation == "add" else -b))
            written = f"{to_base(a, base)} {SIGNS[operation]} {to_base(b, base)}"
            return f"{base} {low} {high}", Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=f"In base {base}, what is {written}?",
                answer=to_base(_result(operation, a, b), base),
                steps=_working(operation, a, b, base) if self.steps else (),
                difficulty=f"base={base}",
                data={"operation": operation, "a": a, "b": b, "base": base},
            )

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response, blanks around it aside, is the canonical numeral and no more."""
        return _judge(problem.answer, response, problem.data["base"])

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """The working and the answer; "direct" is the only strategy. `nodes` counts its lines."""
        require_strategy(self.name, strategy, ("direct",))
        operation, a, b, base = (problem.data[key] for key in ("operation", "a", "b", "base"))
        working = _working(operation, a, b, base)
        answer = to_base(_result(operation, a, b), base)
        return Trace(steps=working, answer=answer, solved=True, nodes=len(working))

    def characters(self) -> str:
        # The question writes the base itself in decimal, whatever digits the numerals may use.
        bases = "".join(str(base) for base in range(self.min_base, self.max_base + 1))
        return "".join(sorted(set("In base , what is ?+-=()" + bases) | set(self.noise_units())))

    def words(self) -> tuple[str, ...]:
        return ()

    def noise_units(self) -> tuple[str, ...]:
        return tuple(DIGITS[: self.max_base])


def to_base(value: int, base: int) -> str:
    """The numeral of `value` in a base from 2 to 16: lowercase letters above 9, `-` in front."""
    digits = []
    magnitude = abs(value)
    while magnitude:
        magnitude, digit = divmod(magnitude, base)
        digits.append(DIGITS[digit])
    return ("-" if value < 0 else "") + ("".join(reversed(digits)) or "0")


def _draw_operand(
    rng: np.random.Generator, min_digits: int, max_digits: int, base: int
) -> tuple[int, int]:
    """A number >= 0 and its digit count, uniform over the counts and over the numbers of each."""
    count = int(rng.integers(min_digits, max_digits + 1))
    value = 0
    for place, digit in enumerate(rng.random(count).tolist()):
        # No leading zero, but for the number zero itself.
        least = 1 if place == 0 and count > 1 else 0
        value = value * base + least + int(digit * (base - least))
    return value, count


def _result(operation: str, a: int, b: int) -> int:
    match operation:
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            return a * b
    raise TaskError(f"no operation {show(operation)}")


def _working(operation: str, a: int, b: int, base: int) -> tuple[str, ...]:
    if operation == "mul":
        return _long_product(a, b)
    big, small, sign = abs(a), abs(b), "+"
    if (a < 0) != ((b < 0) != (operation == "sub")):
        big, small, sign = max(big, small), min(big, small), "-"
    columns = _columns(big, small, sign, base)
    as_columns = f"{to_base(big, base)}{sign}{to_base(small, base)}"
    as_written = f"{to_base(a, base)}{SIGNS[operation]}{to_base(b, base)}"
    if as_columns == as_written:
        return columns
    return (f"{'-' if _result(operation, a, b) < 0 else ''}({as_columns})", *columns)


def _columns(big: int, small: int, sign: str, base: int) -> tuple[str, ...]:
    """One line a column, least significant first. Needs big >= small for a difference."""
    lines = []
    carry = 0
    places = max(len(to_base(big, base)), len(to_base(small, base)))
    for _ in range(places):
        big, x = divmod(big, base)
        small, y = divmod(small, base)
        if sign == "+":
            carry_out, digit = divmod(x + y + carry, base)
        else:
            borrow, digit = divmod(x - y - carry, base)
            carry_out = -borrow
        lines.append(f"{DIGITS[x]}{sign}{DIGITS[y]}{sign}{carry}={carry_out}{DIGITS[digit]}")
        carry = carry_out
    return tuple(lines)


def _long_product(a: int, b: int) -> tuple[str, ...]:
    lines = []
    total = 0
    for place, digit in enumerate(reversed(str(b))):
        factor = int(digit) * 10**place
        lines.append(f"{a}*{factor}={a * factor}")
        if place:
            lines.append(f"{total}+{a * factor}={total + a * factor}")
        total += a * factor
    return tuple(lines)


def _judge(answer: str, response: str, base: int, reverse: bool = False) -> Score:
    if refusal := too_long(response, _MAX_RESPONSE):
        return refusal
    parsed = response.strip()
    if parsed == answer:
        return right(parsed)
    legal = DIGITS[:base]
    magnitude = parsed.removeprefix("-")
    if not parsed:
        reason = "the response is empty"
    elif strange := sorted(set(magnitude) - set(legal)):
        reason = f"not a number in the digits {legal}: has {show(strange[0])}"
    # Written the other way round, zeros in front are the last digits of the number.
    elif (
        not reverse and magnitude and magnitude.lstrip("0") == answer.removeprefix("-").lstrip("0")
    ):
        reason = f"wanted {answer}: the sign or the leading zeros differ"
    else:
        reason = f"wanted {answer}"
    return wrong(reason, parsed)
