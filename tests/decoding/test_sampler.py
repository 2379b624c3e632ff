"""P1 = P2 = each state alone = the sampler with rewinding; budgets, floors, filters, mates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import backspace, sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.decoding.sampler import ActionIds, action_log_probs, make_sampler
from reasoning_jax.model import attention, readout, transformer
from tests import oracle
from tests.small import LLAMA, MODELS, apply, init

EOS, BKID, NEVER = 9, 10, (11,)
IDS = ActionIds(EOS, BKID, NEVER)
A = 12


def run_sampler(config, sampling, prompts, floors, seed=0, row_ids=None, params=None):
    width = max(map(len, prompts))
    padded = np.array([p + [0] * (width - len(p)) for p in prompts])
    rows = np.arange(len(prompts)) if row_ids is None else np.array(row_ids)
    sampler = make_sampler(config, sampling, IDS)
    lengths = np.array([len(p) for p in prompts])
    params = init(config) if params is None else params
    return jax.device_get(
        sampler(
            params, jnp.array(padded), jnp.array(lengths), jnp.array(floors), jnp.array(rows),
            jax.random.key(seed),
        )
    )  # fmt: skip


def actions_of(out, row):
    n = int(out.length[row])
    return [oracle.BK if a == BKID else int(a) for a in out.actions[row, :n]]


def stacks(prompt, floor, actions):
    """All tokens standing after each action, by the oracle: the prompt is pushed first."""
    return oracle.states(prompt[0], [*prompt[1:], *actions], floor)[len(prompt) - 1 :]


def random_prompts(rng, rows):
    prompts = [rng.integers(0, 9, int(rng.integers(1, 6))).tolist() for _ in range(rows)]
    floors = [int(rng.integers(0, len(p))) for p in prompts]
    return prompts, floors


@pytest.mark.parametrize(
    ("name", "rows"),
    [("llama", 48), ("gpt2", 48), pytest.param("llama", 10_000, marks=pytest.mark.slow)],
)
def test_four_ways_to_the_same_log_probs(name, rows):
    """The sampler's log-probs equal P1's, P2's and those of every state run alone."""
    config = MODELS[name]
    params = init(config)
    rng = np.random.default_rng(0)
    prompts, floors = random_prompts(rng, rows)
    out = run_sampler(config, SamplingConfig(max_actions=A), prompts, floors, params=params)
    width = max(map(len, prompts)) + A
    batch = np.zeros((3, rows, width), np.int32)
    for b in range(rows):
        ids = [*prompts[b], *out.actions[b, : out.length[b]].tolist()]
        batch[0, b, : len(ids)], batch[1, b, : len(ids)] = ids, 1
        batch[2, b] = floors[b]
    actions, segments, floor = map(jnp.array, batch)

    @jax.jit
    def packed_log_probs(actions, segments, floor):
        p1 = backspace.pack(actions, segments, floor, BKID)
        h1 = transformer.apply(
            params, config, p1.tokens, positions=p1.positions, attention=attention.Dense(p1.mask)
        ).hidden
        p2 = backspace.deduplicate(actions, segments, floor, BKID, width)
        h2 = transformer.apply(
            params, config, p2.tokens, positions=p2.positions, attention=attention.Dense(p2.mask)
        ).hidden
        h2 = jax.vmap(lambda h, p: h[p])(h2, p2.pointer)
        allowed = jnp.ones((*actions.shape, config.vocab_size), bool)
        allowed = allowed.at[..., list(NEVER)].set(False)
        at_floor = (p1.depth <= floor)[..., None]
        allowed = allowed & ~(at_floor & (jnp.arange(config.vocab_size) == BKID))
        logits = [readout.logits(params, config, h) for h in (h1, h2)]
        return [action_log_probs(z, allowed, SamplingConfig()) for z in logits]

    by_p1, by_p2 = jax.device_get(packed_log_probs(actions, segments, floor))
    alone = []
    for b in range(rows):
        n = int(out.length[b])
        states = len(prompts[b]) - 1 + np.arange(n)
        for packed in (by_p1, by_p2):
            got = packed[b, states, out.actions[b, :n]]
            np.testing.assert_allclose(got, out.log_probs[b, :n], atol=1e-5)
        alone += stacks(prompts[b], floors[b], actions_of(out, b))[:-1]
    longest = max(map(len, alone))
    padded = jnp.array([s + [0] * (longest - len(s)) for s in alone])
    hidden = apply(
        params, config, padded, positions=jnp.broadcast_to(jnp.arange(longest), padded.shape)
    ).hidden
    tops = hidden[jnp.arange(len(alone)), jnp.array([len(s) - 1 for s in alone])]
    allowed = np.ones((len(alone), config.vocab_size), bool)
    allowed[:, list(NEVER)] = False
    chosen, want, i = [], [], 0
    for b in range(rows):
        for t in range(int(out.length[b])):
            allowed[i, BKID] = len(alone[i]) - 1 > floors[b]
            chosen.append(int(out.actions[b, t]))
            want.append(float(out.log_probs[b, t]))
            i += 1
    got = action_log_probs(
        readout.logits(params, config, tops), jnp.array(allowed), SamplingConfig()
    )
    np.testing.assert_allclose(got[jnp.arange(i), jnp.array(chosen)], want, atol=1e-5)
    assert sum(a == BKID for a in chosen) > rows / 8, "too few backspaces to mean anything"


