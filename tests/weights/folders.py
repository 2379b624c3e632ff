"""Tiny Hugging Face folders of every family, complete as published ones are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax import weights
from reasoning_jax.config import ModelConfig
from reasoning_jax.model import spec, transformer
from reasoning_jax.vocab import ByteCodec, make_vocab
from reasoning_jax.weights import tokenizer_out
from reasoning_jax.weights.config_json import FAMILIES
from reasoning_jax.weights.tokenizer_class import _QWEN_SPLIT

TEXT_END, CHAT_END, BEGIN = "<|endoftext|>", "<|im_end|>", "<|begin|>"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"

# Name -> (family, what else its model has, padded rows, whether <bos> is put before a text).
MODELS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "gpt2": ("gpt2", {}, 0, False),
    "llama2": ("llama", {"tied_embeddings": False}, 0, True),
    "llama3": ("llama", {"rope_factor": 4.0, "rope_original_positions": 32}, 5, True),
    "smollm2": ("llama", {"rope_theta": 1e5}, 0, False),
    "qwen2": ("qwen2", {"rope_theta": 1e6}, 9, False),
    "qwen3": ("qwen3", {"tied_embeddings": False, "head_dim": 12}, 1, False),
}


def tokenizer_of_bytes(bos: bool, qwen: bool = False) -> str:
    """A tokenizer.json of bytes, with a few merges and three special tokens of its own."""
    values = json.loads(tokenizer_out.tokenizer_json(make_vocab(ByteCodec())))
    model = values["model"]
    for left, right in (("a", "b"), ("1", "2"), ("ab", "12")):
        model["vocab"][left + right] = len(model["vocab"])
        model["merges"].append([left, right])
    flags = {k: v for k, v in values["added_tokens"][0].items() if k not in ("id", "content")}
    values["added_tokens"] = [
        {"id": len(model["vocab"]) + i, "content": content, **flags}
        for i, content in enumerate((TEXT_END, CHAT_END, BEGIN))
    ]
    values["post_processor"] = None
    if qwen:
        # As published: `AutoTokenizer` builds Qwen's own, whatever stands there.
        values["normalizer"] = {"type": "NFC"}
        split = {"type": "Split", "pattern": {"Regex": _QWEN_SPLIT}, "behavior": "Isolated"}
        steps = [{**split, "invert": False}, values["pre_tokenizer"]]
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    if bos:
        begin = {"SpecialToken": {"id": BEGIN, "type_id": 0}}
        text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        values["post_processor"] = {
            "type": "TemplateProcessing", "single": [begin, text[0]], "pair": [begin, *text],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [261], "tokens": [BEGIN]}},
        }  # fmt: skip
    return json.dumps(values, ensure_ascii=False)


def model_config(name: str) -> ModelConfig:
    """The architecture of a folder: 2 layers, 262 rows and padding."""
    family, changes, padded, _ = MODELS[name]
    gpt2 = family == "gpt2"
    config = ModelConfig(
        vocab_size=262 + padded, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4 if gpt2 else 2,
        head_dim=8, d_ff=48, max_positions=96,
    )  # fmt: skip
    return dataclasses.replace(config, **FAMILIES[family], **changes)


def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Every leaf random, of a scale that keeps greedy choices apart."""
    rng = np.random.default_rng(seed)
    return spec.map_specs(
        lambda _, s: (max(s.std, 0.2) * rng.standard_normal(s.shape)).astype(np.float32),
        transformer.param_specs(config),
    )


def write_folder(name: str, folder: Path) -> Path:
    """A pretrained folder: no pad token of its own (it is the end of text), two ends of text, a
    chat template, sampling settings.
    """
    family, _, _, bos = MODELS[name]
    config = model_config(name)
    weights.export(
        folder, config, random_params(config), family=family, eos_id=[260, 259], bos_id=261,
        pad_id=260, tokenizer_json=tokenizer_of_bytes(bos, name == "qwen2"), chat_template=TEMPLATE,
    )  # fmt: skip
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values |= {"model_max_length": 96, "unk_token": "<never there>", "padding_side": "right"}
    path.write_text(json.dumps(values))
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [260, 259]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
