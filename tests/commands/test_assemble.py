"""From a config to the parts of a run: what a vocabulary of pairs brings with it."""

import json

import numpy as np
import pytest

from reasoning_jax import config as C
from reasoning_jax import config_check as K
from reasoning_jax.commands.assemble import _matches, assemble, first_examples
from reasoning_jax.vocab import Vocab, VocabError


def pair_config(**changes):
    """Fused questions on small mirrored graphs."""
    config = C.to_dict(C.Config())
    config["task"] = {
        "name": "prosqa", "form": "fused", "family": "mirrored", "min_hops": 2, "max_hops": 2,
    }  # fmt: skip
    config["vocab"]["kind"] = "pair"
    config["data"] |= {"seq_len": 32, "answer_prefix": "[A] "}
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return K.from_dict(config)


def test_pairs_reach_the_model_as_inputs_and_no_label():
    # Catches: pairs among the words, pair_rows left 0, a pair where a label is looked up.
    assembly = assemble(pair_config())
    vocab, model = assembly.vocab, assembly.model
    assert (model.vocab_size, model.pair_rows) == (vocab.size, vocab.pairs)
    assert not any(">" in word for word in vocab.codec.to_dict()["words"])
    example = assembly.examples("train")[0]
    row = assembly.encoder.encode(example, np.random.default_rng(0))
    pairs = row["actions"] >= vocab.size
    assert pairs.sum() == 8 == example.question.count(">")
    assert row["actions"].max() < vocab.size + vocab.pairs**2
    assert row["labels"].max() < vocab.size
    assert (row["labels"] == vocab.pad_id).sum() == 8
    assert not row["weights"][row["labels"] == vocab.pad_id].any()
    assert not pairs[row["weights"] > 0].any()
    prompt = assembly.encoder.prompt_ids(example.question)
    assert row["actions"][: len(prompt)].tolist() == prompt
    with pytest.raises(VocabError, match="read and not written"):
        assembly.encoder.response_ids("0>1")


def test_a_saved_pair_vocabulary_gives_the_same_model():
    config = pair_config()
    assembly = assemble(config)
    saved = Vocab.from_dict(assembly.vocab.to_dict())
    assert assemble(config, saved).model == assembly.model
    # A config that was saved with its model says the same again.
    assert assemble(pair_config(model__pair_rows=saved.pairs)).model == assembly.model


@pytest.mark.parametrize("kind", ["pair", "word"])
def test_pair_rows_that_are_not_the_vocabularys_are_refused(kind):
    config = pair_config(model__pair_rows=3, vocab__kind=kind, task__form="symbolic")
    with pytest.raises(C.ConfigError, match=r"model\.pair_rows=3 but .* leave it 0"):
        assemble(config)


def test_fused_questions_in_a_word_vocabulary_name_the_kind_that_is_needed():
    with pytest.raises(VocabError, match=r'vocab\.kind="pair" encodes it'):
        assemble(pair_config(vocab__kind="word"))


def test_pairs_in_a_file_are_no_words_but_their_halves_are(tmp_path):
    # Catches: pairs kept as words, which the codec refuses.
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "7>8 8>9 [Q] 9", "answer": "9"}\n', encoding="utf-8")
    files = {"path": str(path), "validation_path": str(path), "answer_prefix": ""}
    config = pair_config(
        data__source="jsonl", **{f"data__{name}": value for name, value in files.items()}
    )
    words = assemble(config).vocab.codec.to_dict()["words"]
    assert {"7", "8", "9"} <= set(words)
    assert "7>8" not in words


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("1,000", "### 1000", True), ("1000", "### 1,000 ", True), ("-2.5", "### -2.5", True),
        ("1000", "### 100", False), ("a,b", "### ab", False),
        ("1,000", "1000", False), ("18", "### 18.", False),
    ],
)  # fmt: skip
def test_numbers_of_a_user_s_file_are_compared_without_commas(answer, text, right):
    # Catches: GSM answers such as 1,450,000 judged wrong; commas dropped from words.
    assert _matches(answer, "### ", text) == right


def test_a_concept_of_prosqa_text_is_one_token_wherever_it_stands():
    """The choice, an edge's end and the answer are one id; the text comes back to the letter.

    Catches: `hilpus`, `hilpus.` and `hilpus?` as three words that share nothing.
    """
    config = C.to_dict(C.Config())
    config["task"] = {"name": "prosqa", "n_nodes": 12, "min_hops": 2, "max_hops": 3}
    config["vocab"]["kind"] = "word"
    config["data"] |= {"seq_len": 256, "question_suffix": "\n", "answer_prefix": "### "}
    assembly = assemble(K.from_dict(config))
    vocab = assembly.vocab
    assert vocab.codec.to_dict()["signs"] == ".?"
    units = [vocab.encode(unit) for unit in assembly.task.noise_units()]
    assert all(len(ids) == 1 for ids in units)
    for example in first_examples(assembly.examples("train"), 20):
        prompt, response = assembly.encoder.render(example)
        assert vocab.decode(vocab.encode(prompt)) == prompt
        assert vocab.decode(vocab.encode(response)) == response
        (answer,) = vocab.encode(example.answer.split()[-1].rstrip("."))
        assert vocab.encode(example.answer)[-2] == answer
        assert answer in vocab.encode(prompt)
    assert Vocab.from_dict(vocab.to_dict()) == vocab


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("word", "New  York", "###\u2423New\u2423\u2423York' as '###\u2423New\u2423York'"),
        ("char", "New  York", None), ("word", "New York", None), ("word", "5.", None),
        ("word", "1,000", None),
    ],
)  # fmt: skip
def test_an_answer_that_the_vocabulary_cannot_write_is_refused(tmp_path, kind, answer, told):
    """Catches: answers that no model could give, judged wrong for ever without a word."""
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"question": "Where?", "answer": answer})
    path.write_text(row + "\n", encoding="utf-8")
    config = C.to_dict(C.Config())
    config["vocab"]["kind"] = kind
    config["data"] |= {
        "source": "jsonl", "path": str(path), "validation_path": str(path), "answer_prefix": "### ",
    }  # fmt: skip
    if told is None:
        assemble(K.from_dict(config))
        return
    with pytest.raises(ValueError, match=told):
        assemble(K.from_dict(config))
