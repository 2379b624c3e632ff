"""What stands beside a tokenizer.json and changes ids: honoured, refused, or told in a note.

The reference is transformers 5 (`tokenization_utils_tokenizers.py`, `AutoTokenizer`). One thing is
as in transformers 4: `add_bos_token` and `add_eos_token` decide, which transformers 5 passes over
where there is a tokenizer.json. Honoured settings are written into the text of the tokenizer.json,
so that whoever reads that alone gets the same ids. No file is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reasoning_jax.tokenizer_json import TokenizerError, frame, parse_tokenizer_json
from reasoning_jax.weights.files import MAX_INTEGER, WeightsError, short
from reasoning_jax.weights.tokenizer_class import built_class, class_note

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token",
            "mask_token")  # fmt: skip
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

# Keys of tokenizer_config.json that are read, here or in `huggingface.py`.
READ = {
    *SPECIALS, *_LISTS, "add_bos_token", "add_eos_token", "add_prefix_space",
    "added_tokens_decoder", "chat_template", "tokenizer_class",
}  # fmt: skip
# Keys that change no id, and why.
HARMLESS = {
    **dict.fromkeys(
        ("model_max_length", "max_len", "max_length", "truncation_side", "truncation_strategy",
         "stride", "padding_side", "padding", "truncation", "pad_to_multiple_of",
         "pad_token_type_id"),
        "no text is cut or padded here",
    ),
    **dict.fromkeys(
        ("clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors",
         "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"),
        "is about the text of ids; text is what the tokens hold",
    ),
    **dict.fromkeys(
        ("special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "name_or_path",
         "model_input_names", "processor_class", "is_local", "local_files_only", "backend",
         "_commit_hash", "init_inputs", "transformers_version", "use_fast", "from_slow",
         "device_map", "torch_dtype", "trust_remote_code", "model_type", "return_token_type_ids",
         "response_schema", "auto_class", "tokenizer_type"),
        "is for the library's own use",
    ),
    **dict.fromkeys(
        ("use_default_system_prompt", "sp_model_kwargs", "legacy", "verbose"),
        "is for tokenizers without a tokenizer.json",
    ),
    "split_special_tokens": "text is always split so: it never becomes a special token",
}  # fmt: skip
# Keys that could change ids and are not applied where they are set.
NOT_APPLIED = {
    **dict.fromkeys(
        ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize",
         "never_split", "keep_accents", "remove_space", "fix_mistral_regex"),
        "tokenizer.json's own normalizer and pre-tokenizer are used, as in transformers",
    ),
    "auto_map": "code that comes with weights is never run; tokenizer.json is used",
}  # fmt: skip
_SHOWN = 3


@dataclass(frozen=True)
class Beside:
    """The JSON files beside a tokenizer.json; {} for those that are not there."""

    named: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    special_map: Mapping[str, Any] = field(default_factory=dict)  # special_tokens_map.json
    added: Mapping[str, Any] = field(default_factory=dict)  # added_tokens.json
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json

    def names(self) -> dict[str, Any]:
        """tokenizer_config.json as transformers sees it: special_tokens_map.json has the last word
        in folders of old, without added_tokens_decoder.
        """
        if "added_tokens_decoder" in self.named:
            return dict(self.named)
        return {**self.named, **self.special_map}


@dataclass(frozen=True)
class Settled:
    """A tokenizer.json with the settings beside it written in, and the `tokenizers.Tokenizer` of
    it. `begin_id`: the id that stands before every prompt. `notes`: what was not honoured, and
    where transformers differs.
    """

    text: str
    tokenizer: Any
    begin_id: int | None
    notes: tuple[str, ...]


def settle(text: str, tokenizer: Any, beside: Beside, source: str) -> Settled:
    """`text`, of which `tokenizer` was made, with the settings beside it.

    Raises:
      WeightsError: a setting of another type, or one that contradicts the tokenizer.json.
    """
    values = json.loads(text)
    named, notes = beside.names(), list[str]()
    built = built_class(beside.config, named, values)
    changed = [
        _settle_added(values, tokenizer, beside, named, notes, source),
        _settle_prefix_space(values, built, _flag(named, "add_prefix_space", source), notes),
        _settle_model(values, notes),
    ]
    notes += class_note(built, values)
    begin, rewritten = _settle_frame(values, tokenizer, named, notes, source)
    notes += _unread(named)
    if any(changed) or rewritten:
        text = json.dumps(values, ensure_ascii=False)
        tokenizer = parse_tokenizer(text, source)
        for entry in values["added_tokens"]:
            if _id_of(tokenizer, entry["content"]) != entry["id"]:
                raise WeightsError(
                    f"{source}: the added token {short(entry['content'])} cannot get id "
                    f"{entry['id']}; make tokenizer.json and the files beside it agree"
                )
    return Settled(text, tokenizer, begin, tuple(f"{source}: {note}" for note in notes))


def parse_tokenizer(text: str, source: str) -> Any:
    """A `tokenizers.Tokenizer`. Raises WeightsError on text that is not one."""
    try:
        return parse_tokenizer_json(text)
    except (TokenizerError, UnicodeEncodeError, TypeError) as error:
        raise WeightsError(f"{source}: not a tokenizer ({short(str(error))})") from None


def token_text(value: Any, key: str, source: str) -> str | None:
    """The content of a special token, which is text or an object with it. Raises WeightsError."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise WeightsError(f"{source}: {key} must be text, or an object with it as content")
    return value or None


