"""Settings x formats: whatever beside a tokenizer changes ids is honoured, refused, or told."""

import importlib.util
import json
from copy import deepcopy

import pytest

from reasoning_jax import weights
from reasoning_jax.vocab import TokenizerCodec, extend_pretrained
from reasoning_jax.weights import WeightsError
from reasoning_jax.weights import tokenizer_settings as settings
from tests.weights.support import GOLDEN, TOKENIZER, copy_model, edit_json

# Letters, two specials, and a token that is matched in text.
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
VOCAB = {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120a": 4, "[": 5, "T": 6, "]": 7}


def added(i, content, special=True, **flags):
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, "special": special, **plain, **flags}


def template(before="<s>"):
    return settings.begin_template(before, 8, None, None)


def tokenizer(**changes):
    values = deepcopy(TOKENIZER)
    values["model"] |= {"vocab": VOCAB, "merges": [["a", "b"], ["\u0120", "a"]]}
    values["added_tokens"] = [added(8, "<s>"), added(9, "</s>"), added(10, "[T]", False)]
    return {**values, **changes}


# The flags of a token that is matched in text as it stands.
OWN = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
TEXT, IDS = "ab[T]b", [2, 10, 1]


def folder_with(tmp_path, named=None, parts=None, files=None, family="llama"):
    folder = copy_model(family, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(**(parts or {}))))
    if named is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
    for name, values in (files or {}).items():
        (folder / name).write_text(json.dumps(values))
    edit_json(folder / "config.json", eos_token_id=9)
    return folder


def prompt_ids(files, text=TEXT):
    """As a run's prompts are encoded, before any special of ours."""
    codec = TokenizerCodec(files.tokenizer_json)
    vocab, _ = extend_pretrained(codec, rows=61, eos_id=9, bos_id=files.begin_id)
    return [*([] if vocab.bos_id is None else [vocab.bos_id]), *vocab.encode(text)]


