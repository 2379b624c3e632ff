"""Stages that resume, an optimizer that begins anew, and what thoughts learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands import train as command
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.train import make_source
from reasoning_jax.config import OptimizerConfig
from reasoning_jax.data.staged import CurriculumSource
from reasoning_jax.train import optimizer
from reasoning_jax.train import state as states
from reasoning_jax.train.program import fresh_state, make_program
from tests.faults.harness import assert_same, everything_in, metrics_of
from tests.small import thinking_run
from tests.train.test_resume import preempt_after

STOPPED = {"train": {"steps": 8, "log_every_steps": 1, "checkpoint_every_steps": 100}}


def stages_of(workdir):
    return [row["stage"] for row in metrics_of(workdir) if row["split"] == "train"]


def break_off(monkeypatch, config, workdir, stops):
    for stop in stops:
        with monkeypatch.context() as patch:
            preempt_after(patch, stop, CurriculumSource)
            assert command.train(config, workdir, [], quiet=True) == 42
    assert command.train(config, workdir, [], quiet=True) == 0


def counts_of(workdir, step):
    """The counters of the optimizer's state: (of its moments, of its schedule)."""
    arrays, _, _ = everything_in(workdir, step)
    found = {path: int(x) for path, x in arrays.items() if "opt" in path and "count" in path}
    assert len(found) == 2, found
    return min(found.values()), max(found.values())


def test_stages_resume_as_if_unbroken(tmp_path, monkeypatch, quick_to_compile):
    """Stopped after step 2 (the next one begins stage 1), 3 (which began it) and 6.

    Catches: a stage counted from the restart, an optimizer that begins anew at a restart, or not
    at a stage; a stage that evaluation of the checkpoint does not know.
    """
    config = thinking_run(**STOPPED)
    assert command.train(config, tmp_path / "unbroken", [], quiet=True) == 0
    assert stages_of(tmp_path / "unbroken") == [0, 0, 1, 1, 2, 2, 2, 2]
    break_off(monkeypatch, config, tmp_path / "broken", (2, 1, 3))
    assert_same(tmp_path / "unbroken", tmp_path / "broken", 8)
    _, data, meta = everything_in(tmp_path / "broken", 8)
    assert meta["stage"] == 2
    assert data == {"step": 8, "stage": 2, "stage_began": 4}
    # Steps 5 to 8 are of the last stage.
    assert counts_of(tmp_path / "broken", 8) == (4, 8)
    last = metrics_of(tmp_path / "broken")[-1]
    assert (last["split"], last["stage"]) == ("validation", 2)
    assert {"choice", "frontier_mass", "thought_norm"} <= last.keys()


