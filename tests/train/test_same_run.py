"""The same run twice, and on more devices: nothing differs, or no more than the order of a sum."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from reasoning_jax.commands import train as command
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.data.staged import CurriculumSource
from reasoning_jax.rl.matched import MatchedSource
from tests.faults.harness import assert_same, metrics_of
from tests.small import matching_run, thinking_run, tiny_run
from tests.test_configs import ALL, CONFIGS, module, name_of, named, text_folder

# R16: how far the loss of a step may be off.
TOLERANCE = 1e-5
STEPS = 50
RUNS = {
    "mle": (
        tiny_run,
        SupervisedSource,
        {"objective": {"name": "mle"}, "noise": {"rate": 0.0}},
    ),
    "packed": (
        tiny_run,
        SupervisedSource,
        {"data": {"seq_len": 32, "pack_examples": True}, "noise": {"rate": 0.0}},
    ),
    # Rollouts every step of the second half: their actions must be the same on any mesh.
    "sequencematch": (
        matching_run,
        MatchedSource,
        {"sequencematch": {"bc_steps": STEPS // 2}, "replay": {"sample_every_steps": 1}},
    ),
    "coconut": (
        thinking_run,
        CurriculumSource,
        {"latent": {"stage_steps": (STEPS // 3, STEPS // 3, STEPS - 2 * (STEPS // 3))}},
    ),
}
__all__ = ["text_folder"]  # a fixture


def losses_and_order(kind, workdir, devices, steps, monkeypatch):
    """Of a run on the first so many devices: its losses [steps], and which rows each batch had."""
    make, source, sections = RUNS[kind]
    train = {"steps": steps, "log_every_steps": 1, "batch_rows": 8, "evaluate_every_steps": 0}
    config = make(**{**sections, "train": train, "evaluate": {"problems": 2}})
    order, original = [], source.next

    def recorded(self, state=None):
        batch = original(self, state)
        order.append(self.describe()())
        return batch

    with monkeypatch.context() as patch:
        some = jax.devices()[:devices]
        patch.setattr(jax, "devices", lambda: some)
        patch.setattr(jax, "device_count", lambda: devices)
        patch.setattr(source, "next", recorded)
        assert command.train(config, workdir, [], quiet=True) == 0
    losses = [row["loss"] for row in metrics_of(workdir) if row["split"] == "train"]
    return np.array(losses), order


def assert_devices_agree(kind, counts, steps, folder, monkeypatch):
    losses, order = {}, {}
    for n in counts:
        losses[n], order[n] = losses_and_order(kind, folder / str(n), n, steps, monkeypatch)
    one = counts[0]
    assert len(losses[one]) == len(order[one]) == steps
    assert len({json.dumps(rows, sort_keys=True, default=str) for rows in order[one]}) > 1
    apart = {n: float(np.abs(losses[n] - losses[one]).max()) for n in counts}
    print(f"{kind}: largest difference of a loss over {steps} steps, by devices: {apart}")
    for n in counts[1:]:
        assert order[n] == order[one], f"{n} devices"
        assert apart[n] <= TOLERANCE, f"{n} devices"


def test_eight_devices_train_on_the_same_rows_to_the_same_losses(tmp_path, monkeypatch):
    # Catches: an order of data that depends on the devices, a mean of means.
    assert_devices_agree("mle", (1, 8), 6, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_fifty_steps_on_any_number_of_devices(kind, tmp_path, monkeypatch):
    assert_devices_agree(kind, (1, 2, 4, 8), STEPS, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", [named(p) for p in ALL])
def test_a_shipped_config_twice(path, tmp_path, text_folder):
    """At its own size, for some steps, in processes of their own: each array of the checkpoint and
    each number of the metrics, bit by bit. Both the steps and what is evaluated are cut.
    """
    steps = int(os.environ.get("SAME_RUN_STEPS", "4"))
    changes = {
        "train.steps": steps, "train.log_every_steps": 1, "optimizer.warmup_steps": 0,
        "evaluate.problems": 4,
    }  # fmt: skip
    config = f"{CONFIGS / name_of(path)}.py"
    given = module(path).get_config()
    if given.data.source == "text":
        changes["data.path"] = text_folder
    if given.objective.name == "sequencematch":
        # The second half has rollouts.
        changes |= {"sequencematch.bc_steps": steps // 2, "sequencematch.anneal_steps": 0}
    line = [
        sys.executable, "-m", "reasoning_jax.main", "train", f"--config={config}", "--quiet",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": ""}
    for name in ("a", "b"):
        done = subprocess.run(
            [*line, f"--workdir={tmp_path / name}"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert_same(tmp_path / "a", tmp_path / "b", steps)
