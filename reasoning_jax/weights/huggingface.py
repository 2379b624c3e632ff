"""Hugging Face folders: config.json, tokenizer.json and safetensors, as they are read.

Reading never leaves the folder and never runs anything found there: pickled checkpoints (.bin, .pt)
are refused, chat templates are text. Tensor names are those of transformers 4 and 5.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.tokenizer_json import TokenizerError, parse_tokenizer_json
from reasoning_jax.vocab import Vocab
from reasoning_jax.weights.config_json import from_config_json
from reasoning_jax.weights.files import MAX_BYTES, WeightsError, inside, read_json, read_text, short
from reasoning_jax.weights.layout import Tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TYPES = ("F32", "F16", "BF16")

# Prefixes that a language-model head's body carries, and a bare body does not.
PREFIX = {"gpt2": "transformer.", "llama": "model.", "qwen2": "model.", "qwen3": "model."}
# Buffers of old checkpoints that follow from the config: regular expressions, whole name.
IGNORED = {
    "gpt2": r"h\.\d+\.attn\.(masked_)?bias",
    "llama": r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    "qwen2": r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    "qwen3": r"(?!)",
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What comes with weights to turn text into ids: a tokenizer.json as text, ids, a template.

    `chat_template` is a Jinja template from the weights' author: text, not to be trusted. `rows` is
    how many embedding rows all these ids need. `vocab` is that of a model exported here.
    """

    tokenizer_json: str | None = None
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = None
    rows: int = 0
    vocab: Vocab | None = None


def read_config(folder: Path) -> tuple[str, ModelConfig]:
    """The family and architecture that config.json gives. Raises WeightsError."""
    path = inside(folder, "config.json")
    return from_config_json(read_json(path, MAX_BYTES["config"]), str(path))


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """tokenizer.json, special ids and chat template of a folder; what is not there is None.

    Ids are those of the tokens named in tokenizer_config.json, else those of config.json, of which
    the first where it lists several.

    Raises:
      WeightsError: a file that cannot be read as what its name says.
    """
    text = None
    if _exists(folder, "tokenizer.json"):
        text = read_text(inside(folder, "tokenizer.json"), MAX_BYTES["text"])
    tokenizer = parse_tokenizer(text, str(folder / "tokenizer.json"))
    named: dict[str, Any] = {}
    if _exists(folder, "tokenizer_config.json"):
        path = inside(folder, "tokenizer_config.json")
        named = read_json(path, MAX_BYTES["tokenizer_config"])
    config = read_json(inside(folder, "config.json"), MAX_BYTES["config"])
    ids = {
        name: _special_id(name, named, config, tokenizer, str(folder))
        for name in ("eos", "bos", "pad")
    }
    template = named.get("chat_template")
    if isinstance(template, list):
        named_default = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
        template = next(named_default, {}).get("template")
    if template is None and _exists(folder, "chat_template.jinja"):
        template = read_text(inside(folder, "chat_template.jinja"), MAX_BYTES["tokenizer_config"])
    if template is not None and not isinstance(template, str):
        raise WeightsError(f"{folder}: chat_template must be text, got {short(template)}")
    known = [] if tokenizer is None else tokenizer.get_vocab().values()
    rows = 1 + max([-1, *known, *(i for i in ids.values() if i is not None)])
    return TokenizerFiles(text, ids["eos"], ids["bos"], ids["pad"], template, rows)


def parse_tokenizer(text: str | None, source: str) -> Any:
    """A `tokenizers.Tokenizer`, or None for None. Raises WeightsError on text that is not one."""
    if text is None:
        return None
    try:
        return parse_tokenizer_json(text)
    except (TokenizerError, UnicodeEncodeError, TypeError) as error:
        raise WeightsError(f"{source}: not a tokenizer ({short(str(error))})") from None


def _special_id(
    name: str, named: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Any, source: str
) -> int | None:
    token = named.get(f"{name}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and tokenizer is not None:
        found = _token_id(tokenizer, token)
        if found is not None:
            return found
    value = config.get(f"{name}_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or (type(value) is int and value == -1):
        return None
    if type(value) is not int or not 0 <= value < 2**31:
        raise WeightsError(f"{source}: {name}_token_id must be an id, got {short(value)}")
    return value


def _token_id(tokenizer: Any, token: str) -> int | None:
    try:
        return tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # a lone surrogate is no token
        return None


def open_tensors(folder: Path, family: str, tied: bool) -> Tensors:
    """The tensors of a folder under names without prefix; their headers are read, no data.

    Raises:
      WeightsError: no safetensors, a shard outside the folder, a header that is not sound, an index
        that disagrees with its shards, or a tensor type that is not read.
    """
    files, index = _shards(folder)
    handles, shapes, origin = {}, {}, {}
    for shard, path in [(shard, inside(folder, shard)) for shard in files]:
        handle = handles[shard] = _open(path)
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            header = handle.get_slice(name)
            if header.get_dtype() not in _TYPES:
                raise WeightsError(
                    f"{folder / shard}: tensor {short(name)} is stored as {header.get_dtype()}; "
                    f"read are {', '.join(_TYPES)}"
                )
            if index is not None and index.get(name) != shard:
                raise WeightsError(f"{folder / shard}: {INDEX} does not place {short(name)} here")
            plain = name.removeprefix(PREFIX[family])
            if plain in shapes:
                raise WeightsError(f"{folder / shard}: tensor {short(name)} is there twice")
            shapes[plain], origin[plain] = tuple(header.get_shape()), (shard, name)
    if index is not None and len(shapes) != len(index):
        lost = sorted(set(index) - {name for _, name in origin.values()})
        raise WeightsError(
            f"{folder / index[lost[0]]}: tensor {short(lost[0])}, named in {INDEX}, is not there"
        )

    def read(name: str) -> np.ndarray:
        shard, stored = origin[name]
        try:
            return handles[shard].get_tensor(stored)
        except Exception as error:
            raise WeightsError(f"{folder / shard}: {short(str(error))}") from None

    if tied and "lm_head.weight" in shapes:
        table = "wte.weight" if family == "gpt2" else "embed_tokens.weight"
        _check_tied(shapes, read, table, str(folder))
        shapes = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    return Tensors(shapes, read, str(folder))


def _check_tied(shapes: Mapping[str, Any], read: Any, table: str, source: str) -> None:
    """A stored copy of tied embeddings may only be a copy."""
    same = shapes["lm_head.weight"] == shapes.get(table)
    bits = np.uint8
    if not same or not np.array_equal(read("lm_head.weight").view(bits), read(table).view(bits)):
        raise WeightsError(
            f"{source}: config.json ties the embeddings, but lm_head.weight differs from {table}; "
            "set tie_word_embeddings to false there, or drop lm_head.weight"
        )


def _shards(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The files that hold tensors, and the index's map from tensor to file where there is one."""
    if _exists(folder, SINGLE):
        return [SINGLE], None
    if not _exists(folder, INDEX):
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        why = f"; {pickled[0]} is a pickle and is not read: convert it" if pickled else ""
        raise WeightsError(f"{folder}: there is neither {SINGLE} nor {INDEX}{why}")
    index = read_json(inside(folder, INDEX), MAX_BYTES["index"]).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise WeightsError(f"{folder / INDEX}: weight_map must name tensors, got {short(index)}")
    for name, shard in index.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise WeightsError(f"{folder / INDEX}: {short(name)} is in no shard: {short(shard)}")
    return sorted(set(index.values())), index


def _open(path: Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="numpy")
    except Exception as error:
        raise WeightsError(f"{path}: not a safetensors file ({short(str(error))})") from None


def _exists(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / name)
