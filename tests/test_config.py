"""Every key of a config: what it may be, what is said when it is not, and what must fit together.

Fields, ranges and choices come from the dataclasses, so that a new field is covered as it is added.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import random
import re
import typing

import numpy as np
import pytest

from reasoning_jax import config as C
from reasoning_jax import config_check as K
from reasoning_jax.config_check_objectives import LATENT_MODES
from reasoning_jax.config_fields import flat, nearest_key
from reasoning_jax.config_unread import UNREAD

MAX_LINES = 6


def leaves(cls=C.Config, prefix=""):
    """(dotted key, field, type) of every leaf, the `task` section left out."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            if f.name != "task":
                yield from leaves(hints[f.name], f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, hints[f.name]


LEAVES = {key: (f, kind) for key, f, kind in leaves()}
SECTIONS = [f.name for f in dataclasses.fields(C.Config) if f.name not in ("seed", "task")]


def nested(changes):
    """{"a.b": 1} as {"a": {"b": 1}}."""
    values = {}
    for key, value in changes.items():
        node = values
        *sections, last = key.split(".")
        for name in sections:
            node = node.setdefault(name, {})
        node[last] = value
    return values


def config(**changes):
    """A Config from dotted keys, written with __ for the dot."""
    return K.from_dict(nested({k.replace("__", "."): v for k, v in changes.items()}))


def refusal(changes):
    """The message by which dotted changes are refused; None if they are accepted."""
    try:
        K.from_dict(nested(changes))
    except C.ConfigError as error:
        message = str(error)
        assert len(message.split("\n")) <= MAX_LINES
        assert max(map(len, message.split("\n"))) < 600
        return message
    return None


def test_every_number_has_a_range_and_every_string_of_few_values_its_choices():
    for key, (f, kind) in LEAVES.items():
        rules = f.metadata
        if kind is int:
            assert rules["low"] is not None, key
            assert rules["high"] is not None, key
        elif kind is float:
            assert rules["low"] is not None or rules["above"] is not None, key
        elif kind == int | str:
            assert (rules["low"], rules["choices"]) == (0, (f.default,)), key
        else:
            assert kind in (str, bool, tuple[str, ...], tuple[int, ...]), key
        assert refusal({key: f.default}) is None, key


WRONG = {
    int: [True, False, 1.0, 1.5, math.nan, "3", None, (3,), [3], {}, np.int64(3), b"3", 1e5],
    float: [True, math.nan, math.inf, -math.inf, 10**400, "0.5", None, (0.5,), {}, np.float32(1)],
    bool: [0, 1, "true", None, (True,), np.bool_(True)],
    str: [3, True, None, b"adamw", ("adamw",), {"a": 1}],
    tuple[str, ...]: ["abc", 3, None, {"a"}, {"a": 1}, (3,), ("a", None), [["a"]], (True,)],
    int | str: [
        True,
        1.0,
        1.5,
        math.nan,
        "3",
        "",
        "automatic",
        None,
        (3,),
        {},
        np.int64(3),
        b"auto",
    ],
    tuple[int, ...]: ["1", 1, None, (True,), (1.0,), ("1",), [1, None], ((1,),)],
}


@pytest.mark.parametrize("key", LEAVES)
def test_a_value_of_another_type_is_refused(key):
    _, kind = LEAVES[key]
    for value in WRONG[kind]:
        message = refusal({key: value})
        assert message is not None, value
        assert message.startswith(key)
        assert re.search(
            r'must be ("auto" or an int|an int|a float|a string|a tuple|true or false|finite)',
            message,
        )


def test_the_int_that_was_meant_is_named():
    assert refusal({"data.train_problems": 1e5}).endswith("write 100000")
    assert "write" not in refusal({"data.train_problems": 1e5 + 0.5})
    assert "write" not in refusal({"data.train_problems": True})
    assert "write" not in refusal({"data.train_problems": 1e300})


def outside(key):
    """(illegal value, the nearest legal one or None) for each end of a number's range."""
    f, kind = LEAVES[key]
    r = f.metadata
    step = (
        (lambda x, way: x + way)
        if kind is int
        else (lambda x, way: math.nextafter(x, way * math.inf))
    )
    ends = [(r.get("low"), -1), (r.get("high"), +1)]
    for bound, way in ends:
        if bound is not None:
            yield step(kind(bound), way), kind(bound)
            yield kind(bound) + way * (10**9 if kind is int else 1e9 + abs(bound)), kind(bound)
    for bound in (r.get("above"), r.get("below")):
        if bound is not None:
            yield float(bound), None


@pytest.mark.parametrize("key", [k for k, (_, kind) in LEAVES.items() if kind in (int, float)])
def test_a_number_outside_its_range_is_refused_with_the_nearest_legal(key):
    for value, legal in outside(key):
        message = refusal({key: value})
        assert message is not None, value
        assert range_rule(key, message)
        assert repr(value) in message
        if legal is not None:
            assert message.endswith(
                f"; the nearest legal is {LEAVES[key][0].metadata[end(message)]}"
            )
            # Legal by itself; whether it fits the other keys is another rule's business.
            assert not range_rule(key, refusal({key: legal}) or "")


def range_rule(key, message):
    return re.match(rf"{re.escape(key)} must be (>=|<=|above|below) [-\d]", message)


def end(message):
    return "low" if ">=" in message else "high"


CHOICES = [k for k, (f, kind) in LEAVES.items() if f.metadata.get("choices") and kind is str]


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_outside_the_table_is_refused_with_all_and_the_nearest(key):
    choices = LEAVES[key][0].metadata["choices"]
    for choice in choices:
        assert "must be one of" not in (refusal({key: choice}) or "")
        for wrong in (choice + "x", choice.upper(), choice[:-1], f" {choice}"):
            if wrong not in choices:
                message = refusal({key: wrong})
                assert message.startswith(
                    f"{key} must be one of {', '.join(choices)}; got {wrong!r}"
                )
    if len(choices[0]) > 2:
        assert f"did you mean {choices[0]}?" in refusal({key: choices[0] + "~"})
    assert "known: " in refusal({key: "????"})


@pytest.mark.parametrize("key", [*LEAVES, *SECTIONS])
def test_a_misspelt_key_is_refused_with_the_nearest(key):
    name = key.rpartition(".")[2]
    siblings = {k.rpartition(".")[2] for k in LEAVES} | {*SECTIONS}
    for typo in (name + "x", name[:-1], name[1:], name.upper()):
        if not typo.isidentifier() or typo in siblings:
            continue
        message = refusal({key.removesuffix(name) + typo: 1})
        assert message.startswith(f"unknown key {key.removesuffix(name)}{typo}; ")
        if typo == name + "x":
            assert message.endswith(f"did you mean {name}?")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_none_is_refused(name):
    for value in (3, None, "x", [("a", 1)], True):
        assert refusal({name: value}) == f"{name} must be a section, got {value!r}"
    message = refusal({f"{name}.{name}_of_nobody": 1})
    assert message.startswith(f"unknown key {name}.{name}_of_nobody")


@pytest.mark.parametrize("values", [None, 3, [], "config", [("seed", 1)]])
def test_what_is_no_dict_is_refused(values):
    with pytest.raises(C.ConfigError, match="dict of sections"):
        K.from_dict(values)


def test_keys_that_are_no_names_are_shown_in_one_line():
    for key in (3, None, "a\nb\nc\nd\ne\nf\ng\nh", "", "x" * 10_000, ("seed",), "\ud800"):
        with pytest.raises(C.ConfigError) as error:
            K.from_dict({key: 1})
        assert len(str(error.value).split("\n")) == 1
        assert len(str(error.value)) < 500


class Rude:
    def __repr__(self):
        return "line\n" * 100


def test_any_value_is_shown_in_one_short_line():
    for value in (10**5000, Rude(), "x" * 10**6, ["y"] * 10**5, np.zeros((9, 9))):
        message = refusal({"train.steps": value})
        assert message.startswith("train.steps must be ")
        assert len(message) < 300
        assert "\n" not in message


def test_task_dials_are_values_that_json_keeps():
    dials = {"name": "countdown", "b": [1, (2, "x")], "a": 0.5, "c": True, "d": None}
    c = K.from_dict({"task": dials})
    assert c.task == C.TaskConfig(
        "countdown", (("a", 0.5), ("b", (1, (2, "x"))), ("c", True), ("d", None))
    )
    for wrong in (math.nan, math.inf, {"x": 1}, {1}, b"x", Rude(), [1, [math.nan]], np.int64(1)):
        assert refusal({"task.name": "countdown", "task.b": wrong}).startswith("task.b")
    assert refusal({"task.b": 2**63}) == "task.b must fit into 64 bits, got 9223372036854775808"
    for name in (3, None, ["countdown"]):
        assert refusal({"task.name": name}).startswith("task.name must be a string")
    for section in (3, None, "countdown", ["countdown"]):
        assert refusal({"task": section}).startswith("task must be a section")
    with pytest.raises(C.ConfigError, match="not a string"):
        K.from_dict({"task": {1: 2, "1": 3}})


# What does not fit together: changes, what is said of them, and a change that mends it.
RULES = {
    "weights decide the architecture": (
        {"weights.path": "smollm2", "vocab.kind": "weights", "model.d_model": 64},
        ["model.d_model", "smollm2", "64"],
        {"model.d_model": 128},
    ),
    "a run begins with weights or with a run": (
        {"weights.path": "smollm2", "vocab.kind": "weights", "start.run": "runs/cot"},
        ["weights.path", "start.run"], {"start.run": ""},
    ),
    "a step is that of a run": (
        {"start.step": 7}, ["start.step", "start.run"], {"start.run": "runs/cot"},
    ),
    "vocabulary of weights needs weights": (
        {"vocab.kind": "weights"}, ["weights.path"], {"weights.path": "smollm2"},
    ),
    "a tokenizer needs its file": (
        {"vocab.kind": "tokenizer"}, ["vocab.path"], {"vocab.path": "tokenizer.json"},
    ),
    "pairs cannot be predicted": (
        {"vocab.kind": "pair", "objective.name": "unlikelihood"},
        ["vocab.kind", "pair", "unlikelihood"],
        {"objective.name": "mle"},
    ),
    "a file needs a tokenizer": (
        {"vocab.path": "tokenizer.json"}, ["vocab.path", "'char'"], {"vocab.kind": "tokenizer"},
    ),
    "jsonl needs a path": ({"data.source": "jsonl"}, ["data.path"], {"data.path": "a.jsonl"}),
    "tfds needs a path": ({"data.source": "tfds"}, ["data.path"], {"data.path": "a"}),
    "a path needs a source": ({"data.path": "a.jsonl"}, ["data.path"], {"data.source": "jsonl"}),
    "validation file of a task": (
        {"data.validation_path": "b"}, ["data.validation_path"],
        {"data.source": "jsonl", "data.path": "a"},
    ),
    "noise under mle": (
        {"noise.rate": 0.1}, ["noise.rate=0.1", "mle"], {"objective.name": "bc"},
    ),
    "noise without backspace": (
        {"noise.rate": 0.1, "objective.name": "bc", "vocab.backspace": False},
        ["vocab.backspace"], {"vocab.backspace": True},
    ),
    "p2 without backspaces": ({"objective.layout": "p2"}, ["bc"], {"objective.name": "bc"}),
    "accumulation divides the batch": (
        {"optimizer.accumulate": 3}, ["64", "3", "nearest legal: 60, 63, 66"],
        {"train.batch_rows": 63},
    ),
    "warm-up ends": (
        {"optimizer.warmup_steps": 100, "train.steps": 100},
        ["optimizer.warmup_steps=100", "train.steps=100", "--config.optimizer.warmup_steps=5"],
        {"train.steps": 101},
    ),
    "adapters freeze by themselves": (
        {"lora.rank": 4, "optimizer.freeze": ("norm",)}, ["lora.train_also"],
        {"optimizer.freeze": ()},
    ),
    "train_also without adapters": (
        {"lora.train_also": ("norm",)}, ["lora.train_also", "lora.rank"], {"lora.rank": 4},
    ),
    "kv heads divide heads": (
        {"model.n_kv_heads": 3}, ["model.n_kv_heads=3", "nearest legal: 1, 2, 4"],
        {"model.n_kv_heads": 2},
    ),
    "rotary pairs": (
        {"model.head_dim": 7}, ["model.head_dim", "even", "7"], {"model.position": "learned"},
    ),
    "rotary bands": (
        {"model.rope_high_frequency": 1.0}, ["model.rope_high_frequency"],
        {"model.rope_low_frequency": 0.5},
    ),
    "scaling without a factor": (
        {"model.rope_scaling": "yarn"}, ['model.rope_scaling="yarn"', "rope_factor=1.0", "llama3"],
        {"model.rope_factor": 4.0},
    ),
    "yarn's setting on another scaling": (
        {"model.rope_beta_fast": 16.0}, ["model.rope_beta_fast=16.0", '"llama3"', "32.0"],
        {"model.rope_scaling": "yarn", "model.rope_factor": 4.0},
    ),
    "yarn's ramp upside down": (
        {"model.rope_scaling": "yarn", "model.rope_factor": 4.0, "model.rope_beta_fast": 0.5},
        ["model.rope_beta_fast=0.5", "model.rope_beta_slow=1.0"], {"model.rope_beta_slow": 0.5},
    ),
    "yarn without wavelengths": (
        {"model.rope_scaling": "yarn", "model.rope_factor": 4.0, "model.rope_theta": 1.0},
        ["model.rope_theta", "above 1"], {"model.rope_theta": 2.0},
    ),
    "pass@k of too few samples": (
        {"evaluate.pass_at_k": (1, 4)}, ["(1, 4)", "samples_per_problem=1"],
        {"evaluate.samples_per_problem": 4},
    ),
    "pass@0": ({"evaluate.pass_at_k": (0,)}, ["pass_at_k"], {"evaluate.pass_at_k": (1,)}),
    "a part of text that is none": (
        {"data.window_chars": 50}, ["data.window_chars=50", '"text"', "'task'"],
        {"data.source": "text", "data.path": "a"},
    ),
    "rows of p2 in another layout": (
        {"objective.name": "bc", "objective.p2_rows": 8}, ["objective.p2_rows=8", '"auto"'],
        {"objective.layout": "p2"},
    ),
    "weight of another objective": (
        {"objective.unlikelihood_weight": 0.5}, ["unlikelihood_weight=0.5", '"mle"', "1.0"],
        {"objective.name": "unlikelihood"},
    ),
    "noise under unlikelihood": (
        {"noise.rate": 0.1, "objective.name": "unlikelihood"}, ["noise.rate=0.1", "unlikelihood"],
        {"objective.name": "sequencematch", "train.steps": 1001},
    ),
    "two free axes": ({"mesh.fsdp": -1}, ["at most one"], {"mesh.data": 1}),
    "cudnn in single precision": (
        {"model.attention": "cudnn"}, ['model.attention="cudnn"', "bfloat16", "float32"],
        {"model.compute_dtype": "bfloat16"},
    ),
    "cudnn in odd rows": (
        {"model.attention": "cudnn", "model.compute_dtype": "bfloat16", "data.seq_len": 33},
        ["even data.seq_len", "33", "32, 34"], {"data.seq_len": 34},
    ),
    "splash in rows of no block": (
        {"model.attention": "splash", "data.seq_len": 200},
        ['model.attention="splash"', "data.seq_len", "200", "128, 256"], {"data.seq_len": 256},
    ),
    "splash in edited rows": (
        {"model.attention": "splash", "data.seq_len": 256, "objective.name": "bc"},
        ['model.attention="splash"', 'objective.name="bc"', "auto"], {"objective.name": "mle"},
    ),
    "splash in rows with thoughts": (
        {"model.attention": "splash", "data.seq_len": 256, "latent.mode": "coconut",
         "vocab.latent": True, "data.with_steps": True},
        ['model.attention="splash"', 'latent.mode="coconut"'], {"model.attention": "auto"},
    ),
    "an axis of none": ({"mesh.tensor": 0}, ["mesh.tensor", "0"], {"mesh.tensor": 2}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_parts_that_do_not_fit_are_refused_until_mended(rule):
    changes, said, mend = RULES[rule]
    message = refusal(changes)
    assert message is not None
    for words in said:
        assert words in message
    assert refusal({**changes, **mend}) is None


MATCH = {"objective.name": "sequencematch", "train.steps": 1001}
MATCH_RULES = {
    "gamma 0": ({"sequencematch.gamma": 0.0}, ["gamma must be above 0.0", "0.0"], {}),
    "gamma beyond 1": ({"sequencematch.gamma": 1.5}, ["gamma", "1.5", "legal is 1.0"], {}),
    "gamma that is none": ({"sequencematch.gamma": math.nan}, ["gamma must be finite", "nan"], {}),
    "gamma 1 without a horizon": (
        {"sequencematch.gamma": 1.0, "sequencematch.horizon": 0},
        ["gamma=1.0", 'horizon="auto" or >= 1'], {"sequencematch.horizon": 5},
    ),
    "gamma 1 in float32 without a horizon": (
        {"sequencematch.gamma": 1 - 1e-9, "sequencematch.horizon": 0},
        ["gamma=0.999999999, 1 in float32", "horizon"], {"sequencematch.horizon": "auto"},
    ),
    "gamma 1 in float32 for ever": (
        {"sequencematch.gamma": 1 - 2e-8, "sequencematch.terminal": "repeat"},
        ["repeat", "1 in float32", "never ends"], {"sequencematch.gamma": 1 - 1e-7},
    ),
    "alpha that float32 does not hold": (
        {"sequencematch.alpha": 1e-31}, ["alpha", "at least 1e-30", "1e-31"],
        {"sequencematch.alpha": 1e-30},
    ),
    "alpha whose products it does not hold": (
        {"sequencematch.alpha": 1e30}, ["alpha", "<= 1000000.0"], {"sequencematch.alpha": 1e6},
    ),
    "a rate of noise below none": (
        {"replay.noise_rate": -0.5}, ["noise_rate=-0.5", "-1"], {"replay.noise_rate": -1.0},
    ),
    "a word that is no horizon": (
        {"sequencematch.horizon": "atuo"}, ["horizon", '"auto" or an int', "did you mean auto?"],
        {"sequencematch.horizon": 0},
    ),
    "gamma 1 for ever": (
        {"sequencematch.gamma": 1.0, "sequencematch.horizon": 5,
         "sequencematch.terminal": "repeat"},
        ["repeat", "never ends"], {"sequencematch.terminal": "none"},
    ),
    "alpha 0": (
        {"sequencematch.alpha": 0.0}, ["alpha=0.0", "chi2_mixture", "above 0", "0.01"],
        {"sequencematch.divergence": "identity"},
    ),
    "alpha below 0": (
        {"sequencematch.alpha": -0.1}, ["alpha must be >= 0", "the nearest legal is 0.0"], {},
    ),
    "divergence": (
        {"sequencematch.divergence": "chi2_mix"}, ["'chi2_mix'", "did you mean chi2_mixture?"], {},
    ),
    "kappa between": ({"sequencematch.kappa_m": -0.5}, ["kappa_m=-0.5", "-1"], {}),
    "kappa below": ({"sequencematch.kappa_m": -2.0}, ["kappa_m", "the nearest legal is -1.0"], {}),
    "a maximum of what has none": (
        {"sequencematch.clamp": True, "sequencematch.divergence": "forward_kl"},
        ["clamp=True", "forward_kl", "chi2"], {"sequencematch.clamp": False},
    ),
    "a guard of what has no edge": (
        {"sequencematch.domain_guard": "clamp"}, ["domain_guard", "chi2_mixture", '"linear"'],
        {"sequencematch.divergence": "js"},
    ),
    "a floor of no backspace": (
        {"vocab.backspace": False, "sequencematch.floor_backspace": "noop"},
        ["floor_backspace", "vocab.backspace=True"], {"vocab.backspace": True},
    ),
    "no regulariser on prompts": (
        {"sequencematch.kappa_on_prompt": True, "sequencematch.divergence": "chi2"},
        ["kappa_on_prompt", "kappa_m is 0"], {"sequencematch.kappa_m": 0.1},
    ),
    "a regulariser on what was before": (
        {"sequencematch.kappa_on_prompt": True, "sequencematch.start": "prompt"},
        ["kappa_on_prompt", "before s_0"], {"replay.prefix_tokens": 3},
    ),
    "bc to the end": (
        {"train.steps": 1000}, ["bc_steps=1000", "train.steps=1000", '"bc"'],
        {"sequencematch.bc_steps": 999},
    ),
    "noise without backspace": (
        {"vocab.backspace": False, "replay.noise_rate": 0.1},
        ["replay.noise_rate=0.1", "<backspace>"],
        {"vocab.backspace": True, "noise.rate": 0.1},
    ),
    "noise of data without backspace": (
        {"vocab.backspace": False, "noise.rate": 0.1}, ["noise.rate=0.1", "vocab.backspace=True"],
        {"noise.rate": 0.0},
    ),
    "noise of rollouts alone": (
        {"replay.noise_rate": 0.1}, ["replay.noise_rate=0.1", "noise.rate=0"], {"noise.rate": 0.2},
    ),
    "buffer below a batch": (
        {"replay.capacity_rollouts": 63},
        ["capacity_rollouts=63", "batch_rows=64", "legal is 64", "1024"],
        {"replay.capacity_rollouts": 64},
    ),
    "buffer below a refresh": (
        {"replay.capacity_rollouts": 99, "replay.refresh_rollouts": 100},
        ["capacity_rollouts=99", "refresh_rollouts=100", "legal is 100"],
        {"replay.capacity_rollouts": 100},
    ),
    "refresh beyond the buffer": (
        {"replay.refresh_rollouts": 1025}, ["refresh_rollouts=1025", "= 1024", "capacity_rollouts"],
        {"replay.refresh_rollouts": 1024},
    ),
    "pairs that are packed": (
        {"replay.paired_prompts": True, "data.pack_examples": True}, ["pack_examples=False"],
        {"data.pack_examples": False},
    ),
    "rows of p2 that lose states": (
        {"objective.layout": "p2", "objective.p2_rows": 8}, ["p2_rows=8", "lose"],
        {"objective.p2_rows": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", MATCH_RULES)
def test_what_sequencematch_cannot_be_is_refused(rule):
    changes, said, mend = MATCH_RULES[rule]
    message = refusal({**MATCH, **changes})
    assert message is not None
    for words in said:
        assert words in message
    mended = {**MATCH, **changes, **mend} if mend else MATCH
    assert refusal(mended) is None


COCONUT = {"latent.mode": "coconut", "vocab.latent": True}
LATENT_RULES = {
    "thoughts of an unknown mode": ({"latent.mode": "coconuts"}, ["did you mean coconut?"], {}),
    "thoughts without their tokens": (
        {"vocab.latent": False}, ["<latent>", "vocab.latent=True"], {"vocab.latent": True},
    ),
    "thoughts of another objective": (
        {"objective.name": "unlikelihood"}, ['"mle"', '"unlikelihood"'], {"objective.name": "mle"},
    ),
    "examples that share a row": (
        {"data.pack_examples": True}, ["pack_examples=False"], {"data.pack_examples": False},
    ),
    "no steps": (
        {"data.with_steps": False}, ["with_steps=False", '"no_cot"'], {"data.with_steps": True},
    ),
    "text": (
        {"data.source": "text", "data.path": "a"}, ["'text'", "steps"],
        {"data.source": "task", "data.path": ""},
    ),
    "no thoughts a step": (
        {"latent.c_thought": 0}, ["c_thought=0", '"no_thought"'], {"latent.c_thought": 2},
    ),
    "no stage with thoughts": (
        {"latent.max_latent_stage": 0}, ["max_latent_stage=0"], {"latent.max_latent_stage": 1},
    ),
    "no pauses": (
        {"latent.mode": "pause", "latent.max_latent_stage": 0}, ["max_latent_stage=0", '"pause"'],
        {"latent.max_latent_stage": 3},
    ),
    "another decoder": (
        {"sampling.method": "contrastive"}, ["sampling.method", "'contrastive'"],
        {"sampling.method": "sample"},
    ),
    "a stage of nothing": (
        {"latent.stage_steps": (3, 0)}, ["latent.stage_steps[1]", ">= 1"],
        {"latent.stage_steps": (3, 1)},
    ),
    "more stages than there are": (
        {"latent.stage_steps": (1,) * 5, "latent.max_latent_stage": 3, "latent.start_stage": 1},
        ["has 5 stages, there are 4", "start_stage=1", "max_latent_stage + 1 = 4"],
        {"latent.start_stage": 0},
    ),
    "a start behind the end": (
        {"latent.start_stage": 8}, ["start_stage=8", "nearest legal is 7"],
        {"latent.start_stage": 7},
    ),
    "a start behind all tokens": (
        {"latent.mode": "icot", "latent.start_stage": 40}, ["start_stage=40", "legal is 39"],
        {"latent.start_stage": 39},
    ),
    "two lengths of a stage": (
        {"latent.stage_steps": (3,), "latent.epochs_per_stage": 2}, ["one of the two"],
        {"latent.stage_steps": ()},
    ),
    "a draw of what is not drawn": (
        {"latent.draw": "frontier"}, ['draw="frontier"', '"next_step"'],
        {"latent.target": "next_step", "sampling.max_actions": 2},
    ),
    "mastery by schedule": (
        {"latent.mastery": 0.5}, ["latent.mastery=0.5", '"schedule"'],
        {"latent.advance": "mastery"},
    ),
    "mastery looked at by schedule": (
        {"latent.mastery_every_steps": 5}, ["mastery_every_steps=5", '"mastery"'],
        {"latent.advance": "mastery"},
    ),
    "prompts as long as rows": (
        {"latent.prompt_columns": 64}, ["prompt_columns=64", "seq_len=64", "legal is 63"],
        {"latent.prompt_columns": 63},
    ),
    "an unknown control": (
        {"evaluate.thought_controls": ("zeros", "other_rows")}, ["did you mean other_row?"],
        {"evaluate.thought_controls": ("zeros", "other_row")},
    ),
    "controls of a pause": (
        {"latent.mode": "pause", "evaluate.thought_controls": ("zeros",)},
        ["thought_controls", "coconut or no_curriculum"], {"latent.mode": "no_curriculum"},
    ),
    "thoughts of a chain of text": (
        {"latent.mode": "cot", "evaluate.thoughts": 2}, ["evaluate.thoughts=2", '"cot"'],
        {"latent.mode": "pause"},
    ),
    "other orders of plain text": (
        {"latent.mode": "off", "data.reshuffle_edges": True}, ["reshuffle_edges", '"cot"'],
        {"latent.mode": "cot"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", LATENT_RULES)
def test_what_thoughts_cannot_be_is_refused(rule):
    changes, said, mend = LATENT_RULES[rule]
    message = refusal({**COCONUT, **changes})
    assert message is not None
    for words in said:
        assert words in message
    assert refusal({**COCONUT, **changes, **mend} if mend else COCONUT) is None


OF_LATENT = [k for k in LEAVES if k.startswith("latent.") and k != "latent.mode"]
IN_STAGES = {"coconut", "no_thought", "pause_as_thought"}
WITH_SLOTS = {"coconut", "no_curriculum", "pause_as_thought", "pause"}
FED_BACK = {"coconut", "no_curriculum"}
# Options, and the modes that have a use for them.
USES = [
    ("c_thought markers", WITH_SLOTS),
    ("max_latent_stage", {*WITH_SLOTS, "no_thought"}),
    ("pad_latent_to_max", WITH_SLOTS),
    ("draw", IN_STAGES),
    ("target", {*WITH_SLOTS, "no_thought", "no_cot"}),
    ("thought thought_scale jacobi_iterations", FED_BACK),
    ("epochs_per_stage stage_steps uniform_prob advance mastery mastery_every_steps", IN_STAGES),
    ("start_stage reset_optimizer", {*IN_STAGES, "icot"}),
    ("icot_tokens_per_epoch icot_offset_decay icot_remove_all_from", {"icot"}),
    ("prompt_columns", {*WITH_SLOTS, "no_thought", "cot", "no_cot", "icot"}),
]
USERS = {name: modes for names, modes in USES for name in names.split()}


@pytest.mark.parametrize("mode", LEAVES["latent.mode"][0].metadata["choices"])
def test_no_option_of_latent_is_accepted_and_ignored(mode):
    """Each option is one of the mode's, or is refused."""
    rng = random.Random(4)
    for key in OF_LATENT:
        f, kind = LEAVES[key]
        value = (2,) if kind == tuple[int, ...] else f.default
        while value == f.default:
            value = random_legal(rng, f, kind)
        message = refusal({**COCONUT, "latent.mode": mode, key: value}) or ""
        refused = message.startswith(f"{key}={value!r} has no effect on latent.mode")
        assert refused == (mode not in USERS[key.removeprefix("latent.")]), key
        if refused:
            assert f'latent.mode="{mode}"' in message
            assert f"leave it at {f.default!r}" in message


OF_MATCH = [k for k in LEAVES if k.startswith(("sequencematch.", "replay."))]


@pytest.mark.parametrize("objective", ["mle", "bc", "unlikelihood"])
def test_no_option_of_sequencematch_is_accepted_and_ignored(objective):
    rng = random.Random(3)
    for key in OF_MATCH:
        f, kind = LEAVES[key]
        value = f.default
        while value == f.default:
            value = random_legal(rng, f, kind)
        message = refusal({"objective.name": objective, key: value})
        assert message.startswith(f"{key}={value!r} has no effect on "), key
        assert f'objective.name="{objective}"' in message
        assert f"leave it at {f.default!r}" in message


def test_heads_without_number_are_refused_at_once():
    message = refusal({"model.n_heads": 2**31 - 1, "model.n_kv_heads": 2})
    assert "nearest legal: 1, 2147483647;" in message


# What Python tells apart and float32 does not, or holds as 0, as inf or with few digits.
STRANGE = [
    sign * x
    for sign in (1, -1)
    for x in (1e-300, 5e-324, 1e-46, 1e-40, 1.1e-38, 1e-37, 1e-30, 1e30, 3.5e38, 1e39, 1e300)
] + [1 + way * x for way in (1, -1) for x in (2.0**-53, 1e-12, 1e-9, 2.9e-8, 1e-7)]


@pytest.mark.parametrize("key", [k for k, (_, kind) in LEAVES.items() if kind is float])
def test_a_number_that_float32_does_not_hold_is_refused(key):
    """What is taken is a normal number of float32, and keeps its bounds there.

    Catches: a learning rate or an eps that is 0 on the device, a decay rate that is 1.
    """
    rules = LEAVES[key][0].metadata
    for value in STRANGE:
        message = refusal({key: value})
        single = float(np.float32(value)) if abs(value) < 3.4028236e38 else math.inf
        normal = np.isfinite(single) and abs(single) >= np.finfo(np.float32).tiny
        above, below, least = (rules.get(name) for name in ("above", "below", "least"))
        kept = (above is None or single > above) and (below is None or single < below)
        kept = kept and (not least or abs(single) >= np.float32(least))
        if not (normal and kept):
            assert message is not None, value
            assert message.startswith(key), message


def random_legal(rng, f, kind):
    """A legal value of a field by itself, small enough to be combined."""
    r = f.metadata
    if kind is bool:
        return rng.random() < 0.5
    if kind == int | str and rng.random() < 0.5:
        return rng.randint(r["low"], r["low"] + 50)
    if r.get("choices"):
        return rng.choice(r["choices"])
    if kind is int:
        return rng.randint(r["low"], min(r["high"], r["low"] + rng.choice([0, 3, 50])))
    if kind is float:
        low = r["low"] if r["low"] is not None else r["above"] + 1e-9
        high = r["high"] if r["high"] is not None else r["below"]
        high = low + 10 if high is None else min(low + 10, high - 1e-9)
        return rng.choice([low, rng.uniform(low, high)])
    return f.default


def fit_objective(rng, changes, get):
    """Keep what the objective uses, and make it fit."""
    name = changes["objective.name"] = rng.choice(LEAVES["objective.name"][0].metadata["choices"])
    matched, edited = name == "sequencematch", name in ("bc", "sequencematch")
    unused = [k for k in changes if k.startswith(("sequencematch.", "replay.")) and not matched]
    unused += ["noise.rate", "objective.layout"] * (not edited)
    unused += ["objective.unlikelihood_weight"] * (name != "unlikelihood")
    unused += ["objective.p2_rows"] * (name != "bc" or get("objective.layout") != "p2")
    for key in unused:
        changes.pop(key, None)
    if not matched:
        changes |= {"vocab.backspace": True} if get("noise.rate") > 0 else {}
        return
    rows, refresh = get("train.batch_rows"), get("replay.refresh_rollouts")
    if -1 < get("replay.noise_rate") < 0:
        changes["replay.noise_rate"] = -1.0
    if get("replay.noise_rate") > 0:
        changes["noise.rate"] = 0.1
    if get("noise.rate") > 0:
        changes["vocab.backspace"] = True
    if get("sequencematch.clamp"):
        changes["sequencematch.divergence"] = "chi2"
    if get("sequencematch.alpha") == 0:
        changes["sequencematch.divergence"], changes["sequencematch.clamp"] = "identity", False
    if -1 < get("sequencematch.kappa_m") < 0:
        changes["sequencematch.kappa_m"] += 1
    if get("sequencematch.divergence") not in ("forward_kl", "js", "hellinger"):
        changes["sequencematch.domain_guard"] = "linear"
    if not get("vocab.backspace"):
        changes["sequencematch.floor_backspace"] = "masked"
    if get("sequencematch.kappa_on_prompt"):
        changes |= {"sequencematch.kappa_m": 0.3, "sequencematch.start": "bos"}
    if get("replay.capacity_rollouts") or refresh > 16 * rows:
        changes["replay.capacity_rollouts"] = max(rows, refresh) + rng.randint(0, 9)
    if get("replay.paired_prompts"):
        changes["data.pack_examples"] = False


def fit_latent(rng, changes, get):
    """Keep what the mode of latent thought uses, and make it fit."""
    modes = LEAVES["latent.mode"][0].metadata["choices"]
    fits = get("objective.name") == "mle" and get("data.source") != "text"
    mode = changes["latent.mode"] = rng.choice(modes) if fits else "off"
    kept = {f"latent.{name}" for name, modes in USERS.items() if mode in modes}
    if mode in LATENT_MODES:
        kept.add("evaluate.thoughts")
    if mode != "off":
        kept.add("data.reshuffle_edges")
    for key in {*OF_LATENT, "evaluate.thoughts", "data.reshuffle_edges"} - kept:
        changes.pop(key, None)
    if mode == "off":
        return
    changes |= {"data.pack_examples": False, "data.with_steps": True}
    if mode in LATENT_MODES:
        for key in ("latent.c_thought", "latent.max_latent_stage"):
            changes[key] = max(1, get(key))
        changes |= {"vocab.latent": True, "sampling.method": "sample"}
    if get("latent.target") == "next_step":
        changes["sampling.max_actions"] = min(2, get("sampling.max_actions"))
    else:
        changes.pop("latent.draw", None)
    if get("latent.advance") != "mastery":
        for key in ("latent.mastery", "latent.mastery_every_steps"):
            changes.pop(key, None)
    last = "icot_remove_all_from" if mode == "icot" else "max_latent_stage"
    if "latent.start_stage" in changes:
        changes["latent.start_stage"] = min(get("latent.start_stage"), get(f"latent.{last}"))
    changes["latent.prompt_columns"] = min(get("latent.prompt_columns"), get("data.seq_len") - 1)


def fit_attention(rng, changes, get):
    """Rows that the chosen kernel takes, or another choice."""
    if get("model.attention") == "cudnn":
        changes["model.compute_dtype"] = "bfloat16"
        changes["data.seq_len"] = get("data.seq_len") + get("data.seq_len") % 2
    if get("model.attention") == "splash":
        edited = get("objective.name") in ("bc", "sequencematch")
        if edited or get("latent.mode") != "off":
            changes["model.attention"] = "blockwise"
        else:
            changes["data.seq_len"] = 128 * rng.randint(1, 3)


def fit_rope(changes, get):
    """Scaling that has a factor, and settings of YaRN that belong to it."""
    changes["model.rope_high_frequency"] = get("model.rope_low_frequency") + 1
    if get("model.rope_scaling") != "llama3":
        changes["model.rope_factor"] = get("model.rope_factor") + 1
    if get("model.rope_scaling") == "yarn":
        changes["model.rope_beta_fast"] = get("model.rope_beta_slow") + 1
        changes["model.rope_theta"] = get("model.rope_theta") + 1
    else:
        for name in ("beta_fast", "beta_slow", "attention_factor", "truncate"):
            changes.pop(f"model.rope_{name}", None)


def random_config(rng):
    """A random config, its parts then made to fit."""
    changes = {
        key: random_legal(rng, f, kind) for key, (f, kind) in LEAVES.items() if rng.random() < 0.4
    }
    get = lambda key: changes.get(key, LEAVES[key][0].default)  # noqa: E731
    axes = [rng.randint(1, 8) for _ in range(3)]
    data, fsdp, tensor = axes
    free = rng.randrange(3)
    mesh = {f"mesh.{a}": n for a, n in zip(("data", "fsdp", "tensor"), axes)}
    mesh[[*mesh][free]] = -1
    changes |= mesh
    if "replay.refresh_rollouts" in changes:
        changes["replay.refresh_rollouts"] *= data * fsdp
    changes["weights.path"], changes["start.run"], changes["start.step"] = "", "", -1
    changes["vocab.path"] = "t.json" if get("vocab.kind") == "tokenizer" else ""
    if get("vocab.kind") == "weights":
        changes = {k: v for k, v in changes.items() if k[6:] not in C.ARCHITECTURE_FIELDS}
        changes["weights.path"] = "smollm2"
        if "weights.latent_rows" in changes:
            changes["vocab.latent"] = True
    elif rng.random() < 0.2:
        changes |= {"start.run": "runs/first", "start.step": rng.randint(-1, 9)}
        if "weights.latent_rows" in changes:
            changes["vocab.latent"] = True
    else:
        changes.pop("weights.backspace_probability", None)
        changes.pop("weights.latent_rows", None)
        for name, parts in (("n_kv_heads", tensor), ("d_ff", tensor), ("d_model", fsdp)):
            changes[f"model.{name}"] = parts * rng.randint(1, 50)
        changes["model.n_heads"] = get("model.n_kv_heads") * rng.randint(1, 4)
        changes["model.head_dim"] = 2 * get("model.head_dim")
        fit_rope(changes, get)
    changes["data.path"] = "" if get("data.source") == "task" else "somewhere"
    if get("data.source") != "text":
        changes.pop("data.window_chars", None)
    changes["train.batch_rows"] = get("optimizer.accumulate") * data * fsdp * rng.randint(1, 9)
    fit_objective(rng, changes, get)
    fit_latent(rng, changes, get)
    fit_attention(rng, changes, get)
    predicts_all = get("objective.name") in ("sequencematch", "unlikelihood")
    if get("vocab.kind") == "pair" and predicts_all:
        changes["vocab.kind"] = "word"
    first = max(get("optimizer.warmup_steps"), get("sequencematch.bc_steps"))
    changes["train.steps"] = first + rng.randint(1, 99)
    k = get("evaluate.samples_per_problem")
    changes["evaluate.pass_at_k"] = tuple(sorted({1, k}))
    if rng.random() < 0.5:
        changes |= {"task.name": "countdown", "task.max_numbers": 5, "task.forms": ("a", "b")}
    for keys, other, values in UNREAD:
        if get(other) in values:
            changes = {k: v for k, v in changes.items() if k not in keys}
    return changes


@pytest.mark.parametrize(
    ("key", "other", "value"),
    [(key, other, v) for keys, other, values in UNREAD for key in keys for v in values],
)
def test_a_key_that_nothing_would_read_is_refused(key, other, value):
    """Catches: top_p beside contrastive search, eps of an optimizer that has none: set, and no
    word that they do nothing.
    """
    f, kind = LEAVES[key]
    low = f.metadata.get("low") or f.metadata.get("above") or 0.0
    number = 2 if kind is int else (low + 0.25)
    away = {bool: True, tuple[int, ...]: (2,)}.get(kind, number)
    beside = {other: value, "data.path": "" if (other, value) != ("data.source", "text") else "x"}
    if value in ("jsonl", "tfds"):
        beside["data.path"] = "x"
    with pytest.raises(C.ConfigError) as refused:
        K.from_dict(nested({**beside, key: away}))
    said = str(refused.value)
    assert said.startswith(f"{key}={away!r} has no effect with {other}={value!r}; leave it at ")


def same_after_round_trips(c):
    text = json.dumps(C.to_dict(c), allow_nan=False)
    return K.from_dict(C.to_dict(c)) == c == K.from_dict(json.loads(text))


def test_valid_configs_are_accepted_and_come_back():
    rng = random.Random(2)
    seen = set()
    for count in range(4000):
        if count >= 400 and seen == set(LEAVES):
            break
        changes = random_config(rng)
        c = K.from_dict(nested(changes))
        assert same_after_round_trips(c)
        for key in set(changes) & set(LEAVES):
            node = c
            for name in key.split("."):
                node = getattr(node, name)
            assert node == changes[key], key
            seen.add(key)
    assert seen == set(LEAVES)


def test_the_default_config_is_the_dataclass():
    assert K.from_dict(C.default_config().to_dict()) == C.Config()
    assert K.from_dict({}) == C.Config()
    assert K.from_dict(C.to_dict(C.Config())) == C.Config()


ANYTHING = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, -(2**31), 10**30, 10**400, 10**5000, 0.0, -0.0, 0.5,
    1.0, 1e5, 1e308, 5e-324, math.nan, math.inf, -math.inf, 1j, "", "1", "nan", "adamw", "bc",
    "\n" * 50, "\ud800", "\0", b"x", (), [], {}, (1,), [1, 2], ("a",), ["a", 1], [[]], {"a": 1},
    {"name": "x"}, {1: 2}, set(), object(), Rude(), int, lambda: 0, np.int32(3), np.float64(0.5),
    np.zeros(3), range(3), "x" * 5000,
]  # fmt: skip


def mutate(rng, values):
    """One mistake somewhere in a nested config."""
    section = rng.choice([*SECTIONS, "task", None])
    node = values if section is None else values.setdefault(section, {})
    if not isinstance(node, dict):
        node = values
    names = [k for k in node if isinstance(k, str)] or ["seed"]
    name = rng.choice(names)
    kind = rng.randrange(6)
    if kind == 0:  # a slip of the pen in a name
        place = rng.randrange(len(name) + 1)
        typo = (
            name[:place] + rng.choice(["", "x", "_", name[:1]]) + name[place + rng.randrange(2) :]
        )
        node[typo] = node.pop(name, 1)
    elif kind == 1:
        node[rng.choice([name, *ANYTHING[:40:7], "new", ("a", "b")])] = rng.choice([0, {}, "x"])
    elif kind == 2 and isinstance(node.get(name), int | float):
        node[name] = rng.choice([-1, 1, 2, 0.5, 10**12, -0.5]) * node[name]
    elif kind == 3:
        node[name] = copy.deepcopy(rng.choice(list(values.values())))
    elif kind == 4:
        node.pop(name, None)
    else:
        node[name] = rng.choice(ANYTHING)


def test_mutated_configs_are_refused_in_few_words_or_come_back():
    rng = random.Random(1)
    accepted = 0
    for _ in range(2000):
        values = nested(random_config(rng))
        if rng.random() < 0.5:
            values = C.to_dict(K.from_dict(values))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            # A key may be unhashable: no config then.
            try:
                mutate(rng, values)
            except TypeError as error:
                if "unhashable" not in str(error):
                    raise
        try:
            c = K.from_dict(values)
        except C.ConfigError as error:
            lines = str(error).split("\n")
            assert 1 <= len(lines) <= MAX_LINES
            assert max(map(len, lines)) < 1000
            continue
        accepted += 1
        assert same_after_round_trips(c)
    assert 200 < accepted < 1600


SHAPES = [-1, 1, 2, 3, 4, 8]
OF_MODEL = ("d_model", "n_heads", "n_kv_heads", "d_ff")


def test_the_mesh_covers_the_devices_and_what_it_divides():
    checked = 0
    model = C.ModelConfig(d_model=24, n_heads=4, n_kv_heads=2, d_ff=36)
    for data, fsdp, tensor in itertools.product(SHAPES, repeat=3):
        if (data, fsdp, tensor).count(-1) > 1:
            continue
        for devices in (1, 2, 4, 6, 8, 12):
            fit = functools.partial(
                config, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor,
                train__batch_rows=24, optimizer__accumulate=2,
                **{f"model__{name}": getattr(model, name) for name in OF_MODEL},
            )  # fmt: skip
            if why_not((data, fsdp, tensor), devices):
                # Some of it without knowing the devices, all of it with them.
                with pytest.raises(C.ConfigError):
                    K.check_devices(fit(), model, devices)
                continue
            shape = K.check_devices(fit(), model, devices)
            checked += 1
            assert math.prod(shape) == devices
            assert all(want in (-1, got) for want, got in zip((data, fsdp, tensor), shape))
    assert checked > 30


def why_not(wanted, devices):
    """Which condition fails, from the definition: some shape with this product that fits."""
    for shape in itertools.product(range(1, devices + 1), repeat=3):
        if math.prod(shape) == devices and all(w in (-1, n) for w, n in zip(wanted, shape)):
            data, fsdp, tensor = shape
            if 12 % (data * fsdp):
                return "rows"
            return "model" if 4 % tensor or 2 % tensor or 36 % tensor or 24 % fsdp else ""
    return "devices"


def test_devices_are_refused_in_words_that_help():
    model = C.ModelConfig()
    with pytest.raises(C.ConfigError, match=r"2 x 1 x 1 .* does not cover 8 devices.*product 8"):
        K.check_devices(config(mesh__data=2), model, 8)
    thirds = config(mesh__fsdp=3, train__batch_rows=66, model__d_model=129)
    with pytest.raises(C.ConfigError, match=r"-1 x 3 x 1 .* does not cover 8 devices"):
        K.check_devices(thirds, model, 8)
    with pytest.raises(C.ConfigError, match=r"model.n_heads=4 .* mesh.tensor=8"):
        K.check_devices(config(mesh__tensor=8), model, 8)
    with pytest.raises(C.ConfigError, match=r"model.d_model=100 .*nearest legal: 88, 96, 104"):
        K.check_devices(config(mesh__fsdp=8), dataclasses.replace(model, d_model=100), 8)
    rows = config(train__batch_rows=20, optimizer__accumulate=2)
    with pytest.raises(C.ConfigError, match="divisible by data x fsdp") as error:
        K.check_devices(rows, model, 8)
    legal = str(error.value).rpartition(": ")[2].split(", ")
    assert legal == ["16", "32", "48"]
    for n in legal:
        mended = config(train__batch_rows=int(n), optimizer__accumulate=2)
        assert K.check_devices(mended, model, 8) == (8, 1, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mesh.data": 3}, ["batch_rows", "= 64", "data x fsdp = 3", "legal train.batch_rows: 60"]),
        ({"mesh.fsdp": 5, "train.batch_rows": 5}, ["model.d_model=128", "fsdp=5", "125, 130, 135"]),
        ({"mesh.tensor": 3}, ["model.n_heads=4", "tensor=3", "mesh.tensor: 1, 2, 4", ": 3, 6, 9"]),
        (
            {"mesh.tensor": 4, "model.d_ff": 90},
            ["model.d_ff=90", "mesh.tensor: 1, 2", "84, 88, 92"],
        ),
    ],
)
def test_what_axes_do_not_divide_is_refused_before_the_devices_are_known(changes, said):
    """Catches: a mesh that is looked at only when a backend has been started to count devices."""
    message = refusal(changes)
    assert message is not None
    for words in said:
        assert words in message
    free = {key: -1 if key == "mesh.data" else 1 for key in changes if key.startswith("mesh.")}
    assert refusal({**changes, **free}) is None


def test_nearest_divisors():
    for value, number in itertools.product(range(1, 15), range(1, 40)):
        listed = [int(n) for n in K.nearest_divisors(value, number).split(", ")]
        legal = sorted(
            (k for k in range(1, 40) if number % k == 0), key=lambda k: (abs(k - value), k)
        )
        assert listed == sorted(legal[:3])


def test_nearest_multiples():
    for value, factor in itertools.product(range(1, 40), range(1, 12)):
        listed = [int(n) for n in K.nearest_multiples(value, factor).split(", ")]
        assert listed == sorted(listed)
        multiples = sorted(range(factor, 600, factor), key=lambda m: (abs(m - value), m))
        assert listed == sorted(multiples[:3])


def test_the_batch_tree_adds_up():
    c = config(train__batch_rows=48, optimizer__accumulate=2, data__seq_len=1000)
    lines = K.batch_tree(c, (2, 3, 4)).split("\n")
    assert "48 rows x 1000 = 48,000 positions" in lines[0]
    assert "2 part(s) of 24 rows" in lines[1]
    assert "4 rows (data 2 x fsdp 3; tensor 4 shares)" in lines[2]
    assert 4 * 2 * 3 * 2 == 48


ARGS = {"seed": 0, "rate": 0.1, "objective": "bc", "small": False}


@pytest.mark.parametrize(
    ("arg", "changed"),
    [
        (None, {}),
        ("", {}),
        (",,", {}),
        ("seed=3", {"seed": 3}),
        ("rate=1,objective=mle,small", {"rate": 1.0, "objective": "mle", "small": True}),
        ("small=0", {"small": False}),
        ("small=TRUE", {"small": True}),
        ("objective=", {"objective": ""}),
        ("objective=a=b", {"objective": "a=b"}),
        ("seed=1,seed=2", {"seed": 2}),
        ("rate=1e-3", {"rate": 1e-3}),
    ],
)
def test_config_arguments_take_the_type_of_their_default(arg, changed):
    values = C.parse_arg(arg, **ARGS).to_dict()
    assert values == {**ARGS, **changed}
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in ARGS.items()}


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("sede=1", "'sede' is unknown; did you mean seed"),
        (" seed=1", "' seed' is unknown; did you mean seed"),
        ("=1", "'' is unknown; known: seed"),
        ("seed=1.5", "seed must be an int, got '1.5' .default 0."),
        ("seed=1e3", "seed must be an int, got '1e3' .default 0.; write 1000"),
        ("seed=True", "seed must be an int"),
        ("seed=", "seed must be an int"),
        ("seed", "seed needs a value, as in seed=0"),
        ("objective", "objective needs a value, as in objective=bc"),
        ("rate=often", "rate must be a float"),
        ("small=maybe", "small must be true or false"),
        ("small=", "small must be true or false"),
    ],
)
def test_wrong_config_arguments_are_refused(arg, said):
    with pytest.raises(C.ConfigError, match=said):
        C.parse_arg(arg, **ARGS)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("lr", "optimizer.learning_rate"), ("train.lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"), ("batch-size", "train.batch_rows"),
        ("tp", "sampling.top_p"), ("learning_rat", "optimizer.learning_rate"),
        ("train.seed", "seed"), ("zzz", None),
    ],
)  # fmt: skip
def test_the_names_that_other_programs_have_lead_to_the_key(said, meant):
    """`lr` has the initials of two keys, and means one."""
    assert nearest_key(said, flat(C.to_dict(C.Config()))) == meant
