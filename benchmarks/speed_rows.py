"""The rows of benchmarks/speed.py: what each arm is asked to do, and what is aimed at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a row: which worker runs it, and what its request has besides the row's."""

    name: str
    worker: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is aimed at where ours stands beside an arm.

    kind "faster": ours is at least `value` times as fast; "share": ours takes at most that share of
    its time more; "temporaries": ours needs at most that share of its bytes; "seconds": the arm
    itself takes at most so many.
    """

    kind: str
    value: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table an arm; ours comes first. Its unit is work (tokens) a second, or "s".
    `key` is what it is called on the command line.

    A round is `block` runs; `most_rounds` bounds the rounds of a long row (0: as many as asked).
    """

    key: str
    name: str
    request: Mapping[str, Any]
    arms: tuple[Arm, ...]
    goals: Mapping[str, Goal] = dataclasses.field(default_factory=dict)
    unit: str = "tokens"
    block: int = 1
    most_rounds: int = 0


# {worker: (its environment in --peers, "" for ours, and the module that it runs)}
MODULES = {
    OURS: ("", "benchmarks.speed_ours"),
    "start": ("", "benchmarks.speed_start"),
    "transformers": ("transformers", "benchmarks.speed_transformers"),
    "tunix": ("tunix", "benchmarks.speed_tunix"),
    "maxtext": ("maxtext", "benchmarks.speed_maxtext"),
}
LLAMA = {"vocab": 512, "width": 384, "layers": 6, "heads": 6, "inner": 1024}
SMALL = {"vocab": 32, "width": 64, "layers": 2, "heads": 4, "inner": 192}

TRAINING = Row(
    "train",
    "train step, 6 layers x 384, vocabulary 512, 16 x 256, AdamW",
    {"work": "training", "batch": 16, "length": 256, **LLAMA},
    (
        Arm(OURS, OURS),
        Arm("transformers + torch.compile", "transformers", {"compiled": True}),
        Arm("transformers, eager", "transformers", {"compiled": False}),
        Arm("google-tunix", "tunix"),
        Arm("MaxText", "maxtext", {"remat": "minimal"}),
    ),
    {
        "transformers + torch.compile": Goal("faster", 1.1),
        "google-tunix": Goal("faster", 1.5),
        "MaxText": Goal("faster", 1.5),
    },
    block=2,
)
SAMPLING = Row(
    "sample",
    "sampling, 6 layers x 384, 32 rows, prompt 32, 128 new tokens",
    {"work": "sampling", "batch": 32, "prompt": 32, "new_tokens": 128, **LLAMA},
    (
        Arm(OURS, OURS),
        Arm("transformers, compiled, static cache", "transformers", {"cache": "static"}),
        Arm("transformers, dynamic cache", "transformers", {"cache": "dynamic"}),
        Arm("google-tunix", "tunix"),
    ),
    {
        "transformers, compiled, static cache": Goal("faster", 2.0),
        "google-tunix": Goal("faster", 2.2),
    },
)
# Countdown searches, depth first, in the published trace language: median 337, p90 824 tokens. Our
# own task writes no such traces yet, so the lengths are of a lognormal with these quantiles.
QUEUE = Row(
    "queue",
    "sampling 256 prompts of 32, lengths of median 337, p90 824, at most 2,048; 32 at a time",
    {
        "work": "queue", "rows": 256, "batch": 32, "prompt": 32, "median": 337, "p90": 824,
        "most": 2048, **LLAMA,
    },
    (
        Arm(OURS, OURS, {"continuous": True}),
        Arm("ours, batch after batch", OURS, {"continuous": False}),
    ),
    {"ours, batch after batch": Goal("faster", 2.5)},
    most_rounds=1,
)  # fmt: skip
GROUP = Row(
    "group",
    "sampling 32 prompts of 128 x 8 completions of 32 tokens",
    {
        "work": "group", "prompts": 32, "completions": 8, "prompt": 128, "new_tokens": 32, **LLAMA,
    },
    (
        Arm(OURS, OURS, {"shared": True}),
        Arm("ours, each row reads its prompt", OURS, {"shared": False}),
    ),
    most_rounds=3,
)  # fmt: skip
LOSS = Row(
    "loss",
    "loss and its gradient, vocabulary 50,257, 8 x 512 tokens, width 384",
    {"work": "loss", "batch": 8, "length": 512, "width": 384, "vocab": 50_257},
    (
        Arm(OURS, OURS, {"how": "fused"}),
        Arm("ours, recomputed in chunks", OURS, {"how": "chunks"}),
        Arm("ours, all logits at once", OURS, {"how": "whole"}),
    ),
    {"ours, all logits at once": Goal("temporaries", 0.25)},
)


def safety(key: str, name: str, batch: int, length: int, most_rounds: int, **shape: int) -> Row:
    return Row(
        key,
        f"500 steps of {name}, {batch} x {length}, with checkpoint, hashes, watchdog, metrics",
        {"work": "safety", "steps": 500, "batch": batch, "length": length, **shape},
        (Arm(OURS, OURS, {"bare": False}), Arm("bare steps", OURS, {"bare": True})),
        {"bare steps": Goal("share", 0.02)},
        most_rounds=most_rounds,
    )


SAFETY = (
    safety("safety-small", "2 layers x 64", 64, 16, 0, **SMALL),
    safety("safety", "6 layers x 384", 1, 256, 2, **LLAMA),
)
START = (
    Row(
        "start",
        "start to first step, quickstart",
        {"work": "start", "resume": False},
        (Arm(OURS, "start", {"kept": True}), Arm("nothing compiled yet", "start", {"kept": False})),
        {OURS: Goal("seconds", 15)},
        "s",
        most_rounds=3,
    ),
    Row(
        "resume",
        "resume to first step, quickstart",
        {"work": "start", "resume": True},
        (Arm(OURS, "start", {"kept": True}),),
        {OURS: Goal("seconds", 30)},
        "s",
        most_rounds=3,
    ),
    Row(
        "import",
        "import reasoning_jax",
        {"work": "import"},
        (
            Arm(OURS, "start", {"module": "reasoning_jax"}),
            Arm("Python alone", "start", {"module": ""}),
        ),
        {OURS: Goal("seconds", 0.2)},
        "s",
    ),
)
ROWS = (TRAINING, SAMPLING, QUEUE, GROUP, LOSS, *SAFETY, *START)
