"""Which tokenizer class transformers 5 would build for a folder, and what that changes.

Its classes for GPT-2, Qwen 2 and Llama bring a pre-tokenizer of their own and pass over the one in
tokenizer.json. Ours is always that of tokenizer.json, as in transformers 4, since it is what the
model was trained with; where the two differ a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reasoning_jax.weights.files import short

# A class that takes tokenizer.json as it stands.
PLAIN = "TokenizersBackend"
_OF_FAMILY = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
# Families whose published tokenizer_class is known to be wrong: the family's own is built.
_NOT_TRUSTED = ("qwen2",)
_REBUILT = ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer")
_PLAIN_NAMES = (PLAIN, "PreTrainedTokenizer", "PythonBackend", "")
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def built_class(
    config: Mapping[str, Any], named: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> str:
    """The class that `AutoTokenizer` builds, without "Fast"; PLAIN for those without code."""
    family = config.get("model_type")
    registered = _OF_FAMILY.get(family) if isinstance(family, str) else None
    name = named.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(name, str):
        return registered or PLAIN
    name = name.removesuffix("Fast")
    levels = "ByteLevel" in _types(tokenizer.get("pre_tokenizer"))
    if name == "LlamaTokenizer" and levels and family not in _NOT_TRUSTED:
        return PLAIN
    if registered is not None and family in _NOT_TRUSTED:
        return registered
    return PLAIN if name in _PLAIN_NAMES else name


def class_note(built: str, tokenizer: Mapping[str, Any]) -> list[str]:
    """What to tell of a class whose ids may be others than those of tokenizer.json."""
    if built == PLAIN:
        return []
    if built not in _REBUILT:
        return [f"tokenizer_class {short(built, 40)} is not known here; tokenizer.json is used"]
    pre, normalizer = tokenizer.get("pre_tokenizer"), tokenizer.get("normalizer")
    if built == "GPT2Tokenizer":
        same = normalizer is None and _is_byte_level(pre, True)
    elif built == "Qwen2Tokenizer":
        steps = pre.get("pretokenizers") if isinstance(pre, Mapping) else None
        same = (
            isinstance(normalizer, Mapping)
            and normalizer.get("type") == "NFC"
            and isinstance(steps, list)
            and len(steps) == 2
            and isinstance(steps[0], Mapping)
            and steps[0].get("type") == "Split"
            and steps[0].get("pattern") == {"Regex": _QWEN_SPLIT}
            and _is_byte_level(steps[1], False)
        )
    else:
        same = normalizer is None and isinstance(pre, Mapping) and pre.get("type") == "Metaspace"
    if same:
        return []
    return [
        f"ids are those of tokenizer.json, as in transformers 4; transformers 5 puts {built}'s own "
        "normalizer and pre-tokenizer in its place, so that ids of some texts may differ there"
    ]


def _is_byte_level(step: Any, regex: bool) -> bool:
    known = isinstance(step, Mapping) and step.get("type") == "ByteLevel"
    return known and step.get("use_regex", True) == regex


def _types(value: Any) -> set[str]:
    """The types of all steps of a (nested) sequence."""
    found, left = set(), [value]
    while left:
        step = left.pop()
        if isinstance(step, dict):
            found.add(str(step.get("type")))
            left += step.values()
        elif isinstance(step, list):
            left += step
    return found
