"""Helpers of the weight tests: the golden folders, logits of a loaded model, files to break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from reasoning_jax.model import readout, transformer
from reasoning_jax.model.spec import flatten
from reasoning_jax.weights import Pretrained

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("gpt2", "llama", "llama3", "qwen2", "qwen3")

# Byte-level BPE over two letters; every id has a row in the golden models.
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [
        {
            "id": 3, "content": "<eos>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
    ],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": True},
    "model": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {"a": 0, "b": 1, "ab": 2, "<eos>": 3},
        "merges": [["a", "b"]],
    },
}  # fmt: skip


def copy_model(name: str, folder: Path) -> Path:
    """A writable copy of a golden folder."""
    return Path(shutil.copytree(GOLDEN / name, folder))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` takes one away."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_tensors(folder: Path, change: Any) -> None:
    """Rewrite model.safetensors with `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    changed = {name: np.ascontiguousarray(value) for name, value in change(tensors).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model: Pretrained, ids: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of ids [B, T]."""
    tokens = jnp.asarray(ids)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    output = transformer.apply(model.params, model.config, tokens, positions=positions)
    return np.asarray(readout.logits(model.params, model.config, output.hidden))


def assert_same(a: Any, b: Any) -> None:
    """Two parameter trees are equal bit by bit, types included."""
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        left, right = np.asarray(a[path]), np.asarray(b[path])
        assert left.dtype == right.dtype, path
        assert left.shape == right.shape, path
        assert left.tobytes() == right.tobytes(), path
