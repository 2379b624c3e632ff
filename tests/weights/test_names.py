"""Names of tensors: what is not read is not judged, and what wrappers put in front is taken off."""

import codecs
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reasoning_jax import weights
from reasoning_jax.weights import WeightsError
from tests.weights.support import GOLDEN, NAMES, assert_same, copy_model, edit_json, edit_tensors

TRIANGLE = np.tril(np.ones((1, 1, 40, 40)))
BUFFERS = {
    "gpt2": ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias", "h.1.attn.bias"),
    **dict.fromkeys(
        ("llama", "llama3", "qwen2", "qwen3"),
        (
            "model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.1.self_attn.rotary_emb.cos_cached",
            "model.layers.1.self_attn.rotary_emb.sin_cached", "model.layers.0.self_attn.bias",
            "model.layers.0.self_attn.masked_bias", "model.rotary_emb.original_inv_freq",
            "model.layers.0.self_attn.k_scale",
        ),
    ),
}  # fmt: skip


def sharded(folder, extra_names=(), lost=()):
    """Two shards and their index, which also names tensors that no shard has."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for i, half in enumerate((names[::2], names[1::2])):
        shard = f"model-{i}.safetensors"
        save_file({n: tensors[n] for n in half if n not in lost}, folder / shard)
        index |= dict.fromkeys(half, shard)
    index |= {name: "model-0.safetensors" for name in extra_names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "index"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_buffers_are_skipped_whatever_they_are(name, dtype, shards, tmp_path):
    folder = copy_model(name, tmp_path / "m")
    more = {buffer: TRIANGLE.astype(dtype) for buffer in BUFFERS[name]}
    edit_tensors(folder, lambda tensors: {**tensors, **more})
    if shards:
        sharded(folder)
    assert_same(weights.load(folder).params, weights.load(GOLDEN / name).params)


@pytest.mark.parametrize(
    "extra", ["model.layers.0.self_attn.q_proj.weight_scale", "model.rotary.inv_freq", "v_head"]
)
def test_other_tensors_stay_refused(extra, tmp_path):
    folder = copy_model("llama", tmp_path / "m")
    edit_tensors(folder, lambda tensors: {**tensors, extra: np.ones(2, np.float32)})
    with pytest.raises(WeightsError, match="has no place in this model"):
        weights.load(folder)
    edit_tensors(folder, lambda tensors: {**tensors, extra: np.ones(2, np.uint8)})
    with pytest.raises(WeightsError, match="is stored as U8"):
        weights.load(folder)


def test_buffers_in_gguf_are_skipped(tmp_path):
    gguf = pytest.importorskip("gguf")
    from tests.weights.gguf_writer import write_gguf

    plain = weights.load(write_gguf(tmp_path / "a.gguf", GOLDEN / "llama")).params
    add = gguf.GGUFWriter.add_tensor

    def with_more(name):
        def twice(self, own, *args, **kwargs):
            if self.tensors == [{}]:
                add(self, name, np.zeros((2, 210), np.uint8),
                    raw_dtype=gguf.GGMLQuantizationType.Q6_K)  # fmt: skip
            add(self, own, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf.GGUFWriter, "add_tensor", twice)
            path = write_gguf(tmp_path / "b.gguf", GOLDEN / "llama")
        return weights.load(path).params

    for name in ("blk.0.attn_rot_embd", "rot_embd", "blk.1.attn.bias"):
        assert_same(with_more(name), plain)
    for name in ("blk.0.attn_q.scale", "rope_freqs.weight"):
        with pytest.raises(WeightsError, match=f"'{name}' is of type Q6_K"):
            with_more(name)


WRAPPED = ("_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "net.", "model.")


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_a_prefix_of_all_names_is_taken_off_and_told(name, prefix, tmp_path):
    folder = copy_model(name, tmp_path / "m")
    edit_tensors(folder, lambda tensors: {prefix + n: t for n, t in tensors.items()})
    loaded = weights.load(folder)
    assert_same(loaded.params, weights.load(GOLDEN / name).params)
    (note,) = loaded.notes
    assert prefix.split("_orig")[0] in note
    sharded(folder)
    assert_same(weights.load(folder).params, weights.load(GOLDEN / name).params)
    assert weights.load(GOLDEN / name).notes == ()


def test_wrappers_between_names_are_taken_out(tmp_path):
    folder = copy_model("llama", tmp_path / "m")

    def wrapped(name):
        return name.replace("layers.0.", "layers.0._orig_mod.").replace(
            "layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        )

    edit_tensors(folder, lambda tensors: {wrapped(n): t for n, t in tensors.items()})
    loaded = weights.load(folder)
    assert_same(loaded.params, weights.load(GOLDEN / "llama").params)
    assert "wrappers" in loaded.notes[0]


def test_a_prefix_of_some_names_is_named(tmp_path):
    folder = copy_model("llama", tmp_path / "m")
    edit_tensors(
        folder,
        lambda tensors: {("" if "norm" in n else "language.") + n: t for n, t in tensors.items()},
    )
    message = r"'language.embed_tokens.weight', but 'model.*norm.*' has no 'language.' in front"
    with pytest.raises(WeightsError, match=message):
        weights.load(folder)


def test_an_index_may_name_what_is_not_needed(tmp_path):
    """The head of a tied model and buffers; not a tensor that is read, nor an unknown one."""
    folder = copy_model("llama3", tmp_path / "tied")
    edit_tensors(folder, lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"})
    sharded(folder, ("lm_head.weight", "model.rotary_emb.inv_freq"))
    assert_same(weights.load(folder).params, weights.load(GOLDEN / "llama3").params)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = "model-9.safetensors"
    index.write_text(json.dumps(values))
    weights.load(folder)
    values["weight_map"]["score.weight"] = "model-0.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"'score.weight', named in .* is not there"):
        weights.load(folder)
    folder = copy_model("llama", tmp_path / "untied")
    sharded(folder, lost=("lm_head.weight",))
    with pytest.raises(WeightsError, match=r"'lm_head.weight', named in .* is not there"):
        weights.load(folder)


def test_a_missing_head_names_the_setting_that_does_without(tmp_path):
    folder = copy_model("llama", tmp_path / "m")
    edit_tensors(folder, lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"})
    with pytest.raises(WeightsError, match="set tie_word_embeddings=true"):
        weights.load(folder)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    weights.load(folder)


def test_a_byte_order_mark_is_read_over(tmp_path):
    from tests.weights.support import TOKENIZER

    folder = copy_model("llama", tmp_path / "m")
    sharded(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    before = weights.read_tokenizer(folder)
    for path in folder.glob("*.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert_same(weights.load(folder).params, weights.load(GOLDEN / "llama").params)
    assert weights.read_tokenizer(folder) == before


@pytest.mark.parametrize("name", ["llama", "llama3"], ids=["untied", "tied"])
def test_rows_of_new_tokens_are_copies_or_the_mean(name):
    """In every table with a row a token. Catches: the output rows left out, a wrong axis."""
    from reasoning_jax import sharding

    plain = weights.load(GOLDEN / name)
    tables = {"embedding": plain.params["embedding"]["tokens"]}
    if name == "llama":
        tables["unembedding"] = plain.params["unembedding"].T
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        grown = weights.load(
            GOLDEN / name, mesh=mesh, vocab_rows=64, copied_rows={61: 5, 62: None, 60: 5}
        ).params
        new = {"embedding": np.asarray(grown["embedding"]["tokens"])}
        if name == "llama":
            new["unembedding"] = np.asarray(grown["unembedding"]).T
        for table, old in tables.items():
            np.testing.assert_array_equal(new[table][:60], old[:60])
            np.testing.assert_array_equal(new[table][[60, 61]], old[[5, 5]])
            np.testing.assert_allclose(new[table][62], old.mean(0), atol=2e-2)
    for wrong in ({64: 5}, {61: 61}, {61: -1}, {-1: 5}):
        with pytest.raises(WeightsError, match=r"row -?[0-9]+ "):
            weights.load(GOLDEN / name, vocab_rows=64, copied_rows=wrong)
