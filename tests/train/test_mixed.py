"""The mixed loss against every state run alone; layouts, parts, meshes, order and the schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.train import make_source
from reasoning_jax.config import ObjectiveConfig, SequenceMatchConfig
from reasoning_jax.data.batch import Batch, padded
from reasoning_jax.model import attention, readout, spec, transformer
from reasoning_jax.objectives import sequencematch
from reasoning_jax.rl.replay import as_batch
from reasoning_jax.train import loop, losses
from reasoning_jax.train.program import fresh_state, make_program
from tests import oracle
from tests.small import matching_run, random_tree

T, B = 16, 6
WIDE = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 32}
# Values at which every term weighs: the defaults hardly move the loss of a few short rows.
STRONG = {"alpha": 0.5, "kappa_m": 0.2, "value_weight_data": 0.3, "bc_steps": 2, "anneal_steps": 2}


def assembled(**sections):
    sections["sequencematch"] = {**STRONG, **sections.get("sequencematch", {})}
    sections.setdefault("noise", {"rate": 0.3})
    return assemble(matching_run(**sections))


def random_rollouts(assembly, rng, rows=B):
    """Arbitrary legal trajectories after true prompts; sometimes another action was executed."""
    ids = assembly.ids
    text = np.array(assembly.vocab.text_ids())
    out = {n: np.zeros((rows, T), np.int32) for n in ("actions", "labels")}
    out |= {n: np.zeros(rows, np.int32) for n in ("length", "given", "floor", "step", "position")}
    for b in range(rows):
        example = assembly.examples("train")[int(rng.integers(50))]
        prompt = assembly.encoder.prompt_ids(assembly.encoder.render(example)[0])
        floor, depth = len(prompt) - 1, len(prompt) - 1 + int(rng.integers(0, 3))
        actions = [*prompt, *rng.choice(text, depth - floor).tolist()]
        labels, given = actions[1:], len(actions)
        while len(actions) < T:
            open_floor = not ids.floor_masked and depth >= floor
            deletes = ids.backspace is not None and (depth > floor or open_floor)
            if len(actions) == T - 1 or rng.random() < 0.1:
                action = ids.eos
            elif deletes and rng.random() < 0.4:
                action = ids.backspace
            else:
                action = int(rng.choice(text))
            actions.append(action)
            labels.append(int(rng.choice(text)) if rng.random() < 0.2 else action)
            if action == ids.eos:
                break
            depth = max(depth - 1, floor) if action == ids.backspace else depth + 1
        labels.append(ids.eos)
        n = len(actions)
        out["actions"][b, :n], out["labels"][b, :n] = actions, labels
        out["length"][b], out["given"][b], out["floor"][b] = n, given, floor
        out["step"][b] = b
    return out


def as_jax(arrays, **more):
    return Batch(**{name: jnp.asarray(x) for name, x in arrays.items()}, **more)


def data_rows(assembly, rng, rows=B, packed=False):
    """Encoded examples; `packed`: two in every row but the last."""
    examples = [assembly.examples("train")[int(rng.integers(50))] for _ in range(2 * rows)]
    encoded = [assembly.encoder.encode(e, rng) for e in examples]
    if not packed:
        return padded(encoded[:rows], rows, T)
    batch = padded(encoded[:rows], rows, 2 * T)
    for b, extra in enumerate(encoded[rows : 2 * rows - 1]):
        n, m = int(batch["segments"][b].sum()), len(extra["actions"])
        for name, values in extra.items():
            batch[name][b, n : n + m] = values
        batch["segments"][b, n : n + m] = 2
    return batch


def make_batch(assembly, seed=0, rows=B, packed=False):
    rng = np.random.default_rng(seed)
    data, sampled = data_rows(assembly, rng, rows, packed), random_rollouts(assembly, rng, rows)
    model = as_batch(sampled, step=9)
    if packed:
        wide = {n: np.pad(x, ((0, 0), (0, T))) for n, x in model.items() if n != "age"}
        model = {**wide, "age": model["age"]}
    return as_jax(data, model=as_jax(model)), sampled


def params_of(assembly, seed=0):
    return random_tree(transformer.param_specs(assembly.model), np.random.default_rng(seed))


def loss_of(assembly, passes="auto", **objective):
    chosen = dataclasses.replace(assembly.config.objective, **objective)
    match = dataclasses.replace(assembly.config.sequencematch, passes=passes)
    return losses.make_loss(assembly.model, chosen, assembly.ids, match)


def evaluate(loss, params, batch, step=3):
    """(value, gradient, metrics as means), all on the host."""

    @jax.jit
    def evaluated(params, batch, step):
        def mean(params):
            total, metrics = loss(params, None, batch, step)
            return total.mean(), metrics

        (value, metrics), gradient = jax.value_and_grad(mean, has_aux=True)(params)
        return value, gradient, {name: s.mean() for name, s in metrics.items()}

    return jax.device_get(evaluated(params, batch, jnp.int32(step)))


def close(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def trajectories_of(batch):
    """(actions, labels, weights, floor) of every segment of a batch, as lists."""
    batch = jax.device_get(batch)
    for b in range(batch.actions.shape[0]):
        for s in range(1, int(batch.segments[b].max()) + 1):
            at = batch.segments[b] == s
            rows = (batch.actions[b][at], batch.labels[b][at], batch.weights[b][at])
            yield *(x.tolist() for x in rows), int(batch.floor[b][at][0])


def each_state_alone(assembly, params, batch):
    """Objective rows of a batch, from a separate forward pass of every visited state."""
    ids, V, match = assembly.ids, assembly.model.vocab_size, assembly.config.sequencematch
    found = list(trajectories_of(batch))
    paths = []
    for actions, _, _, floor in found:
        edits = [oracle.BK if a == ids.backspace else a for a in actions]
        paths.append(oracle.states(edits[0], edits[1:], floor))
    alone = [state for path in paths for state in path]
    width = 2 * T
    tokens = jnp.array([s + [0] * (width - len(s)) for s in alone])
    segments = jnp.array([[1] * len(s) + [0] * (width - len(s)) for s in alone])

    @jax.jit
    def top_logits(params, tokens, segments):
        positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
        out = transformer.apply(
            params, assembly.model, tokens,
            positions=positions, attention=attention.Causal(segments),
        )  # fmt: skip
        top = out.hidden[jnp.arange(len(tokens)), segments.sum(1) - 1]
        return readout.logits(params, assembly.model, top)

    flat = np.asarray(top_logits(params, tokens, segments))
    n, longest = len(found), max(map(len, paths))
    logits, allowed = np.zeros((n, longest, V), np.float32), np.ones((n, longest, V), bool)
    labels, length, given = np.zeros((n, longest), int), np.zeros(n, int), np.zeros(n, int)
    allowed[..., list(ids.never)] = False
    begin = 0
    for i, ((_, wanted, weights, floor), path) in enumerate(zip(found, paths)):
        own = flat[begin : begin + len(path)]
        begin += len(path)
        skip = floor if match.start == "prompt" else 0
        m = len(path) - skip
        logits[i, :m], labels[i, :m], length[i] = own[skip:], wanted[skip:], m - 1
        given[i] = max(weights.index(1.0) - skip, 0)
        if ids.backspace is not None and ids.floor_masked:
            allowed[i, :m, ids.backspace] = [len(s) - 1 > floor for s in path[skip:]]
    rows = sequencematch.rows_of_logits(
        jnp.array(logits), jnp.array(labels), jnp.array(length), eos_id=ids.eos,
        allowed=jnp.array(allowed),
        given=None if match.kappa_on_prompt else jnp.array(given),
    )  # fmt: skip
    start = np.log(np.exp(logits[:, 0]).sum(-1, where=allowed[:, 0]))
    return rows, start


CASES = {
    "bos": {},
    "prompt": {"start": "prompt", "terminal": "repeat", "value_form": "explicit"},
    "kappa on prompt": {"kappa_on_prompt": True, "divergence": "js", "horizon": 5},
    "open floor": {"floor_backspace": "noop", "start": "prompt", "terminal": "none"},
}


# Without <backspace> there is no floor, and kappa on prompts is the same program.
@pytest.mark.parametrize(
    ("case", "backspace"), [*((case, True) for case in CASES), ("bos", False), ("prompt", False)]
)
def test_the_loss_is_the_objective_of_every_state_alone(case, backspace):
    """Value terms, rewards and regulariser from a forward pass a state, masked as the sampler does.

    Catches: V over never-drawn ids or over a masked <backspace>, the exponent counted from another
    start, the wrong `own` rows, sides swapped, a scale left out, a setting that is not handed on.
    """
    sections = {} if backspace else {"vocab": {"backspace": False}, "noise": {"rate": 0.0}}
    assembly = assembled(sequencematch=CASES[case], **sections)
    match, params = assembly.config.sequencematch, params_of(assembly)
    batch, _ = make_batch(assembly)
    value, _, metrics = evaluate(loss_of(assembly), params, batch)
    (data, start), (model, model_start) = (
        each_state_alone(assembly, params, x) for x in (batch, batch.model)
    )
    settings = sequencematch.Settings(
        match.divergence, alpha=0.5, gamma=0.9, kappa_m=0.2, terminal=match.terminal,
        value_weight_data=0.3, value_weight_model=0.7, value_form=match.value_form,
    )  # fmt: skip
    want, expert, own = sequencematch.sequencematch(data, model, settings, match.horizon)
    got = metrics["loss_sm_data"] + metrics["loss_sm_model"]
    np.testing.assert_allclose(got, want, rtol=2e-5)
    # At step 3, beta is half way from 1 to 0.2.
    np.testing.assert_allclose(metrics["beta"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(value, 0.6 * metrics["loss_bc"] + 0.4 * want, rtol=2e-5)
    # Every action of the data weighs gamma^time, scaled, in 0.4 of the whole.
    scale = sequencematch.loss_scale(0.9, match.horizon)
    discounts = np.where(data.acts, 0.9 ** np.asarray(data.time, float), 0.0)
    weight = 0.4 * scale * discounts.sum() / data.terminal.sum()
    np.testing.assert_allclose(metrics["weight_sm"], weight, rtol=1e-5)
    np.testing.assert_allclose(metrics["share_sm"], weight / (0.6 + weight), rtol=1e-5)
    np.testing.assert_allclose(metrics["value_start_data"], start.mean(), rtol=2e-5)
    np.testing.assert_allclose(metrics["value_start_model"], model_start.mean(), rtol=2e-5)
    for side, values in (("data", expert), ("model", own)):
        for name in ("reward", "value_sum", "end_value"):
            count = values.actions if name == "reward" else values.trajectories
            key = {"end_value": "value_end"}.get(name, name)
            np.testing.assert_allclose(
                metrics[f"{key}_{side}"], getattr(values, name) / count, rtol=1e-4, atol=1e-5
            )
        np.testing.assert_allclose(
            metrics[f"value_sum_{side}"], metrics[f"value_start_{side}"], rtol=1e-5
        )
    assert metrics["telescoping_gap"] < 1e-4
    assert metrics["rollout_age_steps"] == np.mean([9 - b for b in range(B)])
    assert ("backspace_model" in metrics) == backspace


def test_every_setting_of_the_objective_is_that_of_the_section():
    # Catches: an option that is accepted and not handed on; -1 taken for a coefficient.
    changed = {
        "divergence": "chi2", "alpha": 0.3, "gamma": 0.7, "kappa_m": 0.4, "terminal": "repeat",
        "value_weight_data": 0.9, "value_form": "explicit", "clamp": True, "domain_guard": "clamp",
    }  # fmt: skip
    for name, value in changed.items():
        settings = losses.settings_of(SequenceMatchConfig(**{"divergence": "chi2", name: value}))
        assert getattr(settings, name) == value
        rest = {n: getattr(settings, n) for n in changed if n != name}
        default = sequencematch.Settings("chi2")
        assert rest == {n: getattr(default, n) for n in rest}
        assert settings.value_weight_model == pytest.approx(1 - settings.value_weight_data)
    assert {f.name for f in dataclasses.fields(sequencematch.Settings)} == {
        *changed, "value_weight_model",
    }  # fmt: skip
    assert losses.settings_of(SequenceMatchConfig()).mixture == 0.0025


@pytest.mark.parametrize("step", [None, 0, 1])
def test_before_and_without_rollouts_it_is_the_bc_loss(step):
    """Catches: beta below 1 within the bc steps, labels of rollouts in the bc mean, the floor's or
    never-drawn ids' mask in the softmax of bc, metrics of bc over rollouts.
    """
    assembly = assembled()
    params = params_of(assembly)
    batch, _ = make_batch(assembly)
    alone = dataclasses.replace(batch, model=None)
    bc = losses.make_loss(assembly.model, ObjectiveConfig("bc"), assembly.ids)
    want = evaluate(bc, params, alone)
    value, gradient, metrics = evaluate(
        loss_of(assembly), params, alone if step is None else batch, 9 if step is None else step
    )
    close((value, gradient), want[:2])
    for name, x in want[2].items():
        np.testing.assert_allclose(metrics[name], x, atol=1e-6)
    assert 0 < metrics["accuracy_noised"] + metrics["backspace_noised"] < 2


@pytest.mark.parametrize("packed", [False, True])
def test_layouts_agree_in_value_and_gradient(packed):
    """Catches: depth of P2 rows one off (the floor's mask), buckets of one side for both."""
    assembly = assembled()
    params = params_of(assembly)
    batch, _ = make_batch(assembly, packed=packed)
    want = evaluate(loss_of(assembly, layout="p1", passes="one"), params, batch)
    written = [
        int(((x.actions != assembly.ids.backspace) & (x.segments > 0)).sum(1).max())
        for x in (batch, batch.model)
    ]
    counted = dataclasses.replace(
        batch, token_rows=written[0],
        model=dataclasses.replace(batch.model, token_rows=written[1]),
    )  # fmt: skip
    assert max(written) < batch.actions.shape[1]
    for layout, passes, each in (
        ("p1", "two", batch), ("p2", "one", batch), ("p2", "two", counted), ("auto", "one", counted)
    ):  # fmt: skip
        loss = loss_of(assembly, layout=layout, passes=passes)
        value, gradient, metrics = evaluate(loss, params, each)
        assert metrics.pop("p2_lost", 0.0) == 0
        close((value, gradient, metrics), want)


def test_packed_data_is_that_of_rows_of_their_own():
    # Catches: one trajectory a row, time that runs on, V(s') taken from the next segment.
    assembly = assembled()
    params, rng = params_of(assembly), np.random.default_rng(3)
    together = data_rows(assembly, rng, packed=True)
    model = make_batch(assembly, packed=True)[0].model
    apart = {name: [] for name in together}
    for b in range(B):
        for s in range(1, together["segments"][b].max() + 1):
            at = together["segments"][b] == s
            for name, x in together.items():
                row = x[b][at] if name != "segments" else np.ones(at.sum(), np.int32)
                apart[name].append(np.pad(row, (0, 2 * T - at.sum())))
    rows = len(apart["actions"])
    assert rows == 2 * B - 1
    spread = {name: np.stack(x) for name, x in apart.items()}
    filler = jax.tree.map(lambda x: jnp.zeros((rows - B, *x.shape[1:]), x.dtype), model)
    more = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), model, filler)
    want = evaluate(loss_of(assembly), params, as_jax(spread, model=more))
    got = evaluate(loss_of(assembly), params, as_jax(together, model=model))
    close(got[:2], want[:2])


