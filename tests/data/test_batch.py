"""An example becomes states and wanted actions; what noise adds is taken back, and never learnt."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from reasoning_jax import backspace
from reasoning_jax.config import ConfigError, DataConfig, NoiseConfig
from reasoning_jax.data.batch import Encoder, noise_ids, padded
from reasoning_jax.data.examples import Example
from reasoning_jax.vocab import EOS, PAD, CharCodec, Vocab, VocabError, WordCodec, make_vocab
from tests import oracle

VOCAB = make_vocab(CharCodec("0123456789+=\n#"))
DIGITS = tuple(range(10))
EXAMPLE = Example("1+2=", ("98", "7"), "3")
RESPONSE = "98\n7\n#3"
collapse = jax.jit(backspace.collapse, static_argnames="backspace_id")


def encoder(seq_len=64, rate=0.0, run_length=1, ids=DIGITS, vocab=VOCAB, **layout):
    data = DataConfig(seq_len=seq_len, **({"answer_prefix": "#"} | layout))
    return Encoder(vocab, data, NoiseConfig(rate, run_length), ids)


def noisy(run_length, seed, seq_len=64):
    return encoder(seq_len, 0.4, run_length).encode(EXAMPLE, np.random.default_rng(seed))


def stacks(row):
    """What stands at each position, by the oracle."""
    actions = [oracle.BK if a == VOCAB.backspace_id else a for a in row["actions"].tolist()]
    return oracle.states(actions[0], actions[1:], int(row["floor"][0]))


def test_steps_are_left_out_of_any_sources_examples():
    # Catches: an option that only generated tasks obey.
    example = Example("1+1", ("count",), "2")
    layout = DataConfig(with_steps=False, answer_prefix="= ")
    assert Encoder(None, layout, NoiseConfig()).render(example) == ("1+1", "= 2")


def test_a_clean_example_position_by_position():
    # Catches: labels or weights moved by one, no <eos>, loss on the prompt, floor off by one,
    # prompt labels that are not the prompt.
    row = encoder().encode(EXAMPLE, np.random.default_rng(0))
    prompt, response = [VOCAB.bos_id, *VOCAB.encode("1+2=")], VOCAB.encode(RESPONSE)
    assert row["actions"].tolist() == prompt + response
    assert row["labels"].tolist() == prompt[1:] + response + [VOCAB.eos_id]
    assert row["weights"].tolist() == [0.0] * 4 + [1.0] * 8
    assert row["floor"].tolist() == [4] * 12
    assert row["noised"].tolist() == [0] * 12


def test_text_starts_at_bos_or_at_its_own_first_token():
    """A window is all answer. Where there is no <bos>, its first token is given and not learnt.

    Catches: text refused in a vocabulary without <bos> (as SmolLM2's), a first token that is lost
    or scored, a question that is given twice.
    """
    text, rng = Example("", (), "1234"), np.random.default_rng(0)
    ids = VOCAB.encode("1234")
    bare = Vocab(VOCAB.codec, {k: v for k, v in VOCAB.specials.items() if k != "<bos>"}, VOCAB.size)
    whole = replace(encoder(answer_prefix=""), cut=True)
    assert whole.split_ids(text) == ([VOCAB.bos_id], ids)
    without = replace(whole, vocab=bare)
    assert without.split_ids(text) == (ids[:1], ids[1:])
    assert without.split_ids(Example("7", (), "1")) == (VOCAB.encode("7"), VOCAB.encode("1"))
    row = without.encode(text, rng)
    assert row["actions"].tolist() == ids
    assert row["labels"].tolist() == [*ids[1:], VOCAB.eos_id]
    assert row["weights"].tolist() == [1.0] * 4
    assert row["floor"].tolist() == [0] * 4
    # What is no text must have something to start from.
    with pytest.raises(VocabError, match="the prompt is empty and the vocabulary has no <bos>"):
        replace(without, cut=False).encode(text, rng)
    with pytest.raises(VocabError, match="the prompt is empty"):
        without.encode(Example("", (), ""), rng)


def test_the_layout_is_that_of_the_data_section():
    # Catches: a suffix on the wrong side of the bar, where the loss begins.
    row = encoder(question_suffix="\n", step_suffix="+", answer_prefix="").encode(
        EXAMPLE, np.random.default_rng(0)
    )
    begin = row["weights"].tolist().index(1.0)
    assert VOCAB.decode(row["actions"][1 : begin + 1]) == "1+2=\n"
    assert VOCAB.decode(row["labels"][begin:-1]) == "98+7+3"


@pytest.mark.parametrize("run_length", [1, 2, 3])
def test_the_label_of_every_state_is_the_action_that_mends_or_continues_it(run_length):
    """Where what stands is a prefix of the truth, the true next token; elsewhere <backspace>.

    Catches: a noise token as a label, <backspace> before the first noise token or after the last is
    gone, a first noise token that is no error, `noised` or weights that do not follow the labels.
    """
    truth = [VOCAB.bos_id, *VOCAB.encode("1+2=" + RESPONSE), VOCAB.eos_id]
    noised = 0
    for seed in range(40):
        row = noisy(run_length, seed)
        for i, stack in enumerate(stacks(row)):
            right = stack == truth[: len(stack)]
            if i < 4:
                assert (row["weights"][i], row["noised"][i]) == (0, 0)
                continue
            want = truth[len(stack)] if right else VOCAB.backspace_id
            assert row["labels"][i] == want
            assert (row["weights"][i], row["noised"][i]) == (1, not right)
            noised += not right
        assert row["labels"][-1] == VOCAB.eos_id
        assert set(row["floor"].tolist()) == {4}
        runs = (np.diff(row["noised"], prepend=0) == 1).sum()
        # Of K tokens and K backspaces, 2K - 1 states have noise on top.
        assert row["noised"].sum() == runs * (2 * run_length - 1)
    assert noised > 100


@pytest.mark.parametrize("run_length", [1, 3])
def test_executed_actions_collapse_to_the_clean_text(run_length):
    # Catches: fewer backspaces than noise tokens.
    rows = [noisy(run_length, seed) for seed in range(20)]
    actions = np.zeros((20, 64), np.int32)
    lengths = np.array([len(row["actions"]) - 5 for row in rows])
    for row, out, n in zip(rows, actions, lengths):
        out[:n] = row["actions"][5:]
    left, count = collapse(actions, lengths, VOCAB.backspace_id)
    assert {VOCAB.decode(ids[:n]) for ids, n in zip(np.asarray(left), count)} == {RESPONSE}


def test_what_noise_makes_too_long_is_cut_with_the_true_label_at_the_end():
    # Catches: cutting before the labels are known, dropping the row, a last label of 0.
    ends = set()
    for seed in range(30):
        whole, cut = noisy(1, seed), noisy(1, seed, seq_len=14)
        assert len(cut["actions"]) == min(14, len(whole["actions"]))
        for name, values in cut.items():
            np.testing.assert_array_equal(values, whole[name][:14])
        if len(whole["actions"]) > 14:
            assert cut["weights"][-1] == 1
            ends.add(int(cut["noised"][-1]))
    assert ends == {0, 1}


def test_a_clean_sequence_that_does_not_fit_is_refused():
    # Catches: silent truncation; a position too many or too few.
    rng = np.random.default_rng(0)
    assert len(encoder(seq_len=12).encode(EXAMPLE, rng)["actions"]) == 12
    with pytest.raises(ConfigError, match=r"needs 12 positions, data\.seq_len is 11: '1\+2='"):
        encoder(seq_len=11).encode(EXAMPLE, rng)


def test_without_bos_the_prompt_starts_the_row():
    # Catches: a row that starts in the response; None as an id.
    vocab = Vocab(CharCodec("ab"), {PAD: 2, EOS: 3}, 4)
    bare = encoder(vocab=vocab, answer_prefix="")
    row = bare.encode(Example("ba", (), "a"), np.random.default_rng(0))
    assert row["actions"].tolist() == [1, 0, 0]
    assert row["labels"].tolist() == [0, 0, 3]
    assert row["weights"].tolist() == [0, 1, 1]
    assert row["floor"].tolist() == [1, 1, 1]
    with pytest.raises(VocabError, match="no <bos>"):
        bare.encode(Example("", (), "a"), np.random.default_rng(0))
    empty = encoder().encode(Example("", (), "3"), np.random.default_rng(0))
    assert empty["actions"][0] == VOCAB.bos_id
    assert empty["weights"].tolist() == [1] * 3


def test_noise_depends_on_the_generator_alone():
    # Catches: a global generator, or one kept in the encoder.
    first, again, other = (noisy(2, seed)["actions"].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_noise_comes_from_the_given_ids_and_is_wrong_where_it_starts():
    # Catches: drawing from the whole vocabulary; an "error" that is the right token.
    for ids in ((3,), (7, 8)):
        some = encoder(rate=1.0, ids=ids)
        row = some.encode(EXAMPLE, np.random.default_rng(0))
        on_top = [stack[-1] for stack, noised in zip(stacks(row), row["noised"]) if noised]
        assert set(on_top) <= set(ids)
        # With rate 1 all 8 tokens have noise before them, but for the one that is the only id.
        assert len(on_top) == 8 - (len(ids) == 1)


def test_which_ids_are_noise():
    # Catches: specials among random noise; a unit of several tokens cut to its first.
    words = make_vocab(WordCodec(("one", "two", "\n")))
    assert noise_ids(VOCAB, NoiseConfig(0.0), ()) == ()
    assert noise_ids(VOCAB, NoiseConfig(0.1, source="random"), ()) == tuple(range(14))
    assert noise_ids(VOCAB, NoiseConfig(0.1), ("7", "3")) == (7, 3)
    assert noise_ids(words, NoiseConfig(0.1), ("two",)) == (1,)
    with pytest.raises(ConfigError, match='no noise units; use "random"'):
        noise_ids(VOCAB, NoiseConfig(0.1), ())
    with pytest.raises(ConfigError, match="'12' is 2 tokens"):
        noise_ids(VOCAB, NoiseConfig(0.1), ("1", "12"))


def test_rows_beyond_the_examples_are_padding():
    # Catches: a filler row that counts.
    rng = np.random.default_rng(0)
    encoded = [encoder(24).encode(Example("1=", (), "2" * n), rng) for n in (1, 9)]
    batch = padded(encoded, 3, 24)
    for row, sequence in enumerate(encoded):
        n = len(sequence["actions"])
        assert batch["segments"][row].tolist() == [1] * n + [0] * (24 - n)
        for name, values in sequence.items():
            assert batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name][row, :n], values)
            assert not batch[name][row, n:].any()
    assert not any(values[2].any() for values in batch.values())
