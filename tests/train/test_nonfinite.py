"""A NaN or Inf reaches no parameter and no optimizer; it is counted, named, and ends runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands import train as command
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.objectives.masked import Mixture, Sum
from reasoning_jax.train import nonfinite
from reasoning_jax.train.nonfinite import Diverged
from reasoning_jax.train.program import fresh_state, make_program
from reasoning_jax.train.state import trained_paths
from reasoning_jax.train.step import make_gradients, make_train_step
from tests.small import matching_run, thinking_run, tiny_run

pytestmark = pytest.mark.usefixtures("quick_to_compile")
KINDS = {"mle": tiny_run, "match": matching_run, "stages": thinking_run}


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def parts(config):
    """(program, state, batch, mesh) of a run at its first step."""
    assembly = assemble(config)
    program = make_program(config, assembly.model, assembly.ids, assembly.thoughts)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        state = fresh_state(program, mesh)
        source = command.make_source(assembly, mesh)
        batch = source.next(state)
    return assembly, program, state, batch, mesh


def step_with(program, state, batch, mesh, gradients=None, **poison):
    from reasoning_jax.train import optimizer

    schedule = optimizer.make_schedule(program.config.optimizer, program.config.train.steps)
    step = make_train_step(
        gradients or program.gradients, program.tx, schedule, program.trained, **poison
    )
    with jax.set_mesh(mesh):
        return step(jax.tree.map(jnp.copy, state), batch)


@pytest.mark.parametrize(
    ("where", "value", "accumulate"),
    [("loss", float("nan"), 1), ("loss", float("-inf"), 2), ("grad", float("inf"), 1),
     ("grad", float("nan"), 2)],
)  # fmt: skip
def test_a_broken_step_changes_nothing_but_the_counter(where, value, accumulate):
    config = tiny_run(optimizer={"accumulate": accumulate})
    _, program, state, batch, mesh = parts(config)
    # A step before, so that the optimizer holds something.
    state, _ = step_with(program, state, batch, mesh)
    after, metrics = step_with(program, state, batch, mesh, **{f"poison_{where}": [(2, value)]})
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert int(after.step) == int(state.step) + 1
    assert float(metrics["steps_skipped"].value) == 1
    said = nonfinite.names(int(metrics["nonfinite"].value))
    assert ("loss" in said) == (where == "loss")
    assert ("gradients" in said) == (where == "grad")
    for name, s in metrics.items():
        assert np.isfinite(float(s.value)), name
    # The same step with nothing broken is taken.
    taken, metrics = step_with(program, state, batch, mesh)
    assert bits(taken.params) != bits(state.params)
    assert float(metrics["steps_skipped"].value) == 0


def broken_loss(loss, what):
    """A loss whose sums, or one of whose counted terms, is NaN: as of a reward or a log-prob."""

    def wrapped(*arguments):
        total, metrics = loss(*arguments)
        if isinstance(total, Mixture):
            sums = [*total.sums]
            sums[-1] = Sum(sums[-1].value * what, sums[-1].count)
            return Mixture(total.weights, tuple(sums)), metrics
        return Sum(total.value * what, total.count), metrics

    return wrapped


@pytest.mark.parametrize("kind", KINDS)
def test_a_term_of_any_objective(kind):
    config = KINDS[kind]()
    _, program, state, batch, mesh = parts(config)
    trained = trained_paths(config, program.specs)
    gradients = make_gradients(config, broken_loss(program.loss, jnp.nan), trained)
    after, metrics = step_with(program, state, batch, mesh, gradients)
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert float(metrics["steps_skipped"].value) == 1


def test_a_hidden_state_of_one_feature(monkeypatch):
    """Catches: a check of the loss's own rows only."""
    from reasoning_jax.model import transformer

    original = transformer.embed

    def broken(params, model, tokens):
        x = original(params, model, tokens)
        return x * jnp.where(jnp.arange(x.shape[-1]) == 3, jnp.nan, 1.0)

    _, program, state, batch, mesh = parts(tiny_run())
    monkeypatch.setattr(transformer, "embed", broken)
    after, metrics = step_with(program, state, batch, mesh)
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert float(metrics["steps_skipped"].value) == 1


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_thought_of_one_feature(monkeypatch, value):
    """Catches: a check that only sees what a stage without thoughts computes."""
    from reasoning_jax.model import latent

    original = latent.thought_of

    def broken(params, model, thoughts, residual):
        x = original(params, model, thoughts, residual)
        return jnp.where(jnp.arange(x.shape[-1]) == 3, value, x).astype(x.dtype)

    config = thinking_run(latent={"stage_steps": (1, 4, 1)})
    assembly, program, state, _, mesh = parts(config)
    with jax.set_mesh(mesh):
        source = command.make_source(assembly, mesh)
        batches = [source.next(state) for _ in range(2)]
    whole, _ = step_with(program, state, batches[1], mesh)
    assert bits(whole.params) != bits(state.params)
    monkeypatch.setattr(latent, "thought_of", broken)
    after, metrics = step_with(program, state, batches[1], mesh)
    assert assembly.thoughts is not None
    assert (np.asarray(batches[1].actions) == assembly.thoughts.latent_id).any()
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert float(metrics["steps_skipped"].value) == 1


