"""Unlikelihood: by hand, against Python sets and float64, at p = 1, in slices, on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.objectives.unlikelihood import candidate_mask, unlikelihood

V = 8


def random_rows(seed, rows=6, length=13, vocab=V):
    """Rows of two segments and padding, over so few ids that many repeat."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length))
    segments = np.ones((rows, length), int)
    for b in range(rows):
        split, end = sorted(rng.integers(1, length + 1, 2))
        segments[b, split:] = 2
        segments[b, end:] = 0
    labels = rng.integers(0, vocab, (rows, length))
    return tokens, segments, labels


def oracle(tokens, segments, labels, b, t, excluded=()):
    """C_t as a set."""
    if segments[b, t] == 0:
        return set()
    read = {int(tokens[b, j]) for j in range(t + 1) if segments[b, j] == segments[b, t]}
    return read - {int(labels[b, t])} - set(excluded)


@functools.partial(jax.jit, static_argnames="excluded")
def whole_loss(logits, tokens, segments, labels, excluded=()):
    mask = candidate_mask(tokens, segments, labels, excluded=excluded)
    return unlikelihood(logits, tokens, mask)


@pytest.mark.parametrize("excluded", [(), (0, 5)])
def test_candidates_are_the_set_of_what_was_read_without_the_label(excluded):
    tokens, segments, labels = random_rows(0)
    mask = candidate_mask(*map(jnp.array, (tokens, segments, labels)), excluded=excluded)
    mask, sizes = np.array(mask), []
    for b, t in np.ndindex(tokens.shape):
        marked = tokens[b, mask[b, t]].tolist()
        want = oracle(tokens, segments, labels, b, t, excluded)
        assert sorted(marked) == sorted(want), "each candidate once, and no other"
        sizes.append(len(want))
    assert max(sizes) > 2
    assert 0 in sizes


