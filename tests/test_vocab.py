"""Text to ids and back, whatever the text; where special ids lie; what may not be built."""

import contextlib
import copy
import json
import pickle
import random
import time

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from reasoning_jax import vocab as V
from reasoning_jax.tokenizer_json import frame, parse_tokenizer_json
from reasoning_jax.weights import WeightsError, read_tokenizer, read_tokenizer_file

# Texts that have broken a codec somewhere; literals of specials must stay text.
HOSTILE = [
    "", " ", "  a  b ", "\0", "a\0b", "\r\n", "a\r\nb\rc\n", "\t\x0b\x0c\x1c\x85", "\x1b[2J\x07",
    "a\u0301", "\u00e1", "\u1112\u1161\u11ab", "\u202eabc", "\u2028\u2029", "\ufeffabc", "\ufffd",
    "👩‍👩‍👧", "🏳️‍🌈", "\U0010ffff", "ﬁ", "İ", "ß",
    "<backspace>", "<eos>", "<pad>", "<bos>", "<bot>", "<latent>", "a<backspace><backspace>b",
    "<|im_start|>user\n<|im_end|>", "<|endoftext|>", "<row 3>",
]  # fmt: skip
LONE_SURROGATES = ["\ud800", "a\udfff", "\udc80b", "\udc00\ud800"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer_json(specials=SPECIALS, plain=()):
    """A byte-level tokenizer with a few merges and added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "ab", "Ġa"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [("a", "b"), ("Ġ", "a")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(s, special=True) for s in specials])
    tokenizer.add_tokens([tokenizers.AddedToken(s, special=False) for s in plain])
    if specials:
        start = (specials[0], tokenizer.token_to_id(specials[0]))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start[0]} $A", special_tokens=[start]
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    return tokenizer.to_str()


def word_level_json(ids):
    """A tokenizer over whitespace-separated words with the given ids, holes and all."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def tiny():
    return V.TokenizerCodec(tokenizer_json())


CHARACTERS = "".join(sorted(set("".join(HOSTILE))))
CODECS = {
    "char": lambda: V.CharCodec(CHARACTERS),
    "byte": V.ByteCodec,
    "tokenizer": lambda: V.TokenizerCodec(tokenizer_json()),
}


@pytest.mark.parametrize("kind", CODECS)
def test_hostile_text_comes_back_and_is_never_special(kind):
    vocab = V.make_vocab(CODECS[kind](), latent=True)
    special = set(vocab.specials.values()) | set(vocab.unsampled_ids())
    for text in HOSTILE:
        ids = vocab.encode(text)
        assert not special & set(ids), text
        assert vocab.decode(ids) == text
        assert vocab.decode(np.array(ids, np.int32)) == text


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("text", LONE_SURROGATES)
def test_lone_surrogates_are_refused(kind, text):
    with pytest.raises(V.VocabError):
        V.make_vocab(CODECS[kind]()).encode(text)


@pytest.mark.parametrize("kind", ["byte", "tokenizer"])
def test_any_unicode_text_comes_back(kind):
    vocab = V.make_vocab(CODECS[kind]())
    rng = random.Random(0)
    legal = [*range(0xD800), *range(0xE000, 0x110000)]
    for _ in range(200):
        text = "".join(chr(c) for c in rng.choices(legal, k=rng.randrange(30)))
        assert vocab.decode(vocab.encode(text)) == text


def test_a_character_outside_the_vocabulary_is_named_with_its_place():
    with pytest.raises(V.VocabError, match=r"'é' at 2 .* it has 'ab'"):
        V.CharCodec("ab").encode("abé")


def test_bytes_cut_inside_a_character_decode_to_the_replacement_sign():
    vocab = V.make_vocab(V.ByteCodec())
    euro = vocab.encode("€")
    assert vocab.decode(euro[:2]) == "\ufffd"
    # A special between the bytes of a character keeps them apart.
    assert vocab.decode([*euro[:1], vocab.eos_id, *euro[1:]]).count("\ufffd") >= 2


def test_words_written_with_single_spaces_come_back_and_others_are_normalised():
    vocab = V.make_vocab(V.WordCodec(("a", "bb", "<eos>", "é", "\n")))
    rng = random.Random(1)
    for _ in range(200):
        lines = [" ".join(rng.choices(["a", "bb", "<eos>", "é"], k=rng.randrange(4)))]
        lines += [
            " ".join(rng.choices(["a", "bb", "é"], k=rng.randrange(4)))
            for _ in range(rng.randrange(4))
        ]
        text = "\n".join(lines)
        ids = vocab.encode(text)
        assert vocab.decode(ids) == text
        loose = text.replace(" ", " \t  ").replace("\n", "  \r\n ")
        assert vocab.encode(loose) == ids
    assert vocab.eos_id not in vocab.encode("<eos>")
    with pytest.raises(V.VocabError, match="'abb'"):
        vocab.encode("a abb")


@pytest.mark.parametrize(
    "words", [(), ("a", "a"), ("",), ("a b",), (" a",), ("a\n",), ("\n\n",), ("\u2003",)]
)
def test_words_that_could_not_be_told_apart_are_refused(words):
    with pytest.raises(V.VocabError):
        V.WordCodec(words)


PAIRS = ("0", "1", "12", "[Q]", "\n")


def pairs_vocab():
    return V.make_vocab(V.PairCodec(PAIRS))


def test_a_pair_is_one_id_behind_all_rows_and_comes_back():
    # Catches: halves swapped, i * size for i * m, pairs counted from the codec's end.
    vocab, m = pairs_vocab(), len(PAIRS)
    assert (vocab.pairs, vocab.size) == (m, m + 4)
    assert vocab.encode("0>12 12>0\n[Q] 1") == [
        vocab.size + 0 * m + 2, vocab.size + 2 * m + 0, 4, 3, 1
    ]  # fmt: skip
    every = [f"{a}>{b}" for a in PAIRS[:-1] for b in PAIRS[:-1]]
    ids = vocab.encode(" ".join(every))
    assert len(set(ids)) == len(every)
    assert vocab.size <= min(ids) <= max(ids) < vocab.size + m * m
    assert vocab.decode(np.array(ids, np.int32)) == " ".join(every)
    assert vocab.decode([ids[0], vocab.eos_id, 0, ids[1]]) == "0>0<eos>0 0>1"
    assert vocab.piece(ids[:1], ids[1]) == " 0>1"
    assert vocab.piece([], ids[1]) == "0>1"


def test_pairs_are_read_and_never_written():
    # Catches: composite ids among text ids, or let through where labels are made.
    vocab = pairs_vocab()
    assert vocab.text_ids() == list(range(len(PAIRS)))
    assert max(vocab.unsampled_ids()) < vocab.size
    assert vocab.encode_output("0 1\n12") == vocab.encode("0 1\n12")
    with pytest.raises(V.VocabError, match="the pair '0>1' can be read and not written"):
        vocab.encode_output("12 0>1")
    plain = V.make_vocab(V.WordCodec(("0>1", "a")))
    assert plain.encode_output("a 0>1") == [1, 0]
    assert plain.pairs == 0


def test_pairs_follow_the_last_row_of_a_resized_vocabulary():
    vocab = V.with_size(pairs_vocab(), 64)
    assert vocab.encode("0>0") == [64]
    assert vocab.decode([64, 13]) == "0>0<row 13>"
    assert V.describe(vocab).startswith("pair vocabulary, 64 rows and 5 x 5 pairs; <pad>=5")


@pytest.mark.parametrize("text", ["0>", ">0", ">", "0>1>0", "0>>1", "0>7", "7>0", "0 > 1"])
def test_what_is_no_pair_of_words_is_refused(text):
    odd = next(word for word in text.split() if word not in PAIRS)
    with pytest.raises(V.VocabError, match=f"word {odd!r} is not among"):
        pairs_vocab().encode(text)


@pytest.mark.parametrize("word", [">", "a>b", "<eos>"])
def test_a_word_that_would_read_as_a_pair_is_refused(word):
    with pytest.raises(V.VocabError, match="joins two words"):
        V.PairCodec(("a", word))


SIGNED = V.word_codec(
    ["Every", "hilpus", "is", "a", "lempus.", "Is", "Tom", "hilpus?", ".", "...", "etc.,", "\n"]
)


def test_a_word_has_one_id_whatever_sign_follows():
    """Catches: `hilpus`, `hilpus.` and `hilpus?` as three words that share nothing."""
    assert SIGNED.signs == ".?,"
    word, stop, asked = (SIGNED.encode(f"hilpus{sign}")[-1] for sign in ("", ".", "?"))
    assert SIGNED.encode("hilpus hilpus. hilpus?") == [word, word, stop, word, asked]
    assert stop >= len(SIGNED.words) > word
    assert SIGNED.size == len(SIGNED.words) + 3


@pytest.mark.parametrize(
    "text",
    [
        "Every hilpus is a lempus.", "Is Tom a hilpus?\nTom is a lempus.", "a . lempus", "...",
        ". .", "etc., hilpus", "hilpus.\n. hilpus", "Tom?.,", "lempus...", "\n", "hilpus", "",
    ],
)  # fmt: skip
def test_text_with_signs_comes_back_exactly(text):
    vocab = V.Vocab.from_dict(json.loads(json.dumps(V.make_vocab(SIGNED).to_dict())))
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    # As the report joins what was written token by token.
    assert "".join(vocab.piece(ids[:i], ids[i]) for i in range(len(ids))) == text


def test_vocabularies_of_earlier_versions_keep_their_words():
    # vocab.json says which rule: without "signs" they are parts of words.
    old = {"kind": "word", "words": ["hilpus", "hilpus.", "is"]}
    vocab = V.Vocab.from_dict({"codec": old, "specials": {"<pad>": 3, "<eos>": 4}, "size": 5})
    assert vocab.encode("hilpus is hilpus.") == [0, 2, 1]
    assert vocab.to_dict()["codec"] == old
    with pytest.raises(V.VocabError, match="ends in a sign"):
        V.WordCodec(("hilpus", "hilpus."), ".")


def test_a_special_among_the_words_is_not_reachable_by_text():
    vocab = V.Vocab(V.PairCodec(("a", "end")), {V.PAD: 2, V.EOS: 1}, 3)
    assert vocab.encode("a a>a") == [0, 3]
    with pytest.raises(V.VocabError, match="<eos>"):
        vocab.encode("a>a end")


def test_the_kind_that_knows_pairs_is_named():
    with pytest.raises(V.VocabError, match=r"'0>1' is not .* vocab\.kind=\"pair\""):
        V.WordCodec(("0", "1")).encode("0>1")
    with pytest.raises(V.VocabError, match=r"'0>2' is not among the 2 words of the vocabulary$"):
        V.WordCodec(("0", "1")).encode("0>2")


@pytest.mark.parametrize("characters", ["", "aa", "aba"])
def test_characters_that_could_not_be_told_apart_are_refused(characters):
    with pytest.raises(V.VocabError):
        V.CharCodec(characters)


def test_a_tokenizer_neither_cuts_nor_pads_nor_adds(tiny):
    # The file asks for a special in front, at most 4 and at least 6 ids.
    assert len(tiny.encode("x" * 50)) == 50
    assert len(tiny.encode("x")) == 1
    assert tiny.encode("") == []


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda codec: pickle.loads(pickle.dumps(codec))]
)
def test_a_copy_of_a_tokenizer_still_keeps_specials_out_of_text(tiny, copied):
    twin = copied(tiny)
    assert twin == tiny
    assert twin.encode("<|im_start|>") == tiny.encode("<|im_start|>")
    assert not set(twin.encode("<|im_start|>")) & set(twin.special_ids().values())


