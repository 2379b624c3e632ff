"""A vocabulary as the files of a Hugging Face tokenizer: tokenizer.json and what stands beside it.

Every id of the vocabulary is the id of the same text there, and `tokenizer(text)` gives the ids
that training put before a response: <bos>, where the vocabulary has one, and the text. One rule
differs: here the text "<backspace>" is its characters, in Hugging Face's library it is the token,
unless `split_special_tokens=True` is given. Nothing here reads or writes a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reasoning_jax.tokenizer_json import TokenizerError, frame, parse_tokenizer_json
from reasoning_jax.vocab import (
    BACKSPACE,
    BOS,
    EOS,
    LATENT_SPECIALS,
    PAD,
    ByteCodec,
    CharCodec,
    TokenizerCodec,
    Vocab,
    WordCodec,
)
from reasoning_jax.weights.companions import Companions
from reasoning_jax.weights.files import WeightsError, short
from reasoning_jax.weights.tokenizer_settings import begin_template

# All characters that `str.split` splits at but the line end, for a character class.
WHITESPACE = (
    "\t\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
# Keys of a tokenizer_config.json that are not taken over: code of strangers, files and names of
# another place, and settings that the exported tokenizer.json holds itself.
_LEFT_OUT = {
    "auto_map", "tokenizer_file", "vocab_file", "merges_file", "name_or_path", "tokenizer_class",
    "add_bos_token", "add_eos_token", "add_prefix_space", "from_slow", "legacy", "post_processor",
    "split_special_tokens", "backend", "is_local",
}  # fmt: skip


def special_contents(vocab: Vocab) -> dict[str, str]:
    """The token of each special in an exported tokenizer.json.

    An id of a pretrained tokenizer keeps its token. A special of ours is called as it is called
    here, or "<|name|>" where the text of some other token is the same.
    """
    taken = _text_of_ids(vocab)
    contents, used = {}, set(taken.values())
    for name, i in sorted(vocab.specials.items(), key=lambda item: item[1]):
        if i in taken:
            contents[name] = taken[i]
            continue
        content, number = name, 1
        while content in used:
            content = f"<|{name[1:-1]}{'' if number == 1 else f'_{number}'}|>"
            number += 1
        contents[name] = content
        used.add(content)
    return contents


def tokenizer_json(vocab: Vocab) -> str:
    """The text of a tokenizer.json with the ids of `vocab`.

    A character or word that the vocabulary does not know is an error there too: the model has no
    unknown token.

    Raises:
      WeightsError: pairs of words, which no tokenizer of that format has; a text without a UTF-8
        form; ids that the `tokenizers` library does not keep.
    """
    codec = vocab.codec
    contents = special_contents(vocab)
    added = [(i, contents[name]) for name, i in vocab.specials.items()]
    if isinstance(codec, TokenizerCodec):
        known = codec.tokens()
        values = json.loads(codec.tokenizer_json)
        added = [(i, content) for i, content in added if i not in known]
    elif type(codec) in _BUILDERS:
        values = _BUILDERS[type(codec)](codec)
    else:
        raise WeightsError(
            f"a vocabulary of kind {codec.to_dict()['kind']!r} has no tokenizer.json: the format "
            "has no pairs of words"
        )
    if added or not isinstance(codec, TokenizerCodec):
        listed = values.get("added_tokens") or []
        listed = [*listed, *({"id": i, **_token(content)} for i, content in sorted(added))]
        values["added_tokens"] = sorted(listed, key=lambda token: token["id"])
        text = _dumped(values)
    else:
        text = codec.tokenizer_json
    wanted = {**_text_of_ids(vocab), **dict(added)}
    if _ids(text) != wanted:
        # The library numbers added tokens on from the count of the others, which holes lower.
        _put_into_model(values, added)
        text = _dumped(values)
        if _ids(text) != wanted:
            raise WeightsError("the tokenizers library does not keep the ids of this vocabulary")
    start = [] if vocab.bos_id is None else [vocab.bos_id]
    if _frame(text) != (start, []):
        values = json.loads(text)
        values["post_processor"] = begin_template(contents.get(BOS), vocab.bos_id, None, None)
        text = _dumped(values)
    return text


def tokenizer_files(vocab: Vocab, kept: Companions, max_positions: int) -> dict[str, str]:
    """Name -> text of every file that a Hugging Face tokenizer has: tokenizer.json, its settings,
    the chat template and generation settings of the source, in `kept`.

    Raises:
      WeightsError: as `tokenizer_json`.
    """
    contents = special_contents(vocab)
    tokens = _text_of_ids(vocab) | {i: contents[name] for name, i in vocab.specials.items()}
    markers = [contents[n] for n in (BACKSPACE, *LATENT_SPECIALS) if n in vocab.specials]
    kinds = {"eos_token": EOS, "pad_token": PAD, "bos_token": BOS}
    named = {key: contents[name] for key, name in kinds.items() if name in contents}
    taken_over = {k: v for k, v in kept.tokenizer_config.items() if k not in _LEFT_OUT}
    settings = {
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        **({} if isinstance(vocab.codec, TokenizerCodec) else {"padding_side": "left"}),
        **_of_known_tokens(taken_over, tokens),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **named,
    }
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        ours = {str(i): _token(contents[name]) for name, i in vocab.specials.items()}
        settings["added_tokens_decoder"] = {**ours, **decoder}
    mapped = {**_of_known_tokens(kept.special_tokens_map, tokens), **named}
    files = {
        "tokenizer.json": tokenizer_json(vocab),
        "tokenizer_config.json": _indented(_with_markers(settings, markers)),
        "special_tokens_map.json": _indented(_with_markers(mapped, markers)),
        "generation_config.json": _indented(generation_config(vocab, kept)),
    }
    if kept.chat_template is not None:
        files["chat_template.jinja"] = kept.chat_template
    return files


def eos_ids(vocab: Vocab, kept: Companions) -> list[int]:
    """The ids that end a text: the vocabulary's first, then what else the source listed."""
    ids = [vocab.eos_id]
    for source in (kept.generation_config, kept.config):
        found = source.get("eos_token_id")
        for i in found if isinstance(found, list) else [found]:
            if type(i) is int and 0 <= i < vocab.size and i not in ids:
                ids.append(i)
    return ids


