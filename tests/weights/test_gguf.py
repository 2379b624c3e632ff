"""Our GGUF reader against the `gguf` package: its writer, its names and its dequantisation."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from reasoning_jax import weights
from reasoning_jax.weights import WeightsError
from reasoning_jax.weights.gguf import open_gguf
from tests.weights.support import GOLDEN, assert_same, copy_model, edit_tensors

gguf = pytest.importorskip("gguf")
from tests.weights.gguf_writer import write_gguf, write_tokenizer  # noqa: E402

QUANTISED = ("Q4_0", "Q4_1", "Q8_0", "BF16", "F16", "F32")


@pytest.mark.parametrize("kind", QUANTISED)
def test_random_blocks_dequantise_as_the_gguf_package_says(kind, tmp_path):
    """Random bytes, so that scales are also negative, huge, subnormal, infinite and NaN."""
    code = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[code]
    blocks = np.random.default_rng(0).integers(0, 256, (6, 40 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", blocks, raw_dtype=code)
    _write(writer)
    ours = np.asarray(open_gguf(tmp_path / "x.gguf").read("x"))
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks, code)
    assert ours.shape == (6, 40 * values)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)


def _write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])
def test_a_gguf_file_holds_the_same_model_as_the_folder(name, tmp_path):
    """Names, transposes, fused parts and Llama's row order, bit by bit."""
    folder = weights.load(GOLDEN / name)
    file = weights.load(write_gguf(tmp_path / "m.gguf", GOLDEN / name))
    assert_same(file.params, folder.params)
    # A float32 in the file; transformers and we mean the decimal.
    assert file.config == folder.config


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_equal_the_dequantised_ones(kind, tmp_path):
    code = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "m.gguf", GOLDEN / "qwen3", code)

    def quantised(tensors):
        fits = {n: t.ndim == 2 and t.shape[1] % 32 == 0 for n, t in tensors.items()}
        assert sum(fits.values()) > 10
        return {
            n: gguf.quants.dequantize(gguf.quants.quantize(t, code), code) if fits[n] else t
            for n, t in tensors.items()
        }

    folder = copy_model("qwen3", tmp_path / "m")
    edit_tensors(folder, quantised)
    assert_same(weights.load(path).params, weights.load(folder).params)


