"""Hugging Face folders against transformers' logits, and export as the inverse of load."""

import dataclasses
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from reasoning_jax import sharding, weights
from reasoning_jax.config import ModelConfig
from reasoning_jax.model import spec, transformer
from tests.weights.support import (
    GOLDEN,
    NAMES,
    TOKENIZER,
    assert_same,
    copy_model,
    edit_json,
    edit_tensors,
    logits,
)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    with np.load(GOLDEN / name / "logits.npz") as golden:
        ids, expected = golden["ids"], golden["logits"]
    np.testing.assert_allclose(logits(weights.load(GOLDEN / name), ids), expected, atol=2e-5)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_export_is_the_inverse_of_load(name, param_dtype, tmp_path):
    model = weights.load(GOLDEN / name, param_dtype=param_dtype)
    for file, limit in (("whole", 5_000_000_000), ("sharded", 12_500)):
        folder = weights.export(
            tmp_path / file, model.config, model.params, eos_id=2, max_shard_bytes=limit
        )
        again = weights.load(folder, param_dtype=param_dtype)
        assert_same(again.params, model.params)
        assert again.config == model.config
        assert (again.eos_id, again.bos_id) == (2, None)
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 1
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < 18_000  # the largest tensor: 16 KiB


def test_exported_tensors_are_those_of_transformers(tmp_path):
    """Not only what we read back: names, shapes and values of the folder we started from."""
    from safetensors.numpy import load_file

    for name in NAMES:
        model = weights.load(GOLDEN / name)
        folder = weights.export(tmp_path / name, model.config, model.params)
        ours, theirs = (load_file(f / "model.safetensors") for f in (folder, GOLDEN / name))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_names_without_prefix_and_old_buffers(tmp_path):
    folder = copy_model("gpt2", tmp_path / "gpt2")

    def bare(tensors):
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        causal = np.tril(np.ones((1, 1, 40, 40), np.float32))
        return {
            **tensors,
            "h.0.attn.bias": causal,
            "h.1.attn.masked_bias": np.float32(-1e4).reshape(1),
        }

    edit_tensors(folder, bare)
    assert_same(weights.load(folder).params, weights.load(GOLDEN / "gpt2").params)


def test_both_spellings_of_rope_settings(tmp_path):
    new = weights.read_config(GOLDEN / "llama3")
    assert (new.rope_theta, new.rope_factor, new.rope_original_positions) == (500.0, 4.0, 16)
    folder = copy_model("llama3", tmp_path / "old")
    scaling = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    edit_json(folder / "config.json", rope_parameters=..., rope_scaling=scaling, rope_theta=theta)
    assert weights.read_config(folder) == new
    scaling["type"] = scaling.pop("rope_type")
    edit_json(folder / "config.json", rope_scaling=scaling)
    assert weights.read_config(folder) == new