def test_the_loss_by_hand():
    """p = 1/2, 1/4, 1/8, 1/8; read: 0 2 0 | 3; label 2 at the first three, 0 at the last."""
    p = np.array([0.5, 0.25, 0.125, 0.125])
    tokens, segments = jnp.array([[0, 2, 0, 3]]), jnp.array([[1, 1, 1, 2]])
    labels = jnp.array([[2, 2, 2, 0]])
    logits = jnp.broadcast_to(jnp.log(jnp.array(p)) + 3.0, (1, 4, 4))
    got = whole_loss(logits, tokens, segments, labels)
    want = [-np.log(0.5), -np.log(0.5), -np.log(0.5), -np.log(0.875)]
    np.testing.assert_allclose(got[0], want, rtol=1e-6)
    got = whole_loss(logits, tokens, segments, jnp.array([[1, 1, 3, 3]]))
    both = -np.log(0.5) - np.log(0.875)
    np.testing.assert_allclose(got[0], [-np.log(0.5), both, both, 0.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_values_and_gradients_equal_float64(scale):
    """Also where p is 1 in float32: neither infinite, nor clipped to a gradient of 0."""
    arrays = random_rows(1)
    tokens, segments, labels = map(jnp.array, arrays)
    rng = np.random.default_rng(2)
    logits = scale * rng.standard_normal((*tokens.shape, V))
    logits32 = jnp.array(logits, jnp.float32)
    logits = np.array(logits32, np.float64)

    got = whole_loss(logits32, tokens, segments, labels)
    grad = jax.grad(lambda z: whole_loss(z, tokens, segments, labels).sum())(logits32)
    got, grad = np.array(got), np.array(grad)
    for b, t in np.ndindex(tokens.shape):
        z = logits[b, t] - logits[b, t].max()
        e = np.exp(z)
        loss, want = 0.0, np.zeros(V)
        for c in oracle(*arrays, b, t):
            rest = np.delete(e, c).sum()
            loss -= np.log(rest / e.sum())
            want += e / e.sum() - np.where(np.arange(V) == c, 0.0, e) / rest
        np.testing.assert_allclose(got[b, t], loss, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad[b, t], want, rtol=1e-4, atol=1e-6)


def test_a_certain_repeat_still_has_a_gradient():
    logits = jnp.array([[[0.0, 100.0, 0.0, -1e30]]])
    tokens, segments, labels = jnp.array([[1]]), jnp.array([[1]]), jnp.array([[0]])
    loss, grad = jax.value_and_grad(lambda z: whole_loss(z, tokens, segments, labels).sum())(logits)
    np.testing.assert_allclose(loss, 100.0 - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad[0, 0], [-0.5, 1.0, -0.5, 0.0], atol=1e-6)


def test_a_step_down_raises_the_targets_logit_and_lowers_the_candidates():
    arrays = random_rows(3)
    tokens, segments, labels = map(jnp.array, arrays)
    logits = jax.random.normal(jax.random.key(0), (*tokens.shape, V))
    grad = jax.grad(lambda z: whole_loss(z, tokens, segments, labels).sum())(logits)
    before, after = (np.array(jax.nn.softmax(z, axis=-1)) for z in (logits, logits - 0.1 * grad))
    grad = np.array(grad)
    for b, t in np.ndindex(tokens.shape):
        candidates = oracle(*arrays, b, t)
        if candidates:
            label, some = arrays[2][b, t], sorted(candidates)
            # Its probability need not rise: other tokens gain in proportion to theirs.
            assert grad[b, t, label] < 0
            assert after[b, t, some].sum() < before[b, t, some].sum()
        else:
            assert not grad[b, t].any()


def test_a_repeat_counts_once_and_segments_and_padding_are_apart():
    logits = jax.random.normal(jax.random.key(1), (1, 6, V))
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    labels = jnp.array([[7] * 6])

    def loss(*tokens):
        return np.array(whole_loss(logits, jnp.array([tokens]), segments, labels)[0])

    log_not = np.array(jnp.log1p(-jax.nn.softmax(logits[0], axis=-1)))
    plain, repeated, again = loss(1, 2, 3, 4, 5, 6), loss(1, 2, 2, 4, 5, 6), loss(1, 2, 2, 1, 5, 6)
    np.testing.assert_allclose(plain[2], -log_not[2, [1, 2, 3]].sum(), rtol=1e-5)
    np.testing.assert_allclose(repeated[2], -log_not[2, [1, 2]].sum(), rtol=1e-5)
    # The second segment begins anew, even with a token of the first; padding has no loss.
    np.testing.assert_array_equal(repeated[3:], plain[3:])
    np.testing.assert_allclose(again[3], -log_not[3, 1], rtol=1e-5)
    assert plain[5] == 0


@pytest.mark.parametrize("chunk", [1, 4, 13, 20])
def test_slices_make_the_whole(chunk):
    """Also a last slice that reaches beyond the row; `start` is traced."""
    tokens, segments, labels = map(jnp.array, random_rows(4))
    B, T = tokens.shape
    logits = jax.random.normal(jax.random.key(2), (B, T, V))
    parts = -(-T // chunk)
    padding = parts * chunk - T

    def one(part):
        start, z, wanted = part
        return unlikelihood(z, tokens, candidate_mask(tokens, segments, wanted, start=start))

    z = jnp.pad(logits, ((0, 0), (0, padding), (0, 0))).reshape(B, parts, chunk, V)
    wanted = jnp.pad(labels, ((0, 0), (0, padding))).reshape(B, parts, chunk)
    got = jax.lax.map(one, (jnp.arange(parts) * chunk, z.swapaxes(0, 1), wanted.swapaxes(0, 1)))
    got = got.swapaxes(0, 1).reshape(B, -1)
    np.testing.assert_allclose(
        got[:, :T], whole_loss(logits, tokens, segments, labels), rtol=1e-5, atol=1e-6
    )
    assert not got[:, T:].any()


@pytest.mark.parametrize("vocabulary", [None, "tensor"])
def test_a_mesh_changes_nothing(vocabulary):
    """Batch split over four devices; logits whole or split along the vocabulary."""
    arrays = random_rows(5, rows=8)
    logits = np.random.default_rng(6).standard_normal((8, 13, V)).astype(np.float32)

    @jax.jit
    def loss_and_grad(logits, *arrays):
        return jax.value_and_grad(lambda z: whole_loss(z, *arrays, excluded=(3,)).sum())(logits)

    loss, grad = loss_and_grad(jnp.array(logits), *map(jnp.array, arrays))
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, sharding.P(sharding.BATCH_AXES, None, vocabulary))
        placed = [jax.device_put(a, sharding.batch_sharding(mesh)) for a in arrays]
        loss8, grad8 = jax.device_get(loss_and_grad(jax.device_put(logits, split), *placed))
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    np.testing.assert_allclose(grad8, grad, atol=1e-6)
