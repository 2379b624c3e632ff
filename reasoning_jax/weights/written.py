"""A model written as a Hugging Face folder: whole or not at all, and beside what is not ours.

Tensor names are those of transformers 4 and 5, values are copied in the type that they have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.durable import share, sync
from reasoning_jax.weights.config_json import family_of, to_config_json
from reasoning_jax.weights.files import MAX_BYTES, WeightsError, inside, read_json
from reasoning_jax.weights.huggingface import INDEX, PREFIX, SINGLE
from reasoning_jax.weights.layout import HUGGING_FACE
from reasoning_jax.weights.peft import CONFIG, FOLDER, TENSORS, Adapter
from reasoning_jax.weights.tokenizer_settings import parse_tokenizer

# Tensors of an earlier export, which would be read beside new ones.
_STALE = re.compile(
    rf"model(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(INDEX)}|"
    rf"{FOLDER}/({re.escape(CONFIG)}|{re.escape(TENSORS)})"
)


def check_place(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Where `export` writes: `folder`, or what it links to.

    Raises:
      WeightsError: it holds something already and is not to be overwritten, or holds no model.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise WeightsError(
                f"{folder} is not empty; give another folder, or --overwrite to replace the model "
                "in it (in Python, overwrite=True)"
            )
        if not _holds_model(folder):
            raise WeightsError(
                f"{folder} holds no model (a config.json with a model_type) and is not overwritten"
            )
    return folder


def _holds_model(folder: Path) -> bool:
    try:
        values = read_json(inside(folder, "config.json"), MAX_BYTES["config"])
    except WeightsError:
        return False
    return isinstance(values.get("model_type"), str)


def export(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    family: str | None = None,
    tokenizer_json: str | None = None,
    eos_id: int | Sequence[int] | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    chat_template: str | None = None,
    files: Mapping[str, str] | None = None,
    adapter: Adapter | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a folder that transformers loads, tensors in the type that they have.

    The folder appears whole or not at all: it is written beside its place and renamed. With
    `overwrite` the files of an earlier model (a folder with a config.json) are replaced, and other
    files that lie there stay. All of `params` must be on this process's devices.

    Args:
      family: a key of `config_json.FAMILIES`, to be told when `config` is not of that family.
      eos_id: of several ids the first is the vocabulary's.
      files: further files, name -> text, such as those of `tokenizer_out.tokenizer_files`.
      adapter: LoRA adapters to be written beside the model.
      max_shard_bytes: tensors are split over files of at most this size, or one tensor.

    Raises:
      WeightsError: no family expresses `config`, `params` are not its parameters, or the folder
        holds something already.
      OSError: the folder cannot be written.
    """
    if family not in (None, found := family_of(config)):
        raise WeightsError(f"this model is of family {found}, not {family}")
    folder = check_place(folder, overwrite)
    if chat_template is not None and tokenizer_json is None:
        raise WeightsError("chat_template goes with tokenizer_json; got no tokenizer_json")
    ids: dict[str, Any] = {
        "eos_token_id": eos_id if eos_id is None or isinstance(eos_id, int) else list(eos_id),
        "bos_token_id": bos_id,
        "pad_token_id": pad_id,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = workplace / "new", workplace / "old"
    try:
        new.mkdir()
        dtype = _write_tensors(new, found, config, params, max_shard_bytes)
        _write_json(new / "config.json", {**to_config_json(config, found, dtype), **ids})
        if tokenizer_json is not None:
            named = _tokenizer_config(tokenizer_json, ids, chat_template)
            _write_text(new / "tokenizer.json", tokenizer_json)
            _write_json(new / "tokenizer_config.json", named)
        for name, text in (files or {}).items():
            _write_text(new / name, text)
        if adapter is not None:
            (new / FOLDER).mkdir()
            _write_json(new / FOLDER / CONFIG, adapter.config)
            _save(new / FOLDER / TENSORS, adapter.tensors)
        if folder.exists():
            _keep_others(folder, new)
        sync(new)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        sync(folder.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return folder


def _keep_others(folder: Path, new: Path) -> None:
    """Give `new` all of `folder` that it does not replace: the same files under a second name, so
    that an end at any time loses none of them.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        target = new / name
        if path.is_dir() and not path.is_symlink():
            if target.exists() and not target.is_dir():
                raise WeightsError(f"{path} is a folder where a file is to be written; move it")
            target.mkdir(exist_ok=True)
            continue
        if os.path.lexists(target) or _STALE.fullmatch(name.as_posix()):
            continue
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:
            # A file system without links.
            shutil.copy2(path, target, follow_symlinks=False)


def _write_tensors(
    folder: Path, family: str, config: ModelConfig, params: Mapping[str, Any], max_bytes: int
) -> str:
    """Write the shards and, for several, their index. Returns the embedding's dtype."""
    from reasoning_jax.weights.assemble import disassemble

    tensors = list(disassemble(config, HUGGING_FACE[family], params))
    shards: list[list[int]] = [[]]
    sizes = [int(np.prod(shape)) * dtype.itemsize for _, shape, dtype, _ in tensors]
    filled = 0
    for i, size in enumerate(sizes):
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(i)
        filled += size
    weight_map = {}
    for number, members in enumerate(shards, 1):
        name = SINGLE
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for i in members:
            plain, _, _, make = tensors[i]
            prefix = "" if plain.startswith("lm_head") else PREFIX[family]
            arrays[prefix + plain] = make()
        _save(folder / name, arrays)
        weight_map |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        _write_json(folder / INDEX, index)
    return tensors[0][2].name


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path, metadata={"format": "pt"})
    # The library makes files that only their owner can read.
    share(path)
    sync(path)


def _tokenizer_config(text: str, ids: Mapping[str, Any], template: str | None) -> dict:
    tokenizer = parse_tokenizer(text, "tokenizer_json")
    named: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for key, value in ids.items():
        i = value[0] if isinstance(value, list) else value
        if i is not None:
            token = tokenizer.id_to_token(i)
            if token is None:
                raise WeightsError(f"{key}={i} is not an id of tokenizer_json")
            named[key.removesuffix("_id")] = token
    return named if template is None else {**named, "chat_template": template}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(values, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")
    sync(path)
