"""What a Coconut step and decoding cost, beside the public reference if it is at hand.

    python -m benchmarks.coconut [--reference=CHECKOUT --peer_python=PYTHON] [--rounds=7]
        [--only=ours|reference] [--heap=kept|stock] [--core=N] [--out=FILE.json]

Steps (forward, backward, AdamW; float32, no dropout, one thread on one core of a CPU) with n
thoughts at equal total length, and greedy decoding of a prompt that ends in its thoughts. The
reference runs in a process of its own under PYTHON (benchmarks/coconut_peer.py says what it needs);
the two sides take turns, and which goes first alternates. A figure is the median over rounds of CPU
seconds; the file also has every round and the wall seconds. Rows have no padding, and both sides
have malloc keep what is freed as our training does (--heap=stock: neither), which helps the
reference at large vocabularies. It does not say how well either learns.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import Run, Worker, threads_environment, timed
from reasoning_jax import sharding
from reasoning_jax.config import Config, ModelConfig, OptimizerConfig, SamplingConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.rows import slots_of
from reasoning_jax.decoding.sampler import ActionIds, Thinking, make_sampler
from reasoning_jax.model import latent, spec, transformer
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import fresh_state, make_program

PEER = Path(__file__).with_name("coconut_peer.py")
# What keep_freed_memory asks of malloc, for a process that is yet to start.
KEPT_HEAP = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_MMAP_MAX_": "0",
}
ONE_THREAD = threads_environment(1)
THOUGHTS = (0, 1, 2, 4, 6, 8, 12)
TEMPORARIES = (0, 6)
GPT2_VOCAB = 50_260  # with the three markers
PROMPT = 98
DECODING = ((1, 16), (32, 16), (32, 64))  # rows of ours, and new tokens of a row
SIDES = ("ours", "reference")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A batch and a model: a row is `prefix` tokens, a marker, thoughts, a marker, and text.

    The names are those of the peer's requests. The model is a GPT-2: MLP of 4 x width, 256
    learned positions, logits tied to the embedding; the markers are the last three ids.
    """

    thoughts: int
    batch: int = 8
    length: int = 128
    prefix: int = 90
    layers: int = 4
    width: int = 256
    heads: int = 8
    vocab: int = 128


def our_model(shape: Shape) -> ModelConfig:
    width = shape.width
    return ModelConfig(
        vocab_size=shape.vocab, d_model=width, n_layers=shape.layers, n_heads=shape.heads,
        n_kv_heads=shape.heads, head_dim=width // shape.heads, d_ff=4 * width, norm="layernorm",
        position="learned", max_positions=256, mlp="gelu", qkv_bias=True, output_bias=True,
    )  # fmt: skip


def our_rows(shape: Shape) -> np.ndarray:
    """Random text with the markers and thoughts where the shape has them, [batch, length]."""
    rows = np.random.default_rng(0).integers(0, shape.vocab - 3, (shape.batch, shape.length))
    begin, end, thought = shape.vocab - 3, shape.vocab - 2, shape.vocab - 1
    first = shape.prefix + 1
    rows[:, shape.prefix] = begin
    rows[:, first : first + shape.thoughts] = thought
    rows[:, first + shape.thoughts] = end
    return rows.astype(np.int32)


def our_compiled(shape: Shape) -> tuple[Any, Any, Batch]:
    """(the compiled training step of this project, a state, a batch)."""
    model = our_model(shape)
    optimizer = OptimizerConfig(
        learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.01, b2=0.999,
        clip_norm=0.0, no_decay=(),
    )  # fmt: skip
    config = Config(optimizer=optimizer, model=model)
    ids = ActionIds(eos=0, backspace=None)
    program = make_program(config, model, ids, latent.Thoughts(shape.vocab - 1))
    rows = our_rows(shape)
    behind = np.arange(shape.length)[None, :] > shape.prefix + shape.thoughts
    labels = np.concatenate([rows[:, 1:], rows[:, :1]], axis=1)
    zeros = np.zeros_like(rows)
    mesh = jax.sharding.get_abstract_mesh()
    assert not mesh.empty, "run in a mesh"
    batch = Batch(
        actions=rows, labels=np.where(behind, labels, 0),
        weights=np.broadcast_to(behind, rows.shape).astype(np.float32),
        segments=zeros + 1, floor=zeros, noised=zeros,
        prefix=shape.prefix + 1, thoughts=shape.thoughts,
    )  # fmt: skip
    batch = jax.tree.map(jnp.asarray, batch)
    state = fresh_state(program, sharding.make_mesh())
    step: Any = program.step
    return step.lower(state, batch).compile(), state, batch


def our_step(shape: Shape) -> Run:
    """One training step (forward, backward, AdamW); loss is on what follows the end marker."""
    step, state, batch = our_compiled(shape)

    def run() -> int:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        return shape.batch * shape.length

    return run


def our_decode(shape: Shape, batch: int, new_tokens: int) -> Run:
    """Greedy decoding of `batch` prompts of shape.length, thoughts included; no token ends one."""
    model = our_model(shape)
    specs = transformer.param_specs(model)
    params = spec.init_params(jax.random.key(0), specs, jnp.float32, sharding.make_mesh())
    rows = our_rows(dataclasses.replace(shape, batch=batch))
    length = np.full(batch, shape.length, np.int32)
    thinking = Thinking(latent.Thoughts(shape.vocab - 1))
    mesh = sharding.make_mesh()
    slots = slots_of(rows, length, shape.vocab - 1, mesh)
    # An id that is never drawn: nothing but the limit ends a row, with one action more.
    sampling = SamplingConfig(temperature=0.0, max_actions=new_tokens + 1)
    ids = ActionIds(eos=shape.vocab - 3, backspace=None, never=(shape.vocab - 3,))
    sample = make_sampler(model, sampling, ids, thinking=thinking)
    order = np.arange(batch, dtype=np.int32)
    prompts, lengths, floor, order = (
        sharding.place_rows(x, mesh) for x in (rows, length, length - 1, order)
    )
    key = jax.random.key(0)

    def run() -> int:
        out = sample(params, prompts, lengths, floor, order, key, None, None, slots)
        written = jax.device_get(out.length)
        assert (written == new_tokens + 1).all(), written
        return batch * new_tokens

    return run


def our_temporaries(shape: Shape) -> int:
    """Bytes of temporaries in the compiled step: memory_analysis().temp_size_in_bytes."""
    return int(our_compiled(shape)[0].memory_analysis().temp_size_in_bytes)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: how ours is made, what the reference is asked, and in which unit."""

    name: str
    ours: Callable[[], Run]
    request: dict[str, Any]
    unit: str  # "ms" or "tokens/s"


def rows() -> list[Row]:
    def step(shape: Shape, name: str) -> Row:
        request = {"work": "step", **dataclasses.asdict(shape)}
        return Row(name, lambda: our_step(shape), request, "ms")

    table = [step(Shape(n), f"step, {n} thoughts") for n in THOUGHTS]
    table.append(step(Shape(6, vocab=GPT2_VOCAB), f"step, 6 thoughts, vocabulary {GPT2_VOCAB}"))
    prompt = Shape(6, batch=1, length=PROMPT, prefix=PROMPT - 6 - 2)
    for batch, new in DECODING:
        request = dataclasses.asdict(prompt)
        request |= {"work": "generate", "prompt": PROMPT, "new_tokens": new}
        name = f"decoding {new} tokens, ours {batch} rows, reference 1"
        ours = lambda batch=batch, new=new: our_decode(prompt, batch, new)  # noqa: E731
        table.append(Row(name, ours, request, "tokens/s"))
    return table


def measure(row: Row, peer: Worker | None, ours: bool, rounds: int) -> dict[str, Any]:
    """{side: {"cpu", "wall", "tokens": one figure a round}} for the sides that take part."""
    turns: dict[str, Callable[[], dict[str, list[float]]]] = {}
    if ours:
        run = row.ours()
        run()
        turns["ours"] = lambda: timed(run)
    if peer:
        peer.ask(row.request | {"repeats": 0})  # has its warm-up
        turns["reference"] = lambda: peer.ask(row.request | {"repeats": 1})
    times = {side: {"cpu": [], "wall": [], "tokens": []} for side in turns}
    for number in range(rounds):
        for side in list(turns)[:: -1 if number % 2 else 1]:
            turn = turns[side]()
            for key, values in times[side].items():
                values.extend(turn[key])
    return times


def figure(times: dict[str, list[float]], unit: str, clock: str = "cpu") -> float:
    """The median in `unit`: ms a run, or tokens a second."""
    seconds = statistics.median(times[clock])
    return seconds * 1e3 if unit == "ms" else times["tokens"][0] / seconds


def line(row: Row, times: dict[str, Any]) -> str:
    """| name | ours | reference | how many times faster ours is |"""
    figures = {side: figure(t, row.unit) for side, t in times.items()}
    cells = [f"{figures[side]:.0f} {row.unit}" if side in figures else "" for side in SIDES]
    ratio = ""
    if len(figures) == 2:
        slow, fast = figures["reference"], figures["ours"]
        ratio = f"{slow / fast if row.unit == 'ms' else fast / slow:.2f}x"
    return f"| {row.name} | " + " | ".join(cells) + f" | {ratio} |"


def use_one_core(core: int) -> None:
    """Have this process and those it starts run on one core, and XLA compute on one thread.

    Before the first computation: XLA reads its flags once.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ |= ONE_THREAD
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def check_one_core(core: int, hello: dict[str, Any] | None) -> None:
    """AssertionError if a thread of ours, or the reference, may run elsewhere."""
    assert "--xla_cpu_multi_thread_eigen=false" in os.environ["XLA_FLAGS"]
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            assert os.sched_getaffinity(int(thread)) == {core}, f"thread {thread} is not pinned"
    if hello is not None:
        assert (hello["threads"], hello["cores"]) == (1, [core]), hello


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/coconut")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--heap", choices=("kept", "stock"), default="kept")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.only == "reference" and args.reference is None:
        parser.error("--only=reference needs --reference")
    use_one_core(args.core)
    ours, theirs = (args.only in (None, side) for side in SIDES)
    if args.heap == "kept":
        keep_freed_memory()
    peer = None
    if theirs and args.reference:
        command = [args.peer_python, PEER, f"--reference={args.reference}", "--threads=1"]
        peer = Worker(command, ONE_THREAD | (KEPT_HEAP if args.heap == "kept" else {}))
    about = {
        "machine": platform.processor() or platform.machine(),
        "core": args.core,
        "heap": args.heap,
        "jax": jax.__version__,
        "reference": peer and peer.hello,
        "load before": os.getloadavg(),
    }
    print(json.dumps(about), file=sys.stderr)
    jax.set_mesh(sharding.make_mesh())
    print("| | ours | reference | ours is faster by |\n|" + " --- |" * 4)
    results = []
    for row in (row for row in rows() if args.rows in row.name):
        times = measure(row, peer, ours, args.rounds)
        print(line(row, times), flush=True)
        results.append({"name": row.name, "request": row.request, "unit": row.unit, **times})
    temporaries = {n: our_temporaries(Shape(n)) for n in TEMPORARIES} if ours else {}
    for n, size in temporaries.items():
        print(f"| temporaries of a step, {n} thoughts | {size / 1e6:.0f} MB | | |")
    check_one_core(args.core, peer and peer.hello)
    if peer:
        peer.close()
    if args.out:
        about["load after"] = os.getloadavg()
        whole = {"about": about, "rows": results, "temporaries": temporaries}
        args.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