def test_llama3_scaling_is_recognised_in_its_table(tmp_path):
    theta, half = 500_000.0, 4
    wavelength = 2 * np.pi * theta ** (np.arange(half) / half)
    table = np.where(wavelength > 8192, 32.0, 1.0)
    between = (wavelength > 2048) & (wavelength < 8192)
    smooth = (8192 / wavelength - 1) / 3
    table = np.where(between, 1 / ((1 - smooth) / 32 + smooth), table).astype(np.float32)
    assert 1 < table[2] < 32  # one of each kind
    path = write_gguf(tmp_path / "m.gguf", GOLDEN / "llama", rope_theta=theta, rope_table=table)
    config = weights.read_config(path)
    assert (config.rope_theta, config.rope_factor) == (theta, 32.0)
    assert (config.rope_low_frequency, config.rope_high_frequency) == (1.0, 4.0)
    assert config.rope_original_positions == 8192
    weights.load(path)
    for broken in (table * 1.01, table[:3], np.zeros(4, np.float32)):
        path = write_gguf(
            tmp_path / "b.gguf", GOLDEN / "llama", rope_theta=theta, rope_table=broken
        )
        with pytest.raises(WeightsError, match=r"rope_freqs.weight .* is not Llama 3's"):
            weights.read_config(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"general.architecture": "gemma"}, "'gemma' is unknown; known: gpt2, llama"),
        ({"llama.expert_count": 8}, "'expert_count'=8 cannot be honoured; wanted 0"),
        ({"llama.rope.scaling.type": "longrope"}, "'rope.scaling.type'='longrope'"),
        ({"llama.rope.dimension_count": 4}, "'rope.dimension_count'=4 .* wanted 8"),
        ({"llama.attention.value_length": 4}, "'attention.value_length'=4"),
        ({"llama.attention.sliding_window": 4}, "'attention.sliding_window'=4"),
        ({"llama.block_count": 3}, r"blk.2.attn_norm.weight \(32,\) is missing"),
        ({"llama.block_count": "2"}, "block_count must be int, got '2'"),
        ({"llama.attention.head_count_kv": 4}, r"attn_k.weight has shape \(16, 32\), wanted"),
        ({"general.alignment": 48}, "general.alignment=48 is no power of two"),
    ],
)
def test_values_that_cannot_be_honoured(values, message, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", GOLDEN / "llama", values=values)
    with pytest.raises(WeightsError, match=message):
        weights.load(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    code = gguf.GGMLQuantizationType.Q6_K
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((2, 210), np.uint8), raw_dtype=code)
    _write(writer)
    with pytest.raises(WeightsError, match=r"'blk.0.ffn_up.weight' is of type Q6_K; read are F32"):
        weights.read_config(tmp_path / "m.gguf")


def test_tensors_that_share_bytes_are_refused(tmp_path):
    """Else a small file could ask for any amount of memory."""
    path = write_gguf(tmp_path / "m.gguf", GOLDEN / "llama")
    data = path.read_bytes()
    at = data.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16 + 4
    path.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    with pytest.raises(WeightsError, match="overlaps tensor"):
        weights.read_config(path)


# What GPT-2's, SmolLM2's, Llama 3's and Qwen 2's published rules make of one text.
TEXT = "It's 12345 KM'S!!\n\n x"
PIECES = {
    "gpt-2": ["It", "'s", " 12345", " KM", "'", "S", "!!", "\n\n", " x"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", "5", " KM", "'", "S", "!!", "\n\n", " x"],
    "llama-bpe": ["It", "'s", " ", "123", "45", " KM", "'S", "!!\n\n", " x"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", "5", " KM", "'S", "!!\n\n", " x"],
}


@pytest.mark.parametrize("pre", list(PIECES))
def test_pre_tokenizers_split_as_published(pre, tmp_path):
    path = write_tokenizer(tmp_path / "t.gguf", GOLDEN / "llama", pre)
    tokenizer = Tokenizer.from_str(weights.read_tokenizer(path).tokenizer_json)
    spans = tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[a:b] for _, (a, b) in spans] == PIECES[pre]
    assert tokenizer.encode("ab", add_special_tokens=True).ids == [2]
    assert tokenizer.encode("ab<eos>a").ids == [2, 3, 0]


def test_whole_words_and_composed_letters(tmp_path):
    """Llama 3 looks a word up before it merges; Qwen composes letters; the others do neither."""
    changes = {
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<eos>", "bab"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 1],
    }
    for pre in PIECES:
        path = write_tokenizer(tmp_path / f"{pre}.gguf", GOLDEN / "llama", pre, changes)
        tokenizer = Tokenizer.from_str(weights.read_tokenizer(path).tokenizer_json)
        assert tokenizer.encode("bab").ids == ([4] if pre == "llama-bpe" else [1, 2])
        composed = tokenizer.normalizer and tokenizer.normalizer.normalize_str("e\u0301")
        assert composed == ("\u00e9" if pre == "qwen2" else None)


def test_tokenizers_that_are_not_built(tmp_path):
    for changes, message in (
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken' is not known; known: gpt-2"),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer 'default' is not known"),
        ({"tokenizer.ggml.model": "llama"}, "kind 'llama' is not built"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types for 4 tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a", "b", "c"]}, "4 tokens, of which 3 differ"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab' is not a merge of two tokens"),
        ({"tokenizer.ggml.merges": ["a x"]}, "not a tokenizer"),
        ({"tokenizer.ggml.merges": [1]}, "merges must be strings"),
        ({"tokenizer.ggml.eos_token_id": 61}, "ids need 62 rows, there are 61; give vocab_rows=62"),
    ):
        path = write_tokenizer(tmp_path / "t.gguf", GOLDEN / "llama", "smollm", changes)
        with pytest.raises(WeightsError, match=message):
            weights.load(path)


def test_gpt2_files_without_a_pre_tokenizer_have_gpt2s(tmp_path):
    changes = {"tokenizer.ggml.pre": None}
    path = write_tokenizer(tmp_path / "t.gguf", GOLDEN / "gpt2", "", changes)
    text = weights.read_tokenizer(path).tokenizer_json
    named = write_tokenizer(tmp_path / "u.gguf", GOLDEN / "gpt2", "gpt-2")
    assert json.loads(text) == json.loads(weights.read_tokenizer(named).tokenizer_json)