def test_added_tokens_that_are_not_special_are_text():
    vocab = V.make_vocab(V.TokenizerCodec(tokenizer_json(plain=("<think>",))))
    (think,) = vocab.encode("<think>")
    assert think in vocab.text_ids()
    assert vocab.decode([think]) == "<think>"


def test_ids_of_specials_follow_the_codec_in_order():
    vocab = V.make_vocab(V.CharCodec("ab"), latent=True)
    names = [V.PAD, V.BOS, V.EOS, V.BACKSPACE, V.BOT, V.EOT, V.LATENT]
    assert vocab.specials == {name: 2 + i for i, name in enumerate(names)}
    assert vocab.size == 9
    assert (vocab.pad_id, vocab.bos_id, vocab.eos_id, vocab.backspace_id) == (2, 3, 4, 5)
    plain = V.make_vocab(V.CharCodec("ab"), backspace=False)
    assert (plain.backspace_id, plain.size) == (None, 5)


def extended(tiny, extra_rows=0, **options):
    codec_eos = tiny.special_ids()["<|im_end|>"]
    return V.extend_pretrained(tiny, rows=tiny.size + extra_rows, **{"eos_id": codec_eos} | options)


@pytest.mark.parametrize("extra_rows", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("latent", [False, True])
def test_extending_keeps_every_id_and_uses_free_rows_first(tiny, extra_rows, latent):
    vocab, note = extended(tiny, extra_rows, latent=latent)
    added = [V.PAD, V.BACKSPACE, *(V.LATENT_SPECIALS if latent else ())]
    assert [vocab.specials[name] for name in added] == [*range(tiny.size, tiny.size + len(added))]
    assert vocab.size == max(tiny.size + extra_rows, tiny.size + len(added))
    for text in HOSTILE:
        assert vocab.encode(text) == tiny.encode(text)
    assert str(vocab.size) in note
    assert f"{V.PAD}={vocab.pad_id}" in note


def test_a_table_with_fewer_rows_than_tokens_is_refused(tiny):
    with pytest.raises(V.VocabError, match=rf"{tiny.size - 1} but the model has {tiny.size - 1} "):
        extended(tiny, -1)


@pytest.mark.parametrize("name", ["eos_id", "bos_id", "pad_id"])
@pytest.mark.parametrize("offset", [0, 7])
def test_specials_outside_the_tokenizer_are_refused(tiny, name, offset):
    with pytest.raises(V.VocabError, match="outside"):
        extended(tiny, 64, **{name: tiny.size + offset})
    with pytest.raises(V.VocabError, match="outside"):
        extended(tiny, 64, **{name: -1})


def test_padding_and_eos_never_share_an_id(tiny):
    ids = tiny.special_ids()
    shared, _ = extended(tiny, pad_id=ids["<|im_end|>"])
    assert shared.pad_id == tiny.size
    assert shared.eos_id == ids["<|im_end|>"]
    own, _ = extended(tiny, pad_id=ids["<|endoftext|>"], bos_id=ids["<|im_start|>"])
    assert own.specials == {
        V.EOS: ids["<|im_end|>"], V.BOS: ids["<|im_start|>"], V.PAD: ids["<|endoftext|>"],
        V.BACKSPACE: tiny.size,
    }  # fmt: skip
    one, _ = extended(tiny, bos_id=ids["<|im_end|>"])
    assert one.bos_id == one.eos_id
    assert one.decode([one.eos_id]) == V.EOS
    assert V.Vocab.from_dict(one.to_dict()) == one


def test_holes_between_ids_are_neither_text_nor_sampled_nor_filled():
    codec = V.TokenizerCodec(word_level_json({"a": 0, "b": 1, "end": 5, "c": 9}))
    assert codec.size == 10
    vocab, _ = V.extend_pretrained(codec, rows=12, eos_id=5)
    assert vocab.specials == {V.EOS: 5, V.PAD: 10, V.BACKSPACE: 11}
    assert vocab.text_ids() == [0, 1, 9]
    assert vocab.unsampled_ids() == [2, 3, 4, 6, 7, 8, 10]
    assert vocab.decode([0, 3, 9, 5]) == "a<row 3>c<eos>"
    # As many rows as ids: a hole is no text there either.
    assert V.Vocab(codec, {V.EOS: 5, V.PAD: 0}, 10).decode([3]) == "<row 3>"
    with pytest.raises(V.VocabError, match="9 rows do not hold the 10 ids"):
        V.Vocab(codec, {V.EOS: 5, V.PAD: 0}, 9)


def test_an_eos_that_the_tokenizer_does_not_mark_as_special_is_not_reachable_by_text():
    codec = V.TokenizerCodec(word_level_json({"a": 0, "</s>": 1}))
    vocab, _ = V.extend_pretrained(codec, rows=2, eos_id=1)
    assert vocab.encode("a a") == [0, 0]
    with pytest.raises(V.VocabError, match="<eos>"):
        vocab.encode("a </s>")


def test_unknown_words_of_a_tokenizer_are_refused():
    with_unknown = json.loads(word_level_json({"a": 0, "[UNK]": 1}))
    with_unknown["model"]["unk_token"] = "[UNK]"
    token = {"id": 1, "content": "[UNK]", "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}  # fmt: skip
    with_unknown["added_tokens"] = [token]
    for text, said in (
        (json.dumps(with_unknown), r"it gives \[UNK\]"),
        (word_level_json({"a": 0}), "cannot encode 'a b'"),
    ):
        vocab = V.make_vocab(V.TokenizerCodec(text))
        assert vocab.encode("a") == [0]
        with pytest.raises(V.VocabError, match=said):
            vocab.encode("a b")


def vocabularies():
    tiny = V.TokenizerCodec(tokenizer_json())
    holes = V.TokenizerCodec(word_level_json({"a": 0, "end": 4}))
    return {
        "char": V.make_vocab(V.CharCodec("ab\n"), latent=True),
        "byte": V.make_vocab(V.ByteCodec(), backspace=False),
        "word": V.make_vocab(V.WordCodec(("a", "\n"))),
        "pair": V.make_vocab(V.PairCodec(("a", "b", "\n")), latent=True),
        "tokenizer": V.make_vocab(tiny),
        "pretrained": extended(tiny, 64, latent=True)[0],
        "holes": V.extend_pretrained(holes, rows=32, eos_id=4)[0],
    }


VOCABULARIES = vocabularies()


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_survives_json(kind):
    vocab = VOCABULARIES[kind]
    twin = V.Vocab.from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert twin == vocab
    assert twin.to_dict() == vocab.to_dict()
    assert twin.unsampled_ids() == vocab.unsampled_ids()


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_every_row_is_text_or_an_action_or_never_sampled(kind):
    vocab = VOCABULARIES[kind]
    text, never = set(vocab.text_ids()), set(vocab.unsampled_ids())
    actions = {vocab.eos_id, vocab.backspace_id} - {None}
    assert sorted([*text, *never, *actions]) == list(range(vocab.size))
    others = set(vocab.specials.values()) - actions
    assert others <= never
    assert vocab.pad_id in others


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_every_row_and_no_row_decodes(kind):
    vocab = VOCABULARIES[kind]
    for name, i in vocab.specials.items():
        assert vocab.decode([i]) == name
    beyond = vocab.size + vocab.pairs**2
    for i in {*vocab.unsampled_ids()} - {*vocab.specials.values()} | {-1, beyond, 2**40}:
        assert vocab.decode([i]) == f"<row {i}>"
    assert vocab.decode([]) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"size": "9"},
        {"size": True},
        {"size": None},
        {"specials": {}},
        {"specials": {"<pad>": 2}},
        {"specials": {"<pad>": 2, "<eos>": 2}},
        {"specials": {"<pad>": -1, "<eos>": 2}},
        {"specials": {"<pad>": 2, "<eos>": 9}},
        {"specials": {"<pad>": 2.0, "<eos>": 3}},
        {"specials": [2, 3]},
        {"codec": None},
        {"codec": {}},
        {"codec": {"kind": "chars", "characters": "ab"}},
        {"codec": {"kind": ["char"], "characters": "ab"}},
        {"codec": {"kind": "char"}},
        {"codec": {"kind": "char", "characters": ["a", "b"]}},
        {"codec": {"kind": "char", "characters": "aa"}},
        {"codec": {"kind": "word", "words": "ab"}, "size": 1},
        {"codec": {"kind": "word", "words": [1, 2]}},
        {"codec": {"kind": "tokenizer", "tokenizer_json": "{}"}},
        {"codec": {"kind": "tokenizer", "tokenizer_json": None}},
    ],
)
def test_a_damaged_description_is_refused(change):
    values = V.make_vocab(V.CharCodec("ab")).to_dict()
    assert V.Vocab.from_dict(values).size == 6
    with pytest.raises(V.VocabError):
        V.Vocab.from_dict({**values, **change})
    for missing in change:
        with pytest.raises(V.VocabError):
            V.Vocab.from_dict({k: v for k, v in values.items() if k != missing})
    with pytest.raises(V.VocabError):
        V.Vocab.from_dict([values])


