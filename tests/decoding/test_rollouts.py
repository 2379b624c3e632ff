"""What rollouts ask of the sampler: budgets by row, an environment that errs, an open floor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from reasoning_jax.config import SamplingConfig
from reasoning_jax.decoding.sampler import ActionIds, Noise, make_sampler
from reasoning_jax.model import readout
from tests import oracle
from tests.decoding.test_sampler import (
    BKID,
    EOS,
    IDS,
    A,
    actions_of,
    biased,
    random_prompts,
    stacks,
)
from tests.small import LLAMA, apply, init

PLAIN = SamplingConfig(max_actions=A)


def sample(prompts, floors, *, limit=None, noise=None, ids=IDS, model=None, seed=0, sampling=PLAIN):
    config, params = (LLAMA, init(LLAMA)) if model is None else model
    width = max(map(len, prompts))
    padded = jnp.array([p + [0] * (width - len(p)) for p in prompts])
    lengths = jnp.array([len(p) for p in prompts])
    sampler = make_sampler(config, sampling, ids, noise)
    out = sampler(
        params, padded, lengths, jnp.array(floors), jnp.arange(len(prompts)), jax.random.key(seed),
        None, None if limit is None else jnp.array(limit),
    )  # fmt: skip
    return jax.device_get(out)


def same(a, b, rows=slice(None)):
    for name, x in vars(a).items():
        np.testing.assert_array_equal(x[rows], getattr(b, name)[rows], err_msg=name)


def test_a_budget_of_its_own_ends_a_row_and_leaves_its_mates_alone():
    """Catches: one limit for all, `t >= limit` (a step late), what was drawn overwritten by <eos>,
    a limit that also moves the random stream.
    """
    prompts, floors = random_prompts(np.random.default_rng(5), 24)
    free = sample(prompts, floors)
    same(sample(prompts, floors, limit=[A] * 24), free)
    same(sample(prompts, floors, limit=[99] * 24), free)
    limit = np.random.default_rng(6).integers(1, A + 1, 24)
    limit[::3] = A
    out = sample(prompts, floors, limit=limit)
    same(out, free, slice(None, None, 3))
    cut = 0
    for b, most in enumerate(limit.tolist()):
        n = int(out.length[b])
        assert n == min(most, int(free.length[b]))
        assert out.actions[b, : n - 1].tolist() == free.actions[b, : n - 1].tolist()
        assert out.actions[b, n - 1] == EOS
        assert out.chosen[b, :n].tolist() == free.chosen[b, :n].tolist()
        assert out.forced[b, n - 1] == (out.chosen[b, n - 1] != EOS)
        assert not out.chosen[b, n:].any()
        cut += bool(out.forced[b, n - 1])
        final = stacks(prompts[b], floors[b], actions_of(out, b))[-1]
        assert out.tokens[b, : out.token_count[b]].tolist() == final
    assert cut > 8


def test_no_noise_is_the_policy_bit_for_bit():
    # Catches: noise that draws from the policy's own keys; `chosen` other than what was executed.
    prompts, floors = random_prompts(np.random.default_rng(7), 16)
    plain = sample(prompts, floors)
    same(sample(prompts, floors, noise=Noise(0.0, (0, 1, 2))), plain)
    held = ~plain.forced
    np.testing.assert_array_equal(plain.chosen[held], plain.actions[held])


@pytest.mark.parametrize("token", [3, 5, EOS])
def test_certain_noise_replaces_every_token_by_another_uniformly(token):
    """Of 4,000 replaced draws of a token among the candidates, or (5, <eos>) not among them.

    Catches: a token replaced by itself, the last candidate never drawn or one drawn twice as often,
    <eos> spared, the executed action's log-probability swapped for the chosen one's.
    """
    noise = Noise(1.0, (0, 3, 4, 7, 8))
    rows = 4000
    out = sample(
        [[1, 2]] * rows, [1] * rows, noise=noise, model=biased(LLAMA, token),
        sampling=SamplingConfig(max_actions=2),
    )  # fmt: skip
    assert (out.chosen[:, 0] == token).all()
    others = [i for i in noise.ids if i != token]
    counts = [int((out.actions[:, 0] == i).sum()) for i in others]
    assert sum(counts) == rows
    assert stats.chisquare(counts).pvalue > 1e-3, counts
    assert (out.log_probs[:, 0] < -10).all()
    assert out.length.tolist() == [2] * rows
    assert (out.actions[:, 1] == EOS).all(), "a limit is stronger than noise"
    np.testing.assert_array_equal(out.forced[:, 1], out.chosen[:, 1] != EOS)
    assert not out.forced[:, 0].any(), "noise is no limit"


def test_noise_never_replaces_a_backspace_and_keeps_its_rate():
    # Catches: backspaces replaced, which the data never does; `happens > rate`.
    model = biased(LLAMA, BKID)
    out = sample([[1, 2, 3]] * 8, [0] * 8, noise=Noise(1.0, (0, 1, BKID)), model=model)
    assert (out.actions[:, :2] == BKID).all()
    rows = 4000
    out = sample(
        [[1, 2]] * rows, [1] * rows, noise=Noise(0.2, (0, 1)), model=biased(LLAMA, 5),
        sampling=SamplingConfig(max_actions=2),
    )  # fmt: skip
    replaced = (out.actions[:, 0] != 5).mean()
    assert abs(replaced - 0.2) < 4 * np.sqrt(0.16 / rows)


def test_noise_does_not_depend_on_what_was_chosen():
    # Catches: noise from the key that drew the action.
    rows = 4000
    out = sample(
        [[1, 2]] * rows, [1] * rows, noise=Noise(0.5, (11,)), sampling=SamplingConfig(max_actions=2)
    )
    chosen, replaced = out.chosen[:, 0], out.actions[:, 0] == 11
    often = [i for i in range(11) if i != BKID and (chosen == i).sum() > 100]
    table = [[int(((chosen == i) & (replaced == r)).sum()) for r in (0, 1)] for i in often]
    assert len(table) > 3
    assert stats.chi2_contingency(table).pvalue > 1e-3, table


def test_one_candidate_replaces_all_but_itself():
    # Catches: an index of -1 or beyond the list where nothing else is left.
    for token, executed in ((4, 4), (5, 4)):
        out = sample([[1, 2]] * 4, [1] * 4, noise=Noise(1.0, (4,)), model=biased(LLAMA, token))
        assert (out.actions[:, : A - 1] == executed).all()
        assert (out.chosen[:, :A] == token).all()


def test_noise_follows_the_row_and_not_its_mates():
    prompts, floors = random_prompts(np.random.default_rng(8), 12)
    noise = Noise(0.3, (0, 1, 2, 3))
    together = sample(prompts, floors, noise=noise)
    alone = sample(prompts[:5], floors[:5], noise=noise)
    for b in range(5):
        assert actions_of(alone, b) == actions_of(together, b)
    assert (together.actions != sample(prompts, floors, noise=noise, seed=1).actions).any()
    assert (together.actions != together.chosen).any()


def probabilities(states):
    """The plain softmax of the model at each state run alone, [states, V]."""
    longest = max(map(len, states))
    padded = jnp.array([s + [0] * (longest - len(s)) for s in states])
    params = init(LLAMA)
    positions = jnp.broadcast_to(jnp.arange(longest), padded.shape)
    hidden = apply(params, LLAMA, padded, positions=positions).hidden
    tops = hidden[jnp.arange(len(states)), jnp.array([len(s) - 1 for s in states])]
    return np.asarray(jax.nn.softmax(readout.logits(params, LLAMA, tops)))


@pytest.mark.parametrize("floor_masked", [True, False])
def test_the_probability_of_a_backspace_is_that_of_each_visited_state(floor_masked):
    """Catches: the probability of the state after, under the floor's mask or under temperature; a
    backspace at an open floor that deletes, or that is not allowed.
    """
    prompts, floors = random_prompts(np.random.default_rng(9), 24)
    ids = dataclasses.replace(IDS, floor_masked=floor_masked)
    out = sample(
        prompts, floors, ids=ids, noise=Noise(0.2, (0, 1, 2)),
        sampling=SamplingConfig(max_actions=A, temperature=0.7),
    )  # fmt: skip
    visited = [stacks(p, f, actions_of(out, b)) for b, (p, f) in enumerate(zip(prompts, floors))]
    want = probabilities([s for path in visited for s in path[:-1]])[:, BKID]
    got = np.concatenate([out.backspace[b, : out.length[b]] for b in range(24)])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (got > 0).all()
    at_floor = 0
    for b, path in enumerate(visited):
        assert out.tokens[b, : out.token_count[b]].tolist() == path[-1]
        assert not out.backspace[b, out.length[b] :].any()
        for before, after, action in zip(path, path[1:], actions_of(out, b)):
            if action == oracle.BK and len(before) - 1 <= floors[b]:
                assert after == before
                at_floor += 1
    assert (at_floor == 0) == floor_masked


def test_without_backspace_there_is_no_probability_of_one():
    out = sample([[1, 2]], [1], ids=ActionIds(EOS, None, (BKID, 11)))
    assert not out.backspace.any()
