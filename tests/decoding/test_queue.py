"""Rows from a queue, of any batch size, group and mesh, do what they do in a batch of all rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import LoraConfig, SamplingConfig
from reasoning_jax.decoding import sampler as sampler_lib
from reasoning_jax.decoding.actions import Noise
from reasoning_jax.decoding.sampler import make_sampler
from reasoning_jax.model import lora, spec, transformer
from tests.decoding.test_sampler import IDS, A
from tests.small import LLAMA, init, random_tree

pytestmark = pytest.mark.usefixtures("unoptimised")

MODEL = dataclasses.replace(LLAMA, d_ff=32)
SHORT = dataclasses.replace(LLAMA, n_layers=1)


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


@pytest.mark.parametrize("batch_rows", [1, 5, 13])
def test_a_row_from_the_queue_does_what_it_does_in_one_batch(batch_rows):
    """Of 13 places, the last rows go on in 3."""
    prompts = prompts_of(24)
    same(run(prompts, 1, batch_rows), run(prompts, 1, 0))


@pytest.mark.parametrize("batch_rows", [0, 7])
def test_rows_that_share_a_prompt_do_what_they_do_with_one_each(batch_rows):
    prompts = prompts_of(8)
    each = tuple(np.repeat(x, 3, axis=0) for x in prompts)
    same(run(prompts, 3, batch_rows), run(each, 1, 0))


@pytest.mark.parametrize(("n", "group", "batch_rows"), [(48, 1, 32), (2, 8, 8)])
def test_a_mesh_with_a_queue_changes_no_sample(n, group, batch_rows):
    """Also of prompts that are fewer than the devices; and where the last rows go on in a smaller
    batch.
    """
    prompts = prompts_of(n)
    each = tuple(np.repeat(x, group, axis=0) for x in prompts)
    same(run(prompts, group, batch_rows, sharding.make_mesh(4, 1, 2)), run(each, 1, 0))


FILTERED = SamplingConfig(max_actions=A, temperature=0.7, top_k=7, top_p=0.95, min_p=0.02)
GREEDY = SamplingConfig(max_actions=A, temperature=0.0, max_new_tokens=5)


@pytest.mark.parametrize(
    ("sampling", "noise"), [(FILTERED, Noise(0.3, tuple(range(9)))), (GREEDY, None)],
    ids=["filtered, with noise", "greedy"],
)  # fmt: skip
def test_adapters_filters_and_noise_are_those_of_the_row(sampling, noise):
    """Three rows a prompt, five at a time, against a batch in which each has its own, of a model
    into which the adapters are merged.

    Catches: adapters that the prompts are read without; noise or draws of a place, not of a row; a
    depth counted from another prompt.
    """
    prompts = prompts_of(7)
    pairs = random_tree(lora.lora_specs(SHORT, LoraConfig(rank=2)), np.random.default_rng(1))
    adapters, params = lora.Lora(pairs, 0.5), init(SHORT)

    def decoded(params, adapters, prompts, rows):
        sample = make_sampler(SHORT, sampling, IDS, noise, batch_rows=rows)
        arrays = [jnp.asarray(x) for x in (*prompts, np.arange(21, dtype=np.int32))]
        return jax.device_get(sample(params, *arrays, jax.random.key(2), adapters))

    each = tuple(np.repeat(x, 3, axis=0) for x in prompts)
    want = decoded(lora.merge(params, adapters), None, each, 0)
    same(decoded(params, adapters, prompts, 5), want)
    assert len(np.unique(want.length)) > 2, "rows that all end together exchange no places"
    if noise is not None:
        live = np.arange(A)[None, :] < want.length[:, None]
        assert (live & ~want.forced & (want.chosen != want.actions)).any()


def test_one_program_for_whatever_is_in_the_queue(monkeypatch):
    """Other prompts, lengths, floors, ids and budgets, rows left out in the midst and at the end:
    those of no budget do nothing, change nothing, and behind the last no prompt is read. A longest
    row at the end steps in a batch of two.

    Catches: a program for each number of rows; filler that costs a pass; a place that waits for a
    row that is left out; all places in use until the last row has ended.
    """
    reads, steps = [], []
    original, original_step = sampler_lib.read_prompts, sampler_lib.top_state

    def counted(params, config, prompts, *rest):
        jax.debug.callback(lambda: reads.append(len(prompts)))
        return original(params, config, prompts, *rest)

    def counted_step(params, config, s, *rest):
        jax.debug.callback(lambda: steps.append(len(s["depth"])))
        return original_step(params, config, s, *rest)

    monkeypatch.setattr(sampler_lib, "read_prompts", counted)
    monkeypatch.setattr(sampler_lib, "top_state", counted_step)
    sample = make_sampler(SHORT, SamplingConfig(max_actions=A), IDS, batch_rows=8)
    params, before = init(SHORT), sampler_lib._sample._cache_size()

    def decoded(seed, limit):
        arrays = map(jnp.asarray, (*prompts_of(24, seed), np.arange(24, dtype=np.int32) + seed))
        reads.clear()
        limit = jnp.asarray(limit, jnp.int32)
        out = jax.device_get(sample(params, *arrays, jax.random.key(seed), None, limit))
        jax.effects_barrier()
        return out, sorted(reads)

    for seed in (0, 1):
        full, read = decoded(seed, [A] * 24)
        # Of the first batch, then two at a time.
        assert read == [2] * 8 + [8]
        given = np.where(np.arange(24) % 3 == 1, 0, A)
        given[13:] = 0
        some, read = decoded(seed, given)
        assert read == [2] * 3 + [8]
        assert (some.length == np.where(given, full.length, 0)).all()
        for name in ("actions", "log_probs", "tokens"):
            got, want = getattr(some, name)[given > 0], getattr(full, name)[given > 0]
            np.testing.assert_allclose(got, want, atol=1e-5)
        steps.clear()
        long, _ = decoded(seed, [1] * 23 + [A])
        assert sorted(steps) == [2] * (int(long.length[-1]) - 1) + [8] * (
            len(steps) - steps.count(2)
        )
        assert steps.count(8) <= 8
        none, read = decoded(seed, [0] * 24)
        assert (read, none.length.any()) == ([8], False)
    assert sampler_lib._sample._cache_size() == before + 1


def test_rows_that_are_no_multiple_of_the_prompts_are_refused():
    prompts = [jnp.asarray(x) for x in prompts_of(2)]
    sample = make_sampler(MODEL, SamplingConfig(max_actions=A), IDS)
    with pytest.raises(ValueError, match="3 rows cannot continue 2 prompts"):
        sample(init(MODEL), *prompts, jnp.arange(3), jax.random.key(0))
