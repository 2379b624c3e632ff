"""Sequences that end in their terminal state, whatever their length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config import ConfigError
from reasoning_jax.data.batch import Batch, padded
from reasoning_jax.data.examples import Example
from reasoning_jax.train import losses
from tests.data.test_batch import EXAMPLE, RESPONSE, VOCAB, encoder, stacks
from tests.small import random_tree, tiny_run

CLEAN = [VOCAB.bos_id, *VOCAB.encode("1+2=" + RESPONSE), VOCAB.eos_id]


def terminal(seq_len=64, rate=0.0, run_length=1, cut=False, seed=0):
    with_end = dataclasses.replace(encoder(seq_len, rate, run_length), terminal_row=True, cut=cut)
    return with_end.encode(EXAMPLE, np.random.default_rng(seed))


@pytest.mark.parametrize(("rate", "run_length"), [(0.0, 1), (0.4, 1), (0.4, 3)])
def test_the_terminal_row_is_one_more_and_nothing_else_changes(rate, run_length):
    """Catches: a terminal row that is scored or called noised, a label there other than <eos>, a
    last action other than <eos>, other noise than without it.
    """
    for seed in range(10):
        row = terminal(rate=rate, run_length=run_length, seed=seed)
        bare = encoder(64, rate, run_length).encode(EXAMPLE, np.random.default_rng(seed))
        for name, values in bare.items():
            np.testing.assert_array_equal(row[name][:-1], values)
            assert row[name].dtype == values.dtype
        last = {name: values[-1] for name, values in row.items()}
        eos = VOCAB.eos_id
        assert last == {"actions": eos, "labels": eos, "weights": 0, "floor": 4, "noised": 0}
        assert stacks(row)[-1] == CLEAN


def test_prompt_labels_are_the_prompt_and_what_is_noised_has_backspace_labels():
    # Catches: prompt labels of 0, shifted by one, or scored.
    for seed in range(10):
        row = terminal(rate=0.4, seed=seed)
        assert row["labels"][:4].tolist() == CLEAN[1:5]
        assert not row["weights"][:4].any()
        assert row["weights"][4:-1].all()
        np.testing.assert_array_equal(row["noised"], row["labels"] == VOCAB.backspace_id)
        # What is executed differs from what is wanted exactly where noise was put in between.
        differ = row["actions"][1:] != row["labels"][:-1]
        enters_noise = (row["noised"][1:] == 1) & (row["noised"][:-1] == 0)
        np.testing.assert_array_equal(differ, enters_noise)


def test_a_cut_sequence_keeps_the_true_next_label_and_ends_in_eos():
    """Catches: the label before the end turned into <eos> with the action; a terminal row that is
    one of the middle; a sequence that just fits taken for a cut one.
    """
    seen = set()
    for seed in range(30):
        whole, cut = terminal(rate=0.4, seed=seed), terminal(14, rate=0.4, seed=seed)
        n = len(cut["actions"])
        assert n == min(14, len(whole["actions"]))
        for name in cut:
            np.testing.assert_array_equal(cut[name][: n - 1], whole[name][: n - 1])
        end = {name: int(cut[name][-1]) for name in cut}
        assert end == {
            "actions": VOCAB.eos_id, "labels": VOCAB.eos_id, "weights": 0, "floor": 4, "noised": 0,
        }  # fmt: skip
        if len(whole["actions"]) > 14:
            seen.add(bool(cut["noised"][-2]))
    assert seen == {False, True}


def test_what_fits_exactly_and_what_does_not():
    # Catches: off by one in what the terminal row needs; text refused, or cut without being asked.
    assert len(CLEAN) == 13
    assert terminal(13)["actions"].tolist() == CLEAN
    with pytest.raises(ConfigError, match=r"needs 13 positions, data\.seq_len is 12"):
        terminal(12)
    for T in range(6, 13):
        row = terminal(T, cut=True)
        assert row["actions"].tolist() == [*CLEAN[: T - 1], VOCAB.eos_id]
        assert row["labels"].tolist() == [*CLEAN[1:T], VOCAB.eos_id]
        assert row["weights"].tolist() == [0] * 4 + [1] * (T - 5) + [0]
    # A prompt without room for one action and the end.
    with pytest.raises(ConfigError, match=r"data\.seq_len is 5"):
        terminal(5, cut=True)
    bare = dataclasses.replace(encoder(5), cut=True)
    row = bare.encode(EXAMPLE, np.random.default_rng(0))
    assert row["actions"].tolist() == CLEAN[:5]
    assert row["labels"].tolist() == CLEAN[1:6]
    assert row["weights"].tolist() == [0] * 4 + [1]
    with pytest.raises(ConfigError, match=r"data\.seq_len is 4"):
        dataclasses.replace(bare, data=encoder(4).data).encode(EXAMPLE, np.random.default_rng(0))
    long = dataclasses.replace(encoder(64), terminal_row=True, cut=True)
    row = long.encode(Example("1", (), "2" * 500), np.random.default_rng(0))
    assert len(row["actions"]) == 64


def test_a_terminal_row_changes_no_bc_loss():
    """Value, gradient and accuracy. Catches: the terminal row scored, prompt labels scored."""
    config = tiny_run(data={"seq_len": 16})
    assembly = assemble(config)
    examples = [assembly.examples("train")[i] for i in range(8)]
    batches = []
    for end in (False, True):
        some = dataclasses.replace(assembly.encoder, terminal_row=end)
        rows = [some.encode(e, np.random.default_rng(i)) for i, e in enumerate(examples)]
        batches.append(Batch(**jax.tree.map(jnp.asarray, padded(rows, 8, 16))))
    assert int((batches[1].segments - batches[0].segments).sum()) == 8
    loss = losses.make_loss(assembly.model, config.objective, assembly.ids)
    from reasoning_jax.model import transformer

    params = random_tree(transformer.param_specs(assembly.model), np.random.default_rng(0))

    @jax.jit
    def evaluated(params, batch):
        def mean(params):
            total, metrics = loss(params, None, batch)
            return total.mean(), metrics

        return jax.value_and_grad(mean, has_aux=True)(params)

    want, got = (jax.device_get(evaluated(params, batch)) for batch in batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, got)


def test_text_that_goes_on_has_no_eos_but_the_forced_one():
    """Catches: <eos> as the label at a window's border; the last token lost as a label."""
    going_on = dataclasses.replace(EXAMPLE, ends=False)
    row = encoder(64, 0.0, 1).encode(going_on, np.random.default_rng(0))
    assert row["actions"].tolist() == CLEAN[:-2]
    assert row["labels"].tolist() == CLEAN[1:-1]
    with_end = dataclasses.replace(encoder(64, 0.0, 1), terminal_row=True)
    row = with_end.encode(going_on, np.random.default_rng(0))
    assert row["actions"].tolist() == [*CLEAN[:-2], VOCAB.eos_id]
    assert row["labels"].tolist() == [*CLEAN[1:-1], VOCAB.eos_id]
    assert row["weights"].tolist() == [0] * 4 + [1] * (len(CLEAN) - 6) + [0]
