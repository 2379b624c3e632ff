"""Chooses the samples that the page carries, and puts them into JSON that is inert in HTML.

A page that holds every sample of a long run would not open on a phone, so that samples are thinned:
steps and samples are taken at even distances, the first and the last step always.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from reasoning_jax.report.load import Run, Sample

MAX_STEPS = 12  # of a run
MAX_SAMPLES = 24  # of a step
MAX_ACTIONS = 240_000  # of the page; some 10 MB of JSON
_T = TypeVar("_T")


@dataclass(frozen=True)
class Shown:
    """The samples of one run that the page carries, by step, and how many the run has."""

    steps: tuple[tuple[int, tuple[Sample, ...]], ...]
    available: int

    @property
    def carried(self) -> int:
        return sum(len(samples) for _, samples in self.steps)


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` items at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def choose_samples(run: Run, max_actions: int) -> Shown:
    """Thin a run's samples; of each step fewer, while the actions are more than `max_actions`."""
    by_step: dict[int, list[Sample]] = {}
    for sample in run.samples:
        by_step.setdefault(sample.step, []).append(sample)
    chosen = evenly(sorted(by_step), MAX_STEPS)
    limit = MAX_SAMPLES
    while True:
        steps = tuple((step, tuple(evenly(by_step[step], limit))) for step in chosen)
        actions = sum(len(sample.actions) for _, samples in steps for sample in samples)
        if actions <= max_actions or limit == 1:
            return Shown(steps, len(run.samples))
        limit //= 2


def viewer_data(runs: Sequence[Run]) -> tuple[dict[str, Any], list[Shown]]:
    """What `viewer.js` reads: runs, their steps, their samples; and what was chosen of each run."""
    shown = [choose_samples(run, MAX_ACTIONS // len(runs)) for run in runs]
    data = [
        {
            "name": run.name,
            "steps": [
                {"step": step, "samples": [_sample(sample) for sample in samples]}
                for step, samples in each.steps
            ],
        }
        for run, each in zip(runs, shown)
    ]
    return {"runs": data}, shown


def _sample(sample: Sample) -> dict[str, Any]:
    names = ("kind", "prompt", "question", "answer", "text", "correct", "difficulty", "deletable")
    actions = [
        [a.text, a.kind, None if a.logprob is None else round(a.logprob, 4), int(a.forced)]
        for a in sample.actions
    ]
    return {**{name: getattr(sample, name) for name in names}, "actions": actions}


def inert_json(value: Any) -> str:
    """JSON in ASCII with no character that HTML knows: it cannot end the element it stands in.

    Raises:
      ValueError: a number that is not finite, which a browser would refuse.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
