"""YaRN and linear scaling: read, computed as in transformers, written again; hostile settings."""

import dataclasses
import json
import math

import numpy as np
import pytest

from reasoning_jax import weights
from reasoning_jax.config import ModelConfig
from reasoning_jax.model import rope
from reasoning_jax.weights import WeightsError
from tests.weights.support import GOLDEN, assert_same, copy_model, edit_json, logits

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SCALINGS = {
    "yarn": YARN,
    "yarn, whole numbers": {**YARN, "factor": 4, "beta_fast": 32, "beta_slow": 1},
    "yarn, own ramp": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.5},
    "yarn, attention": {**YARN, "attention_factor": 0.8},
    "yarn, attention alone": {**YARN, "factor": 1.0, "attention_factor": 1.3},
    "yarn, nulls": {**YARN, "mscale": None, "attention_factor": None, "beta_fast": None},
    "yarn, finetuned": {**YARN, "finetuned": True},
    "yarn, factor from the lengths": {
        "rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16,
    },
    "yarn, original from the length": {"rope_type": "yarn", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
}  # fmt: skip


def with_rope(tmp_path, scaling, name="llama", old=False):
    folder = copy_model(name, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
    theta = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    if old:
        scaling = {"type" if k == "rope_type" else k: v for k, v in scaling.items()}
        edit_json(folder / "config.json", rope_parameters=..., rope_scaling=scaling,
                  rope_theta=theta)  # fmt: skip
    else:
        edit_json(folder / "config.json", rope_parameters={**scaling, "rope_theta": theta})
    return folder


def reference(scaling, theta, head_dim, positions):
    """(frequencies, factor of cosine and sine) by the formulas of transformers, in float64."""
    half = head_dim // 2
    base = theta ** (-np.arange(half) / half)
    factor = scaling.get("factor")
    if scaling["rope_type"] == "linear":
        return base / factor, 1.0
    original = scaling.get("original_max_position_embeddings") or positions
    factor = factor or positions / original

    def dimension(turns):
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(half) - low) / (high - low), 0, 1)
    scale = lambda m=1.0: 0.1 * m * math.log(factor) + 1.0  # noqa: E731
    attention = scaling.get("attention_factor")
    if attention is None:
        m, of_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = scale(m) / scale(of_all) if m and of_all else scale()
    return base / factor * ramp + base * (1 - ramp), attention


@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_those_of_transformers_and_come_back(name, old, tmp_path):
    folder = with_rope(tmp_path, SCALINGS[name], old=old)
    config = weights.read_config(folder)
    found, factor = reference(SCALINGS[name], config.rope_theta, config.head_dim, 64)
    np.testing.assert_allclose(rope.frequencies(config), found, rtol=1e-6)
    assert rope.attention_factor(config) == pytest.approx(factor, rel=1e-7)
    written = weights.config_json.to_config_json(config, "llama", "float32")
    assert weights.config_json.from_config_json(written, "x") == ("llama", config)


def test_the_attention_factor_reaches_the_logits_on_every_path():
    """Cosine and sine carry it. Catches: a path of attention or decoding that turns by itself."""
    positions = np.arange(5)[None]
    config = ModelConfig(vocab_size=7, rope_scaling="yarn", rope_factor=4.0, head_dim=8)
    cosine, sine = rope.rotation(config, positions)
    plain = dataclasses.replace(config, rope_attention_factor=1.0)
    once = rope.rotation(plain, positions)
    np.testing.assert_allclose(cosine, (0.1 * math.log(4) + 1) * once[0], rtol=1e-6)
    np.testing.assert_allclose(sine, (0.1 * math.log(4) + 1) * once[1], rtol=1e-6)


def test_a_factor_of_one_is_no_scaling(tmp_path):
    plain = weights.load(GOLDEN / "llama")
    for scaling in ({"rope_type": "linear", "factor": 1.0}, {**YARN, "factor": 1}):
        assert weights.read_config(with_rope(tmp_path, scaling, old=True)) == plain.config


def test_how_far_a_model_is_made_for():
    yarn = ModelConfig(rope_scaling="yarn", rope_factor=4.0, rope_original_positions=4096)
    assert rope.trained_positions(yarn) == 16_384
    assert rope.trained_positions(dataclasses.replace(yarn, max_positions=20_000)) == 20_000
    linear = dataclasses.replace(yarn, rope_scaling="linear")
    assert rope.trained_positions(linear) == 4 * linear.max_positions
    assert rope.trained_positions(dataclasses.replace(yarn, rope_scaling="llama3")) == 1024
    assert rope.trained_positions(dataclasses.replace(yarn, position="none")) is None