def end_ids(beside: Beside, source: str) -> list[int]:
    """The ids that end a text by generation_config.json and config.json. Raises WeightsError."""
    found: list[int] = []
    for name, values in (("generation_config.json", beside.generation), ("", beside.config)):
        ids = values.get("eos_token_id")
        for i in ids if isinstance(ids, list) else [ids]:
            if i is None or (type(i) is int and i == -1):
                continue
            if type(i) is not int or not 0 <= i <= MAX_INTEGER:
                where = f" of {name}" if name else ""
                raise WeightsError(f"{source}: eos_token_id{where} must be an id, got {short(i)}")
            if i not in found:
                found.append(i)
    return found


def end_note(ids: Iterable[int], eos_id: int | None, tokenizer: Any) -> list[str]:
    """What to tell about further ids that end a text."""
    others = [i for i in ids if i != eos_id]
    if not others or eos_id is None:
        return []
    shown = ", ".join(f"{short(tokenizer.id_to_token(i), 40)} ({i})" for i in others[:_SHOWN])
    return [
        f"generation would also end at {shown}; here only "
        f"{short(tokenizer.id_to_token(eos_id), 40)} ({eos_id}) ends a response, and those are "
        "never written"
    ]


def begin_template(bos: str | None, bos_id: int | None, eos: str | None, eos_id: int | None) -> Any:
    """A post-processor of tokenizer.json that puts one token in front, one behind, or neither."""
    before = [] if bos is None else [{"SpecialToken": {"id": bos, "type_id": 0}}]
    behind = [] if eos is None else [{"SpecialToken": {"id": eos, "type_id": 0}}]
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    tokens = {token: i for token, i in ((bos, bos_id), (eos, eos_id)) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*before, first, *behind],
        "pair": [*before, first, *behind, second],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in tokens.items()},
    }


def _flag(named: Mapping[str, Any], key: str, source: str) -> bool | None:
    value = named.get(key)
    if value is not None and type(value) is not bool:
        raise WeightsError(f"{source}: {key} must be true, false or null, got {short(value)}")
    return value


# --- What is in front of a text and behind it.


def _settle_frame(
    values: dict[str, Any],
    tokenizer: Any,
    named: Mapping[str, Any],
    notes: list[str],
    source: str,
) -> tuple[int | None, bool]:
    """The id in front of every prompt, and whether the post-processor had to be changed."""
    try:
        before, behind = frame(tokenizer)
    except TokenizerError as error:
        raise WeightsError(f"{source}: its post-processor fails ({short(str(error))})") from None
    if len(before) > 1 or len(behind) > 1:
        raise WeightsError(
            f"{source}: its post-processor puts {len(before)} ids before a text and {len(behind)} "
            "behind it; at most one each can be honoured"
        )
    wanted = {}
    for which, ids in (("bos", before), ("eos", behind)):
        key = f"add_{which}_token"
        flag = _flag(named, key, source)
        wanted[which] = ids[0] if ids else None
        if flag is None:
            continue
        token = token_text(named.get(f"{which}_token"), f"{which}_token", source)
        own = None if token is None else _id_of(tokenizer, token)
        if flag and token is not None and own is None:
            raise WeightsError(
                f"{source}: {key} is true, but {which}_token {short(token)} is no token of the "
                "tokenizer.json; name one that is, or set it to false"
            )
        if flag and token is None:
            notes.append(f"{key} is true, but no {which}_token is named: it has no effect")
            continue
        if (flag and ids != [own]) or (not flag and ids):
            notes.append(
                f"{key}={str(flag).lower()} decides here, as in transformers 4; transformers 5 "
                f"puts {_shown(tokenizer, ids)} {'before' if which == 'bos' else 'behind'} a text, "
                "as the tokenizer.json's post-processor says"
            )
        wanted[which] = own if flag else None
    if wanted["eos"] is not None:
        notes.append(
            f"{short(tokenizer.id_to_token(wanted['eos']))} is put behind responses, not behind "
            "prompts as the tokenizer does"
        )
    start = wanted["bos"]
    if [start] == before or (start is None and not before):
        return start, False
    texts = {w: None if i is None else tokenizer.id_to_token(i) for w, i in wanted.items()}
    values["post_processor"] = begin_template(texts["bos"], start, texts["eos"], wanted["eos"])
    return start, True


