"""The unlikelihood loss against sets and full logits; chunks, parts and meshes change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config import ObjectiveConfig
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.model import attention, readout, transformer
from reasoning_jax.objectives.unlikelihood import candidate_mask, unlikelihood
from reasoning_jax.train import losses
from tests.objectives.test_unlikelihood import oracle
from tests.small import init, tiny_run
from tests.train.test_training import steps_on_mesh

WEIGHT = 0.7
MODEL = {"d_model": 16, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_ff": 16}


def run(**sections):
    base = {
        "objective": {"name": "unlikelihood", "unlikelihood_weight": WEIGHT},
        "noise": {"rate": 0.0},
        "data": {"seq_len": 20, "train_problems": 50, "pack_examples": True},
        "model": MODEL,
    }
    return tiny_run(**{k: {**base.get(k, {}), **sections.get(k, {})} for k in {**base, **sections}})


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """Code that is not optimised: compiling is most of these tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def assembly():
    return assemble(run())


@pytest.fixture(scope="module")
def batch(assembly):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        source = SupervisedSource(
            assembly.examples("train"), assembly.encoder, batch_rows=6, seed=0, mesh=mesh,
            pack_examples=True,
        )  # fmt: skip
        made = source.next()
    made = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), made)
    assert int(made.segments.max()) > 1, "rows of several examples"
    return made


@pytest.fixture(scope="module")
def params(assembly):
    return init(assembly.model)


def loss_of(assembly, objective, **model):
    config = dataclasses.replace(assembly.model, **model)
    loss = losses.make_loss(config, objective, assembly.ids)

    def mean(params, batch):
        value, metrics = loss(params, None, batch)
        return value.mean(), metrics

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


UNLIKELY = ObjectiveConfig("unlikelihood", unlikelihood_weight=WEIGHT)


def test_the_loss_is_that_of_sets_and_full_logits(assembly, batch, params):
    """Each position's candidates as a set, each probability from the whole row of logits.

    Catches: <bos> or <eos> as a candidate, candidates of the segment before, the mean taken twice,
    weights of one term for the other, the weight on both.
    """
    (value, metrics), _ = loss_of(assembly, UNLIKELY)(params, batch)

    @jax.jit
    def logits(params, batch):
        hidden = transformer.apply(
            params, assembly.model, batch.actions,
            positions=losses.causal_positions(batch.segments),
            attention=attention.Causal(batch.segments),
        ).hidden  # fmt: skip
        return readout.logits(params, assembly.model, hidden)

    z = logits(params, batch)
    p = np.asarray(jax.nn.softmax(z, axis=-1), np.float64)
    tokens, segments, labels, weights = (
        np.asarray(x) for x in (batch.actions, batch.segments, batch.labels, batch.weights)
    )
    excluded = (assembly.vocab.bos_id, assembly.vocab.eos_id, *assembly.ids.never)
    likely = unlikely = 0.0
    candidates = []
    for b, t in np.ndindex(tokens.shape):
        if weights[b, t]:
            likely -= np.log(p[b, t, labels[b, t]])
            found = oracle(tokens, segments, labels, b, t, excluded)
            unlikely -= sum(np.log1p(-p[b, t, c]) for c in found)
            candidates.append(len(found))
    assert max(candidates) > 2
    count = weights.sum()
    assert float(metrics["loss_mle"].mean()) == pytest.approx(likely / count, rel=1e-4)
    assert float(metrics["loss_unlikelihood"].mean()) == pytest.approx(unlikely / count, rel=1e-4)
    assert float(value) == pytest.approx((likely + WEIGHT * unlikely) / count, rel=1e-4)
    mask = candidate_mask(
        batch.actions, batch.segments, batch.labels, excluded=tuple(map(int, excluded))
    )
    whole = (unlikelihood(z, batch.actions, mask) * batch.weights).sum()
    assert float(metrics["loss_unlikelihood"].value) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("tokens", [6, 42])
def test_chunks_change_neither_loss_nor_gradient(assembly, batch, params, tokens):
    # Catches: a chunk that takes itself for the start of the row; padding of the last chunk.
    (want, _), gradient = loss_of(assembly, UNLIKELY)(params, batch)
    chunk = readout.chunk_length(
        dataclasses.replace(assembly.model, loss_chunk_tokens=tokens), *batch.actions.shape
    )
    assert chunk < batch.actions.shape[1]
    (got, _), other = loss_of(assembly, UNLIKELY, loss_chunk_tokens=tokens)(params, batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other, gradient)


def test_without_its_weight_it_is_maximum_likelihood(assembly, batch, params):
    # Catches: a term that is added whatever its weight.
    nothing = ObjectiveConfig("unlikelihood", unlikelihood_weight=0.0)
    (value, _), gradient = loss_of(assembly, nothing)(params, batch)
    (want, _), other = loss_of(assembly, ObjectiveConfig("mle"))(params, batch)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other)
    # And with it, it is not.
    (more, _), _ = loss_of(assembly, UNLIKELY)(params, batch)
    assert float(more) > float(want) + 0.01


def test_meshes_parts_and_chunks_give_the_same_training():
    # Catches: a vocabulary that is split where a token is looked up; each part divided by its own
    # count.
    want, params, _ = steps_on_mesh(run(), (1, 1, 1), 3)
    for change, shape in (
        ({"optimizer": {"accumulate": 2}}, (1, 1, 1)),
        ({"model": {**MODEL, "loss_chunk_tokens": 24}}, (2, 2, 2)),
    ):
        got, others, compilations = steps_on_mesh(run(**change), shape, 3)
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=str(change))
        assert compilations == 1
        for path, x in params.items():
            np.testing.assert_allclose(others[path], x, atol=2e-4, err_msg=path)
