"""ProsQA as text: names, the layout of each form, and how questions are read and reordered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasoning_jax.tasks.base import TaskError
from reasoning_jax.tasks.checks import show

# fmt: off
NAMES = (
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly",
    "Rex", "Sally", "Sam", "Stella", "Tom", "Wren",
)
CONCEPTS = (
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus",
    "grimpus", "gwompus", "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus",
    "numpus", "quimpus", "rempus", "rompus", "rorpus", "scrompus", "shumpus", "sterpus", "storpus",
    "terpus", "timpus", "tumpus", "vumpus", "worpus", "wumpus", "yerpus", "yimpus", "yumpus",
    "zhorpus", "zumpus",
)
# fmt: on
FORMS = ("text", "symbolic", "fused")
MAX_SYMBOLIC_NODES = 200


class _Layout(NamedTuple):
    """How a form lays out a question. `fact` and `asked` are patterns; `closing` writes `asked`."""

    fact: str
    joint: str
    closing: str
    asked: str

    def write(self, facts: Sequence[str], first: str, second: str, root: str) -> str:
        closing = self.closing.format(first=first, second=second, root=root)
        return f"{self.joint.join(facts)} {closing}"


_NUMBERS = r"\[Q\] (?P<first>[0-9]+) (?P<second>[0-9]+) \[R\] (?P<root>[0-9]+)"
LAYOUTS = {
    "text": _Layout(
        r"(?:Every [a-z]+|[A-Z][a-z]*) is a [a-z]+\.",
        " ",
        "Is {root} a {first} or {second}?",
        r"Is (?P<root>[A-Z][a-z]*) a (?P<first>[a-z]+) or (?P<second>[a-z]+)\?",
    ),
    "symbolic": _Layout("[0-9]+ [0-9]+", " | ", "[Q] {first} {second} [R] {root}", _NUMBERS),
    "fused": _Layout("[0-9]+>[0-9]+", " ", "[Q] {first} {second} [R] {root}", _NUMBERS),
}


def sentence(symbols: Sequence[str], start: int, end: int) -> str:
    # Names are the only symbols with a capital letter; each other subject stands after "Every".
    subject = symbols[start]
    return f"{'' if subject[0].isupper() else 'Every '}{subject} is a {symbols[end]}."


def write_edge(form: str, symbols: Sequence[str], start: int, end: int) -> str:
    """An edge as a question states it."""
    if form == "text":
        return sentence(symbols, start, end)
    return f"{symbols[start]}{'>' if form == 'fused' else ' '}{symbols[end]}"


def write_step(form: str, symbols: Sequence[str], start: int, end: int) -> str:
    """An edge as a step of a chain, or its two ends as root and answer."""
    return sentence(symbols, start, end) if form == "text" else symbols[end]


class Fact(NamedTuple):
    """An edge as a question states it, of which `place` characters go up to the end of its end."""

    start: str
    end: str
    place: int


class Question(NamedTuple):
    """A question as it is written: its form, its edges and choices in their order, its root."""

    form: str
    facts: tuple[Fact, ...]
    choices: tuple[str, str]
    root: str


def parse_question(question: str) -> Question:
    """Read a question of any form, to the letter.

    Raises:
      TaskError: the text is no such question.
    """
    form, read = _match(question)
    facts = []
    for match in re.finditer(LAYOUTS[form].fact, read["facts"]):
        words = re.split(r"[ >]", match[0].rstrip("."))
        # "Every a is a b", "Name is a b", "a b", "a>b".
        start = words[1] if words[0] == "Every" else words[0]
        facts.append(Fact(start, words[-1], match.start() + len(match[0].rstrip("."))))
    return Question(form, tuple(facts), (read["first"], read["second"]), read["root"])


def in_order(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The ends of edges, so that each edge's first comes before its second. Raises TaskError."""
    if len(set(pairs)) < len(pairs):
        twice = next(pair for i, pair in enumerate(pairs) if pair in pairs[:i])
        raise TaskError(f"prosqa: the edge from {twice[0]} to {twice[1]} is given twice")
    waiting = dict.fromkeys(symbol for pair in pairs for symbol in pair)
    if len(waiting) > MAX_SYMBOLIC_NODES:
        raise TaskError(f"prosqa: {len(waiting)} nodes, at most {MAX_SYMBOLIC_NODES} are read")
    found: list[str] = []
    while waiting:
        blocked = {end for start, end in pairs if start in waiting}
        free = [symbol for symbol in waiting if symbol not in blocked]
        if not free:
            raise TaskError(f"prosqa: the edges go in a circle through {next(iter(waiting))}")
        found += free
        for symbol in free:
            del waiting[symbol]
    return found


def reshuffled(question: str, rng: np.random.Generator) -> str:
    """The same question, of any form, with its edges and its two choices in another order.

    Raises:
      TaskError: the text is not a ProsQA question, to the letter.
    """
    form, read = _match(question)
    layout = LAYOUTS[form]
    facts = re.findall(layout.fact, read["facts"])
    choices = [read["first"], read["second"]]
    first, second = choices if rng.integers(2) else reversed(choices)
    order = rng.permutation(len(facts))
    return layout.write([facts[i] for i in order], first, second, read["root"])


def _match(question: str) -> tuple[str, re.Match[str]]:
    """(form, what its patterns read) of a question, to the letter. Raises TaskError."""
    for form, layout in LAYOUTS.items():
        fact, joint = layout.fact, re.escape(layout.joint)
        read = re.fullmatch(f"(?P<facts>{fact}(?:{joint}{fact})*) {layout.asked}", question)
        if read is not None:
            return form, read
    raise TaskError(
        f"prosqa: {show(question)} is not a question of the task in any of its forms "
        f"({', '.join(FORMS)})"
    )
