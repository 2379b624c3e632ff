"""What edited rows cost beside plain ones, by the length of rows (slow; prints a table).

ATTENTION_LENGTHS=256,1024,2048 pytest -s -m slow tests/train/test_attention_cost.py
"""

import dataclasses
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import config as rc
from reasoning_jax import sharding
from reasoning_jax.config_check import from_dict
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import fresh_state, make_program

LENGTHS = [int(n) for n in os.environ.get("ATTENTION_LENGTHS", "1024").split(",")]
ROUNDS = int(os.environ.get("ATTENTION_ROUNDS", "5"))
TOKENS = 4096
MODEL = rc.ModelConfig(
    vocab_size=64, d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384
)
ARMS = {
    f"{name}, {path}": (objective, layout, path)
    for path in ("blockwise", "explicit")
    for name, objective, layout in (
        ("mle", "mle", "auto"), ("bc P1", "bc", "p1"), ("bc P2", "bc", "p2"),
        ("SequenceMatch P1", "sequencematch", "p1"),
    )
}  # fmt: skip


def random_batch(rng, B, T, rate):
    actions = np.where(rng.random((B, T)) < rate, 63, rng.integers(0, 60, (B, T)))
    actions[:, 0] = 61
    segments, zeros = np.ones((B, T), int), np.zeros((B, T), int)
    rows = [
        jnp.asarray(x, jnp.int32)
        for x in (actions, np.roll(actions, -1, 1), segments, zeros, zeros)
    ]
    return Batch(rows[0], rows[1], jnp.ones((B, T), jnp.float32), *rows[2:])


class Arm:
    def __init__(self, T, objective, layout, path):
        values = rc.to_dict(rc.Config())
        values["objective"] |= {"name": objective, "layout": layout}
        values["data"]["seq_len"] = T
        values["model"] |= {**dataclasses.asdict(MODEL), "attention": path}
        if objective == "sequencematch":
            values["sequencematch"] |= {"bc_steps": 0, "gamma": 0.99}
        config = from_dict(values)
        rng = np.random.default_rng(0)
        rate = 0.0 if objective == "mle" else 0.2
        self.batch = random_batch(rng, TOKENS // T, T, rate)
        if objective == "sequencematch":
            self.batch = dataclasses.replace(
                self.batch, model=random_batch(rng, TOKENS // T, T, rate)
            )
        # What the batch needs in P2, in steps of 64 rows, as a source of batches counts it.
        written = int((np.asarray(self.batch.actions) != 63).sum(1).max())
        rows = min(T, -(-written // 64) * 64)
        self.batch = dataclasses.replace(self.batch, token_rows=rows if layout == "p2" else 0)
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(self.mesh):
            program = make_program(config, config.model, ActionIds(eos=62, backspace=63))
            state = fresh_state(program, self.mesh)
            self.batch = jax.tree.map(
                lambda x: sharding.place_rows(np.asarray(x), self.mesh), self.batch
            )
            self.step = program.step.lower(state, self.batch).compile()
            self.state, self.seconds = state, []

    def run(self):
        with jax.set_mesh(self.mesh):
            begin = time.process_time()
            self.state, _ = self.step(self.state, self.batch)
            jax.block_until_ready(self.state)
            self.seconds.append(time.process_time() - begin)


@pytest.mark.slow
@pytest.mark.parametrize("T", LENGTHS)
def test_edited_rows_cost_what_plain_rows_cost(T):
    # Catches: a mask of [T, T], which at long rows takes longer than the attention itself.
    keep_freed_memory()
    arms = {name: Arm(T, *how) for name, how in ARMS.items()}
    for _ in range(ROUNDS + 1):
        for arm in arms.values():
            arm.run()
    cost = {name: statistics.median(arm.seconds[1:]) for name, arm in arms.items()}
    print(f"\n{TOKENS // T} x {T}: CPU ms a step, and beside mle on the same path")
    for name, seconds in cost.items():
        base = cost[f"mle, {name.split(', ')[1]}"]
        temp = arms[name].step.memory_analysis().temp_size_in_bytes / 2**20
        print(f"| {name} | {seconds * 1e3:.0f} | {seconds / base:.2f} | {temp:.0f} MiB |")
    assert cost["bc P1, blockwise"] < 1.25 * cost["mle, blockwise"]
    assert cost["SequenceMatch P1, blockwise"] < 3 * cost["mle, blockwise"]
