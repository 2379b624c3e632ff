"""Rows from a queue, of any batch size, group and mesh, do what they do in a batch of all rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.decoding.sampler import make_sampler
from reasoning_jax.model import spec, transformer
from tests.decoding.test_sampler import IDS, A
from tests.small import LLAMA, init

pytestmark = pytest.mark.usefixtures("unoptimised")

MODEL = dataclasses.replace(LLAMA, d_ff=32)


def prompts_of(n, seed=0):
    """(ids [n, 5], lengths, floors)"""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 9, (n, 5)).astype(np.int32)
    length = rng.integers(1, 6, n).astype(np.int32)
    return ids, length, (rng.integers(0, 99, n) % length).astype(np.int32)


def run(prompts, group, batch_rows, mesh=None):
    """Rows with budgets of 1 to A actions, so that places come free one by one."""
    Q = len(prompts[0]) * group
    arrays = (*prompts, np.arange(Q, dtype=np.int32))
    limit = (np.arange(Q) * 7 % A + 1).astype(np.int32)
    sample = make_sampler(MODEL, SamplingConfig(max_actions=A), IDS, batch_rows=batch_rows)
    if mesh is None:
        arrays = map(jnp.asarray, arrays)
        out = sample(init(MODEL), *arrays, jax.random.key(0), None, jnp.asarray(limit))
        return jax.device_get(out)

    def place(x):
        whole = len(x) % sharding.batch_parts(mesh)
        return (
            jax.device_put(x, sharding.replicated(mesh)) if whole else sharding.place_rows(x, mesh)
        )

    with jax.set_mesh(mesh):
        shardings = spec.shardings(transformer.param_specs(MODEL), mesh)
        params = jax.tree.map(jax.device_put, init(MODEL), shardings)
        out = sample(params, *map(place, arrays), jax.random.key(0), None, place(limit))
        return jax.device_get(out)


def same(got, want):
    for b, n in enumerate(want.token_count):
        assert got.tokens[b, :n].tolist() == want.tokens[b, :n].tolist()
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-5)
    np.testing.assert_allclose(got.backspace, want.backspace, atol=1e-5)
    for name in ("actions", "chosen", "forced", "length", "token_count"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("batch_rows", [1, 5])
def test_a_row_from_the_queue_does_what_it_does_in_one_batch(batch_rows):
    prompts = prompts_of(24)
    same(run(prompts, 1, batch_rows), run(prompts, 1, 0))


@pytest.mark.parametrize("batch_rows", [0, 7])
def test_rows_that_share_a_prompt_do_what_they_do_with_one_each(batch_rows):
    prompts = prompts_of(8)
    each = tuple(np.repeat(x, 3, axis=0) for x in prompts)
    same(run(prompts, 3, batch_rows), run(each, 1, 0))


@pytest.mark.parametrize(("n", "group"), [(24, 1), (2, 8)])
def test_a_mesh_with_a_queue_changes_no_sample(n, group):
    """Also of prompts that are fewer than the devices."""
    prompts = prompts_of(n)
    each = tuple(np.repeat(x, group, axis=0) for x in prompts)
    same(run(prompts, group, 8, sharding.make_mesh(4, 1, 2)), run(each, 1, 0))


def test_rows_that_are_no_multiple_of_the_prompts_are_refused():
    prompts = [jnp.asarray(x) for x in prompts_of(2)]
    sample = make_sampler(MODEL, SamplingConfig(max_actions=A), IDS)
    with pytest.raises(ValueError, match="3 rows cannot continue 2 prompts"):
        sample(init(MODEL), *prompts, jnp.arange(3), jax.random.key(0))
