"""What a GGUF file says about its model: architecture, and the tokenizer as a tokenizer.json.

Keys are those that llama.cpp's converter writes; an architecture key that we do not know is
refused, because ignoring it could change the function. Only byte-level BPE tokenizers are built,
and only with pre-tokenizers that are listed here: a wrong one gives plausible but wrong ids.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.weights.config_json import FAMILIES, checked
from reasoning_jax.weights.files import WeightsError, field, short
from reasoning_jax.weights.gguf import GgufFile
from reasoning_jax.weights.huggingface import TokenizerFiles
from reasoning_jax.weights.tokenizer_settings import begin_template, end_note, parse_tokenizer

# Keys of "{architecture}." that are read, and keys that change nothing where they have this value.
_READ = {
    "vocab_size", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base",
}  # fmt: skip
_HARMLESS = {
    "expert_count": 0, "attention.causal": True, "rope.scaling.yarn_log_multiplier": 0,
    "rope.scaling.yarn_ext_factor": 1, "rope.scaling.yarn_attn_factor": 1,
}  # fmt: skip
# Whether the model was trained with its scaling changes nothing.
_SCALING = {
    f"rope.scaling.{key}"
    for key in (
        "type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast",
        "yarn_beta_slow", "finetuned",
    )
} | {"rope.scale_linear"}  # fmt: skip

# The scaling of every Llama 3 that llama.cpp stores as a table of factors.
_LLAMA3 = {"low": 1.0, "high": 4.0, "original": 8192}
_ROPE_TABLE = "rope_freqs.weight"
# The table is read with the config; the others follow from it, in files of old converters.
_BUFFERS = r"(blk\.\d+\.)?(attn_rot_embd|rot_embd|rotary_emb|attn\.(masked_)?bias)(\.\w+)?"
IGNORED = rf"{re.escape(_ROPE_TABLE)}|{_BUFFERS}"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": use_regex,
    }  # fmt: skip


def _split(pattern: str) -> list[dict[str, Any]]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**regex, "invert": False}, _byte_level(False)]


# `tokenizer.ggml.pre` -> pre-tokenizers, in order, and what else differs in tokenizer.json.
# ByteLevel's own regex is GPT-2's; smollm splits off every digit before it.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre": [_byte_level(True)]},
    "smollm": {"pre": [{"type": "Digits", "individual_digits": True}, _byte_level(True)]},
    "llama-bpe": {"pre": _split(_WORDS + r"\p{N}{1,3}" + _REST), "ignore_merges": True},
    "qwen2": {"pre": _split(_WORDS + r"\p{N}" + _REST), "normalizer": {"type": "NFC"}},
}
_CONTROL, _USER_DEFINED = 3, 4

# Pre-tokenizers whose texts begin with a token unless the file says otherwise.
_BEGINS = ("llama-bpe",)
# Keys of "tokenizer." that are read; that change no id; and that are told where they are true.
_TOKENIZER_READ = {
    "ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges",
    "ggml.bos_token_id", "ggml.eos_token_id", "ggml.padding_token_id", "ggml.eot_token_id",
    "ggml.eom_token_id", "ggml.add_bos_token", "chat_template",
}  # fmt: skip
_TOKENIZER_HARMLESS = {
    "ggml.scores", "ggml.unknown_token_id", "ggml.seperator_token_id", "ggml.separator_token_id",
    "ggml.mask_token_id", "ggml.cls_token_id", "ggml.token_type_count", "ggml.fim_pre_token_id",
    "ggml.fim_suf_token_id", "ggml.fim_mid_token_id", "ggml.fim_pad_token_id",
    "ggml.fim_rep_token_id", "ggml.fim_sep_token_id", "ggml.prefix_token_id",
    "ggml.suffix_token_id", "ggml.middle_token_id", "chat_templates", "ggml.add_sep_token",
    "huggingface.json", "rwkv.world",
}  # fmt: skip
_NOT_APPLIED = {
    "ggml.add_eos_token": "a response ends with the token anyway, a prompt never does",
    "ggml.add_space_prefix": "byte-level BPE puts no blank before a text, as in llama.cpp",
    "ggml.remove_extra_whitespaces": "byte-level BPE keeps all of them, as in llama.cpp",
}


def read_config(file: GgufFile) -> tuple[str, ModelConfig]:
    """The family and architecture of a file.

    Raises:
      WeightsError: an unknown architecture or architecture key, a missing or mistyped value, a
        setting that our model cannot honour, a tensor type that is not read.
    """
    source = file.source
    family = file.scalar("general.architecture")
    if family not in FAMILIES:
        raise WeightsError(
            f"{source}: general.architecture {short(family)} is unknown; known: "
            f"{', '.join(FAMILIES)}"
        )
    file.check_types(_BUFFERS)
    values = file.scalars(f"{family}.")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise WeightsError(f"{source}: tensor token_embd.weight [V, D] is missing")
    width = field(values, "embedding_length", int, source)
    heads = field(values, "attention.head_count", int, source)
    head_dim = field(values, "attention.key_length", int, source, width // max(heads, 1))
    _refuse_unknown(values, head_dim, source)
    config = {
        **FAMILIES[family],
        "vocab_size": embedding.shape[0],
        "d_model": width,
        "n_layers": field(values, "block_count", int, source),
        "n_heads": heads,
        "n_kv_heads": field(values, "attention.head_count_kv", int, source, heads),
        "head_dim": head_dim,
        "d_ff": field(values, "feed_forward_length", int, source),
        "max_positions": field(values, "context_length", int, source),
        "tied_embeddings": "output.weight" not in file.tensors,
    }
    norm = "attention.layer_norm_rms_epsilon"
    if family == "gpt2":
        norm = "attention.layer_norm_epsilon"
    config["norm_eps"] = _shortest(field(values, norm, float, source))
    if config["position"] == "rope":
        config["rope_theta"] = _shortest(field(values, "rope.freq_base", float, source, 10_000.0))
        scaling = _read_rope_scaling(values, config["max_positions"], source)
        table = _read_rope_table(file, config["rope_theta"], head_dim)
        if scaling and table:
            raise WeightsError(
                f"{source}: {_ROPE_TABLE} and 'rope.scaling.type'={scaling['rope_scaling']!r} "
                "cannot be honoured together"
            )
        config |= {**scaling, **table}
    return family, checked(config, source)


def _refuse_unknown(values: dict[str, Any], head_dim: int, source: str) -> None:
    lengths = ("attention.value_length", "rope.dimension_count")
    harmless = {**_HARMLESS, **dict.fromkeys(lengths, head_dim)}
    for key, value in values.items():
        if key in _READ or key in _SCALING or (key in harmless and value == harmless[key]):
            continue
        wanted = f"; wanted {harmless[key]}" if key in harmless else ""
        raise WeightsError(f"{source}: {short(key)}={short(value)} cannot be honoured{wanted}")


def _shortest(value: float) -> float:
    """A float32 as the decimal that was meant: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _read_rope_scaling(values: dict[str, Any], positions: int, source: str) -> dict[str, Any]:
    """`rope.scaling.*` as llama.cpp reads it: linear where a factor has no type, and YaRN's
    attention factor beside 0.1 ln(factor) + 1.
    """
    scaling = {k.removeprefix("rope.scaling."): v for k, v in values.items() if k in _SCALING}
    old = field(scaling, "rope.scale_linear", float, source, 0.0)
    factor = _shortest(field(scaling, "factor", float, source, old)) or 1.0
    kind = field(scaling, "type", str, source, "linear")
    if kind not in ("none", "linear", "yarn"):
        raise WeightsError(
            f"{source}: 'rope.scaling.type'={short(kind)} cannot be honoured; known: none, linear, "
            "yarn"
        )
    more = _shortest(field(scaling, "attn_factor", float, source, 1.0))
    if more != 1.0 and (kind != "yarn" or more <= 0):
        raise WeightsError(f"{source}: 'rope.scaling.attn_factor'={more} cannot be honoured")
    if kind == "none" or (factor == 1.0 and more == 1.0):
        return {}
    rope: dict[str, Any] = {"rope_scaling": kind, "rope_factor": factor}
    if kind == "linear":
        return rope
    rope["rope_original_positions"] = field(
        scaling, "original_context_length", int, source, positions
    )
    for key in ("beta_fast", "beta_slow"):
        if f"yarn_{key}" in scaling:
            rope[f"rope_{key}"] = _shortest(field(scaling, f"yarn_{key}", float, source))
    if more != 1.0:
        rope["rope_attention_factor"] = more * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    return rope


