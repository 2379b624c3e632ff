"""The step on meshes, in parts, with every optimizer; what is trained and what is left alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import backspace, sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config import ConfigError, OptimizerConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.model import spec
from reasoning_jax.train.optimizer import make_schedule
from reasoning_jax.train.program import fresh_state, make_program, plan_memory
from tests.small import tiny_run


def steps_on_mesh(config, shape, steps):
    """(losses, final parameters as numpy, compilations) on the first devices that fill `shape`."""
    assembly = assemble(config)
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(*shape, devices=devices)
    with jax.set_mesh(mesh):
        program = make_program(config, assembly.model, assembly.ids)
        state = fresh_state(program, mesh)
        source = SupervisedSource(
            assembly.examples("train"), assembly.encoder, batch_rows=config.train.batch_rows,
            seed=config.seed, mesh=mesh, pack_examples=config.data.pack_examples,
        )  # fmt: skip
        losses = []
        for _ in range(steps):
            state, metrics = program.step(state, source.next())
            losses.append(float(metrics["loss"].mean()))
    return losses, jax.device_get(spec.flatten(state.params)), program.step._cache_size()


WIDE = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 32, "n_layers": 2}


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_any_mesh_gives_the_losses_of_one_device(shape, one_device_losses):
    config = tiny_run(model=WIDE, train={"batch_rows": 16})
    losses, _, compilations = steps_on_mesh(config, shape, 20)
    np.testing.assert_allclose(losses, one_device_losses, atol=1e-5)
    assert compilations == 1


@pytest.fixture(scope="module")
def one_device_losses():
    config = tiny_run(model=WIDE, train={"batch_rows": 16})
    losses, _, compilations = steps_on_mesh(config, (1, 1, 1), 20)
    assert compilations == 1
    assert losses[-1] < losses[0]
    return losses


def test_accumulation_and_layouts_give_the_same_training():
    """Parts of unequal weight, P1 and P2: all must divide once, by the count of the whole batch."""
    base = tiny_run()
    want, params, _ = steps_on_mesh(base, (1, 1, 1), 3)
    for change in (
        {"optimizer": dataclasses.replace(base.optimizer, accumulate=4)},
        {"objective": dataclasses.replace(base.objective, layout="p2")},
    ):
        got, others, _ = steps_on_mesh(dataclasses.replace(base, **change), (1, 1, 1), 3)
        np.testing.assert_allclose(got, want, atol=1e-5)
        for path, x in params.items():
            np.testing.assert_allclose(others[path], x, atol=2e-4, err_msg=path)


def test_accumulation_with_a_row_a_device():
    # Catches: a mesh axis of size 1 that goes with the parts, over which the scan then runs.
    base = tiny_run(train={"batch_rows": 16})
    parts = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, accumulate=2))
    want, _, _ = steps_on_mesh(base, (8, 1, 1), 2)
    got, _, _ = steps_on_mesh(parts, (8, 1, 1), 2)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_states_that_find_no_row_in_p2_are_not_scored():
    """With too few rows the loss is that of the states which have one, and the rest is told."""
    config = tiny_run(objective={"layout": "p2", "p2_rows": 6})
    assembly = assemble(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        cut = make_program(config, assembly.model, assembly.ids)
        whole = make_program(tiny_run(), assembly.model, assembly.ids)
        params = fresh_state(cut, mesh).params["model"]
        batch = SupervisedSource(
            assembly.examples("train"), assembly.encoder, batch_rows=8, seed=0, mesh=mesh
        ).next()
        d = backspace.deduplicate(
            batch.actions, batch.segments, batch.floor, assembly.vocab.backspace_id, 6
        )
        kept = jnp.where(d.pointer < 6, batch.weights, 0.0)
        total, metrics = jax.jit(cut.loss)(params, None, batch)
        want, _ = jax.jit(whole.loss)(params, None, dataclasses.replace(batch, weights=kept))
    assert 0 < float(metrics["p2_lost"].mean()) < 1
    np.testing.assert_allclose(total.value, want.value, rtol=1e-5)
    assert float(total.count) == float(want.count)


def test_packed_rows_train_on_the_same_examples():
    config = tiny_run(data={"seq_len": 32, "pack_examples": True})
    losses, _, _ = steps_on_mesh(config, (1, 1, 1), 12)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon", "sgd"])
def test_every_optimizer_learns(name):
    rate = {"sgd": 0.3, "muon": 0.02, "adafactor": 0.02}.get(name, 0.003)
    config = tiny_run(
        model={"n_heads": 2, "n_kv_heads": 2, "d_ff": 16},
        optimizer={"name": name, "learning_rate": rate, "schedule": "constant"},
        train={"batch_rows": 32},
    )
    losses, _, compilations = steps_on_mesh(config, (2, 2, 2), 25)
    # optax's Muon state holds a constant whose layout is written differently after a step.
    assert compilations == (2 if name == "muon" else 1)
    assert np.mean(losses[-5:]) < losses[0] - 0.2, losses


def test_frozen_parameters_do_not_move_and_adapters_train_alone():
    frozen = tiny_run(optimizer={"freeze": ("embedding", "layers/mlp")})
    before = initial(frozen)
    _, after, _ = steps_on_mesh(frozen, (1, 1, 1), 2)
    moved = {path for path in after if (after[path] != before[path]).any()}
    assert moved
    assert not [p for p in moved if "embedding" in p or "layers/mlp/" in p]
    adapted = tiny_run(lora={"rank": 2, "train_also": ("embedding/tokens",)})
    before = initial(adapted)
    _, after, _ = steps_on_mesh(adapted, (1, 1, 1), 2)
    moved = {path for path in after if (after[path] != before[path]).any()}
    assert {p for p in moved if p.startswith("model/")} == {"model/embedding/tokens"}
    ups = {p for p in after if p.startswith("lora/") and p.endswith("/up")}
    assert ups
    assert ups <= moved


def initial(config):
    assembly = assemble(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(config, assembly.model, assembly.ids)
        return jax.device_get(spec.flatten(fresh_state(program, mesh).params))


def test_patterns_that_match_nothing_are_refused():
    config = tiny_run(optimizer={"freeze": ("attenton",)})
    with pytest.raises(ConfigError, match=r"attenton.*matches no parameter"):
        make_program(config, assemble(config).model, assemble(config).ids)


def test_weight_zero_and_padding_reach_no_gradient():
    config = tiny_run()
    assembly = assemble(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(config, assembly.model, assembly.ids)
        params = fresh_state(program, mesh).params["model"]
        batch = SupervisedSource(
            assembly.examples("train"), assembly.encoder, batch_rows=8, seed=0, mesh=mesh
        ).next()

        @jax.jit
        def gradient(params, batch):
            return jax.grad(lambda p: program.loss(p, None, batch)[0].value)(params)

        want = gradient(params, batch)
        garbage = Batch(
            actions=jnp.where(batch.segments == 0, 3, batch.actions),
            labels=jnp.where(batch.weights == 0, 5, batch.labels),
            weights=batch.weights, segments=batch.segments, floor=batch.floor,
            noised=batch.noised,
        )  # fmt: skip
        got = gradient(params, garbage)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, got)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 55: 1.0, 100: 1.0}),
        ("linear", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("cosine", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("wsd", {10: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules(schedule, expected):
    config = OptimizerConfig(
        learning_rate=1.0, schedule=schedule, warmup_steps=10, final_fraction=0.1,
        decay_fraction=0.2,
    )  # fmt: skip
    rate = make_schedule(config, 100)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_the_memory_plan_counts_what_is_there():
    config = tiny_run(model=WIDE, train={"batch_rows": 16})
    assembly = assemble(config)
    plans = {}
    for shape in [(1, 1, 1), (1, 8, 1)]:
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            program = make_program(config, assembly.model, assembly.ids)
            plans[shape] = plan_memory(program, mesh)
            state = fresh_state(program, mesh)
        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params))
        assert plans[shape]["parameters"] == held
    assert plans[1, 8, 1]["optimizer"] < plans[1, 1, 1]["optimizer"] / 4