def _shown(tokenizer: Any, ids: list[int]) -> str:
    return ", ".join(short(tokenizer.id_to_token(i)) for i in ids) or "nothing"


def _id_of(tokenizer: Any, token: str) -> int | None:
    try:
        return tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # a lone surrogate is no token
        return None


# --- Added tokens.


def _settle_added(
    values: dict[str, Any],
    tokenizer: Any,
    beside: Beside,
    named: Mapping[str, Any],
    notes: list[str],
    source: str,
) -> bool:
    """Bring the flags of added tokens, and the tokens themselves, to what the settings say."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    entries = values.get("added_tokens") or []
    present = {entry["content"]: entry for entry in entries}
    free = 1 + max(vocab.values(), default=-1)
    rows = beside.config.get("vocab_size")
    left_out: list[str] = []
    changed = False

    def put(content: str, i: int, flags: Mapping[str, bool]) -> None:
        nonlocal changed
        if content not in present:
            present[content] = {"id": i, "content": content}
            entries.append(present[content])
        if any(present[content].get(name) != flags[name] for name in flags):
            present[content].update(flags)
            changed = True

    for i, content, flags in _listed(beside, named, source):
        known = vocab.get(content)
        room = i == free and (not flags["special"] or type(rows) is not int or i < rows)
        if known == i or (known is None and room):
            put(content, i, flags)
            vocab[content] = i
            free += known is None
        elif flags["special"]:
            left_out.append(content)
        else:
            has = f"id {known} there" if known is not None else "not there"
            raise WeightsError(
                f"{source}: {short(content)} is to be token {i}, but it is {has} and the next free "
                f"id is {free}; make tokenizer.json and the files beside it agree"
            )
    for content in _named_specials(named, source):
        if content not in vocab:
            left_out.append(content)
        elif content in present:
            put(content, vocab[content], {"special": True})
        else:
            plain = dict.fromkeys(_FLAGS, False)
            put(content, vocab[content], {**plain, "special": True})
    if left_out := list(dict.fromkeys(left_out)):
        shown = ", ".join(short(content, 40) for content in left_out[:_SHOWN])
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        notes.append(
            f"the special tokens {shown}{more} are not in the tokenizer.json as the files beside "
            "it say, and are left out"
        )
    values["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
    return changed


def _listed(
    beside: Beside, named: Mapping[str, Any], source: str
) -> Iterator[tuple[int, str, dict[str, bool]]]:
    """(id, content, flags) of added_tokens_decoder, or of added_tokens.json in folders without."""
    listed: list[tuple[int, str, dict[str, bool]]] = []
    if "added_tokens_decoder" in named:
        decoder = named["added_tokens_decoder"]
        if not isinstance(decoder, Mapping):
            raise WeightsError(f"{source}: added_tokens_decoder must be an object of ids")
        for key, token in decoder.items():
            content = token.get("content") if isinstance(token, Mapping) else None
            flags = {} if content is None else {name: token.get(name, False) for name in _FLAGS}
            legal = key.isascii() and key.isdigit() and len(key) < 11
            if not legal or not isinstance(content, str) or not content:
                raise WeightsError(
                    f"{source}: added_tokens_decoder[{short(key)}] must be a token with its content"
                )
            if any(type(flag) is not bool for flag in flags.values()):
                raise WeightsError(
                    f"{source}: the flags of added_tokens_decoder[{short(key)}] must be true or "
                    "false"
                )
            listed.append((int(key), content, flags))
    else:
        specials = set(_named_specials(named, source))
        for content, i in beside.added.items():
            if type(i) is not int or not 0 <= i <= MAX_INTEGER or not content:
                raise WeightsError(f"{source}: added_tokens.json must map tokens to ids")
            special = content in specials
            flags = dict.fromkeys(_FLAGS, False)
            listed.append((i, content, {**flags, "special": special, "normalized": not special}))
    yield from sorted(listed, key=lambda item: item[0])


def _named_specials(named: Mapping[str, Any], source: str) -> Iterator[str]:
    """The contents of all tokens that the settings name as special."""
    for key, value in named.items():
        if key in _LISTS:
            tokens = value.values() if isinstance(value, Mapping) else value
            if tokens is not None and (isinstance(tokens, str) or not isinstance(tokens, Iterable)):
                raise WeightsError(f"{source}: {key} must be a list of tokens, got {short(value)}")
        elif key in SPECIALS or (key.endswith("_token") and isinstance(value, str)):
            tokens = [value]
        else:
            continue
        for token in tokens or ():
            if content := token_text(token, key, source):
                yield content


# --- Pre-tokenizer, truncation, padding, dropout.


def parts(value: Any, kind: str) -> list[dict[str, Any]]:
    """The steps of a type in a (nested) sequence of normalizers, pre-tokenizers or decoders."""
    found, left = [], [value]
    while left:
        step = left.pop()
        if isinstance(step, dict):
            found += [step] if step.get("type") == kind else []
            left += step.values()
        elif isinstance(step, list):
            left += step
    return found


def _settle_prefix_space(
    values: dict[str, Any], built: str, given: bool | None, notes: list[str]
) -> bool:
    """A blank before the first word, as the class would have it."""
    levels = parts(values.get("pre_tokenizer"), "ByteLevel")
    spaces = parts(values.get("pre_tokenizer"), "Metaspace")
    prepended = parts(values.get("normalizer"), "Prepend")
    if built in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        wrong = [step for step in levels if step.get("add_prefix_space", True) != bool(given)]
        for step in wrong:
            step["add_prefix_space"] = bool(given)
        return bool(wrong)
    if given is None:
        return False
    has = (
        any(step.get("add_prefix_space", True) for step in levels)
        or any(step.get("prepend_scheme", "always") != "never" for step in spaces)
        or bool(prepended)
    )
    if has == given:
        return False
    if built != "LlamaTokenizer" or not (spaces or prepended):
        notes.append(
            f"add_prefix_space={str(given).lower()} is not applied: the tokenizer.json says "
            f"{str(has).lower()}, and transformers 5 follows that (4 does not)"
        )
        return False
    for step in (*spaces, *parts(values.get("decoder"), "Metaspace")):
        step["prepend_scheme"] = "first" if given else "never"
    for step in prepended:
        # What it does to a text, without a word of its own: nothing.
        step.clear()
        step.update({"type": "Sequence", "normalizers": []})
    if not given:
        for step in parts(values.get("decoder"), "Strip"):
            step["start"] = 0
    return True


def _settle_model(values: dict[str, Any], notes: list[str]) -> bool:
    """Cutting, padding and chance are no part of a text's ids; transformers does none of them."""
    if values.get("truncation") is not None:
        notes.append("the tokenizer.json's truncation is not applied, as in transformers")
    if values.get("padding") is not None:
        notes.append("the tokenizer.json's padding is not applied, as in transformers")
    model = values.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        notes.append(
            f"the tokenizer.json's dropout={model['dropout']} is not applied: a text has one "
            "tokenization"
        )
        model["dropout"] = None
        return True
    return False


def _unread(named: Mapping[str, Any]) -> list[str]:
    """Notes on keys that are not applied, or not known."""
    notes = [
        f"{key}={short(named[key], 40)} is not applied: {why}"
        for key, why in NOT_APPLIED.items()
        if named.get(key) not in (None, False, [], {})
    ]
    unknown = [
        key
        for key, value in named.items()
        if key not in READ and key not in HARMLESS and key not in NOT_APPLIED
        and not (key.endswith("_token") and isinstance(value, str | None))
    ]  # fmt: skip
    if unknown:
        shown = ", ".join(short(key, 40) for key in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        notes.append(
            f"{shown}{more} of tokenizer_config.json: not known here, and not applied; if it "
            "changes ids, put it into the tokenizer.json"
        )
    return notes