def test_no_damage_to_a_tokenizer_file_is_more_than_an_error_of_ours(tmp_path):
    whole = tokenizer_json()
    values = json.loads(whole)
    rng = random.Random(2)
    texts = ["", "{", "[]", "3", "null", "\0", "not json", whole[: len(whole) // 2]]
    for _ in range(60):
        broken = copy.deepcopy(values)
        node = broken
        for _ in range(rng.randrange(1, 4)):
            inner = [k for k, v in node.items() if isinstance(v, dict) and v]
            if not inner:
                break
            node = node[rng.choice(inner)]
        key = rng.choice(list(node))
        node[key] = rng.choice([None, 3, -1, "x", [], {}, {"type": "BPE"}, 2**70, [[1, 2]]])
        texts.append(json.dumps(broken))
    for text in texts:
        with contextlib.suppress(V.VocabError):
            vocab = V.make_vocab(V.TokenizerCodec(text))
            vocab.decode(vocab.encode("ab <|im_start|>"))
    path = tmp_path / "tokenizer.json"
    for content in (b"{}", b"\xff\xfe", b""):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"tokenizer\.json"):
            read_tokenizer_file(path)
    for missing, reason in (
        (tmp_path / "none.json", "No such file"), (tmp_path, "not a regular"), ("\0", "no path"),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=reason):
            read_tokenizer_file(missing)
    path.write_text(whole, encoding="utf-8")
    assert read_tokenizer_file(path).tokenizer_json == whole


def test_resizing_keeps_ids_and_never_cuts_one_off():
    vocab = V.make_vocab(V.CharCodec("ab"))
    assert V.with_size(vocab, 64).specials == vocab.specials
    assert V.with_size(vocab, 64).unsampled_ids()[-1] == 63
    with pytest.raises(V.VocabError, match="do not hold"):
        V.with_size(vocab, vocab.size - 1)
    assert V.describe(vocab) == "char vocabulary, 6 rows; <pad>=2, <bos>=3, <eos>=4, <backspace>=5"


def test_smollm2():
    try:
        files = read_tokenizer("smollm2")
    except WeightsError as error:
        pytest.skip(str(error))
    codec = V.TokenizerCodec(files.tokenizer_json)
    vocab, _ = V.extend_pretrained(codec, rows=49152, eos_id=files.eos_id, pad_id=files.pad_id)
    assert (codec.size, vocab.pad_id, vocab.backspace_id, vocab.size) == (
        49152, 49152, 49153, 49154,
    )  # fmt: skip
    special = set(vocab.unsampled_ids()) | {vocab.eos_id, vocab.backspace_id}
    assert set(codec.special_ids().values()) <= special
    for text in HOSTILE:
        ids = vocab.encode(text)
        assert not special & set(ids), text
        assert vocab.decode(ids) == text
    # Decoding an id must not cost a pass over the table (0.1 s each).
    start = time.process_time()
    assert vocab.decode(vocab.encode("17 + 25? " * 100)) == "17 + 25? " * 100
    assert time.process_time() - start < 5


@pytest.mark.parametrize("adds", [True, False])
def test_bos_is_known_only_where_the_tokenizer_itself_adds_it(adds):
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<s>"])
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    text = tokenizer.to_str()
    assert frame(parse_tokenizer_json(text)) == ([0] * adds, [])
    assert V.TokenizerCodec(text).encode("a") == [1]