def test_mastery_resumes_as_if_unbroken(tmp_path, monkeypatch, quick_to_compile):
    """A stage goes on until its validation rows are met, but not beyond the schedule.

    Catches: a stage whose beginning is forgotten, so that it is measured at other steps, or late.
    """
    config = thinking_run(
        train={**STOPPED["train"], "steps": 9},
        latent={"stage_steps": (6, 3, 9), "advance": "mastery", "mastery": 0.16,
                "mastery_every_steps": 2, "uniform_prob": 1.0},
        optimizer={"learning_rate": 0.02},
    )  # fmt: skip
    asked = []
    plain = command.make_mastery

    def recorded(assembly, mesh):
        measure = plain(assembly, mesh)

        def call(state, stage):
            asked.append((int(state.step), stage, measure(state, stage)))
            return asked[-1][2]

        return call

    monkeypatch.setattr(command, "make_mastery", recorded)
    assert command.train(config, tmp_path / "unbroken", [], quiet=True) == 0
    stage, began = 0, 0
    wanted, looks = [], {step: value for step, _, value in asked}
    for step in range(9):
        due = stage < 2 and step > began and (step - began) % 2 == 0
        late = stage < 2 and step - began >= config.latent.stage_steps[stage]
        if late or (due and looks[step] >= 0.16):
            stage, began = stage + 1, step
        wanted.append(stage)
    assert stages_of(tmp_path / "unbroken") == wanted
    # Stage 0 was mastered, and stage 1 was not.
    assert wanted == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert 0 < min(looks.values()) < 0.16 <= max(looks.values())
    break_off(monkeypatch, config, tmp_path / "broken", (3,))
    assert_same(tmp_path / "unbroken", tmp_path / "broken", 9)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_new_optimizer_keeps_the_schedule_alone(name):
    """Catches: a warm-up that begins anew, moments or their count that stay, parameters moved."""
    config = OptimizerConfig(
        name=name, learning_rate=0.1, schedule="linear", warmup_steps=4, final_fraction=0.0,
        weight_decay=0.0, clip_norm=0.0, no_decay=(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = {"model": {"layers": {"mlp": {"up": jnp.asarray(rng.standard_normal((2, 4, 3)))}},
                        "final_norm": {"scale": jnp.ones(4)}}, "lora": {}}  # fmt: skip
    trained = ("model/final_norm/scale", "model/layers/mlp/up")
    flat = states.split(params, trained)[0]
    tx = optimizer.make_optimizer(config, 10, {p: x.shape for p, x in flat.items()})
    state = states.init_state(params, tx, trained)
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 3.0), flat)
    for _ in range(6):
        updates, opt_state = tx.update(gradient, state.opt_state, flat)
        flat = optax.apply_updates(flat, updates)
        state = dataclasses.replace(state, params=states.join(flat, {}), opt_state=opt_state)
    before = jax.device_get(state)
    after = states.make_reset_optimizer(tx, trained)(state)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)

    def is_schedule(x):
        return isinstance(x, optax.ScaleByScheduleState)

    def parts(opt_state):
        leaves = jax.tree.leaves(opt_state, is_leaf=is_schedule)
        kept = [int(x.count) for x in leaves if is_schedule(x)]
        return kept, [np.asarray(x) for x in leaves if not is_schedule(x)]

    kept, rest = parts(after.opt_state)
    assert kept == parts(before.opt_state)[0]
    assert set(kept) == {6}
    for x, fresh in zip(rest, parts(tx.init(flat))[1], strict=True):
        np.testing.assert_array_equal(x, fresh)
    # The first step of a new optimizer, at the rate of step 6 of 4 + 6.
    updates, _ = tx.update(gradient, after.opt_state, flat)
    rate = 0.1 * (1 - 2 / 6)
    np.testing.assert_allclose(updates["model/final_norm/scale"], -rate, rtol=1e-4)


@pytest.mark.slow
def test_parts_of_a_batch_give_its_step():
    """Accumulation divides by the count of all rows, thoughts or not."""
    found = []
    for accumulate in (1, 4):
        config = thinking_run(optimizer={"accumulate": accumulate}, latent={"uniform_prob": 1.0})
        assembly = assemble(config)
        mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
        with jax.set_mesh(mesh):
            program = make_program(config, assembly.model, assembly.ids, assembly.thoughts)
            state, source = fresh_state(program, mesh), make_source(assembly, mesh)
            for _ in range(2):
                state, metrics = program.step(state, source.next(state))
            found.append(jax.device_get((metrics["loss"].mean(), state.params["model"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *found)


@pytest.mark.slow
def test_thoughts_learn_what_the_same_model_cannot_do_without(tmp_path):
    """Two hops: thoughts answer, thoughts that are put to zero do not.

    Catches: whatever keeps gradients from thoughts, labels of another row's graph.
    """
    config = thinking_run(
        task={"name": "prosqa", "family": "mirrored", "form": "fused", "min_hops": 2,
              "max_hops": 2},
        data={"seq_len": 20, "train_problems": 10_000_000},
        model={"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16,
               "d_ff": 128, "norm": "layernorm", "mlp": "gelu", "position": "none",
               "init_std": 0.125},
        latent={"max_latent_stage": 2, "stage_steps": (500, 300, 500), "uniform_prob": 0.1,
                "prompt_columns": 14, "reset_optimizer": "never"},
        optimizer={"learning_rate": 2e-3, "schedule": "constant", "weight_decay": 0.0,
                   "warmup_steps": 100},
        train={"steps": 1300, "batch_rows": 64, "log_every_steps": 100,
               "checkpoint_every_steps": 10_000},
        evaluate={"problems": 400, "batch_rows": 400,
                  "thought_controls": ("zeros", "other_row")},
    )  # fmt: skip
    assert command.train(config, tmp_path, [], quiet=True) == 0
    last = metrics_of(tmp_path)[-1]
    assert last["choice"] > 0.9
    assert last["exact_match"] > 0.85
    # Two-way; the standard error is 0.025.
    assert last["choice_zeros"] < 0.62
    assert last["choice_other_row"] < 0.62