def test_the_visible_text_is_the_oracles_and_the_prompt_survives():
    rng = np.random.default_rng(1)
    prompts, floors = random_prompts(rng, 64)
    out = run_sampler(LLAMA, SamplingConfig(max_actions=A), prompts, floors)
    for b, (prompt, floor) in enumerate(zip(prompts, floors)):
        final = stacks(prompt, floor, actions_of(out, b))[-1]
        assert out.tokens[b, : out.token_count[b]].tolist() == final
        assert final[: floor + 1] == prompt[: floor + 1]
        n = int(out.length[b])
        assert out.actions[b, n - 1] == EOS
        assert EOS not in out.actions[b, : n - 1]
        assert not set(NEVER) & set(out.actions[b, :n].tolist())
        depths = [len(s) - 1 for s in stacks(prompt, floor, actions_of(out, b))]
        erased = [i for i, a in enumerate(actions_of(out, b)) if a == oracle.BK]
        assert all(depths[i] > floor for i in erased), "a backspace at the floor"


def biased(config, token, amount=50.0):
    """Parameters that all but surely choose one action."""
    config = dataclasses.replace(config, tied_embeddings=False)
    params = init(config)
    params["unembedding"] = jnp.zeros_like(params["unembedding"])
    params["final_norm"] = {"scale": jnp.ones((config.d_model,))}
    # A constant direction in the residual stream carries the bias, whatever the input.
    params["embedding"]["tokens"] = jnp.ones_like(params["embedding"]["tokens"]) * 10
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])
    params["unembedding"] = params["unembedding"].at[:, token].set(amount / config.d_model)
    return config, params


def test_all_backspace_stops_at_the_floor_and_ends_within_the_budget():
    config, params = biased(LLAMA, BKID)
    prompts, floors = [[1, 2, 3, 4]], [1]
    out = run_sampler(config, SamplingConfig(max_actions=A), prompts, floors, params=params)
    assert out.actions[0, :2].tolist() == [BKID, BKID]
    # At the floor something else must be chosen; with this model it is deleted again at once.
    assert out.tokens[0, :2].tolist() == [1, 2]
    assert int(out.length[0]) <= A
    assert out.actions[0, int(out.length[0]) - 1] == EOS


def test_depth_budget_forces_eos_and_says_so():
    config, params = biased(LLAMA, 5)
    sampling = SamplingConfig(max_actions=A, max_new_tokens=3)
    out = run_sampler(config, sampling, [[1, 2]], [1], params=params)
    assert out.actions[0, :4].tolist() == [5, 5, 5, EOS]
    assert out.forced[0, :4].tolist() == [False, False, False, True]
    assert out.log_probs[0, 3] < -10, "a forced action keeps the policy's own log-probability"
    out = run_sampler(config, SamplingConfig(max_actions=4), [[1, 2]], [1], params=params)
    assert out.actions[0, :4].tolist() == [5, 5, 5, EOS]
    assert out.forced[0, 3]


def test_early_exit_writes_nothing_after_eos():
    config, params = biased(LLAMA, EOS)
    out = run_sampler(config, SamplingConfig(max_actions=A), [[1], [2, 3]], [0, 1], params=params)
    assert out.length.tolist() == [1, 1]
    assert not out.actions[:, 1:].any()
    assert not out.forced.any()