def bos_id(vocab: Vocab, kept: Companions) -> int | None:
    """The vocabulary's <bos>, else the one that the source names and puts before no text."""
    if vocab.bos_id is not None:
        return vocab.bos_id
    i = kept.config.get("bos_token_id")
    return i if type(i) is int and 0 <= i < vocab.size else None


def generation_config(vocab: Vocab, kept: Companions) -> dict[str, Any]:
    """The source's generation settings with our ids, and with what `generate` must not choose.

    That is: <backspace>, which `generate` would write and not carry out, <pad>, <bos>, the markers
    of thoughts, and rows of the table without a token. Where a text ends with a token of the
    tokenizer itself, the tokenizer's other special tokens stay as free as they were.
    """
    ends = eos_ids(vocab, kept)
    never = set(vocab.unsampled_ids())
    ours = set(vocab.specials.values())
    if isinstance(vocab.codec, TokenizerCodec) and vocab.eos_id < vocab.codec.size:
        never -= {*vocab.codec.special_ids().values()} - ours
    never |= {i for i in [vocab.backspace_id] if i is not None}
    listed = kept.generation_config.get("suppress_tokens")
    if isinstance(listed, list):
        never |= {i for i in listed if type(i) is int and 0 <= i < vocab.size}
    values = {k: v for k, v in kept.generation_config.items() if k != "transformers_version"}
    return {
        **values,
        "_from_model_config": False,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "bos_token_id": bos_id(vocab, kept),
        "pad_token_id": vocab.pad_id,
        "suppress_tokens": sorted(never.difference(ends)),
    }


def _text_of_ids(vocab: Vocab) -> dict[int, str]:
    """The token of every id of the codec, as a tokenizer.json writes it."""
    codec = vocab.codec
    if isinstance(codec, TokenizerCodec):
        return codec.tokens()
    if type(codec) in _BUILDERS:
        return {i: token for token, i in _BUILDERS[type(codec)](codec)["model"]["vocab"].items()}
    return {}


def _token(content: str) -> dict[str, Any]:
    return {"content": content, **_FLAGS, "special": True}


def _of_known_tokens(settings: Mapping[str, Any], tokens: Mapping[int, str]) -> dict[str, Any]:
    """Settings without tokens that the tokenizer does not have: loading would add them, as ids for
    which the model has no row.
    """
    known = {*tokens.values()}
    values = {
        key: value
        for key, value in settings.items()
        if not key.endswith("_token") or value is None or _content(value) in known
    }
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = values.get(key)
        if isinstance(more, list):
            values[key] = [token for token in more if _content(token) in known]
        elif isinstance(more, dict):
            values[key] = {name: token for name, token in more.items() if _content(token) in known}
    decoder = values.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        of_ids = {str(i): content for i, content in tokens.items()}
        values["added_tokens_decoder"] = {
            i: token for i, token in decoder.items() if i in of_ids and of_ids[i] == _content(token)
        }
    return values


