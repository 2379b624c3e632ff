"""The first things that users change in a shipped config: they train, or one line says what else
to write.
"""

import re

import pytest

from reasoning_jax.config import ConfigError, OptimizerConfig, to_dict, warmup_steps
from reasoning_jax.config_check import check_devices, from_dict
from reasoning_jax.train.optimizer import make_schedule
from tests import config_fuzz as fuzz

BASES = {f"{b.path.relative_to(fuzz.CONFIGS)}:{b.arg}": b for b in fuzz.bases()}
# (steps, warm-up steps) at the lengths at which the files ship, where the warm-up is not 5 %.
WARMUP = {
    "countdown.py": (1500, 100), "prosqa.py": (1500, 100), "smollm2_finetune.py": (20, 2),
    "coconut/gsm.py": (5000, 100), "coconut/gsm.py:scale=smoke": (6, 1),
    "coconut/gsm.py:scale=gpu": (30_000, 100), "coconut/gsm.py:scale=paper": (75_000, 0),
    "coconut/prosqa.py:scale=paper": (None, 0), "coconut/prosqa_symbolic.py:scale=smoke": (10, 2),
    "coconut/prosqa_symbolic.py:scale=paper": (None, 0), "quickstart.py": (2000, 100),
    "sequencematch/text.py:scale=cpu": (700, 35),
    "sequencematch/arithmetic.py:scale=paper": (15_000, 750),
}  # fmt: skip


def values_of(base):
    values = {}
    for key, value in base.leaves.items():
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    if values["data"]["source"] == "text":
        values["data"]["path"] = "texts"
    return values


def change(values, key, value):
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    values[last] = value


def read(text, before):
    """A value as the command line would read it."""
    if isinstance(before, tuple):
        return tuple(int(part) for part in text.strip("()").split(",") if part)
    return type(before)(text)


def edits(leaves):
    rows = leaves["train.batch_rows"]
    for steps in (1, 10, 50, 100, 500):
        yield "train.steps", steps
    for other in (1, 2, 8, rows * 2, max(1, rows // 2)):
        yield "train.batch_rows", other
    yield from (
        ("seed", 3), ("evaluate.problems", 1), ("evaluate.batch_rows", 4),
        ("train.log_every_steps", 1),
        ("train.evaluate_every_steps", 10), ("train.checkpoint_every_steps", 10),
        ("optimizer.learning_rate", 1e-4), ("data.train_problems", 100),
    )  # fmt: skip
    if leaves["data.source"] != "text":
        yield from (("evaluate.samples_per_problem", 1), ("evaluate.samples_per_problem", 3))
    if not leaves["weights.path"]:
        heads = leaves["model.n_heads"]
        yield from (("model.n_layers", 1), ("model.d_model", 32), ("model.n_heads", 1))
        yield "model.n_heads", heads + 1


@pytest.mark.parametrize("name", BASES)
def test_an_edit_is_taken_or_says_what_else_to_write(name):
    """Catches: a default that collides with the first thing a user changes."""
    base = BASES[name]
    for key, value in edits(base.leaves):
        values = values_of(base)
        change(values, key, value)
        for _ in range(3):
            config, said = taken(values)
            if config is not None:
                break
            advice = re.search(r"write --config\.([a-z_.0-9]+)=([^;, ]+(?:,[0-9]+)*)", said)
            assert advice, (key, value, said)
            wanted = advice[1]
            assert wanted != key, said
            change(values, wanted, read(advice[2].rstrip(","), base.leaves[wanted]))
        assert config is not None, (key, value, said)
        if not config.weights.path:
            check_devices(config, config.model, 1)


def taken(values):
    """(config, what was said against it), one of them None."""
    try:
        return from_dict(values), None
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("name", BASES)
def test_the_warm_up_of_a_shipped_config_is_what_it_was(name):
    """Catches: a schedule that moves at the length at which its results were measured."""
    leaves = BASES[name].leaves
    optimizer = OptimizerConfig(
        warmup_steps=leaves["optimizer.warmup_steps"],
        warmup_fraction=leaves["optimizer.warmup_fraction"],
    )
    steps = leaves["train.steps"]
    # Without arguments that leave the schedule alone.
    for known, (length, wanted) in WARMUP.items():
        if name.rstrip(":") == known:
            assert (length or steps, wanted) == (steps, warmup_steps(optimizer, steps))
    # And it follows the length.
    for short in (2, 10, 50):
        assert warmup_steps(optimizer, short) < short


def test_the_share_of_the_steps():
    share = OptimizerConfig(warmup_fraction=0.1)
    assert [warmup_steps(share, n) for n in (1, 4, 5, 10, 50, 1000)] == [0, 0, 0, 1, 5, 100]
    assert warmup_steps(OptimizerConfig(warmup_fraction=0.99), 2) == 1
    assert warmup_steps(OptimizerConfig(warmup_steps=7, warmup_fraction=0.5), 100) == 7
    assert warmup_steps(OptimizerConfig(warmup_steps=0), 100) == 0
    rates = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_fraction=0.2), 50)
    assert [round(float(rates(i)), 3) for i in (0, 5, 10)] == [0.0, 0.5, 1.0]
    as_steps = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10), 50)
    assert [float(rates(i)) for i in range(50)] == [float(as_steps(i)) for i in range(50)]


def test_the_default_is_a_share():
    assert to_dict(OptimizerConfig())["warmup_steps"] == -1