def test_padding_rows_and_the_order_of_rows_change_nothing():
    # Catches: a mean over rows that hold nothing; data row b compared with model row b.
    assembly = assembled()
    params, loss = params_of(assembly), loss_of(assembly)
    batch, _ = make_batch(assembly)
    value, gradient, metrics = evaluate(loss, params, batch)
    rng = np.random.default_rng(0)

    def shuffled(x):
        order = rng.permutation(B)
        return jax.tree.map(lambda leaf: leaf[order], x)

    alone = shuffled(dataclasses.replace(batch, model=None))
    mixed = dataclasses.replace(alone, model=shuffled(batch.model))
    close(evaluate(loss, params, mixed), (value, gradient, metrics))
    wider = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]), batch)
    got = evaluate(loss, params, wider)
    for each in (metrics, got[2]):
        each.pop("rollout_age_steps")
    close(got, (value, gradient, metrics))


@pytest.mark.parametrize("start", ["bos", "prompt"])
def test_where_time_begins_decides_whether_the_prompt_counts(start):
    # Catches: start="prompt" that still scores prompt actions, or start="bos" that does not.
    assembly = assembled(sequencematch={"start": start})
    params, loss = params_of(assembly), loss_of(assembly)
    batch, _ = make_batch(assembly)
    inside = jnp.arange(T)[None, :] < batch.floor
    other = dataclasses.replace(batch, labels=jnp.where(inside, 3, batch.labels))
    want, got = (evaluate(loss, params, x) for x in (batch, other))
    assert (abs(want[0] - got[0]) > 1e-3) == (start == "bos")
    assert want[2]["loss_bc"] == got[2]["loss_bc"]


