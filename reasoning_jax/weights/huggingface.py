"""Hugging Face folders: config.json, tokenizer.json and safetensors, as they are read.

Reading never leaves the folder and never runs anything found there: pickled checkpoints (.bin, .pt)
are refused, chat templates are text. Tensor names are those of transformers 4 and 5.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.vocab import Vocab
from reasoning_jax.weights.config_json import from_config_json
from reasoning_jax.weights.files import MAX_BYTES, WeightsError, inside, read_json, read_text, short
from reasoning_jax.weights.layout import Tensors
from reasoning_jax.weights.tokenizer_settings import (
    Beside,
    end_ids,
    end_note,
    parse_tokenizer,
    settle,
    token_text,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TYPES = ("F32", "F16", "BF16")

# Prefixes that a language-model head's body carries, and a bare body does not.
PREFIX = {"gpt2": "transformer.", "llama": "model.", "qwen2": "model.", "qwen3": "model."}
_EMBEDDING = {"gpt2": "wte.weight"}  # else embed_tokens.weight
_HEAD = "lm_head.weight"
# What wrappers of torch put between the names of modules; no module of a model is called so.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Buffers that follow from the config, and the scales of a cache in 8 bits, which ours is not: these
# are never read, whatever their type and shape. Regular expressions, whole name.
_ROPE_BUFFERS = (
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)"
    r"|layers\.\d+\.self_attn\.((masked_)?bias|[kv]_scale)"
)
IGNORED = {
    "gpt2": r"h\.\d+\.attn\.(masked_)?bias",
    "llama": _ROPE_BUFFERS,
    "qwen2": _ROPE_BUFFERS,
    "qwen3": _ROPE_BUFFERS,
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What comes with weights to turn text into ids: a tokenizer.json as text, ids, a template.

    `tokenizer_json` has the settings that stood beside it written in. `bos_id` is the id of the
    token that is called so, `begin_id` the one before every prompt, if there is one.
    `chat_template` is a Jinja template from the weights' author: text, not to be trusted. `rows` is
    how many embedding rows all these ids need, `notes` what to tell of settings that have no place.
    `vocab` is that of a model exported here.
    """

    tokenizer_json: str | None = None
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = None
    rows: int = 0
    begin_id: int | None = None
    notes: tuple[str, ...] = ()
    vocab: Vocab | None = None


def read_config(folder: Path) -> tuple[str, ModelConfig]:
    """The family and architecture that config.json gives. Raises WeightsError."""
    path = inside(folder, "config.json")
    return from_config_json(read_json(path, MAX_BYTES["config"]), str(path))


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """tokenizer.json, special ids and chat template of a folder; what is not there is None.

    Ids are those of the tokens named beside the tokenizer, else those of config.json, of which the
    first where it lists several. What else stands beside it: `tokenizer_settings.py`.

    Raises:
      WeightsError: a file that cannot be read as what its name says, or settings that contradict
        each other.
    """
    text = None
    if _exists(folder, "tokenizer.json"):
        text = read_text(inside(folder, "tokenizer.json"), MAX_BYTES["text"])
    beside = _beside(folder)
    return _settled(text, beside, str(folder), chat_template=_chat_template(folder, beside.named))


def read_tokenizer_file(path: Path) -> TokenizerFiles:
    """A tokenizer.json by itself; where that is its name, with the files beside it.

    Raises as `read_tokenizer` does.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise WeightsError(f"{path}: {reason}") from None
    if not real.is_file():
        raise WeightsError(f"{path}: not a regular file")
    beside = _beside(path.parent) if path.name == "tokenizer.json" else Beside()
    return _settled(read_text(real, MAX_BYTES["text"]), beside, str(path))


def _beside(folder: Path) -> Beside:
    """The JSON files of a folder that may have a say in a tokenizer's ids."""
    sizes = {
        "tokenizer_config.json": "tokenizer_config", "special_tokens_map.json": "tokenizer_config",
        "added_tokens.json": "tokenizer_config", "config.json": "config",
        "generation_config.json": "config",
    }  # fmt: skip
    return Beside(
        *(
            read_json(inside(folder, name), MAX_BYTES[size]) if _exists(folder, name) else {}
            for name, size in sizes.items()
        )
    )


def _settled(
    text: str | None, beside: Beside, source: str, chat_template: str | None = None
) -> TokenizerFiles:
    ends = end_ids(beside, source)
    tokenizer, begin, notes = None, None, ()
    if text is not None:
        settled = settle(text, parse_tokenizer(text, source), beside, source)
        text, tokenizer = settled.text, settled.tokenizer
        begin, notes = settled.begin_id, settled.notes
    names, config = beside.names(), dict(beside.config)
    if config.get("eos_token_id") is None and ends:
        config["eos_token_id"] = ends[0]
    ids = {
        name: _special_id(name, names, config, tokenizer, source) for name in ("eos", "bos", "pad")
    }
    if tokenizer is not None:
        told = end_note(ends, ids["eos"], tokenizer)
        notes += tuple(f"{source}: {note}" for note in told)
    known = [] if tokenizer is None else tokenizer.get_vocab().values()
    rows = 1 + max([-1, *known, *(i for i in ids.values() if i is not None)])
    return TokenizerFiles(
        text, ids["eos"], ids["bos"], ids["pad"], chat_template, rows, begin, notes
    )


