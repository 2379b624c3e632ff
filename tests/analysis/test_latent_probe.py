"""Readings of a small random model, held against plain passes that need no analysis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import config as config_lib
from reasoning_jax import sharding
from reasoning_jax.analysis import latent_probe as lp
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config_check import from_dict
from reasoning_jax.model import readout, spec, transformer
from reasoning_jax.tasks import task_dials
from reasoning_jax.vocab import LATENT
from tests import small

KEY = jax.random.key(0)
# (form of the questions, whether the target is one token, thoughts a step)
KINDS = {"fused": (True, 1), "symbolic": (True, 2), "text": (False, 1)}


@pytest.fixture(scope="module")
def one_device():
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.set_mesh(mesh):
        yield mesh
    jax.config.update("jax_disable_most_optimizations", False)


def make(form, mesh):
    """A subject with random parameters, and cases of 2 and of 3 hops."""
    alone, c_thought = KINDS[form]
    values = config_lib.to_dict(config_lib.Config())
    values["task"] = {
        "name": "prosqa", **task_dials("prosqa"), "form": form, "family": "mirrored",
        "min_hops": 2, "max_hops": 3,
    }  # fmt: skip
    values["vocab"].update(kind="pair" if form == "fused" else "word", backspace=False, latent=True)
    values["data"].update(
        seq_len=160, train_problems=50, answer_prefix=" [A] " if alone else "### ",
        question_suffix=" " if alone else "\n", step_suffix=" " if alone else "\n",
    )  # fmt: skip
    values["latent"].update(
        mode="coconut", target="next_step" if alone else "rest", max_latent_stage=3,
        c_thought=c_thought, markers=not alone,
    )  # fmt: skip
    values["sampling"]["max_actions"] = 2 if alone else 32
    values["model"].update(
        d_model=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16,
        position="none" if form == "fused" else "rope",
    )  # fmt: skip
    assembly = assemble(from_dict(values))
    shardings = spec.shardings(transformer.param_specs(assembly.model), mesh)
    subject = lp.Subject(
        jax.device_put(small.init(assembly.model), shardings), None, assembly.model,
        assembly.staged, assembly.thoughts, mesh, 4,
    )  # fmt: skip
    source = assembly.examples("validation")
    return subject, [lp.read_case(source[i]) for i in range(5)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request, one_device):
    return make(request.param, one_device)


def plain_pass(subject, ids, **kwargs):
    """Of a row without thoughts; columns behind it are padding."""
    width = len(ids) + -len(ids) % 64
    padded = [*ids, *[0] * (width - len(ids))]
    tokens, positions = (
        sharding.place_rows(np.asarray([x], np.int32), subject.mesh) for x in (padded, range(width))
    )
    return small.apply(subject.params, subject.config, tokens, positions=positions, **kwargs)


def plain_log_probs(subject, ids):
    """log p of what follows each column of a row without thoughts."""
    out = plain_pass(subject, ids)
    logits = readout.logits(subject.params, subject.config, out.hidden)
    return np.asarray(jax.nn.log_softmax(logits))[0]


def test_a_continuation_is_scored_behind_what_all_candidates_share(one_device):
    # Catches: a product over too few tokens or too many; rows mixed up; prompts of unequal length.
    subject, cases = make("text", one_device)
    prompts = [lp.context(subject, case, 0, answering=False) for case in cases[:2]]
    a, b, c, d = subject.vocab.text_ids()[:4]
    candidates = [[[a, b], [a, c, d], [a, b, b]], [[c], [d, a]]]
    found = lp.continuation_log_probs(subject, prompts, candidates, KEY)
    for prompt, options, got, shared in zip(prompts, candidates, found, (1, 0)):
        for option, value in zip(options, got):
            row = plain_log_probs(subject, [*prompt, *option])
            at = range(len(prompt) - 1 + shared, len(prompt) - 1 + len(option))
            want = sum(row[i, token] for i, token in zip(at, option[shared:]))
            assert value == pytest.approx(want, abs=1e-4)


def test_values_of_the_next_step_are_the_decoded_thought(one_device):
    # Without markers the state that says the next step is the one that the next thought is made of.
    # Catches: values after k + 1 or k - 1 thoughts; another row's thoughts; another order of nodes.
    subject, cases = make("fused", one_device)
    traced = lp.read_thoughts(subject, cases, 3)
    logits = readout.logits(subject.params, subject.config, jnp.asarray(traced.states))
    probabilities = np.asarray(jax.nn.softmax(logits))
    for k in range(3):
        values = lp.step_values(subject, cases, k, KEY)
        for case, value, row in zip(cases, values, probabilities):
            ids = [subject.vocab.encode(x)[0] for x in case.dag.symbols]
            np.testing.assert_allclose(value, row[k, ids], atol=1e-5)
    top = lp.decoded(subject, traced.states[0], 3)
    assert [p for _, p in top[1]] == pytest.approx(sorted(probabilities[0, 1])[:-4:-1])


def test_thoughts_are_fed_what_they_are_made_of(kind):
    # With thoughts after the final norm, input i is state i; of each row alone as in the batch.
    subject, cases = kind
    together = lp.read_thoughts(subject, cases, 2)
    np.testing.assert_allclose(together.inputs, together.states, atol=1e-6)
    alone = lp.read_thoughts(subject, [min(cases, key=lambda c: len(c.dag.symbols))], 2)
    at = cases.index(min(cases, key=lambda c: len(c.dag.symbols)))
    np.testing.assert_allclose(alone.inputs[0], together.inputs[at], atol=1e-5)
    np.testing.assert_allclose(alone.attention[0], together.attention[at], atol=1e-5)


def test_attention_is_over_the_row_s_own_columns(kind):
    # Catches: padding in the way, columns off by the padding, a column that sees what follows.
    subject, cases = kind
    n = 2 * subject.c_thought
    traced = lp.read_thoughts(subject, cases, 2)
    for case, weights in zip(cases, traced.attention):
        ids = lp.context(subject, case, 2, answering=False)
        first = ids.index(subject.vocab.specials[LATENT])
        layers = len(lp.traced_layers(subject.config))
        assert layers == 2
        assert weights.shape == (n + 1, layers, 2, first + n)
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
        for i in range(n):
            assert (weights[i, :, :, first + i :] == 0).all()
            assert (weights[i, :, :, : first + i] > 0).all()


def test_the_thoughts_columns_attend_as_the_plain_pass_does_before_any_thought(kind):
    # Catches: another layer's weights, another column's, heads not summed, another edge's column.
    subject, cases = kind
    case = cases[0]
    traced = lp.read_thoughts(subject, cases, 1)
    ids = lp.context(subject, case, 1, answering=False)
    ids = ids[: ids.index(subject.vocab.specials[LATENT])]
    out = plain_pass(subject, ids, capture_weights=(1, 2))
    text = subject.vocab.decode
    for layer in (0, 1):
        found = lp.edge_attention(subject, case, traced.attention[0], 1, layer)
        assert set(found) == set(case.dag.edges)
        for (start, end), value in found.items():
            column = lp.edge_columns(subject, case)[start, end]
            names = case.dag.symbols[start], case.dag.symbols[end]
            if case.question.form == "fused":
                assert text([ids[column]]) == ">".join(names)
            else:
                assert text([ids[column]]).rstrip(".") == names[1]
                back = 1 if case.question.form == "symbolic" else 3
                assert text([ids[column - back]]) == names[0]
            want = np.asarray(out.weights[layer])[0, :, len(ids) - 1, column].sum()
            assert value == pytest.approx(want, abs=1e-5)


def test_inner_products_are_with_the_last_thought_of_a_step(kind):
    subject, cases = kind
    case = cases[0]
    traced = lp.read_thoughts(subject, cases, 2)
    found = lp.node_products(subject, case, traced.inputs[0], 2)
    table = np.asarray(subject.params["embedding"]["tokens"])
    ids = [subject.vocab.encode(x)[0] for x in case.dag.symbols]
    np.testing.assert_allclose(found, table[ids] @ traced.inputs[0, -1], rtol=1e-4, atol=1e-5)


def test_text_candidates_are_concepts_as_subjects_and_names_have_no_value(one_device):
    subject, cases = make("text", one_device)
    case = cases[0]
    start = lp.step_values(subject, cases, 0, KEY)[0]
    later = lp.step_values(subject, cases, 1, KEY)[0]
    answer = lp.answer_values(subject, cases, 3, KEY)[0]
    names = [v for v in range(len(case.dag.symbols)) if not case.dag.parents[v]]
    for values in (start, later, answer):
        assert np.isnan(values[names]).all()
        assert np.isfinite(np.delete(values, names)).all()
        assert np.nansum(values) <= 1.0 + 1e-5
    # After a thought the next sentence begins with what it reached, before one with the root.
    assert [lp.candidate_depth(case, k) for k in range(3)] == [1, 1, 2]
    prompt = lp.context(subject, case, 0, answering=False)
    root, node = case.dag.symbols[case.dag.root], case.dag.symbols[case.dag.target]
    asked = [*prompt, *subject.vocab.encode(f"{root} is a")]
    word, stop = subject.vocab.encode(f"{node}.")
    row = plain_log_probs(subject, [*asked, word])
    want = row[len(asked) - 1, word] + row[len(asked), stop]
    assert np.log(start[case.dag.target]) == pytest.approx(want, abs=1e-4)


def test_what_is_written_is_judged_and_put_into_a_category(kind):
    subject, cases = kind
    sampling = config_lib.SamplingConfig(max_actions=6)
    for k in (0, 2):
        outcomes = lp.answers(subject, cases, k, sampling, KEY)
        assert len(outcomes) == len(cases)
        for case, outcome in zip(cases, outcomes):
            if subject.staged.alone:
                assert outcome.text.startswith(" [A] ")
                assert outcome.category in ("correct label", "incorrect label")
                assert outcome.right == (outcome.text.removeprefix(" [A] ").strip() == case.answer)
