"""top-k, min-p, top-p and temperatures: as sorting by hand has them, and on every mesh."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.decoding.actions import FORBIDDEN, ActionIds, action_log_probs
from reasoning_jax.decoding.sampler import make_sampler
from reasoning_jax.model import spec, transformer
from tests.small import LLAMA, init

# (data, fsdp, tensor); the first is one device.
MESHES = [(1, 1, 1), (4, 2, 1), (1, 1, 8), (2, 2, 2)]
FILTERS = [
    {"top_k": 1}, {"top_k": 3}, {"top_k": 1000}, {"top_p": 0.9}, {"top_p": 1e-50},
    {"top_p": 1 - 1e-9}, {"min_p": 0.3}, {"min_p": 1.0}, {"temperature": 0.0, "top_p": 0.5},
    {"temperature": 0.7, "top_k": 9, "min_p": 0.01, "top_p": 0.9},
    {"temperature": 1e-6, "top_k": 2, "top_p": 0.8}, {"temperature": 1e-40}, {"temperature": 100.0},
]  # fmt: skip
ALL = SamplingConfig(temperature=0.9, top_k=9, min_p=0.02, top_p=0.9, max_actions=8)
MODEL = dataclasses.replace(LLAMA, n_heads=8, n_kv_heads=8, n_layers=1, d_ff=32)


def mesh_of(shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def by_hand(logits, allowed, sampling):
    """The distribution with plain sorting, in float64. Its logits are exact in float32."""
    z = np.where(allowed, logits.astype(np.float64), -np.inf)
    if sampling.temperature:
        z = np.where(allowed, (z - z.max()) / sampling.temperature, -np.inf)
    if 0 < sampling.top_k < len(z):
        z = np.where(z >= np.sort(z)[-sampling.top_k], z, -np.inf)
    if sampling.min_p:
        z = np.where(z >= z.max() + np.log(sampling.min_p), z, -np.inf)
    if sampling.top_p < 1:
        p = np.exp(z - z.max())
        p /= p.sum()
        # What is more probable, ties counted as one.
        z = np.where([p[z > value].sum() < sampling.top_p for value in z], z, -np.inf)
    p = np.exp(z - z.max())
    return p / p.sum()


def rows_of_logits(vocab):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, vocab)).astype(np.float32) * 3
    logits[1] = np.round(logits[1])  # ties
    logits[2] = 0.0
    logits[3] -= 60.0
    logits[4, 5] = 80.0
    logits[5, ::2] = -0.0
    logits[5, 1::2] = 0.0
    logits[6] = np.array(logits[6], jnp.bfloat16).astype(np.float32)
    allowed = rng.random((8, vocab)) < 0.8
    allowed[:, 0] = True
    allowed[7, 1:] = False
    return logits, allowed


@pytest.mark.parametrize("vocab", [16, 19])
@pytest.mark.parametrize("shape", [None, *MESHES])
def test_each_filter_keeps_what_sorting_by_hand_keeps(vocab, shape, unoptimised):
    """Catches: a row sorted where its vocabulary is split, a tie that the layout decides, a filter
    that keeps nothing (a top_p below float32), a temperature that leaves float32.
    """
    logits, allowed = rows_of_logits(vocab)
    samplings = [SamplingConfig(**settings) for settings in FILTERS]
    run = jax.jit(lambda z, allowed: [action_log_probs(z, allowed, s) for s in samplings])
    if shape is None:
        results = run(logits, allowed)
    else:
        mesh = mesh_of(shape)
        spread = sharding.P(sharding.BATCH_AXES, "tensor" if vocab % shape[2] == 0 else None)
        with jax.set_mesh(mesh):
            placed = jax.device_put(logits, jax.sharding.NamedSharding(mesh, spread))
            results = run(placed, sharding.place_rows(allowed, mesh))
            assert {jax.typeof(x).sharding.spec for x in results} == {spread}
    for settings, sampling, found in zip(FILTERS, samplings, jax.device_get(results)):
        for b in range(len(logits)):
            want = by_hand(logits[b], allowed[b], sampling)
            np.testing.assert_array_equal(found[b] > FORBIDDEN, want > 0, err_msg=str(settings))
            np.testing.assert_allclose(np.exp(found[b]), want, atol=1e-5, err_msg=str(settings))


def test_filters_of_a_long_row_keep_what_sorting_keeps():
    # Catches: too few halvings for all bits; weights added in an order that loses the tail.
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(4, 50_000)) * 4).astype(np.float32)
    allowed = np.ones_like(logits, bool)
    run = jax.jit(action_log_probs, static_argnames="sampling")
    for settings in ({"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 777}, {"top_k": 50, "top_p": 0.5}):
        sampling = SamplingConfig(**settings)
        found = np.asarray(run(logits, allowed, sampling=sampling)) > FORBIDDEN
        for b in range(len(logits)):
            z = logits[b].astype(np.float64)
            if sampling.top_k:
                z = np.where(z >= np.sort(z)[-sampling.top_k], z, -np.inf)
            p = np.sort(np.exp(z - z.max()))[::-1]
            kept = int((np.cumsum(p) - p < sampling.top_p * p.sum()).sum())
            kept = min(kept, sampling.top_k or kept)
            assert abs(found[b].sum() - kept) <= (0 if "top_p" not in settings else 1)
            assert logits[b][found[b]].min() > logits[b][~found[b]].max()


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(2)
    length = rng.integers(1, 6, 8).astype(np.int32)
    ids = np.where(np.arange(5) < length[:, None], rng.integers(0, 9, (8, 5)), 0).astype(np.int32)
    return ids, length, length - 1, np.arange(8, dtype=np.int32)


# `tensor` of 8 divides a vocabulary of 16 and none of 12, `tensor` of 2 both.
@pytest.mark.parametrize(("vocab", "shapes"), [(12, MESHES[:3]), (16, MESHES[2:])])
def test_a_mesh_changes_no_filtered_draw(vocab, shapes, prompts, unoptimised):
    """The actions are those without a mesh, and so are their log-probabilities."""
    config = dataclasses.replace(MODEL, vocab_size=vocab)
    params, key = init(config), jax.random.key(3)

    def drawn(sampling, mesh=None):
        run = make_sampler(config, sampling, ActionIds(9, 10, (11,)))
        if mesh is None:
            return jax.device_get(run(params, *map(jnp.asarray, prompts), key))
        shardings = spec.shardings(transformer.param_specs(config), mesh)
        placed = jax.tree.map(jax.device_put, params, shardings)
        arrays = [sharding.place_rows(x, mesh) for x in prompts]
        return jax.device_get(run(placed, *arrays, key))

    want = drawn(ALL)
    free = drawn(SamplingConfig(temperature=ALL.temperature, max_actions=ALL.max_actions))
    assert (want.actions != free.actions).any(), "the filters change nothing"
    for shape in shapes:
        mesh = mesh_of(shape)
        with jax.set_mesh(mesh):
            out = drawn(ALL, mesh)
        for name in ("actions", "chosen", "forced", "length", "tokens"):
            np.testing.assert_array_equal(getattr(out, name), getattr(want, name))
        np.testing.assert_allclose(out.log_probs, want.log_probs, rtol=1e-5, atol=1e-5)


def test_the_frequencies_of_filtered_draws_are_their_log_probs(unoptimised):
    rows = 4000
    sampler = make_sampler(LLAMA, dataclasses.replace(ALL, max_actions=2), ActionIds(9, 10, (11,)))
    arrays = (np.full((1, 2), 1), np.array([2]), np.array([1]), np.arange(rows))
    out = jax.device_get(sampler(init(LLAMA), *map(jnp.asarray, arrays), jax.random.key(0)))
    first, seen = out.actions[:, 0], {}
    for action in np.unique(first):
        (p,) = np.unique(np.exp(out.log_probs[first == action, 0]).round(6))
        seen[int(action)] = p
        assert abs((first == action).mean() - p) < 4 * np.sqrt(p * (1 - p) / rows) + 1e-9
    assert 1 < len(seen) < 11
    assert sum(seen.values()) == pytest.approx(1, abs=1e-3)


def test_every_pair_of_filters_leaves_the_most_probable_action():
    """Catches: two filters that together keep nothing, so that a draw is of forbidden actions."""
    logits, allowed = rows_of_logits(19)
    run = jax.jit(action_log_probs, static_argnames="sampling")
    narrow = ({"top_k": 1}, {"top_p": 1e-40}, {"min_p": 1.0}, {"temperature": 1e-45})
    for first, second in itertools.combinations(narrow, 2):
        found = np.asarray(run(logits, allowed, sampling=SamplingConfig(**first, **second)))
        best = np.where(allowed, logits, -np.inf)
        for b in range(len(logits)):
            np.testing.assert_array_equal(found[b] > FORBIDDEN, best[b] == best[b].max())