def step_once(assembly, batch, shape=(1, 1, 1)):
    """(metrics, parameters) after one step at step 3 of plain descent, which hides no scale."""
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        program = make_program(assembly.config, assembly.model, assembly.ids)
        state = fresh_state(program, mesh)
        state = dataclasses.replace(state, step=jnp.int32(3))
        placed = jax.tree.map(
            lambda x: jax.device_put(x, sharding.batch_sharding(mesh, x.ndim)), batch
        )
        state, metrics = program.step(state, placed)
        means = {name: float(s.mean()) for name, s in metrics.items()}
        return means, jax.device_get(spec.flatten(state.params))


SGD = {"name": "sgd", "schedule": "constant", "learning_rate": 1.0, "clip_norm": 0.0,
       "weight_decay": 0.0}  # fmt: skip


def uneven(assembly, rows):
    """Packed data, and rollouts in some rows only: all three means have their own denominators."""
    batch, _ = make_batch(assembly, rows=rows, packed=True)
    some = jnp.arange(rows) % 3 > 0

    def kept(x):
        return jnp.where(some.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return dataclasses.replace(batch, model=jax.tree.map(kept, batch.model))


@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_in_parts_the_step_is_the_same(accumulate):
    """Catches: a part divided by its own counts, one denominator for all three, beta weighted
    twice, metrics of the first part.
    """
    sections = {"optimizer": SGD, "data": {"seq_len": 2 * T}}
    whole = assembled(**sections)
    parts = assembled(**sections | {"optimizer": {**SGD, "accumulate": accumulate}})
    batch = uneven(whole, 8)
    want, params = step_once(whole, batch)
    got, others = step_once(parts, batch)
    # A sum of parts' largest differences, and no mean of equals: what is asked is that it is small.
    assert max(each.pop("telescoping_gap") for each in (want, got)) < 1e-4
    assert got.pop("tokens") == want.pop("tokens")
    close(got, want)
    moved = max(abs(params[p] - others[p]).max() for p in params)
    assert moved < 2e-5


SHAPES = [
    (2, 2, 2),
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
    pytest.param((4, 2, 1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("rows", [8, 16])
def test_rows_that_take_turns_stay_where_they_are(shape, rows):
    # Catches: an axis of the mesh that a reshape forgets, and so another sharding than the batch's.
    mesh = sharding.make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = sharding.batch_sharding(mesh)
        first, second = (
            jax.device_put(np.arange(k, k + 3 * rows, dtype=np.int32).reshape(rows, 3), placed)
            for k in (0, 100)
        )

        @jax.jit
        def pull(x):
            return jax.grad(lambda x: (losses.halves(x)[1] * 3).sum())(x)

        assert pull(jnp.zeros((2 * rows, 3), out_sharding=placed)).sum() == 9 * rows

        @jax.jit
        def there_and_back(x, y):
            wide = [Batch(each, *[None] * 5) for each in (x, y)]
            both = losses.interleave(*wide).actions
            out = losses.halves(both)
            assert all(jax.typeof(a) == jax.typeof(b) for a, b in zip(out, (x, y)))
            return both, out

        both, out = jax.device_get(there_and_back(first, second))
        np.testing.assert_array_equal(both[::2], first)
        np.testing.assert_array_equal(both[1::2], second)
        jax.tree.map(np.testing.assert_array_equal, out, (first, second))


def training(shape, steps=6):
    """Losses of steps with rollouts of their own, and the buffer at the end."""
    config = matching_run(
        model=WIDE, train={"batch_rows": 16}, sequencematch={"bc_steps": 1, "anneal_steps": 1},
        replay={"sample_every_steps": 2, "capacity_rollouts": 32, "noise_rate": 0.1},
    )  # fmt: skip
    # One device takes the two sides in turn, meshes together: the numbers must be the same.
    passes = "two" if shape == (1, 1, 1) else "one"
    match = dataclasses.replace(config.sequencematch, passes=passes)
    config = dataclasses.replace(config, sequencematch=match)
    assembly = assemble(config)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        program = make_program(config, assembly.model, assembly.ids)
        state, source = fresh_state(program, mesh), make_source(assembly, mesh)
        values = []
        for step in range(steps):
            batch = source.next(state)
            # Every second step behind bc_steps samples; its seconds are told apart, once.
            assert [*source.seconds()] == ["rollout"] * (step % 2)
            assert source.seconds() == {}
            sides = [batch] if batch.model is None else [batch, batch.model]
            state, metrics = program.step(state, batch)
            trained_on = sum(int((np.asarray(side.segments) > 0).sum()) for side in sides)
            assert float(metrics["tokens"].value) == trained_on
            values.append(float(metrics["loss"].mean()))
        return values, source.arrays(), program.step._cache_size()


@pytest.fixture(scope="module")
def one_device():
    return training((1, 1, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_any_mesh_gives_the_losses_and_the_rollouts_of_one_device(shape, one_device):
    """Catches: rows that change places between data and model, a local mean, other draws."""
    want, buffer, _ = one_device
    got, other, programs = training(shape)
    np.testing.assert_allclose(got, want, atol=1e-4)
    for name, x in buffer.items():
        np.testing.assert_array_equal(other[name], x, err_msg=name)
    # One without rollouts, one with.
    assert programs == 2


@pytest.mark.parametrize(
    ("anneal", "want"),
    [(2000, {0: 1, 999: 1, 1000: 1, 2000: 0.6, 3000: 0.2, 5000: 0.2}),
     (0, {0: 1, 999: 1, 1000: 0.2, 2000: 0.2}), (1, {999: 1, 1000: 1, 1001: 0.2})],
)  # fmt: skip
def test_the_schedule_of_beta(anneal, want):
    match = SequenceMatchConfig(bc_steps=1000, anneal_steps=anneal, beta_end=0.2)
    for step, beta in want.items():
        for number in (step, jnp.int32(step)):
            assert float(losses.beta_at(match, number)) == pytest.approx(beta, abs=1e-6), step


def test_debug_refuses_a_trajectory_that_does_not_end():
    """Catches: a check that what is cut passes, because its last row is taken for its end."""
    assembly = assembled()
    batch, sampled = make_batch(assembly)
    loss, params = jax.jit(loss_of(assembly)), params_of(assembly)
    _, metrics = loss(params, None, batch, 3)
    loop.check_identities(metrics, 3)
    loop.check_identities({"loss": metrics["loss_bc"]}, 3)
    # One rollout without its last row; then an example.
    sampled["length"][2] -= 1
    cut = dataclasses.replace(batch, model=as_jax(as_batch(sampled, step=9)))
    last = int(batch.segments[1].sum()) - 1
    short = dataclasses.replace(batch, segments=batch.segments.at[1, last].set(0))
    for wrong in (cut, short):
        with pytest.raises(AssertionError, match=r"step 3: .*terminal state"):
            loop.check_identities(loss(params, None, wrong, 3)[1], 3)
    gap = {**metrics, "telescoping_gap": losses.Sum(jnp.float32(0.1), jnp.float32(1))}
    with pytest.raises(AssertionError, match="value sum"):
        loop.check_identities(gap, 3)
    gap["telescoping_gap"] = losses.Sum(jnp.float32(jnp.nan), jnp.float32(1))
    with pytest.raises(AssertionError, match="value sum"):
        loop.check_identities(gap, 3)