def _with_markers(values: dict[str, Any], markers: Sequence[str]) -> dict[str, Any]:
    """Settings whose further special tokens, under the key that is used there, have `markers`."""
    more = values.get("extra_special_tokens")
    if isinstance(more, dict):
        # A newer form: attribute of the tokenizer -> token.
        known = {_content(token) for token in more.values()}
        new = {f"{m.strip('<|>')}_token": m for m in markers if m not in known}
        return {**values, "extra_special_tokens": {**more, **new}}
    key = "extra_special_tokens" if isinstance(more, list) else "additional_special_tokens"
    listed = values.get(key)
    listed = listed if isinstance(listed, list) else []
    known = {_content(token) for token in listed}
    listed = [*listed, *(m for m in markers if m not in known)]
    return {**values, key: listed} if listed else values


def _content(token: Any) -> str | None:
    """The text of a token that a settings file gives as text or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _put_into_model(values: dict[str, Any], added: Iterable[tuple[int, str]]) -> None:
    vocab = values.get("model", {}).get("vocab")
    if isinstance(vocab, dict):
        vocab |= {content: i for i, content in added}


def _ids(text: str) -> dict[int, str]:
    """What the library reads: id -> token. Raises WeightsError."""
    return {i: t for t, i in _parsed(text).get_vocab(with_added_tokens=True).items()}


def _parsed(text: str) -> Any:
    try:
        return parse_tokenizer_json(text)
    except (TokenizerError, UnicodeEncodeError, TypeError) as error:
        raise WeightsError(
            f"the vocabulary gives no tokenizer.json ({short(str(error))})"
        ) from None


def _frame(text: str) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer.json puts before a text and behind it."""
    try:
        return frame(_parsed(text))
    except TokenizerError as error:
        raise WeightsError(f"its post-processor fails ({short(str(error))})") from None


def _built(model: dict[str, Any], pre: Any, decoder: Any) -> dict[str, Any]:
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": pre, "post_processor": None, "decoder": decoder,
        "model": model,
    }  # fmt: skip


def _word_level(tokens: Iterable[str]) -> dict[str, Any]:
    """A table of whole tokens without an unknown one: `unk_token` names none of them, so that what
    is not in the table is an error.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = "<unk>"
    while unknown in vocab:
        unknown = f"<{unknown}>"
    return {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _of_characters(codec: CharCodec) -> dict[str, Any]:
    return _built(
        _word_level(codec.characters), _split({"Regex": r"[\s\S]"}, "Isolated"), {"type": "Fuse"}
    )


def _of_words(codec: WordCodec) -> dict[str, Any]:
    pre = [
        _split({"String": "\n"}, "Isolated"),
        _split({"Regex": f"[{WHITESPACE}]+"}, "Removed"),
    ]
    # Words are joined by a space, which the WordPiece decoder puts before whatever does not begin
    # with its prefix: no word begins with a space. Then none is left around line ends.
    decoders = [
        {"type": "WordPiece", "prefix": " ", "cleanup": False},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": " \n"}, "content": "\n"},
        {"type": "Replace", "pattern": {"String": "\n "}, "content": "\n"},
    ]
    return _built(
        _word_pieces(codec) if codec.signs else _word_level(codec.words),
        {"type": "Sequence", "pretokenizers": pre},
        {"type": "Sequence", "decoders": decoders},
    )


def _word_pieces(codec: WordCodec) -> dict[str, Any]:
    """Words, and signs that go on a word: " ." is the full stop right behind one, "." a word."""
    model = _word_level([*codec.words, *(f" {sign}" for sign in codec.signs)])
    longest = 1 << 20
    return {
        **model, "type": "WordPiece", "continuing_subword_prefix": " ",
        "max_input_chars_per_word": longest,
    }  # fmt: skip


def _of_bytes(codec: ByteCodec) -> dict[str, Any]:
    del codec
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {c: i for i, c in enumerate(_letters_of_bytes())},
        "merges": [],
    }  # fmt: skip
    return _built(model, level, level)


def _letters_of_bytes() -> list[str]:
    """The letter by which byte-level tokenizers write each byte (GPT-2's table)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(i if i in plain else next(others)) for i in range(256)]


_BUILDERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    CharCodec: _of_characters,
    ByteCodec: _of_bytes,
    WordCodec: _of_words,
}


def _dumped(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


def _indented(values: Mapping[str, Any]) -> str:
    # In one order, wherever the settings are from.
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
