"""GSM-style chains: a short word problem and the equations that solve it, one after another.

    Ada has 16 shells. Ada gives 3 of the shells to Ben and 4 to a neighbor. Ada sells all the
    shells for 2 dollars each. How many dollars does Ada have now?
    <<16-3-4=9>> <<9*2=18>>  ->  18

Sentences, names and things are ours; nothing is taken from GSM8k. Only the format of the equations
is that of the iCoT files (arXiv 2405.14838) which Coconut (arXiv 2412.06769) trains on; `to_line`
writes a problem as a line of such a file, which data.source="jsonl" reads. How these problems are
easier than GSM8k:
  1. Each equation but the first takes up the result before it, as the sentences come one by one;
     none is needed twice, and no number stands in the text without being used.
  2. All numbers are integers and written in digits; there are no fractions, percentages or units.
  3. Each sentence is one of a few dozen.
Every result is at least 2 (so that plurals are right) and each division leaves no remainder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reasoning_jax.tasks.answers import without_separators
from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    require_bool,
    require_int,
    require_range,
    require_strategy,
    require_subset,
    right,
    show,
    too_long,
    wrong,
)

SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
MAX_STEPS = 12
MAX_FACTOR = 12
_LEAST = 2
_MAX_RESPONSE = 200
# ASCII digits only, which \d is not.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")

# One more than MAX_STEPS at least: each sentence may bring in somebody new.
# fmt: off
NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Ella", "Finn", "Gina", "Hugo", "Iris", "Jon", "Kira", "Leo",
    "Mina", "Nils", "Olga", "Paul",
)
THINGS = (
    "apples", "balloons", "beads", "buttons", "candles", "cookies", "hats", "lemons", "marbles",
    "pencils", "plates", "ribbons", "shells", "spoons", "stamps", "stickers",
)
# fmt: on


class Event(NamedTuple):
    """A sentence that changes how many things somebody has.

    `text` has {who}, {things}, {x} (one quantity) or {x} and {y} (two), {friend} (somebody new) and
    {new} (things of another kind). `about`: of which of "things", "boxes" and "dollars" it can be
    said. Afterwards the story is about the friend if `to_friend`, and about `into` if that is set.
    """

    operation: str
    text: str
    about: tuple[str, ...] = ("things", "boxes")
    to_friend: bool = False
    into: str = ""

    @property
    def quantities(self) -> int:
        return 2 if "{y}" in self.text else 1


_ALL = ("things", "boxes", "dollars")
_MONEY = ("dollars",)
EVENTS = (
    Event("add", "{who} buys {x} more {things}."),
    Event("add", "{friend} gives {x} more {things} to {who}.", _ALL),
    Event("add", "{who} gets {x} more {things} on Monday and {y} more on Tuesday.", _ALL),
    Event("add", "{who} earns {x} more dollars.", _MONEY),
    Event("sub", "{who} gives {x} of the {things} to {friend}.", _ALL),
    Event("sub", "{who} loses {x} of the {things}.", _ALL),
    Event("sub", "{who} gives {x} of the {things} to {friend} and {y} to a neighbor.", _ALL),
    Event("sub", "{who} spends {x} dollars on lunch.", _MONEY),
    Event("sub", "{who} spends {x} dollars on lunch and {y} dollars on a ticket.", _MONEY),
    Event("mul", "{friend} has {x} times as many {things} as {who} has now.", _ALL, to_friend=True),
    Event("mul", "{who} sells all the {things} for {x} dollars each.", into="dollars"),
    Event(
        "div",
        "{who} splits the {things} evenly among {x} friends, one of whom is {friend}.",
        _ALL,
        to_friend=True,
    ),
    Event("div", "{who} packs all the {things} into boxes of {x}.", ("things",), into="boxes"),
    Event(
        "div", "{who} spends all the dollars on {new} for {x} dollars each.", _MONEY, into="things"
    ),
)
OPENING = "{who} has {x} {things}."
CLOSING = "How many {things} does {who} have now?"
_TEXTS = (OPENING, *(event.text for event in EVENTS), CLOSING)


@dataclass(frozen=True)
class GsmChain:
    """Word problems that are solved by one equation after another; see the module.

    min_steps, max_steps: the number of equations, uniform over this range (1 to 12).
    operations: which of "add", "sub", "mul", "div"; drawn uniformly, but passed over where the
      number at hand allows no such step.
    max_number: the first number, and each that is added or taken away, is at most this; factors and
      divisors are at most 12.
    max_value: no result is above this.
    long_steps: an addition or subtraction may have two quantities, `<<16-3-4=9>>`.
    """

    min_steps: int = 1
    max_steps: int = 4
    operations: tuple[str, ...] = ("add", "sub", "mul", "div")
    max_number: int = 50
    max_value: int = 1000
    long_steps: bool = True

    def __post_init__(self) -> None:
        require_range(
            self.name, "min_steps", self.min_steps, "max_steps", self.max_steps, 1, MAX_STEPS
        )
        require_subset(self.name, "operations", self.operations, SIGNS)
        require_int(self.name, "max_number", self.max_number, 2 * _LEAST, 10**6)
        require_int(self.name, "max_value", self.max_value, 2 * _LEAST, 10**9)
        require_bool(self.name, "long_steps", self.long_steps)

    @property
    def name(self) -> str:
        return "gsm_chain"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does.

        Problems with the same equations share a split, whatever their sentences.
        """

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            count = int(rng.integers(self.min_steps, self.max_steps + 1))
            start = int(rng.integers(_LEAST, min(self.max_number, self.max_value) + 1))
            story = _Story(start, rng)
            moves: list[tuple[str, list[int]]] = []
            for _ in range(count):
                move = self._draw_move(story, rng)
                if move is None:
                    return None
                moves.append(move)
            data = {"start": start, "moves": [list(move) for move in moves]}
            steps, answer = _equations(data)
            return " ".join(steps), Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=story.ask(),
                answer=answer,
                steps=steps,
                difficulty=f"steps={count}",
                data=data,
            )

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response is the answer's numeral, blanks around it aside.

        Commas may part it in groups of three, so `1,000` is `1000`; `18.0` and `018` are not `18`.
        Coconut's code drops every comma, which would make `1,8` the answer 18.
        """
        if refusal := too_long(response, _MAX_RESPONSE):
            return refusal
        parsed = without_separators(response.strip())
        if parsed == problem.answer:
            return right(parsed)
        if not parsed:
            return wrong("the response is empty")
        if not _NUMBER.fullmatch(parsed):
            return wrong(f"{show(parsed)} is not a number alone", parsed)
        return wrong(f"wanted {problem.answer}", parsed)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """The equations and the answer; "direct" is the only strategy. `nodes` counts equations."""
        require_strategy(self.name, strategy, ("direct",))
        steps, answer = _equations(problem.data)
        return Trace(steps=steps, answer=answer, solved=True, nodes=len(steps))

    def characters(self) -> str:
        texts = "".join(re.sub(r"\{[a-z]+\}", "", text) for text in _TEXTS)
        signs = "".join(SIGNS[operation] for operation in self.operations)
        used = texts + signs + "".join((*NAMES, *THINGS, "boxes dollars", "<<=>>", "0123456789"))
        return "".join(sorted(set(used)))

    def words(self) -> tuple[str, ...]:
        # A step is one word, and there are too many of them to list.
        return ()

    def noise_units(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def _draw_move(self, story: _Story, rng: np.random.Generator) -> tuple[str, list[int]] | None:
        """An operation and its quantities, told in the story; None where none is possible."""
        for place in rng.permutation(len(self.operations)).tolist():
            operation = self.operations[place]
            events = [
                event
                for event in EVENTS
                if event.operation == operation
                and story.kind in event.about
                and (self.long_steps or event.quantities == 1)
            ]
            event = events[int(rng.integers(len(events)))]
            quantities = self._draw_quantities(event, story.value, rng)
            if quantities:
                story.tell(event, quantities)
                return operation, quantities
        return None

    def _draw_quantities(
        self, event: Event, value: int, rng: np.random.Generator
    ) -> list[int] | None:
        """Quantities that keep the result in range, or None if there are none."""
        if event.operation == "div":
            legal = [n for n in range(2, MAX_FACTOR + 1) if value % n == 0 and value // n >= _LEAST]
            return [legal[int(rng.integers(len(legal)))]] if legal else None
        if event.operation == "mul":
            most = min(MAX_FACTOR, self.max_value // value)
            return [int(rng.integers(2, most + 1))] if most >= 2 else None
        room = self.max_value - value if event.operation == "add" else value - _LEAST
        quantities = []
        for left in reversed(range(event.quantities)):
            most = min(self.max_number, room - _LEAST * left)
            if most < _LEAST:
                return None
            quantities.append(int(rng.integers(_LEAST, most + 1)))
            room -= quantities[-1]
        return quantities


class _Story:
    """The sentences so far, and who has how many of what at their end."""

    def __init__(self, start: int, rng: np.random.Generator) -> None:
        self._names = iter([NAMES[i] for i in rng.permutation(len(NAMES))])
        self._things = iter([THINGS[i] for i in rng.permutation(len(THINGS))])
        self.value = start
        self.kind = "things"
        self._who, self._what = next(self._names), next(self._things)
        self._sentences = [OPENING.format(who=self._who, things=self._what, x=start)]

    def tell(self, event: Event, quantities: Sequence[int]) -> None:
        # Nobody and nothing comes in twice, so that there is one count of each to think of.
        friend = next(self._names) if "{friend}" in event.text else ""
        new = next(self._things) if "{new}" in event.text else ""
        x, y = quantities[0], quantities[-1]
        self._sentences.append(
            event.text.format(who=self._who, things=self._what, friend=friend, new=new, x=x, y=y)
        )
        self.value = _apply(event.operation, self.value, quantities)
        if event.to_friend:
            self._who = friend
        if event.into:
            self.kind, self._what = event.into, new or event.into

    def ask(self) -> str:
        closing = CLOSING.format(who=self._who, things=self._what)
        return " ".join([*self._sentences, closing])


def to_line(problem: Problem) -> str:
    """The problem as a line of an iCoT file, `question||step step #### answer`, without its end.

    Works for problems of any task whose text such a line can hold.

    Raises:
      TaskError: a step with a blank in it, or a text with "||", "####" or a line end.
    """
    for step in problem.steps:
        if step.split() != [step]:
            raise TaskError(
                f"{problem.task}: step {show(step)} has a blank in it or is empty; steps end at "
                "blanks in an iCoT line, write a .jsonl file instead"
            )
    for text in (problem.question, *problem.steps, problem.answer):
        for mark in ("||", "####", "\n", "\r"):
            if mark in text:
                raise TaskError(
                    f"{problem.task}: {show(text)} has {mark!r} in it, which is a mark of an iCoT "
                    "line; write a .jsonl file instead"
                )
    return f"{problem.question}||{' '.join(problem.steps)} #### {problem.answer}"


def _apply(operation: str, value: int, quantities: Sequence[int]) -> int:
    match operation:
        case "add":
            return value + sum(quantities)
        case "sub":
            return value - sum(quantities)
        case "mul":
            return value * quantities[0]
        case "div":
            return value // quantities[0]
    raise TaskError(f"gsm_chain: no operation {show(operation)}")


def _equations(data: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The steps of a problem, and its answer."""
    value, steps = data["start"], []
    for operation, quantities in data["moves"]:
        result = _apply(operation, value, quantities)
        terms = SIGNS[operation].join(map(str, (value, *quantities)))
        steps.append(f"<<{terms}={result}>>")
        value = result
    return tuple(steps), str(value)
