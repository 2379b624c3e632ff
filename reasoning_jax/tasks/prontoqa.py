"""ProntoQA-style deduction: is a statement about one name true, by a chain of made-up rules?

    Every vumpus is not rusty. Each wumpus is a tumpus. Every zumpus is a vumpus. Each tumpus is
    rusty. Sam is a wumpus. True or false: Sam is not rusty.  ->  False

This is a generator of our own in the format of ProntoQA (Saparov and He, arXiv 2210.01240), as it
is used for Coconut (arXiv 2412.06769): "True or false: ..." behind the facts, "True" or "False" as
the answer, and the sentences of the deduction joined in pairs, so that 5 hops give 11 sentences in
6 steps. It is not the published data, which another generator (asaparov/prontoqa) made; files from
there, brought into the form of a JSON list of question, steps and answer, are read with
data.source="jsonl". How ours differs:
  1. Theirs puts the opposite of the queried property on one concept off the chain. Here a whole
     second chain of the same length ends in it. Both chains and their dead ends are drawn alike, so
     that nothing but the sentence about the name tells which of the two is the true one.
  2. Whether the property holds, and whether the answer is True, are two independent fair coins.
  3. Rules read "Every" or "Each" (a coin), never in the plural ("Wumpuses are tumpuses.").
  4. The properties are a list of ours and unrelated to each other; theirs come in families. Names
     and concepts are those of `prosqa`.
  5. A concept has at most one property, and one parent at most besides its dead ends.
As there, a hop is a rule that is used: the last one gives the property, those before it a concept.

A limit worth knowing: a chain is followed without search, but for the dead ends, which are one
concept deep. `prosqa` has the graphs in which search is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    require_choice,
    require_int,
    require_number,
    require_range,
    require_strategy,
    right,
    show,
    too_long,
    wrong,
)
from reasoning_jax.tasks.prosqa_text import CONCEPTS, NAMES

# As many as there are concepts, so that no two properties need share a word.
# fmt: off
PROPERTIES = (
    "alert", "bold", "brave", "brisk", "calm", "clever", "clumsy", "crisp", "curious", "dusty",
    "eager", "fluffy", "gentle", "glossy", "grumpy", "hollow", "honest", "humble", "jolly", "lazy",
    "lively", "noisy", "patient", "plain", "polite", "proud", "quick", "quiet", "round", "rusty",
    "shy", "silent", "smooth", "soft", "sticky", "striped", "sturdy", "tiny",
)
# fmt: on
ORDERS = ("random", "forward")
ANSWERS = ("True", "False")
_QUANTIFIERS = ("Every", "Each")
_MAX_RESPONSE = 200


class Rule(NamedTuple):
    """`quantifier subject verb object.`; the verb is "is a", "is an", "is" or "is not"."""

    quantifier: str
    subject: str
    verb: str
    object: str


@dataclass(frozen=True)
class ProntoQA:
    """One name, one property, True or False; see the module for the generator.

    min_hops, max_hops: the number of rules in the deduction, uniform over this range.
    distractors: chains beside the true one. The first ends in the opposite of the queried property,
      each further one in it or its opposite by a coin.
    branches: dead ends of each chain, one concept deep: `Every wumpus is a zumpus.` besides
      `Every wumpus is a tumpus.`
    property_rate: the chance that a concept without the queried property has another.
    order: "random" shuffles the rules; "forward" shuffles the chains into each other, each in the
      order of its deduction. The sentence about the name stands behind the rules either way.
    """

    min_hops: int = 5
    max_hops: int = 5
    distractors: int = 1
    branches: int = 1
    property_rate: float = 0.5
    order: str = "random"

    def __post_init__(self) -> None:
        most = len(CONCEPTS)
        require_range(self.name, "min_hops", self.min_hops, "max_hops", self.max_hops, 1, most)
        # Without the opposite property off the chain, its one mention would give the answer away.
        require_int(self.name, "distractors", self.distractors, 1, most)
        require_int(self.name, "branches", self.branches, 0, most)
        require_number(self.name, "property_rate", self.property_rate, 0.0, 1.0)
        require_choice(self.name, "order", self.order, ORDERS)
        needed = (1 + self.distractors) * (self.max_hops + self.branches)
        if needed > most:
            raise TaskError(
                f"{self.name}: max_hops={self.max_hops}, branches={self.branches} and "
                f"distractors={self.distractors} need {needed} concepts, (max_hops + branches) * "
                f"(distractors + 1); there are {most}"
            )

    @property
    def name(self) -> str:
        return "prontoqa"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split; raises `TaskError` as `draw_in_split` does.

        Problems with the same concepts and properties share a split, whatever is negated, whichever
        chain the name is on, and in whatever order and words the rules stand.
        """

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            hops = int(rng.integers(self.min_hops, self.max_hops + 1))
            concepts = [CONCEPTS[i] for i in rng.permutation(len(CONCEPTS))]
            words = [PROPERTIES[i] for i in rng.permutation(len(PROPERTIES))]
            entity = NAMES[int(rng.integers(len(NAMES)))]
            asked, fact, holds = words[0], concepts[0], bool(rng.integers(2))
            chains = self._draw_chains(hops, concepts, words, holds, rng)
            rules = self._arrange(chains, rng)
            is_true = bool(rng.integers(2))
            data = {
                "entity": entity,
                "fact": fact,
                "rules": [list(rule) for rule in rules],
                "query": [_is(holds == is_true), asked],
            }
            key = " ".join([asked, *sorted(f"{rule.subject} {rule.object}" for rule in rules)])
            steps, answer, _ = _deduce(data)
            return key, Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=_question(data),
                answer=answer,
                steps=steps,
                difficulty=f"hops={hops}",
                data=data,
            )

        return draw_in_split(draw, task=self.name, seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """Right if the response, blanks around it aside, is the answer and no more."""
        if refusal := too_long(response, _MAX_RESPONSE):
            return refusal
        parsed = response.strip()
        if parsed == problem.answer:
            return right(parsed)
        if not parsed:
            return wrong("the response is empty")
        if parsed in ANSWERS:
            return wrong(f"wanted {problem.answer}", parsed)
        return wrong(f"{show(parsed)} is neither True nor False", parsed)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """The deduction by forward chaining, breadth first; "direct" is the only strategy.

        `nodes` counts the concepts that were taken up. Deterministic: the seed changes nothing.
        """
        require_strategy(self.name, strategy, ("direct",))
        steps, answer, nodes = _deduce(problem.data)
        return Trace(steps, answer, solved=True, nodes=nodes)

    def characters(self) -> str:
        return "".join(sorted({" "} | set("".join(self.words()))))

    def words(self) -> tuple[str, ...]:
        nouns = {word + end for word in (*CONCEPTS, *PROPERTIES) for end in ("", ".")}
        fixed = {*_QUANTIFIERS, *ANSWERS, "is", "a", "an", "not", "or", "false:"}
        return tuple(sorted(fixed | set(NAMES) | nouns))

    def noise_units(self) -> tuple[str, ...]:
        """Names, concepts and properties, without punctuation."""
        return (*NAMES, *CONCEPTS, *PROPERTIES)

    def _draw_chains(
        self,
        hops: int,
        concepts: Sequence[str],
        words: Sequence[str],
        holds: bool,
        rng: np.random.Generator,
    ) -> list[list[Rule]]:
        """The rules of each chain in the order of its deduction, the true chain first.

        The true chain begins at the first concept and ends in the first word.
        """
        fresh_concepts, fresh_words = iter(concepts), iter(words[1:])

        def make_rule(subject: str, verb: str, other: str) -> Rule:
            return Rule(_QUANTIFIERS[int(rng.integers(2))], subject, verb, other)

        def some_property(concept: str) -> list[Rule]:
            if rng.random() >= self.property_rate:
                return []
            return [make_rule(concept, _is(bool(rng.integers(2))), next(fresh_words))]

        chains = []
        for number in range(1 + self.distractors):
            # The true chain, its opposite, then coins.
            positive = bool(rng.integers(2)) if number > 1 else holds == (number == 0)
            chain = [next(fresh_concepts) for _ in range(hops)]
            branches_at = rng.integers(hops, size=self.branches).tolist()
            rules = []
            for place, concept in enumerate(chain):
                for _ in range(branches_at.count(place)):
                    branch = next(fresh_concepts)
                    rules += [make_rule(concept, _is_a(branch), branch), *some_property(branch)]
                if place < hops - 1:
                    following = chain[place + 1]
                    rules += some_property(concept)
                    rules.append(make_rule(concept, _is_a(following), following))
                else:
                    rules.append(make_rule(concept, _is(positive), words[0]))
            chains.append(rules)
        return chains

    def _arrange(self, chains: Sequence[Sequence[Rule]], rng: np.random.Generator) -> list[Rule]:
        rules = [rule for chain in chains for rule in chain]
        order = rng.permutation(len(rules)).tolist()
        if self.order == "random":
            return [rules[i] for i in order]
        # The shuffled places say which chain comes next.
        owners = [number for number, chain in enumerate(chains) for _ in chain]
        waiting = [iter(chain) for chain in chains]
        return [next(waiting[owners[i]]) for i in order]


def _deduce(data: Mapping[str, Any]) -> tuple[tuple[str, ...], str, int]:
    """Steps and answer, and how many concepts were taken up on the way."""
    entity, (asked_verb, asked) = data["entity"], data["query"]
    rules_of: dict[str, list[Rule]] = {}
    for rule in data["rules"]:
        rules_of.setdefault(rule[1], []).append(Rule(*rule))
    came_by: dict[str, Rule] = {}
    waiting = deque([data["fact"]])
    nodes = 0
    while waiting:
        concept = waiting.popleft()
        nodes += 1
        for rule in rules_of.get(concept, ()):
            if rule.verb.startswith("is a"):
                if rule.object not in came_by:
                    came_by[rule.object] = rule
                    waiting.append(rule.object)
            elif rule.object == asked:
                return _steps(data, rule, came_by), str(rule.verb == asked_verb), nodes
    raise TaskError(f"prontoqa: nothing says whether {entity} is {asked}")


def _steps(data: Mapping[str, Any], last: Rule, came_by: Mapping[str, Rule]) -> tuple[str, ...]:
    """Fact, rule, conclusion, rule, conclusion, ... joined in pairs; the last stands alone."""
    entity, fact = data["entity"], data["fact"]
    used = [last]
    while used[-1].subject != fact:
        used.append(came_by[used[-1].subject])
    known = f"{entity} {_is_a(fact)} {fact}."
    steps = []
    for rule in reversed(used):
        steps.append(f"{known} {_sentence(rule)}")
        known = f"{entity} {rule.verb} {rule.object}."
    return (*steps, known)


def _question(data: Mapping[str, Any]) -> str:
    entity, fact, (verb, asked) = data["entity"], data["fact"], data["query"]
    rules = " ".join(_sentence(Rule(*rule)) for rule in data["rules"])
    return f"{rules} {entity} {_is_a(fact)} {fact}. True or false: {entity} {verb} {asked}."


def _sentence(rule: Rule) -> str:
    return f"{rule.quantifier} {rule.subject} {rule.verb} {rule.object}."


def _is_a(concept: str) -> str:
    return "is an" if concept[0] in "aeiou" else "is a"


def _is(positive: bool) -> str:
    return "is" if positive else "is not"