def _chat_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    """The file has the last word, as in transformers 5; of several the one called default."""
    if _exists(folder, "chat_template.jinja"):
        return read_text(inside(folder, "chat_template.jinja"), MAX_BYTES["tokenizer_config"])
    template = named.get("chat_template")
    if isinstance(template, list):
        named_default = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
        template = next(named_default, {}).get("template")
    if template is not None and not isinstance(template, str):
        raise WeightsError(f"{folder}: chat_template must be text, got {short(template)}")
    return template


def _special_id(
    name: str, named: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Any, source: str
) -> int | None:
    token = token_text(named.get(f"{name}_token"), f"{name}_token", source)
    if token is not None and tokenizer is not None:
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

    Names of IGNORED are left out before anything else is asked about them. An index may name them,
    and the head of a tied model, without any shard that has them.

    Raises:
      WeightsError: no safetensors, a shard outside the folder, a header that is not sound, an index
        that disagrees with its shards, a tensor type that is not read, or a prefix that some of
        the names have.
    """
    files, index = _shards(folder)
    unneeded = rf"{IGNORED[family]}|{re.escape(_HEAD)}" if tied else IGNORED[family]
    named = {} if index is None else _plain_names(index, family, str(folder))[0]
    wanted = {name for name in named if not re.fullmatch(unneeded, named[name])}
    needed = files if index is None else {index[name] for name in wanted}
    handles = {
        shard: _open(inside(folder, shard))
        for shard in files
        if shard in needed or _exists(folder, shard)
    }
    stored = {shard: list(handle.keys()) for shard, handle in handles.items()}
    plain, notes = _plain_names(
        [name for names in stored.values() for name in names], family, str(folder)
    )
    shapes, origin = {}, {}
    for shard, name in ((shard, name) for shard, names in stored.items() for name in names):
        if re.fullmatch(IGNORED[family], plain[name]):
            continue
        header = handles[shard].get_slice(name)
        if header.get_dtype() not in _TYPES:
            raise WeightsError(
                f"{folder / shard}: tensor {short(name)} is stored as {header.get_dtype()}; "
                f"read are {', '.join(_TYPES)}"
            )
        if index is not None and index.get(name) != shard:
            raise WeightsError(f"{folder / shard}: {INDEX} does not place {short(name)} here")
        if plain[name] in shapes:
            raise WeightsError(f"{folder / shard}: tensor {short(name)} is there twice")
        shapes[plain[name]] = tuple(header.get_shape())
        origin[plain[name]] = shard, name
    lost = sorted(wanted - {name for _, name in origin.values()})
    if index is not None and lost:
        raise WeightsError(
            f"{folder / index[lost[0]]}: tensor {short(lost[0])}, named in {INDEX}, is not there"
        )

    def read(name: str) -> np.ndarray:
        shard, stored = origin[name]
        try:
            return handles[shard].get_tensor(stored)
        except Exception as error:
            raise WeightsError(f"{folder / shard}: {short(str(error))}") from None

    if tied and _HEAD in shapes:
        _check_tied(shapes, read, _embedding(family), str(folder))
        shapes = {name: shape for name, shape in shapes.items() if name != _HEAD}
    return Tensors(shapes, read, str(folder), notes)


def _embedding(family: str) -> str:
    return _EMBEDDING.get(family, "embed_tokens.weight")


def _plain_names(
    names: Iterable[str], family: str, source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Stored name -> name of the tables, and notes: what was in front of all of them is taken off.

    Raises:
      WeightsError: the embedding has a prefix that some other tensor lacks.
    """
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    table, body = _embedding(family), PREFIX[family]
    notes: tuple[str, ...] = ()
    fronts = {n.removesuffix(table) for n in bare.values() if n == table or n.endswith(f".{table}")}
    common = ""
    if len(fronts) == 1:
        (front,) = fronts
        common = front.removesuffix(body) if front.endswith(body) else front
    if common:
        without = [name for name, rest in bare.items() if not rest.startswith(common)]
        if without:
            raise WeightsError(
                f"{source}: the embedding is called {short(common + table)}, but "
                f"{short(without[0])} has no {short(common)} in front; take that prefix off, or "
                "keep only the language model's tensors"
            )
        notes = (f"{source}: {short(common)} is taken off the front of every tensor's name",)
    elif any(name != rest for name, rest in bare.items()):
        notes = (f"{source}: the names of torch's wrappers are taken out of tensors' names",)
    plain = {name: rest.removeprefix(common).removeprefix(body) for name, rest in bare.items()}
    return plain, notes


def _check_tied(shapes: Mapping[str, Any], read: Any, table: str, source: str) -> None:
    """A stored copy of tied embeddings may only be a copy."""
    same = shapes[_HEAD] == shapes.get(table)
    bits = np.uint8
    if not same or not np.array_equal(read(_HEAD).view(bits), read(table).view(bits)):
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