def _read_rope_table(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama-3 scaling from its table [H/2] of divisors of the frequencies, recomputed to be sure.

    Raises:
      WeightsError: the table is not the one that Llama 3's constants give.
    """
    info = file.tensors.get(_ROPE_TABLE)
    if info is None:
        return {}
    half = max(head_dim // 2, 1)
    if info.shape == (half,):
        table = np.asarray(file.read(_ROPE_TABLE), np.float64)
        factor = _shortest(float(table.max()))
        wavelength = 2 * np.pi * theta ** (np.arange(half) / half)
        smooth = (_LLAMA3["original"] / wavelength - _LLAMA3["low"]) / 3.0
        smooth = np.clip(smooth, 0.0, 1.0)
        if 1.0 <= factor < 1e4 and np.allclose(1 / table, (1 - smooth) / factor + smooth, 1e-4):
            return {
                "rope_scaling": "llama3",
                "rope_factor": factor,
                "rope_low_frequency": _LLAMA3["low"],
                "rope_high_frequency": _LLAMA3["high"],
                "rope_original_positions": _LLAMA3["original"],
            }
    raise WeightsError(
        f"{file.source}: {_ROPE_TABLE} {info.shape} is not Llama 3's RoPE scaling (frequencies 1 "
        "to 4 of 8192 positions) and cannot be honoured"
    )


def read_tokenizer(file: GgufFile) -> TokenizerFiles:
    """The tokenizer as the text of a tokenizer.json; None where there is none.

    A token stands before every text where `add_bos_token` says so, and for Llama 3 by default, as
    in llama.cpp.

    Raises:
      WeightsError: a kind of tokenizer or pre-tokenizer that is not known, or broken tables.
    """
    source = file.source
    values = file.scalars("tokenizer.")
    model = field(values, "ggml.model", str, source, "")
    if not model:
        return TokenizerFiles()
    if model != "gpt2":
        raise WeightsError(
            f"{source}: a tokenizer of kind {short(model)} is not built, only byte-level BPE "
            "('gpt2'); load the model's Hugging Face folder"
        )
    pre = field(values, "ggml.pre", str, source, "default")
    if pre == "default" and file.scalar("general.architecture") == "gpt2":
        pre = "gpt-2"
    if pre not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"{source}: pre-tokenizer {short(pre)} is not known; known: "
            f"{', '.join(_PRE_TOKENIZERS)}; load the model's Hugging Face folder"
        )
    tokens = list(file.strings("tokenizer.ggml.tokens"))
    ids = {
        name: field(values, f"ggml.{name}_token_id", int, source, None)
        for name in ("eos", "bos", "padding", "eot", "eom")
    }
    notes = _setting_notes(file, values)
    begin = ids["bos"]
    if not field(values, "ggml.add_bos_token", bool, source, pre in _BEGINS):
        begin = None
    elif begin is None and "ggml.add_bos_token" in values:
        notes.append("tokenizer.ggml.add_bos_token is true, but there is no bos_token_id")
    if begin is not None and not 0 <= begin < len(tokens):
        raise WeightsError(f"{source}: tokenizer.ggml.bos_token_id={begin} is none of its tokens")
    start = None
    if begin is not None:
        start = begin_template(tokens[begin], begin, None, None)
    text = _tokenizer_json(file, tokens, start, **_PRE_TOKENIZERS[pre])
    tokenizer = parse_tokenizer(text, source)
    ends = [ids[name] for name in ("eot", "eom") if ids[name] is not None]
    notes += end_note(ends, ids["eos"], tokenizer)
    template = field(values, "chat_template", str, source, None)
    main = (ids["eos"], ids["bos"], ids["padding"])
    rows = max(len(tokens), *(1 + i for i in main if i is not None), 0)
    told = tuple(f"{source}: {note}" for note in notes)
    return TokenizerFiles(text, *main, template, rows, begin, told)


def _setting_notes(file: GgufFile, values: dict[str, Any]) -> list[str]:
    """What to tell of settings of the tokenizer that are not applied, or not known."""
    notes = []
    for key, why in _NOT_APPLIED.items():
        if field(values, key, bool, file.source, False):
            notes.append(f"tokenizer.{key}=true is not applied: {why}")
    known = {*_TOKENIZER_READ, *_NOT_APPLIED, *_TOKENIZER_HARMLESS}
    unknown = [
        key
        for key in file.values
        if key.startswith("tokenizer.") and key.removeprefix("tokenizer.") not in known
    ]
    if unknown:
        shown = ", ".join(short(key, 60) for key in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        notes.append(f"{shown}{more}: not known here, and not applied")
    return notes


def _tokenizer_json(
    file: GgufFile,
    tokens: list[str],
    post_processor: dict[str, Any] | None,
    pre: list[dict[str, Any]],
    normalizer: dict[str, Any] | None = None,
    ignore_merges: bool = False,
) -> str:
    vocab = {token: i for i, token in enumerate(tokens)}
    kinds = file.numbers("tokenizer.ggml.token_type")
    if not tokens or len(vocab) != len(tokens):
        raise WeightsError(f"{file.source}: {len(tokens)} tokens, of which {len(vocab)} differ")
    if kinds is None or len(kinds) != len(tokens):
        got = 0 if kinds is None else len(kinds)
        raise WeightsError(f"{file.source}: {got} token types for {len(tokens)} tokens")
    merges = []
    for merge in file.strings("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not left or not space or not right or " " in right:
            raise WeightsError(f"{file.source}: {short(merge)} is not a merge of two tokens")
        merges.append([left, right])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": int(i), "content": tokens[i], **flags, "special": bool(kinds[i] == _CONTROL)}
                for i in np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED))
            ],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
            "post_processor": post_processor,
            "decoder": _byte_level(True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": ignore_merges,
                "vocab": vocab,
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )
