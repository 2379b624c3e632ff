"""What a SequenceMatch step costs beside an MLE step, by length and by rate of backspaces.

    python -m benchmarks.sequencematch [--lengths=32,128] [--rates=0.02,0.1,0.3] [--out=FILE.json]

Arms of one model on the same examples (random digits after a random question, noised at the rate):
mle on the clean text, bc with each packing, SequenceMatch without and with its rollouts at the
default cadence (one batch every 8 steps). Arms take turns, block by block; a figure is the least of
its blocks, in CPU seconds of the process and in wall seconds. Every arm first learns the data for
some steps, so that rollouts have the lengths that they have in use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time

import jax
import numpy as np

from reasoning_jax import config as rc
from reasoning_jax import sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config_check import from_dict
from reasoning_jax.data.examples import Example
from reasoning_jax.data.pipeline import Stream, SupervisedSource
from reasoning_jax.rl.matched import MatchedSource
from reasoning_jax.train import state as states
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import fresh_state, make_program

ROWS = 16
WARM_UP, BLOCK, BLOCKS = 64, 8, 4


class RandomDigits:
    """Examples whose clean sequences leave room for what noise at `rate` adds to them."""

    def __init__(self, length: int, rate: float):
        self.length = max(2, int((length - 4) / (1 + 2.5 * rate)))

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(int(index))
        n = int(rng.integers(self.length * 3 // 4, self.length + 1))
        digits = rng.integers(0, 10, n + 1)
        answer = "".join(map(str, np.repeat(digits, 2)[:n]))
        return Example(f"{digits[-1]}=", (), answer, index=int(index))


def config_of(length: int, rate: float, objective: str, layout: str) -> rc.Config:
    values = rc.to_dict(rc.Config())
    values["objective"] |= {"name": objective, "layout": layout}
    values["data"]["seq_len"] = length
    values["noise"]["rate"] = 0.0 if objective == "mle" else rate
    values["model"] |= {"d_model": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "d_ff": 384}
    values["train"] |= {"batch_rows": ROWS, "steps": 100_000}
    values["optimizer"]["warmup_steps"] = 10
    if objective == "sequencematch":
        match = {"bc_steps": WARM_UP, "start": "prompt", "gamma": 0.99, "horizon": 0}
        values["sequencematch"] |= match
    return from_dict(values)


class Arm:
    """A training that can be stepped in blocks."""

    def __init__(self, length: int, rate: float, objective: str, layout: str, rollouts: bool):
        config = config_of(length, rate, objective, layout)
        if not rollouts and objective == "sequencematch":
            replay = dataclasses.replace(config.replay, sample_every_steps=10**9)
            config = dataclasses.replace(config, replay=replay)
        assembly = assemble(config)
        self.mesh = sharding.make_mesh()
        with jax.set_mesh(self.mesh):
            program = make_program(config, assembly.model, assembly.ids)
            self.step, self.state = program.step, fresh_state(program, self.mesh)
            examples = RandomDigits(length, rate)
            source = SupervisedSource(
                examples, assembly.encoder, batch_rows=ROWS, seed=0, mesh=self.mesh,
                count_token_rows=layout == "p2",
            )  # fmt: skip
            self.source = source
            if objective == "sequencematch":
                stream = Stream(examples, assembly.encoder, 0)
                self.source = MatchedSource(
                    source, stream, config, assembly.model, assembly.ids, self.mesh,
                    lambda params: states.adapters(params, config),
                )  # fmt: skip

    def run(self, steps: int) -> tuple[float, float]:
        """(CPU, wall) seconds a step."""
        with jax.set_mesh(self.mesh):
            jax.block_until_ready(self.state.step)
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(steps):
                self.state, _ = self.step(self.state, self.source.next(self.state))
            jax.block_until_ready(self.state.step)
            return (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps


ARMS = {
    "mle": ("mle", "auto", False),
    "bc p1": ("bc", "p1", False),
    "bc p2": ("bc", "p2", False),
    "sm p1, no rollouts": ("sequencematch", "p1", False),
    "sm p1": ("sequencematch", "p1", True),
    "sm p2": ("sequencematch", "p2", True),
}


def measure(length: int, rate: float) -> dict[str, tuple[float, float]]:
    """{arm: (CPU, wall) seconds a step}, the least over blocks that take turns."""
    arms = {name: Arm(length, rate, *how) for name, how in ARMS.items()}
    for arm in arms.values():
        arm.run(WARM_UP + 2 * BLOCK)
    best = {name: (np.inf, np.inf) for name in arms}
    for _ in range(BLOCKS):
        for name, arm in arms.items():
            best[name] = tuple(map(min, best[name], arm.run(BLOCK)))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default="32,128,256")
    parser.add_argument("--rates", default="0.02,0.1,0.3")
    parser.add_argument("--out")
    args = parser.parse_args()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.devices()}")
    print("| T | noise rate | " + " | ".join(ARMS) + " |\n|" + " --- |" * (len(ARMS) + 2))
    rows = []
    for length in map(int, args.lengths.split(",")):
        for rate in map(float, args.rates.split(",")):
            best = measure(length, rate)
            base = best["mle"]
            cells = [f"{cpu * 1e3:.0f} ms ({cpu / base[0]:.2f}x)" for cpu, _ in best.values()]
            print(f"| {length} | {rate} | " + " | ".join(cells) + " |", flush=True)
            rows.append({"length": length, "rate": rate, "seconds": best})
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