# name: (changes of tokenizer_config.json, of tokenizer.json, other files, ids, a word of a note)
TOLD = "transformers 5 puts"
HONOURED = {
    "nothing": ({}, {}, {}, IDS, ""),
    "bos": ({"add_bos_token": True}, {}, {}, [8, *IDS], TOLD),
    "bos as an object": (
        {"add_bos_token": True, "bos_token": {"__type": "AddedToken", "content": "<s>"}}, {}, {},
        [8, *IDS], TOLD,
    ),
    "bos in the template": ({}, {"post_processor": template()}, {}, [8, *IDS], ""),
    "bos in both": (
        {"add_bos_token": True}, {"post_processor": template()}, {}, [8, *IDS], "",
    ),
    "no bos in spite of the template": (
        {"add_bos_token": False}, {"post_processor": template()}, {}, IDS, TOLD,
    ),
    "null is not said": (
        {"add_bos_token": None}, {"post_processor": template()}, {}, [8, *IDS], "",
    ),
    "bos named elsewhere": (
        {"add_bos_token": True, "bos_token": None}, {},
        {"special_tokens_map.json": {"bos_token": "<s>"}}, [8, *IDS], TOLD,
    ),
    "bos that is eos": ({"add_bos_token": True, "bos_token": "</s>"}, {}, {}, [9, *IDS], TOLD),
    "bos without a name": (
        {"add_bos_token": True, "bos_token": None}, {}, {}, IDS, "it has no effect",
    ),
    "eos": ({"add_eos_token": True}, {}, {}, IDS, "behind responses"),
    "a blank in front": (
        {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}, {}, {},
        [3, 2, 10, 3, 1], "",
    ),
    "no blank, as the class says": (
        {"tokenizer_class": "GPT2TokenizerFast"},
        {"pre_tokenizer": {**LEVEL, "add_prefix_space": True}}, {}, IDS, "",
    ),
    "a blank that this class does not know": (
        {"add_prefix_space": True}, {}, {}, IDS, "add_prefix_space=true is not applied",
    ),
    "a token of the config alone": (
        {"added_tokens_decoder": {"11": {"content": "[T]b", **OWN}}}, {}, {}, [2, 11], "",
    ),
    "a flag of the config": (
        {"added_tokens_decoder": {"10": {"content": "[T]", **OWN, "single_word": True}}},
        {}, {}, [2, 5, 6, 7, 1], "",
    ),
    "a token that is made special": (
        {"additional_special_tokens": ["[T]"]}, {}, {}, [2, 5, 6, 7, 1], "",
    ),
    "specials that are not there": (
        {"additional_special_tokens": ["[U]"]}, {}, {}, IDS, "left out",
    ),
    "cut": (
        {"model_max_length": 1}, {"truncation": {"direction": "Right", "max_length": 1,
                                                 "strategy": "LongestFirst", "stride": 0}},
        {}, IDS, "truncation is not applied",
    ),
    "padded": (
        {}, {"padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 6, "pad_type_id": 0, "pad_token": "</s>"}},
        {}, IDS, "padding is not applied",
    ),
    "by chance": (
        {}, {"model": {**tokenizer()["model"], "dropout": 1.0}}, {}, IDS, "dropout=1.0",
    ),
    "in lower case": ({"do_lower_case": True}, {}, {}, IDS, "do_lower_case=True is not applied"),
    "code": ({"auto_map": {"AutoTokenizer": ["x.T", None]}}, {}, {}, IDS, "never run"),
    "a strange class": ({"tokenizer_class": "XTokenizer"}, {}, {}, IDS, "'XTokenizer'"),
    "a key of tomorrow": ({"swap_letters": True}, {}, {}, IDS, "'swap_letters'"),
    "several ends": (
        {}, {}, {"generation_config.json": {"eos_token_id": [9, 8]}}, IDS, "also end at '<s>' (8)",
    ),
    "harmless": (
        {key: True for key in settings.HARMLESS}, {}, {}, IDS, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "vocab.path"])
@pytest.mark.parametrize("name", HONOURED)
def test_each_setting_is_honoured_or_told(name, form, tmp_path):
    changes, parts, files, ids, note = HONOURED[name]
    folder = folder_with(tmp_path, {**NAMED, **changes}, parts, files)
    if form == "folder":
        read = weights.read_tokenizer(folder)
    else:
        read = weights.read_tokenizer_file(folder / "tokenizer.json")
    assert prompt_ids(read) == ids
    assert bool(read.notes) == bool(note), read.notes
    assert note in " ".join(read.notes)
    # The text says the same to who reads it alone.
    (tmp_path / "alone").mkdir()
    path = tmp_path / "alone" / "tokenizer.json"
    path.write_text(read.tokenizer_json)
    again = weights.read_tokenizer_file(path)
    assert prompt_ids(again) == ids
    assert again.begin_id == read.begin_id


CONTRADICTIONS = {
    "a bos that is no token": ({"add_bos_token": True, "bos_token": "<x>"}, "'<x>' is no token"),
    "a token with another id": (
        {"added_tokens_decoder": {"11": {"content": "[T]", **OWN}}}, "it is id 10 there",
    ),
    "a token beyond the next id": (
        {"added_tokens_decoder": {"40": {"content": "[V]", **OWN}}}, "the next free id is 11",
    ),
    "a flag that is none": ({"add_bos_token": "yes"}, "add_bos_token must be true, false or null"),
    "a list as a flag": ({"add_prefix_space": [True]}, "add_prefix_space must be true"),
    "a number as a token": ({"eos_token": 3}, "eos_token must be text"),
    "a list as tokens": ({"added_tokens_decoder": []}, "must be an object of ids"),
    "an id that is none": (
        {"added_tokens_decoder": {"-1": {"content": "x", **OWN}}}, "must be a token with its",
    ),
    "a huge id": (
        {"added_tokens_decoder": {"9" * 5000: {"content": "x", **OWN}}}, "must be a token with",
    ),
    "a token's flag that is none": (
        {"added_tokens_decoder": {"8": {"content": "x", **OWN, "lstrip": 1}}}, "true or false",
    ),
    "text as a list": ({"additional_special_tokens": "abc"}, "must be a list of tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused(name, tmp_path):
    changes, message = CONTRADICTIONS[name]
    with pytest.raises(WeightsError, match=message) as error:
        weights.read_tokenizer(folder_with(tmp_path, {**NAMED, **changes}))
    assert len(str(error.value)) < 600


def test_two_ids_in_front_are_refused(tmp_path):
    before = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("<s>", "</s>")]
    parts = {"post_processor": {
        "type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]}
                           for t, i in (("<s>", 8), ("</s>", 9))},
    }}  # fmt: skip
    with pytest.raises(WeightsError, match="puts 2 ids before a text"):
        weights.read_tokenizer(folder_with(tmp_path, NAMED, parts))


def test_old_folders_name_tokens_in_files_of_their_own(tmp_path):
    """Without added_tokens_decoder the map has the last word, and added_tokens.json adds; with it
    neither is read, as in transformers.
    """
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<s>"}
    files = {"special_tokens_map.json": {"eos_token": "</s>"}, "added_tokens.json": {"bb": 11}}
    read = weights.read_tokenizer(folder_with(tmp_path, named, files=files))
    assert (read.eos_id, prompt_ids(read, "bba")) == (9, [11, 0])
    named["added_tokens_decoder"] = {}
    read = weights.read_tokenizer(folder_with(tmp_path, named, files=files))
    assert (read.eos_id, prompt_ids(read, "bba")) == (8, [1, 1, 0])
    bad = {"added_tokens.json": {"bb": "8"}}
    with pytest.raises(WeightsError, match="must map tokens to ids"):
        weights.read_tokenizer(folder_with(tmp_path, NAMED, files=bad))


def test_the_end_of_a_text_from_generation_config(tmp_path):
    files = {"generation_config.json": {"eos_token_id": [9, 8]}}
    folder = folder_with(tmp_path, {"tokenizer_class": "X"}, files=files)
    edit_json(folder / "config.json", eos_token_id=...)
    assert weights.read_tokenizer(folder).eos_id == 9
    for value in ("6", [True], [-2], {}, 2**40):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(WeightsError, match="eos_token_id of generation_config"):
            weights.read_tokenizer(folder)


def test_llamas_blank_in_front_can_be_taken_away(tmp_path):
    """In sentencepiece's form: a normalizer that prepends it, and a decoder that strips it."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            {**space, "pattern": {"String": "\u2581"}, "content": " "}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {**tokenizer()["model"], "merges": [["a", "b"]],
                  "vocab": {t.replace("\u0120", "\u2581"): i for t, i in VOCAB.items()}},
    }  # fmt: skip
    for given, ids in ((None, [3, 2]), (True, [3, 2]), (False, [2])):
        named = {**NAMED, "tokenizer_class": "LlamaTokenizer", "add_prefix_space": given}
        read = weights.read_tokenizer(folder_with(tmp_path, named, parts))
        assert prompt_ids(read, "ab") == ids
        assert TokenizerCodec(read.tokenizer_json).decode(ids) == "ab"
        assert "LlamaTokenizer's own" in " ".join(read.notes)


def test_the_settings_of_gguf(tmp_path):
    pytest.importorskip("gguf")
    from tests.weights.gguf_writer import write_tokenizer

    def read(pre="smollm", **changes):
        keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        path = write_tokenizer(tmp_path / "t.gguf", GOLDEN / "llama", pre, keys)
        files = weights.read_tokenizer(path)
        return files.begin_id, TokenizerCodec(files.tokenizer_json).encode("ab"), files.notes

    assert read() == (None, [2], ())
    assert read(bos_token_id=3) == (None, [2], ())
    assert read(bos_token_id=3, add_bos_token=True) == (3, [2], ())
    assert read("llama-bpe", bos_token_id=3) == (3, [2], ())
    assert read("llama-bpe", bos_token_id=3, add_bos_token=False) == (None, [2], ())
    for changes, note in (
        ({"add_bos_token": True}, "there is no bos_token_id"),
        ({"add_eos_token": True}, "add_eos_token=true is not applied"),
        ({"add_space_prefix": True}, "add_space_prefix=true is not applied"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces=true"),
        ({"swap_letters": True}, "'tokenizer.ggml.swap_letters': not known"),
        ({"eot_token_id": 2}, "also end at 'ab' (2)"),
    ):
        begin, ids, notes = read(**changes)
        assert (begin, ids, len(notes)) == (None, [2], 1)
        assert note in notes[0]
    with pytest.raises(WeightsError, match="bos_token_id=4 is none of its tokens"):
        read(bos_token_id=4, add_bos_token=True)
    with pytest.raises(WeightsError, match="add_bos_token must be bool"):
        read(bos_token_id=3, add_bos_token=1)


@pytest.mark.parity
@pytest.mark.parametrize("name", [n for n in HONOURED if n not in (
    # Specials in a text are its letters here, and what decides about bos is transformers 4's.
    "a token that is made special",
    *(n for n, case in HONOURED.items() if case[4] == TOLD),
)])  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_ids_are_those_of_transformers(name, family, tmp_path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    from transformers import AutoTokenizer

    changes, parts, files, _, _ = HONOURED[name]
    if "padding" in parts:
        pytest.skip("transformers reads its own padding settings from it")
    folder = folder_with(tmp_path, {**NAMED, **changes}, parts, files, family)
    ours, theirs = weights.read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, "a b", " ab", "b"):
        assert prompt_ids(ours, text) == theirs(text)["input_ids"], text
