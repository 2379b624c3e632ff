"""The vocabulary of weights: of anyone's, and of a model that was exported here.

An exported folder holds its vocabulary as this package writes it, beside the tokenizer.json that
others read. So a character model that is given back has characters again, and its <backspace> is
the action that it was. A folder without that file, also an exported one that another tool has
saved again, is read by its tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasoning_jax.tokenizer_json import TokenizerError, parse_tokenizer_json
from reasoning_jax.vocab import (
    BACKSPACE,
    LATENT_SPECIALS,
    PairCodec,
    TokenizerCodec,
    Vocab,
    VocabError,
    extend_pretrained,
    with_specials,
)
from reasoning_jax.weights import tokenizer_out
from reasoning_jax.weights.files import MAX_BYTES, WeightsError, inside, read_json
from reasoning_jax.weights.huggingface import TokenizerFiles

FILE = "reasoning_jax_vocab.json"
_FORMAT = 1


def vocab_text(vocab: Vocab) -> str:
    """The content of FILE. A tokenizer's own text is in tokenizer.json and not here again."""
    values = vocab.to_dict()
    if isinstance(vocab.codec, TokenizerCodec):
        values["codec"] = {"kind": "tokenizer"}
    return json.dumps({"format": _FORMAT, **values}, indent=1) + "\n"


def read_vocab(folder: Path, tokenizer_json: str | None) -> Vocab | None:
    """The vocabulary of an exported folder; None where there is no FILE.

    Raises:
      WeightsError: the file is not one of ours, or describes other tokens than tokenizer.json.
    """
    if not (folder / FILE).exists():
        return None
    path = inside(folder, FILE)
    values: dict[str, Any] = read_json(path, MAX_BYTES["text"])
    if values.get("format") != _FORMAT:
        raise WeightsError(f"{path}: got format {values.get('format')!r:.40}, wanted {_FORMAT}")
    codec = values.get("codec")
    if isinstance(codec, Mapping) and codec.get("kind") == "tokenizer":
        values["codec"] = {"kind": "tokenizer", "tokenizer_json": tokenizer_json}
    try:
        vocab = Vocab.from_dict(values)
        same = not isinstance(vocab.codec, PairCodec) and _same_tokens(vocab, tokenizer_json)
    except (VocabError, WeightsError, TokenizerError, UnicodeEncodeError, TypeError) as error:
        raise WeightsError(f"{path}: {error}") from None
    if not same:
        raise WeightsError(
            f"{path} describes other tokens than tokenizer.json; delete it to take tokenizer.json"
        )
    return vocab


def vocab_of_weights(
    files: TokenizerFiles, rows: int, source: str, *, backspace: bool, latent: bool
) -> tuple[Vocab, str]:
    """The vocabulary of weights with `rows` rows, with the specials of a run; says what was done.

    Raises:
      WeightsError: there is no tokenizer.json, or no end of text.
      VocabError: tokenizer and model do not belong together.
    """
    if files.vocab is not None:
        return _adapted(files.vocab, rows, backspace, latent)
    if files.tokenizer_json is None or files.eos_id is None:
        missing = "tokenizer.json" if files.tokenizer_json is None else "end-of-text id"
        raise WeightsError(
            f"{source!r} comes without a {missing}, which its vocabulary needs; put it beside the "
            "weights"
        )
    codec = TokenizerCodec(files.tokenizer_json)
    return extend_pretrained(
        codec, rows=rows, eos_id=files.eos_id, bos_id=files.begin_id, pad_id=files.pad_id,
        backspace=backspace, latent=latent,
    )  # fmt: skip


def _adapted(vocab: Vocab, rows: int, backspace: bool, latent: bool) -> tuple[Vocab, str]:
    """A vocabulary of an earlier run for another one. What is wanted and missing is added behind
    its last id; what is not wanted keeps its row and is no special any more.
    """
    if rows < vocab.size:
        raise VocabError(
            f"the vocabulary has {vocab.size} rows but the model has {rows} embedding rows; the "
            "two do not belong together"
        )
    chosen = [*([BACKSPACE] if backspace else []), *(LATENT_SPECIALS if latent else ())]
    optional = {BACKSPACE, *LATENT_SPECIALS}.difference(chosen)
    specials = {name: i for name, i in vocab.specials.items() if name not in optional}
    first = max(vocab.codec.size, *(i + 1 for i in vocab.specials.values()))
    return with_specials(vocab.codec, specials, chosen, first, rows)


def _same_tokens(vocab: Vocab, tokenizer_json: str | None) -> bool:
    """Whether tokenizer.json has the tokens that an export of `vocab` has."""
    if tokenizer_json is None:
        return False
    there = parse_tokenizer_json(tokenizer_json).get_vocab(with_added_tokens=True)
    if isinstance(vocab.codec, TokenizerCodec):
        return {*vocab.specials.values()} <= {*there.values()}
    wanted = parse_tokenizer_json(tokenizer_out.tokenizer_json(vocab))
    return there == wanted.get_vocab(with_added_tokens=True)
