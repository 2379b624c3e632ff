"""Rollouts in the buffer are legal trajectories; when they are drawn, paired, and drawn again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.train import make_source
from reasoning_jax.config import ConfigError
from reasoning_jax.data.pipeline import Stream, SupervisedSource
from reasoning_jax.decoding.sampler import Noise
from reasoning_jax.rl import matched
from reasoning_jax.train import state as states
from reasoning_jax.train.program import fresh_state, make_program
from tests import oracle
from tests.small import matching_run

pytestmark = pytest.mark.usefixtures("unoptimised")

T = 16


@pytest.fixture(scope="module")
def mesh():
    one = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(one):
        yield one


def parts(config, mesh, seed=None):
    """(assembly, source, state) of a run; `seed` is that of the parameters."""
    assembly = assemble(config)
    program = make_program(config, assembly.model, assembly.ids)
    if seed is not None:
        program = dataclasses.replace(program, config=dataclasses.replace(config, seed=seed))
    return assembly, make_source(assembly, mesh), fresh_state(program, mesh)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def take(source, state, n):
    return [jax.device_get(source.next(state)) for _ in range(n)]


def responses(assembly):
    """{prompt ids: response ids with <eos>} of the training data."""
    rendered = [
        assembly.encoder.render(e) for e in (assembly.examples("train")[i] for i in range(50))
    ]
    return {
        tuple(assembly.encoder.prompt_ids(p)): assembly.encoder.response_ids(r) for p, r in rendered
    }


def stack_after(actions, floor, backspace):
    ids = [oracle.BK if a == backspace else a for a in actions]
    return oracle.states(ids[0], ids[1:], floor)


@pytest.mark.parametrize(("prefix", "noise"), [(0, 0.0), (3, 0.3)])
def test_what_is_in_the_buffer_are_whole_trajectories(mesh, prefix, noise):
    """Catches: a prompt or floor of another row, a given token called the model's, labels one off,
    no <eos> or two, rows beyond seq_len, a backspace below the floor, noise in the labels.
    """
    config = matching_run(
        replay={"capacity_rollouts": 50, "prefix_tokens": prefix, "noise_rate": noise},
        noise={"rate": 0.2}, sequencematch={"bc_steps": 0},
    )  # fmt: skip
    assembly, source, state = parts(config, mesh)
    for step in range(0, 14, 2):
        source.refresh(state, step)
    a, bk, eos = source.arrays(), assembly.vocab.backspace_id, assembly.vocab.eos_id
    truth, prompts, more, replaced, deleted, limited = responses(assembly), [], set(), 0, 0, 0
    for i in range(50):
        n, given, floor = (int(a[name][i]) for name in ("length", "given", "floor"))
        actions, labels = a["actions"][i].tolist(), a["labels"][i].tolist()
        assert not any(actions[n:] + labels[n:])
        actions, labels = actions[:n], labels[:n]
        prompt = tuple(actions[: floor + 1])
        prompts.append((int(a["position"][i]), prompt))
        assert given - len(prompt) in range(prefix + 1)
        more.add(given - len(prompt))
        assert actions[:given] == [*prompt, *truth[prompt]][:given]
        assert labels[: given - 1] == actions[1:given]
        assert actions.count(eos) == 1
        assert (actions[-1], labels[-1]) == (eos, eos)
        path = stack_after(actions, floor, bk)
        for before, action in zip(path, actions[1:]):
            assert action != bk or len(before) - 1 > floor
        deleted += actions.count(bk)
        own = list(zip(labels[given - 1 : -1], actions[given:]))
        for t, (chosen, executed) in enumerate(own):
            last = t == len(own) - 1
            if chosen == bk and not (last and n == T):
                assert executed == bk
            if chosen != executed:
                assert noise or (last and n == T)
                replaced += not last
                limited += last and n == T
    assert limited
    assert deleted
    assert (replaced > 10) == bool(noise)
    # A response is of one or two tokens.
    assert more == set(range(min(prefix, 2) + 1))
    # The newest 50 of 56 positions; the first 50 positions are an epoch.
    positions = sorted(p for p, _ in prompts)
    assert positions == list(range(6, 56))
    assert set(np.unique(a["step"])) == set(range(0, 14, 2))


def test_every_training_prompt_is_continued_once_an_epoch(mesh):
    # Catches: a prompt order that repeats, or that of the supervised batches.
    config = matching_run()
    assembly, source, _ = parts(config, mesh)
    order = [tuple(source._prompt(i)[0]) for i in range(100)]
    data = Stream(assembly.examples("train"), assembly.encoder, config.seed)
    supervised = [
        tuple(assembly.encoder.prompt_ids(assembly.encoder.render(data.example(i))[0]))
        for i in range(50)
    ]
    assert sorted(order[:50]) == sorted(order[50:]) == sorted(supervised)
    assert len({tuple(order[:50]), tuple(order[50:]), tuple(supervised)}) == 3


@pytest.mark.parametrize(
    ("refresh", "every", "drawn"),
    [(0, 2, [0, 0, 8, 8, 16, 16, 24]), (4, 3, [0, 0, 8, 8, 8, 12, 12]),
     (16, 1, [0, 0, 16, 32, 48, 64, 80])],
)  # fmt: skip
def test_when_rollouts_are_drawn(mesh, monkeypatch, refresh, every, drawn):
    """Nothing before bc_steps; then at once as many as a batch, and every so many steps.

    Catches: a cadence counted from step 0, a batch drawn with replacement from too few, model parts
    in the bc phase, an age that is counted in refreshes, one key for all refreshes.
    """
    config = matching_run(replay={"sample_every_steps": every, "refresh_rollouts": refresh})
    _, source, state = parts(config, mesh)
    keys = []

    def fake(*_, batch_rows):
        assert batch_rows == 8

        def sample(params, prompts, given, floor, row_ids, key, lora, limit):
            n, A = prompts.shape[0], T - 1
            eos = np.full((n, A), source._ids.eos, np.int32)
            keys.append(np.asarray(jax.random.key_data(key)).tobytes())
            return _Drawn(eos, eos, np.ones(n, np.int32))

        return sample

    monkeypatch.setattr(matched, "make_sampler", fake)
    got, born = [], {}
    for step in range(7):
        batch = source.next(state)
        got.append(source.save()["drawn"])
        assert (batch.model is None) == (step < 2)
        for position in range(got[-2] if step else 0, got[-1]):
            born[position] = step
        if step >= 2:
            a = source.arrays()
            held = min(16, got[-1])
            assert {int(p): int(s) for p, s in zip(a["position"][:held], a["step"][:held])} == {
                p: born[p] for p in range(got[-1] - held, got[-1])
            }
            ages = jax.device_get(batch.model.age).tolist()
            assert set(ages) <= {step - born[p] for p in range(got[-1] - held, got[-1])}
            assert batch.model.actions.shape == batch.actions.shape
    assert got == drawn
    assert len(set(keys)) == len(keys) == drawn[-1] // (refresh or 8)


@dataclasses.dataclass
class _Drawn:
    actions: np.ndarray
    chosen: np.ndarray
    length: np.ndarray


jax.tree_util.register_dataclass(_Drawn, ["actions", "chosen", "length"], [])


def test_the_sampler_gets_the_sections_values(mesh, monkeypatch):
    # Catches: temperature, noise or adapters that are accepted and ignored; another key a refresh.
    config = matching_run(
        replay={"temperature": 0.5, "noise_rate": 0.25}, lora={"rank": 2},
        optimizer={"no_decay": ()}, sequencematch={"floor_backspace": "noop"},
    )  # fmt: skip
    assembly, source, state = parts(config, mesh)
    calls = []

    class Stop(Exception):
        pass

    def fake(model, sampling, ids, noise, batch_rows):
        def sample(*arguments):
            calls.append((model, sampling, ids, noise, arguments))
            raise Stop

        return sample

    monkeypatch.setattr(matched, "make_sampler", fake)
    with pytest.raises(Stop):
        source.refresh(state, 2)
    model, sampling, ids, noise, (params, _, given, _, _, _, lora, limit) = calls[0]
    assert (model, sampling.temperature) == (assembly.model, 0.5)
    assert not ids.floor_masked
    assert noise == Noise(0.25, tuple(sorted(set(assembly.encoder.noise_ids))))
    assert params is state.params["model"]
    equal(lora, states.adapters(state.params, config))
    assert (np.asarray(given) + np.asarray(limit)).tolist() == [T] * 8
    assert sampling.max_actions >= int(limit.max())


def prompts_of(batch):
    return [
        tuple(row[: floor + 1]) for row, floor in zip(batch.actions.tolist(), batch.floor[:, 0])
    ]


def test_pairs_share_their_prompt_and_have_new_noise_each_step(mesh):
    """Catches: data of the supervised stream, of another row, or with the noise of its row or of
    its prompt for ever.
    """
    # One refresh of 8, so that the same prompt comes back in the same row.
    replay = {"paired_prompts": True, "capacity_rollouts": 8, "sample_every_steps": 100}
    assembly, source, state = parts(matching_run(replay=replay, noise={"rate": 0.5}), mesh)
    seen, truth = {}, responses(assembly)
    for batch in take(source, state, 26)[2:]:
        assert prompts_of(batch) == prompts_of(batch.model)
        assert len(set(prompts_of(batch))) > 2
        for row, prompt in enumerate(prompts_of(batch)):
            n = int(batch.segments[row].sum())
            actions = batch.actions[row, :n].tolist()
            seen.setdefault((row, prompt), []).append(tuple(actions))
            final = stack_after(actions, len(prompt) - 1, assembly.vocab.backspace_id)[-1]
            assert final == [*prompt, *truth[prompt]] or n == T
    often = [rows for rows in seen.values() if len(rows) > 2]
    assert len(often) > 16
    assert sum(len(set(rows)) > 1 for rows in often) > len(often) / 2


def test_data_beside_unpaired_rollouts_are_those_of_the_supervised_source(mesh):
    # Catches: a batch of data lost or repeated where rollouts begin.
    config = matching_run()
    assembly, source, state = parts(config, mesh)
    plain = SupervisedSource(
        assembly.examples("train"), assembly.encoder, batch_rows=8, seed=config.seed, mesh=mesh
    )
    for batch in take(source, state, 5):
        equal(dataclasses.replace(batch, model=None), jax.device_get(plain.next()))


@pytest.mark.parametrize("paired", [False, True])
def test_the_same_seed_gives_the_same_batches_wherever_it_was_saved(mesh, paired):
    """Saved after each of 7 steps, through JSON, into a source that has run already.

    Catches: draws from a global generator, a key or an order that starts anew, a buffer or a place
    left out.
    """
    config = matching_run(replay={"paired_prompts": paired, "noise_rate": 0.1})
    _, source, state = parts(config, mesh)
    places, batches = [], []
    for _ in range(7):
        arrays = {name: values.copy() for name, values in source.arrays().items()}
        places.append((json.dumps(source.save()), arrays))
        batches += take(source, state, 1)
    _, other, _ = parts(config, mesh)
    equal(take(other, state, 7), batches)
    for done in (6, 1, 2, 3, 4, 5):
        place, arrays = places[done]
        other.restore(json.loads(place))
        other.restore_arrays(arrays)
        equal(take(other, state, 7 - done), batches[done:])
    _, third, _ = parts(dataclasses.replace(config, seed=1), mesh)
    different = take(third, state, 3)[2]
    assert (different.model.actions != batches[2].model.actions).any()
    assert (different.actions != batches[2].actions).any()


class Patched:
    """The examples of a source; from `first` on, those of other places."""

    def __init__(self, examples, first):
        self._examples, self._first = examples, first

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, i):
        return self._examples[(i * 7 + 3) % len(self) if i >= self._first else i]


def test_a_rollout_depends_on_its_own_prompt_and_place_alone(mesh, monkeypatch):
    """Of two refreshes whose prompts differ in some rows, the other rows are the same.

    Catches: a budget or padding taken from the longest mate.
    """
    config = matching_run(train={"batch_rows": 16})
    assembly, source, state = parts(config, mesh)
    original = type(assembly).examples
    monkeypatch.setattr(
        type(assembly), "examples", lambda self, split: Patched(original(self, split), 25)
    )
    other = make_source(assembly, mesh)
    source.refresh(state, 2)
    other.refresh(state, 2)
    kept = 0
    for i in range(16):
        if source._prompt(i) == other._prompt(i):
            kept += 1
            for name in ("actions", "labels", "length", "given"):
                np.testing.assert_array_equal(source.arrays()[name][i], other.arrays()[name][i])
    assert 3 < kept < 14


def test_a_refresh_of_more_rollouts_than_a_batch_decodes_a_batch_at_a_time(mesh, monkeypatch):
    """20 rollouts, 8 at a time, are those of one batch of 20.

    Catches: a queue whose rows come back in another order, or with budgets of other rows.
    """
    config = matching_run(
        replay={"refresh_rollouts": 20, "capacity_rollouts": 20, "prefix_tokens": 2}
    )
    _, source, state = parts(config, mesh)
    source.refresh(state, 2)
    original, asked = matched.make_sampler, []

    def at_once(*arguments, batch_rows):
        asked.append(batch_rows)
        return original(*arguments, batch_rows=0)

    monkeypatch.setattr(matched, "make_sampler", at_once)
    _, other, _ = parts(config, mesh)
    other.refresh(state, 2)
    assert asked == [8]
    equal(source.arrays(), other.arrays())


def test_rollouts_are_those_of_the_parameters_of_their_time(mesh):
    # Catches: the parameters of the first refresh for ever.
    config = matching_run(replay={"sample_every_steps": 1})
    _, source, state = parts(config, mesh)
    _, other, changed = parts(config, mesh, seed=5)
    source.refresh(state, 2)
    source.refresh(changed, 3)
    for step in (2, 3):
        other.refresh(changed, step)
    got, want = source.arrays()["actions"], other.arrays()["actions"]
    assert (got[:8] != want[:8]).any()
    np.testing.assert_array_equal(got[8:], want[8:])


def test_several_processes_are_refused(mesh, monkeypatch):
    assembly = assemble(matching_run())
    source = make_source(assembly, mesh)._supervised
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="one process, there are 2"):
        matched.MatchedSource(
            source, Stream([], assembly.encoder, 0), assembly.config, assembly.model,
            assembly.ids, mesh, lambda params: None,
        )  # fmt: skip


def test_data_and_rollouts_of_a_batch_count_their_token_rows_together(mesh):
    """Static values of both are a compilation each: there must be no pairs of them.

    Catches: 8 x 8 programs of the step instead of 8; a count that one of the two does not fit.
    """
    config = matching_run(objective={"layout": "p2"}, noise={"rate": 0.5})
    assembly, source, state = parts(config, mesh)
    counts = set()
    for batch in take(source, state, 8)[2:]:
        assert batch.token_rows == batch.model.token_rows > 0
        counts.add(batch.token_rows)
        for each in (batch, batch.model):
            written = (each.actions != assembly.vocab.backspace_id) & (each.segments > 0)
            assert written.sum(axis=1).max() <= batch.token_rows
    assert counts