def test_a_row_does_not_depend_on_its_batch_mates():
    rng = np.random.default_rng(2)
    prompts, floors = random_prompts(rng, 12)
    sampling = SamplingConfig(max_actions=A)
    together = run_sampler(LLAMA, sampling, prompts, floors)
    some = [7, 2, 9]
    apart = run_sampler(
        LLAMA, sampling, [prompts[i] for i in some], [floors[i] for i in some], row_ids=some
    )
    for j, i in enumerate(some):
        assert actions_of(apart, j) == actions_of(together, i)
        np.testing.assert_allclose(apart.log_probs[j], together.log_probs[i], atol=1e-5)


def test_greedy_takes_the_argmax_of_each_state():
    prompts, floors = random_prompts(np.random.default_rng(3), 8)
    sampling = SamplingConfig(max_actions=A, temperature=0.0)
    out = run_sampler(LLAMA, sampling, prompts, floors)
    again = run_sampler(LLAMA, sampling, prompts, floors, seed=5)
    np.testing.assert_array_equal(out.actions, again.actions)
    sampled = run_sampler(LLAMA, SamplingConfig(max_actions=A), prompts, floors, seed=5)
    assert (sampled.actions != out.actions).any()


def test_without_backspace_in_the_vocabulary():
    ids = ActionIds(EOS, None, (BKID, *NEVER))
    sampler = make_sampler(LLAMA, SamplingConfig(max_actions=A), ids)
    out = sampler(
        init(LLAMA), jnp.array([[1, 2]]), jnp.array([2]), jnp.array([1]), jnp.array([0]),
        jax.random.key(0),
    )  # fmt: skip
    assert BKID not in out.actions[0].tolist()


def test_sampling_frequencies_equal_the_stated_log_probs():
    rows = 4000
    out = run_sampler(LLAMA, SamplingConfig(max_actions=2), [[1, 2]] * rows, [1] * rows)
    first = out.actions[:, 0]
    for action in np.unique(first):
        p = float(np.exp(out.log_probs[first == action, 0][0]))
        assert abs((first == action).mean() - p) < 4 * np.sqrt(p * (1 - p) / rows) + 1e-9


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (SamplingConfig(top_k=2), [0, 1]),
        (SamplingConfig(top_p=0.75), [0, 1]),
        (SamplingConfig(top_p=0.45), [0]),
        (SamplingConfig(min_p=0.5), [0, 1]),
        (SamplingConfig(top_k=3, top_p=0.99, min_p=0.01), [0, 1, 2]),
        (SamplingConfig(), [0, 1, 2, 3]),
    ],
)
def test_filters(sampling, kept):
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    allowed = jnp.array([[True] * 4])
    log_probs = action_log_probs(jnp.log(jnp.array([probs])) + 3.0, allowed, sampling)
    want = np.zeros(4)
    want[kept] = probs[kept] / probs[kept].sum()
    np.testing.assert_allclose(np.exp(log_probs[0]), want, atol=1e-6)


def test_disallowed_actions_have_no_probability_and_temperature_sharpens():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    allowed = jnp.array([[True, True, False]])
    log_probs = action_log_probs(logits, allowed, SamplingConfig(temperature=0.5))
    np.testing.assert_allclose(np.exp(log_probs[0]), [1 / (1 + np.e**2), 1 / (1 + np.e**-2), 0],
                               rtol=1e-5)  # fmt: skip


def test_a_mesh_changes_no_sample():
    config = dataclasses.replace(LLAMA, d_ff=32)
    prompts, floors = random_prompts(np.random.default_rng(4), 8)
    plain = run_sampler(config, SamplingConfig(max_actions=A), prompts, floors)
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        width = max(map(len, prompts))
        arrays = [
            np.array([p + [0] * (width - len(p)) for p in prompts]),
            np.array([len(p) for p in prompts]),
            np.array(floors),
            np.arange(8),
        ]
        placed = [jax.device_put(a, sharding.batch_sharding(mesh, a.ndim)) for a in arrays]
        params = jax.tree.map(jax.device_put, init(config), _shardings(config, mesh))
        sampler = make_sampler(config, SamplingConfig(max_actions=A), IDS)
        out = jax.device_get(sampler(params, *placed, jax.random.key(0)))
    np.testing.assert_array_equal(out.actions, plain.actions)
    np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-5)


def _shardings(config, mesh):
    from reasoning_jax.model import spec

    return spec.shardings(transformer.param_specs(config), mesh)