HOSTILE = [
    ({**YARN, "factor": "4"}, "factor must be float, got '4'"),
    ({**YARN, "factor": [4]}, r"factor must be float, got \[4\]"),
    ({**YARN, "factor": True}, "factor must be float, got True"),
    ({**YARN, "factor": float("nan")}, "factor must be finite"),
    ({**YARN, "factor": -4.0}, "rope_factor=-4.0 is outside"),
    ({**YARN, "factor": 0.5}, "rope_factor=0.5 is outside"),
    ({**YARN, "factor": 10**30}, "beyond 2147483647"),
    ({**YARN, "beta_fast": 0.5}, "beta_fast=0.5 must not be below beta_slow=1.0"),
    ({**YARN, "beta_slow": 0}, "rope_beta_slow=0.0 must be above 0.0"),
    ({**YARN, "beta_slow": -1}, "rope_beta_slow=-1.0 must be above 0.0"),
    ({**YARN, "attention_factor": 0.0}, "attention_factor must be above 0"),
    ({**YARN, "attention_factor": float("inf")}, "attention_factor must be finite"),
    ({**YARN, "mscale": -9e8, "mscale_all_dim": 1.0}, "give no factor"),
    ({**YARN, "mscale": "x"}, "mscale must be float"),
    ({**YARN, "truncate": 1}, "truncate must be bool"),
    ({**YARN, "original_max_position_embeddings": 0}, "is below 1"),
    ({**YARN, "original_max_position_embeddings": 16.0}, "must be int, got 16.0"),
    ({**YARN, "short_factor": [1.0]}, "'short_factor'=.* cannot be honoured with type 'yarn'"),
    ({**YARN, "low_freq_factor": 1.0}, "'low_freq_factor'=1.0 cannot be honoured"),
    ({**YARN, "type": "linear"}, "elsewhere rope_type='yarn'"),
    ({**YARN, "rope_type": ["yarn"]}, r"rope_type must be str, got \['yarn'\]"),
    ({"rope_type": "linear"}, "factor is missing"),
    ({"rope_type": "default", "factor": 2.0}, "'factor'=2.0 cannot be honoured with type 'def"),
    ({"rope_type": "default", "partial_rotary_factor": True}, "'partial_rotary_factor'=True"),
]


@pytest.mark.parametrize(("scaling", "message"), HOSTILE)
def test_hostile_scalings_are_refused(scaling, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        weights.read_config(with_rope(tmp_path, scaling))


def test_settings_that_say_nothing_are_accepted(tmp_path):
    config = weights.read_config(GOLDEN / "llama")
    folder = copy_model("llama", tmp_path / "m")
    edit_json(folder / "config.json", partial_rotary_factor=1.0, rope_scaling=None,
              original_max_position_embeddings=7)  # fmt: skip
    assert weights.read_config(folder) == config
    edit_json(folder / "config.json", rope_scaling={"type": "yarn", "factor": 2.0},
              rope_parameters=..., rope_theta=config.rope_theta)  # fmt: skip
    assert weights.read_config(folder).rope_original_positions == 7


def test_theta_of_one_has_no_ramp(tmp_path):
    folder = with_rope(tmp_path, YARN, old=True)
    edit_json(folder / "config.json", rope_theta=1.0)
    with pytest.raises(WeightsError, match="needs rope_theta above 1"):
        weights.read_config(folder)


def test_scaling_in_gguf_is_that_of_the_folder(tmp_path):
    pytest.importorskip("gguf")
    from tests.weights.gguf_writer import write_gguf

    def gguf(**scaling):
        keys = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
        return write_gguf(tmp_path / "m.gguf", GOLDEN / "llama", values=keys)

    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
    for keys, scaling in (
        (yarn, YARN),
        ({**yarn, "yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0, "finetuned": True},
         {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}),
        ({**yarn, "attn_factor": 0.5}, {**YARN, "attention_factor": 0.5 * (0.1 * math.log(4) + 1)}),
        ({"type": "linear", "factor": 3.0}, SCALINGS["linear"]),
        ({"factor": 3.0}, SCALINGS["linear"]),
    ):  # fmt: skip
        theirs = weights.load(with_rope(tmp_path, scaling))
        ours = weights.load(gguf(**keys))
        same = dataclasses.replace(ours.config, init_std=theirs.config.init_std)
        assert same == theirs.config
        assert_same(ours.params, theirs.params)
    for keys in ({"type": "none", "factor": 3.0}, {"type": "linear", "factor": 0.0}):
        assert weights.read_config(gguf(**keys)).rope_factor == 1.0
    for keys, message in (
        ({**yarn, "factor": float("nan")}, "factor must be finite"),
        ({**yarn, "factor": -2.0}, "rope_factor=-2.0 is outside"),
        ({**yarn, "type": 3}, "type must be str"),
        ({**yarn, "yarn_log_multiplier": 0.5}, "yarn_log_multiplier.*wanted 0"),
        ({"type": "linear", "factor": 2.0, "attn_factor": 0.5}, "attn_factor.*cannot be honoured"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.read_config(gguf(**keys))


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", [n for n in SCALINGS if "null" not in n and "from" not in n])
def test_logits_within_and_beyond_the_original_length(name, family, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.golden.make_golden import logits_of

    folder = with_rope(tmp_path, SCALINGS[name], family)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = np.random.default_rng(0).integers(0, 61, (1, 100))
    difference = np.abs(logits(weights.load(folder), ids) - logits_of(theirs.eval(), ids)).max()
    assert difference <= 2e-5
