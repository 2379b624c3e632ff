"""Live parity with transformers: other seeds, shapes and settings than the golden files."""

import dataclasses
import json

import numpy as np
import pytest

from reasoning_jax import weights
from tests.golden.make_golden import MODELS, logits_of, random_model
from tests.weights.support import TOKENIZER, logits

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

_ROPE = {"vocab_size": 97, "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3}
SHAPES = {
    "gpt2": [
        {"vocab_size": 83, "n_embd": 40, "n_head": 5, "n_layer": 3, "n_inner": 56},
        {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ],
    "llama": [
        {**_ROPE, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": 4, "head_dim": 12, "tie_word_embeddings": True},
    ],
    "llama3": [{**_ROPE, "num_key_value_heads": 3}, {"rope_theta": 1e5}],
    "qwen2": [{**_ROPE, "num_key_value_heads": 2}, {"tie_word_embeddings": False, "head_dim": 12}],
    "qwen3": [{**_ROPE, "num_key_value_heads": 6, "head_dim": 10}, {"tie_word_embeddings": True}],
}
CASES = [(name, i) for name in MODELS for i in range(2)]


@pytest.mark.parametrize(("name", "i"), CASES)
def test_both_directions(name, i, tmp_path):
    """Their folder gives our logits, and our folder, changed on the way, gives theirs."""
    theirs = random_model(name, 100 + i, **SHAPES[name][i])
    theirs.save_pretrained(tmp_path / "theirs")
    model = weights.load(tmp_path / "theirs")
    ids = np.random.default_rng(i).integers(0, model.config.vocab_size, (2, 37))
    difference = np.abs(logits(model, ids) - logits_of(theirs, ids)).max()
    assert difference <= 2e-5

    params = dict(
        model.params, final_norm={k: v * 1.25 for k, v in model.params["final_norm"].items()}
    )
    folder = weights.export(
        tmp_path / "ours", model.config, params, eos_id=2, max_shard_bytes=20_000
    )
    back = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert back.config.eos_token_id == 2
    assert str(next(back.parameters()).dtype) == "torch.float32"
    changed = dataclasses.replace(model, params=params)
    difference = np.abs(logits(changed, ids) - logits_of(back.eval(), ids)).max()
    assert difference <= 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_exported_bfloat16_is_loaded_as_such(name, tmp_path):
    import torch

    random_model(name, 7).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model = weights.load(tmp_path / "theirs", param_dtype="bfloat16")
    folder = weights.export(tmp_path / "ours", model.config, model.params)
    states = [
        transformers.AutoModelForCausalLM.from_pretrained(f, dtype="auto").state_dict()
        for f in (tmp_path / "theirs", folder)
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, states[1][key]), key


def test_exported_tokenizer_gives_the_same_ids(tmp_path):
    model = weights.load("smollm2")
    config = dataclasses.replace(model.config, n_layers=1)
    params = {**model.params, "layers": _first(model.params["layers"])}
    folder = weights.export(
        tmp_path / "m", config, params, tokenizer_json=model.tokenizer_json, eos_id=model.eos_id,
        bos_id=model.bos_id, pad_id=model.pad_id, chat_template=model.chat_template,
    )  # fmt: skip
    from tokenizers import Tokenizer

    ours, theirs = (
        Tokenizer.from_str(model.tokenizer_json),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    for text in ("a  1", "\n\n12", "<|im_start|>user\nx=345<|im_end|>", "naïve 👩‍👩‍👧‍👦"):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token, theirs.bos_token) == ("<|im_end|>", "<|im_start|>")
    chat = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert "<|im_start|>user\nhi<|im_end|>" in chat


def _first(layers):
    return {k: _first(v) if isinstance(v, dict) else v[:1] for k, v in layers.items()}


def test_llama_tokenizer_of_a_folder_survives(tmp_path):
    """transformers builds some families' tokenizers anew; ours must stay what it was."""
    random_model("llama", 3).save_pretrained(tmp_path / "theirs")
    model = weights.load(tmp_path / "theirs")
    folder = weights.export(
        tmp_path / "ours",
        model.config,
        model.params,
        tokenizer_json=json.dumps(TOKENIZER),
        eos_id=3,
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("abba<eos>")["input_ids"] == [2, 1, 0, 3]
