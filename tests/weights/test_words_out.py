"""Vocabularies of words with sentence signs, as a tokenizer.json."""

import pytest

from reasoning_jax import vocab as V
from reasoning_jax.weights import tokenizer_out

VOCAB = V.make_vocab(
    V.word_codec(
        ["Every", "hilpus", "is", "a", "lempus.", "Is", "Tom", "hilpus?", ".", "...", "etc.,", "\n",
         "###"]
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def back():
    return V.TokenizerCodec(tokenizer_out.tokenizer_json(VOCAB))


@pytest.mark.parametrize(
    "text",
    [
        "Every hilpus is a lempus.", "Is Tom a hilpus?\nTom is a lempus.\n### a", "a . lempus",
        "...", ". .", "etc., hilpus", "hilpus.\n. hilpus", "Tom?.,", "lempus...", "\n", "",
    ],
)  # fmt: skip
def test_words_and_signs_have_the_same_ids_there(back, text):
    """Catches: a full stop behind a word that is the word ".", signs that are lost."""
    ids = VOCAB.encode(text)
    assert back.encode(text) == ids
    assert back.decode(ids) == text


@pytest.mark.parametrize("text", ["hilpusx", "x.", "hil.pus", "a.b"])
def test_what_is_no_word_is_an_error_there_too(back, text):
    with pytest.raises(V.VocabError):
        VOCAB.encode(text)
    with pytest.raises(V.VocabError):
        back.encode(text)