def test_a_stored_copy_of_tied_embeddings_must_be_one(tmp_path):
    folder = copy_model("qwen2", tmp_path / "qwen2")
    edit_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    assert_same(weights.load(folder).params, weights.load(GOLDEN / "qwen2").params)
    edit_tensors(folder, lambda t: {**t, "lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(weights.WeightsError, match="tie_word_embeddings"):
        weights.load(folder)


def test_more_rows_than_tokens_are_kept_and_fewer_are_refused(tmp_path):
    folder = copy_model("llama", tmp_path / "llama")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert weights.load(folder).params["embedding"]["tokens"].shape == (61, 32)
    more = {**TOKENIZER["model"], "vocab": {**TOKENIZER["model"]["vocab"], "c": 61}}
    (folder / "tokenizer.json").write_text(json.dumps({**TOKENIZER, "model": more}))
    with pytest.raises(weights.WeightsError, match="vocab_rows=62"):
        weights.load(folder)
    assert weights.load(folder, vocab_rows=62).config.vocab_size == 62


def test_special_ids_and_template(tmp_path):
    folder = copy_model("llama", tmp_path / "llama")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    edit_json(folder / "config.json", bos_token_id=[7, 8])
    template = [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{x}}"}]
    named = {"eos_token": {"content": "<eos>"}, "pad_token": "not there", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    files = weights.read_tokenizer(folder)
    assert (files.eos_id, files.bos_id, files.pad_id) == (3, 7, 0)
    assert files.chat_template == "{{x}}"
    edit_json(folder / "config.json", bos_token_id=-1)
    assert weights.read_tokenizer(folder).bos_id is None
    model = weights.load(folder)
    exported = weights.export(
        tmp_path / "out", model.config, model.params, tokenizer_json=model.tokenizer_json,
        eos_id=3, chat_template=model.chat_template,
    )  # fmt: skip
    again = weights.read_tokenizer(exported)
    assert again == dataclasses.replace(files, bos_id=None, pad_id=None, rows=4, notes=())


@pytest.mark.parametrize("name", NAMES)
def test_a_mesh_holds_the_same_values_in_shards(name, tmp_path):
    mesh = sharding.make_mesh(2, 2, 2)
    host, placed = (weights.load(GOLDEN / name, mesh=m) for m in (None, mesh))
    assert_same(placed.params, host.params)
    wanted = spec.shardings(transformer.param_specs(host.config), mesh)
    assert jax.tree.map(lambda x: x.sharding, placed.params) == wanted
    folder = weights.export(tmp_path / "m", placed.config, placed.params)
    assert_same(weights.load(folder).params, host.params)


def test_the_host_never_holds_two_copies(tmp_path):
    config = ModelConfig(vocab_size=64, d_model=256, n_layers=12, n_heads=4, head_dim=64, d_ff=512)
    specs = transformer.param_specs(config)
    folder = weights.export(
        tmp_path / "m", config, spec.map_specs(lambda _, s: np.ones(s.shape, np.float32), specs)
    )
    size = 4 * spec.count_params(specs)
    weights.load(folder)

    def peak(mesh):
        tracemalloc.start()
        weights.load(folder, mesh=mesh)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(None) < 1.2 * size
    assert peak(sharding.make_mesh(2, 2, 2)) < 0.5 * size


def test_reading_a_config_does_not_import_jax():
    code = (
        "import sys; from reasoning_jax import weights as w; w.read_config(sys.argv[1]); "
        "w.read_tokenizer(sys.argv[1]); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(GOLDEN / "llama")], check=True)


def test_export_is_whole_or_absent(tmp_path, monkeypatch):
    model = weights.load(GOLDEN / "llama")
    params = {**model.params, "unembedding": model.params["unembedding"][:, :5]}
    with pytest.raises(weights.WeightsError, match=r"unembedding has shape \(32, 5\)"):
        weights.export(tmp_path / "model", model.config, params)
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "model"
    weights.export(folder, model.config, model.params)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(weights.WeightsError, match="overwrite=True"):
        weights.export(folder, model.config, model.params)
    with pytest.raises(weights.WeightsError):
        weights.export(folder, model.config, params, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before

    def full_disk(path, target):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space"):
        weights.export(folder, model.config, model.params, overwrite=True)
    monkeypatch.undo()
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "notes.txt").write_text("x")
    weights.export(folder, model.config, model.params, overwrite=True)
    names = ["config.json", "model.safetensors", "notes.txt"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("x")
    with pytest.raises(weights.WeightsError, match="holds no model"):
        weights.export(tmp_path / "notes", model.config, model.params, overwrite=True)


@pytest.mark.parametrize("name", ["llama", "llama3"])
@pytest.mark.parametrize("on_mesh", [False, True])
def test_resize_adds_mean_rows_and_changes_no_other(name, on_mesh):
    mesh = sharding.make_mesh(2, 2, 2) if on_mesh else None
    model = weights.load(GOLDEN / name, mesh=mesh)
    params, config = weights.resize_vocab(model.params, model.config, 64)
    assert config == dataclasses.replace(model.config, vocab_size=64)
    grown = weights.load(GOLDEN / name, mesh=mesh, vocab_rows=64)
    assert_same(grown.params, params)
    assert grown.config == config
    tables = [np.asarray(params["embedding"]["tokens"])]
    old = [np.asarray(model.params["embedding"]["tokens"])]
    if name == "llama":
        tables.append(np.asarray(params["unembedding"]).T)
        old.append(np.asarray(model.params["unembedding"]).T)
    for table, before in zip(tables, old, strict=True):
        assert table[:61].tobytes() == before.tobytes()
        np.testing.assert_allclose(table[61:], np.tile(before.mean(0), (3, 1)), atol=1e-6)
    if on_mesh:
        wanted = spec.shardings(transformer.param_specs(config), mesh)
        assert jax.tree.map(lambda x: x.sharding, params) == wanted


def test_resize_with_given_rows_and_never_fewer():
    model = weights.load(GOLDEN / "llama", param_dtype="bfloat16")
    rows = np.arange(64, dtype=np.float32).reshape(2, 32)
    params, _ = weights.resize_vocab(model.params, model.config, 63, rows)
    assert params["embedding"]["tokens"].dtype == model.params["embedding"]["tokens"].dtype
    np.testing.assert_array_equal(params["embedding"]["tokens"][61:].astype(np.float32), rows)
    np.testing.assert_array_equal(params["unembedding"][:, 61:].astype(np.float32).T, rows)
    with pytest.raises(weights.WeightsError, match="never shrunk"):
        weights.resize_vocab(model.params, model.config, 60)
    with pytest.raises(weights.WeightsError, match=r"shape \(2, 32\)"):
        weights.resize_vocab(model.params, model.config, 63, rows[:1])