def test_an_update_that_overflows():
    """Finite gradients, an update that is not: 0 / 0 with an eps that no config may have."""
    config = tiny_run(optimizer={"clip_norm": 0.0})
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=0.0))
    _, program, state, batch, mesh = parts(config)

    def no_gradients(state, batch):
        grads, rest = program.gradients(state, batch)
        return jax.tree.map(jnp.zeros_like, grads), rest

    after, metrics = step_with(program, state, batch, mesh, no_gradients)
    assert nonfinite.names(int(metrics["nonfinite"].value)) == ["update"]
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_counts_names_and_goes_on(tmp_path):
    config = tiny_run(train={"steps": 8, "log_every_steps": 2})
    assert command.train(config, tmp_path, [], quiet=True, faults="nan@loss:3,inf@grad:5") == 0
    rows = rows_of(tmp_path / "nonfinite.jsonl")
    assert [(r["step"], r["nonfinite"][0], r["in_a_row"]) for r in rows] == [
        (3, "loss", 1), (5, "gradients", 1),
    ]  # fmt: skip
    # Batches of 8: step 3 has the positions 16 to 23 of the stream.
    assert rows[0]["batch"]["positions"] == [16, 23]
    assert len(rows[0]["batch"]["examples"]) == 8
    trained = [r for r in rows_of(tmp_path / "metrics.jsonl") if r["split"] == "train"]
    assert [r["steps_skipped"] for r in trained] == [0, 1, 1, 0]
    assert all(np.isfinite(r["loss"]) for r in trained)
    assert trained[1]["tokens"] < trained[0]["tokens"] * 0.8


def test_too_many_in_a_row_end_the_run_with_a_dump(tmp_path, monkeypatch):
    """Exit 3; also when the run was stopped between them. A step that is fine begins the count
    anew.
    """
    from reasoning_jax.exit_codes import exit_code

    config = tiny_run(train={"steps": 8, "skipped_steps_limit": 2, "checkpoint_every_steps": 4})
    plan = "nan@loss:2,nan@grad:4,nan@loss:5"
    with pytest.raises(Diverged, match=r"2 steps in a row up to 5") as error:
        command.train(config, tmp_path, [], quiet=True, faults=plan)
    assert exit_code(error.value) == 3
    folder = tmp_path / "diverged" / "step_00000005"
    report = json.loads((folder / "report.json").read_text())
    assert report["gradients"]
    assert np.load(folder / "batch.npz")["actions"].shape == (8, 8)
    # From the checkpoint of step 4, with one skipped step before it.
    with pytest.raises(Diverged, match="up to 5"):
        command.train(config, tmp_path, [], quiet=True, faults=plan)
    assert [r["in_a_row"] for r in rows_of(tmp_path / "nonfinite.jsonl")] == [1, 1, 2]


def test_replay_is_the_step_that_was(tmp_path, capsys):
    """Of a step between two checkpoints; its state is the one that was logged."""
    from reasoning_jax.commands.replay import replay

    config = tiny_run(train={"steps": 6, "log_every_steps": 1, "checkpoint_every_steps": 3})
    assert command.train(config, tmp_path, [], quiet=True, faults="nan@loss:5") == 0
    for step, said in ((4, "all finite"), (5, "skipped: loss not finite"), (2, "at the start")):
        assert replay(config, tmp_path, step, None, "nan@loss:5") == 0
        out = capsys.readouterr().out
        assert said in out
        assert "as logged" in out, out
    report = json.loads((tmp_path / "replay" / "step_00000004" / "report.json").read_text())
    logged = rows_of(tmp_path / "metrics.jsonl")
    row = next(r for r in logged if r["step"] == 4 and r["split"] == "train")
    assert report["loss"] == pytest.approx(row["loss"], rel=1e-6)
    assert report["batch"]["positions"] == [24, 31]
