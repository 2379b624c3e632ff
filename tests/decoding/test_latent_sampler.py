"""Decoding behind thoughts: the cache, the sampler and the measures against a recomputation."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.config_objectives import THOUGHT_CONTROLS
from reasoning_jax.decoding.rows import padded_batches, partnered, slots_of
from reasoning_jax.decoding.sampler import (
    ALONE,
    ActionIds,
    Thinking,
    action_log_probs,
    make_sampler,
    next_log_probs,
)
from reasoning_jax.evaluate import accuracy, completions
from reasoning_jax.evaluate.completions import Prompt
from reasoning_jax.model import latent, readout, spec, transformer
from reasoning_jax.vocab import CharCodec, make_vocab
from tests import oracle
from tests.recompute import recomputed
from tests.small import LLAMA, apply, init

pytestmark = pytest.mark.usefixtures("unoptimised")

VOCAB = make_vocab(CharCodec("01234567"), latent=True)
MODEL = dataclasses.replace(LLAMA, vocab_size=VOCAB.size)
EOS, BKID = VOCAB.eos_id, VOCAB.backspace_id
BOT, EOT, LATENT = (VOCAB.specials[name] for name in ("<bot>", "<eot>", "<latent>"))
THOUGHTS = latent.Thoughts(LATENT)
THINKING = Thinking(THOUGHTS)
A = 8
# With markers and without, with some text behind them, with none and with as many as there is room.
PROMPTS = [
    [1, 2, 3, BOT, LATENT, LATENT, EOT],
    [4, LATENT, LATENT, LATENT],
    [5, 6, 7, 0, 1, 2, 3, 4, 5],
    [2, 2, LATENT, 1, 3, 5, 7, 6, 4],
    [0, 7, BOT, EOT],
    [3, 3, 1, BOT, LATENT, EOT, 4],
    [6, 1, 0, 2, 7, 5, 4, 3, LATENT],
    [7, LATENT, LATENT, EOT, 1, 1],
]
LENGTHS = np.array([len(p) for p in PROMPTS])
P = 9


@pytest.fixture(scope="module")
def params():
    """Random ones that are fond of <backspace>, whose row is never an input."""
    params = init(MODEL)
    states = np.concatenate(recomputed(params, MODEL, PROMPTS, THOUGHTS)[0])
    usual = states.mean(0)
    table = params["embedding"]["tokens"]
    params["embedding"]["tokens"] = table.at[BKID].add(2.5 * usual / np.square(usual).sum())
    return params


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def placed(params, mesh):
    return jax.tree.map(
        jax.device_put, params, spec.shardings(transformer.param_specs(MODEL), mesh)
    )


def padded(prompts):
    """(prompts [B, P] with garbage behind them, lengths) on the host."""
    ids = np.full((len(prompts), P), 5, np.int32)
    for b, prompt in enumerate(prompts):
        ids[b, : len(prompt)] = prompt
    return ids, np.array([len(p) for p in prompts], np.int32)


def arguments(prompts, mesh, row_ids=None):
    ids, length = padded(prompts)
    rows = np.arange(len(prompts)) if row_ids is None else np.array(row_ids)
    slots = jax.tree.map(np.asarray, slots_of(ids, length, LATENT, mesh))
    return jax.tree.map(jnp.asarray, ((ids, length, rows), slots))


def log_softmax(params, hidden):
    return np.asarray(jax.nn.log_softmax(readout.logits(params, MODEL, jnp.asarray(hidden))))


@pytest.fixture(scope="module")
def want(params):
    """(hidden states, thoughts) of the prompts, each thought from a pass of its own."""
    return recomputed(params, MODEL, PROMPTS, THOUGHTS)


@functools.partial(jax.jit, static_argnames=("thoughts", "control"))
def think(params, thoughts, prompts, slots, row_keys=None, control=""):
    return latent.think(
        params, MODEL, thoughts, prompts, slots, P + slots.room, control=control, row_keys=row_keys
    )


def test_next_log_probs_are_those_of_the_recomputation(params, mesh, want):
    """Catches: a thought at another row's place, a last thought that is read as a token, slots of a
    short row that end up in a long one, a cache without room for what is behind the thoughts.
    """
    (ids, length, rows), slots = arguments(PROMPTS, mesh)
    got = next_log_probs(
        params, ids, length, rows, jax.random.key(0), None, slots, config=MODEL, thinking=THINKING
    )
    states = np.stack([hidden[-1] for hidden in want[0]])
    np.testing.assert_allclose(got, log_softmax(params, states), atol=2e-5)


def test_without_thinking_a_thought_is_a_token(params, mesh):
    (ids, length, rows), slots = arguments(PROMPTS, mesh)
    got = next_log_probs(params, ids, length, rows, jax.random.key(0), None, slots, config=MODEL)
    positions = jnp.broadcast_to(jnp.arange(P), ids.shape)
    hidden = apply(params, MODEL, ids, positions=positions).hidden
    states = hidden[jnp.arange(len(PROMPTS)), length - 1]
    np.testing.assert_allclose(got, log_softmax(params, states), atol=2e-5)


@pytest.mark.parametrize("iterations", [0, 1])
def test_thinking_on_a_cache_is_the_training_pass(params, mesh, want, iterations):
    """Also where Jacobi iterations have not yet come to the chain."""
    thoughts = dataclasses.replace(THOUGHTS, iterations=iterations)
    (ids, _, _), slots = arguments(PROMPTS, mesh)
    _, last, inputs, hidden = think(params, thoughts, ids, slots)
    states, fed = want
    if iterations:
        states, fed = by_training_pass(params, thoughts)
    for b, prompt in enumerate(PROMPTS):
        count = prompt.count(LATENT)
        if count:
            np.testing.assert_allclose(inputs[b, :count], fed[b], atol=2e-5)
            np.testing.assert_array_equal(last[b], inputs[b, count - 1])
        outside = [t for t, i in enumerate(prompt) if i != LATENT]
        np.testing.assert_allclose(hidden[b, outside], states[b][outside], atol=2e-5)


def by_training_pass(params, thoughts):
    """(hidden states, thoughts) of the prompts by `latent.forward`."""
    first = [p.index(LATENT) if LATENT in p else len(p) for p in PROMPTS]
    prefix, n = max(first), 3
    T = prefix + max(len(p) - f for p, f in zip(PROMPTS, first))
    tokens, positions = np.zeros((2, len(PROMPTS), T), np.int32)
    real = np.zeros(tokens.shape, bool)
    for b, (prompt, f) in enumerate(zip(PROMPTS, first)):
        here = slice(prefix - f, prefix - f + len(prompt))
        tokens[b, here], real[b, here], positions[b, here] = prompt, True, np.arange(len(prompt))
    run = jax.jit(latent.forward, static_argnames=("config", "thoughts", "prefix", "n"))
    out = run(params, MODEL, thoughts, tokens, positions, real, prefix=prefix, n=n)
    prompts_alone = apply(
        params,
        MODEL,
        tokens=jnp.asarray(padded(PROMPTS)[0]),
        positions=jnp.broadcast_to(jnp.arange(P), (len(PROMPTS), P)),
    ).hidden
    states, fed = [], []
    for b, (prompt, f) in enumerate(zip(PROMPTS, first)):
        behind = out.hidden[b, : len(prompt) - f + 1]
        states.append(np.concatenate([prompts_alone[b, : f - 1], behind]))
        fed.append(list(out.inputs[b, : prompt.count(LATENT)]))
    return states, fed


def stacks(prompt, floor, actions):
    """All tokens standing after each action; the prompt is pushed first."""
    actions = [oracle.BK if a == BKID else int(a) for a in actions]
    return oracle.states(prompt[0], [*prompt[1:], *actions], floor)[len(prompt) - 1 :]


def distributions(params, standing, floors, sampling):
    """log of the distribution of actions in each state, from a recomputation of all of it."""
    n = len(standing)
    # Of few shapes, so that few are compiled.
    standing = standing + standing[:1] * (-n % 192)
    floors = floors + floors[:1] * (-n % 192)
    hidden, _ = recomputed(params, MODEL, standing, THOUGHTS, width=P + A + 1)
    z = readout.logits(params, MODEL, jnp.asarray(np.stack([h[-1] for h in hidden])))
    allowed = np.ones(z.shape, bool)
    allowed[:, VOCAB.unsampled_ids()] = False
    allowed[:, BKID] = [len(s) - 1 > floor for s, floor in zip(standing, floors)]
    log_probs = action_log_probs(z, jnp.asarray(allowed), sampling)
    return np.asarray(log_probs)[:n], np.asarray(jax.nn.softmax(z))[:n]


def sample(params, prompts, mesh, floors, row_ids=None, seed=0):
    sampler = make_sampler(
        MODEL, SamplingConfig(max_actions=A), ActionIds.of(VOCAB), thinking=THINKING
    )
    (ids, length, rows), slots = arguments(prompts, mesh, row_ids)
    out = sampler(
        params, ids, length, jnp.asarray(floors), rows, jax.random.key(seed), None, None, slots
    )
    return jax.device_get(out)


def test_backspaces_behind_thoughts(params, mesh):
    """Every executed action has the log-probability of the recomputation of what stands there;
    no thought is deleted. Where a backspace brings the last thought to the top again, it is fed.
    """
    prompts = PROMPTS * 3
    # A floor inside the text behind the thoughts, where there is some.
    floors = [len(p) - 1 - (i % 3 if p[-2:] == [1, 1] else 0) for i, p in enumerate(prompts)]
    out = sample(params, prompts, mesh, floors, seed=4)
    standing, at, taken = [], [], []
    for b, prompt in enumerate(prompts):
        actions = out.actions[b, : out.length[b]].tolist()
        visited = stacks(prompt, floors[b], actions)
        assert out.tokens[b, : out.token_count[b]].tolist() == visited[-1]
        assert all(s[: floors[b] + 1] == prompt[: floors[b] + 1] for s in visited)
        standing += visited[:-1]
        at += [floors[b]] * len(actions)
        taken += [(b, t, a) for t, a in enumerate(actions)]
    log_probs, plain = distributions(params, standing, at, SamplingConfig())
    for i, (b, t, action) in enumerate(taken):
        assert out.log_probs[b, t] == pytest.approx(log_probs[i, action], abs=3e-5)
        assert out.backspace[b, t] == pytest.approx(float(plain[i, BKID]), abs=1e-5)
    again = sum(s[-1] == LATENT and t > 0 for s, (_, t, _) in zip(standing, taken))
    assert again > 2, "too few rows came back to their last thought to mean anything"


def test_thoughts_come_through_the_queue(params, mesh):
    """Three rows a prompt, which is thought once, against a batch in which each thinks for itself.

    Catches: slots or last thoughts of another prompt, columns of thoughts left behind in reading.
    """
    sampler = functools.partial(
        make_sampler, MODEL, SamplingConfig(max_actions=A), ActionIds.of(VOCAB), thinking=THINKING
    )
    floors = np.array([len(p) - 1 for p in PROMPTS])
    key, found = jax.random.key(4), []
    for times, rows in ((1, 5), (3, 0)):
        prompts = [p for p in PROMPTS for _ in range(times)]
        (ids, length, _), slots = arguments(prompts, mesh)
        floor, row_ids = jnp.asarray(np.repeat(floors, times)), jnp.arange(len(PROMPTS) * 3)
        out = sampler(batch_rows=rows)(
            params, ids, length, floor, row_ids, key, None, None, slots
        )  # fmt: skip
        found.append(jax.device_get(out))
    got, want = found
    np.testing.assert_array_equal(got.actions, want.actions)
    np.testing.assert_array_equal(got.token_count, want.token_count)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=3e-5)
    np.testing.assert_allclose(got.backspace, want.backspace, atol=1e-5)
    assert len(np.unique(want.length)) > 3


@pytest.mark.parametrize("control", ALONE)
def test_controls_that_need_mates_are_refused_in_a_queue(params, mesh, control):
    (ids, length, rows), slots = arguments(PROMPTS, mesh)
    sampler = make_sampler(
        MODEL, SamplingConfig(max_actions=A), ActionIds.of(VOCAB),
        thinking=Thinking(THOUGHTS, control), batch_rows=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f'control "{control}" needs each row'):
        sampler(params, ids, length, length - 1, rows, jax.random.key(0), None, None, slots)


def test_a_row_does_not_depend_on_the_thoughts_of_its_mates(params, mesh):
    """The same shapes with other mates: one with more thoughts, ones without."""
    floors = [len(p) - 1 for p in PROMPTS * 3]
    base = sample(params, PROMPTS * 3, mesh, floors)
    kept = {0: 1, 3: 6, 11: 20}
    mates = [[4, LATENT, LATENT, LATENT], [2, 2, LATENT, 1, 3, 5, 7, 6, 4], [1] * P, [7]] * 6
    for here, there in kept.items():
        mates[here] = (PROMPTS * 3)[there]
    ids = [100 + b for b in range(24)]
    for here, there in kept.items():
        ids[here] = there
    out = sample(params, mates, mesh, [len(p) - 1 for p in mates], ids)
    for here, there in kept.items():
        assert out.actions[here].tolist() == base.actions[there].tolist()
        np.testing.assert_allclose(out.log_probs[here], base.log_probs[there], atol=2e-5)


def test_greedy_completions_are_those_of_the_recomputation(params, mesh):
    """Through batches, the last of which is filled up, of rows with and without thoughts."""
    sampling = SamplingConfig(max_actions=4, temperature=0.0)
    prompts = [Prompt(tuple(p), len(p) - 1) for p in PROMPTS[:7]]
    with jax.set_mesh(mesh):
        done = completions.complete(
            placed(params, mesh), None, MODEL, VOCAB, sampling, prompts, jax.random.key(0), 4, mesh,
            thinking=THINKING,
        )  # fmt: skip
    standing = [stacks(list(c.prompt.ids), c.prompt.floor, c.actions)[:-1] for c in done]
    floors = [c.prompt.floor for c in done for _ in c.actions]
    log_probs, _ = distributions(params, list(itertools.chain(*standing)), floors, sampling)
    taken = [(a, forced) for c in done for a, forced in zip(c.actions, c.forced)]
    for of_state, (action, forced) in zip(log_probs, taken, strict=True):
        assert forced or action == int(of_state.argmax())
    assert sum(not forced for _, forced in taken) > 8


def test_controls_are_fed_in_place_of_thoughts(params, mesh, want):
    (ids, _, rows), slots = arguments(PROMPTS, mesh)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), rows)
    made = np.asarray(think(params, THOUGHTS, ids, slots)[2])
    counts = np.array([p.count(LATENT) for p in PROMPTS])
    is_thought = np.arange(slots.n)[None, :] < counts[:, None]
    fed = {}
    for control in THOUGHT_CONTROLS:
        _, last, inputs, hidden = think(params, THOUGHTS, ids, slots, keys, control)
        fed[control] = np.asarray(inputs)
        states, _ = recomputed(params, MODEL, PROMPTS, THOUGHTS, given=inputs)
        for b, prompt in enumerate(PROMPTS):
            outside = [t for t, i in enumerate(prompt) if i != LATENT]
            np.testing.assert_allclose(hidden[b, outside], states[b][outside], atol=3e-5)
            if counts[b]:
                np.testing.assert_array_equal(last[b], inputs[b, counts[b] - 1])
    assert not fed["zeros"].any()
    np.testing.assert_array_equal(fed["other_row"], made[np.arange(len(PROMPTS)) - 1])
    np.testing.assert_allclose(
        np.linalg.norm(fed["noise"], axis=-1), np.linalg.norm(made, axis=-1), rtol=1e-5
    )
    cosine = (fed["noise"] * made).sum(-1) / np.square(made).sum(-1)
    assert (np.abs(cosine[is_thought]) < 0.9).all()
    assert len(np.unique(np.round(fed["noise"][is_thought], 4), axis=0)) == counts.sum()
    # Noise is a row's own, whoever its mates are.
    _, _, again, _ = think(params, THOUGHTS, ids[::-1], reverse(slots), keys[::-1], "noise")
    np.testing.assert_allclose(again[::-1], fed["noise"], rtol=1e-4, atol=1e-5)


def reverse(slots):
    return dataclasses.replace(slots, first=slots.first[::-1], count=slots.count[::-1])


def test_thoughts_of_another_row_need_one(mesh):
    """A row's donor has as many thoughts; a last batch that is filled up ends in the prompt before
    it, so that its first row has that one's thoughts and not its own.

    Catches: rows of unlike counts side by side, a row behind itself, places that are mixed up.
    """
    thinking = Thinking(THOUGHTS, "other_row")
    counts = [p.count(LATENT) for p in PROMPTS]
    assert partnered(counts) == [0, 2, 3, 4, 5, 6, 7]
    for prompts in (PROMPTS[:2], PROMPTS):
        with pytest.raises(ValueError, match="another one with as many thoughts"):
            list(completions._batches(prompts, 4, mesh, thinking))
    (mixed, *_) = padded_batches(PROMPTS, 4, mesh)
    with pytest.raises(ValueError, match="as many thoughts"):
        completions.batch_slots(mixed, thinking, mesh)
    prompts = [PROMPTS[i] for i in partnered(counts)]
    seen = []
    for batch, places in completions._batches(prompts, 2, mesh, thinking):
        seen += places
        ids, length = np.asarray(batch.ids), np.asarray(batch.length)
        rows = [ids[i, : length[i]].tolist() for i in range(len(ids))]
        assert rows[: batch.count] == [prompts[i] for i in places]
        for i, row in enumerate(rows[: batch.count]):
            assert rows[i - 1] != row
            assert rows[i - 1].count(LATENT) == row.count(LATENT)
        slots = completions.batch_slots(batch, thinking, mesh)
        assert slots is None or len(set(slots.count.tolist())) == 1
    assert sorted(seen) == list(range(len(prompts)))


@pytest.mark.parametrize("control", ["other_row", pytest.param("noise", marks=pytest.mark.slow)])
def test_completions_under_a_control_do_not_depend_on_the_batch(params, mesh, control):
    """Every row of every batch size has the donor, or the noise, that it has in one batch.

    Catches: a batch that is filled up taken for a queue, completions in the order of their counts.
    """
    thinking = Thinking(THOUGHTS, control)
    taken = partnered([p.count(LATENT) for p in PROMPTS])
    prompts = [completions.Prompt(tuple(PROMPTS[i]), len(PROMPTS[i]) - 1) for i in taken]
    sampling = SamplingConfig(temperature=0.0, max_actions=3)
    with jax.set_mesh(mesh):
        one, two = (
            completions.complete(
                placed(params, mesh), None, MODEL, VOCAB, sampling, prompts, jax.random.key(0),
                rows, mesh, thinking=thinking,
            )
            for rows in (64, 2)
        )  # fmt: skip
    assert [c.prompt for c in one] == [c.prompt for c in two] == prompts
    for a, b in zip(one, two):
        assert a.actions == b.actions
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)


def test_the_probability_of_a_backspace_behind_thoughts(params, mesh, want):
    """Of rows with and without thoughts in one batch, before and behind the thoughts.

    Catches: states counted from the wrong end of a row that has no thoughts.
    """
    sequences = [tuple(p) for p in PROMPTS]
    states = [[t for t, i in enumerate(p) if t and i != LATENT] or [0] for p in PROMPTS]
    with jax.set_mesh(mesh):
        got = accuracy.backspace_probability(
            placed(params, mesh), None, MODEL, VOCAB, sequences, states, 8, mesh, THINKING
        )  # fmt: skip
    for b, mean in enumerate(got):
        p = np.exp(log_softmax(params, want[0][b][states[b]])[:, BKID])
        assert mean == pytest.approx(float(p.mean()), abs=1e-5)


@pytest.mark.parametrize(
    "control", ["other_row", *(pytest.param(c, marks=pytest.mark.slow) for c in ("zeros", "noise"))]
)
def test_a_mesh_changes_nothing(params, control):
    """Rows over four groups of devices, heads over two."""
    thinking = Thinking(THOUGHTS, control)
    counts = [p.count(LATENT) for p in PROMPTS]
    prompts = [PROMPTS[i] for i in partnered(counts)] if control == "other_row" else PROMPTS
    one = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    mesh = sharding.make_mesh(2, 2, 2)
    found = []
    for m in (one, mesh):
        with jax.set_mesh(m):
            found.append(
                completions.next_token_log_probs(
                    placed(params, m), None, MODEL, prompts, jax.random.key(0), 8, m, thinking
                )
            )
    np.testing.assert_allclose(found[1], found[0], atol=3e-5)
