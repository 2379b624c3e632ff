"""GGUF files for tests, written with the `gguf` package from golden folders, as llama.cpp does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

F32 = gguf.GGMLQuantizationType.F32


def write_gguf(
    path: Path,
    folder: Path,
    kind: gguf.GGMLQuantizationType = F32,
    rope_theta: float | None = None,
    rope_table: np.ndarray | None = None,
    values: dict[str, Any] | None = None,
) -> Path:
    """`folder` as GGUF, matrices as `kind` where they fit it, metadata changed by `values`."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    metadata = {**_metadata(config, family, rope_theta), **(values or {})}
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", family))
    for key, value in metadata.items():
        _add(writer, key, value)
    names = gguf.get_tensor_name_map(
        {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA,
         "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[family], 2,
    )  # fmt: skip
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", rope_table.astype(np.float32))
    for name, tensor in load_file(folder / "model.safetensors").items():
        if family == "gpt2" and tensor.ndim == 2 and ".h." in name:
            tensor = tensor.T
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        tensor = np.ascontiguousarray(tensor)
        fits = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        code = kind if fits else F32
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new, gguf.quants.quantize(tensor, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(
    path: Path, folder: Path, pre: str, changes: dict[str, Any] | None = None
) -> Path:
    """`folder` as GGUF with a tokenizer of four tokens; None takes a key away."""
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<eos>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
        **(changes or {}),
    }
    return write_gguf(path, folder, values={k: v for k, v in values.items() if v is not None})


def _metadata(config: dict[str, Any], family: str, rope_theta: float | None) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "gpt2.block_count": config["n_layer"],
            "gpt2.context_length": config["n_positions"],
            "gpt2.embedding_length": config["n_embd"],
            "gpt2.feed_forward_length": config["n_inner"],
            "gpt2.attention.head_count": config["n_head"],
            "gpt2.attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    values = {
        "vocab_size": config["vocab_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": rope_theta or config["rope_parameters"]["rope_theta"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    return {f"{family}.{key}": value for key, value in values.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
