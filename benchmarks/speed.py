"""Speed beside peers: one table, every row of which is measured in one run, its arms in turns.

    make bench                                        (installs the peers first)
    python -m benchmarks.speed [--peers=.venv-bench] [--rounds=7] [--cores=0,1]
        [--rows=SUBSTRING] [--arms=ours,transformers] [--out=FILE.json]

Every arm is a process of its own that lives through the row and runs a block of steps when asked
(`worker.py`), all pinned to the same cores with as many threads; which arm begins alternates. A
figure is the median over rounds, beside the least and the most; a ratio is the median of the rounds'
ratios. CPU seconds are those of all threads of a process: where others use the machine too, they
say more than wall seconds. Peers run as they come; ours as `reasoning-jax train` sets itself up. An
arm whose environment is not installed is left out, and the table says so. Models are random: it
does not say how well anything learns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.worker import Worker, threads_environment

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a row: which worker runs it, and what its request has besides the row's."""

    name: str
    worker: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table a arm; ours comes first. `target`: {arm: how much faster ours should be}."""

    name: str
    request: Mapping[str, Any]
    arms: tuple[Arm, ...]
    target: Mapping[str, float] = dataclasses.field(default_factory=dict)
    block: int = 1


# {worker: (environment in --peers, "" for ours, and the module that it runs)}
WORKERS = {
    OURS: ("", "benchmarks.speed_ours"),
    "transformers": ("transformers", "benchmarks.speed_transformers"),
    "tunix": ("tunix", "benchmarks.speed_tunix"),
}
LLAMA = {"vocab": 512, "width": 384, "layers": 6, "heads": 6, "inner": 1024}
MINE = Arm(OURS, OURS)

ROWS = (
    Row(
        "train step, 6 layers x 384, vocabulary 512, 16 x 256, AdamW",
        {"work": "training", "batch": 16, "length": 256, **LLAMA},
        (
            MINE,
            Arm("transformers + torch.compile", "transformers", {"compiled": True}),
            Arm("transformers, eager", "transformers", {"compiled": False}),
            Arm("google-tunix", "tunix"),
        ),
        {"transformers + torch.compile": 1.1, "google-tunix": 1.5},
    ),
    Row(
        "sampling, 6 layers x 384, 32 rows, prompt 32, 128 new tokens",
        {"work": "sampling", "batch": 32, "prompt": 32, "new_tokens": 128, **LLAMA},
        (
            MINE,
            Arm("transformers, compiled, static cache", "transformers", {"cache": "static"}),
            Arm("transformers, dynamic cache", "transformers", {"cache": "dynamic"}),
            Arm("google-tunix", "tunix"),
        ),
        {"transformers, compiled, static cache": 2.0, "google-tunix": 2.2},
    ),
    Row(
        "loss and its gradient, vocabulary 50,257, 8 x 512 tokens, width 384",
        {"work": "loss", "batch": 8, "length": 512, "width": 384, "vocab": 50_257},
        (
            Arm(OURS, OURS, {"how": "fused"}),
            Arm("ours, recomputed in chunks", OURS, {"how": "chunks"}),
            Arm("all logits at once", OURS, {"how": "whole"}),
        ),
    ),
)


def command_of(worker: str, peers: Path, threads: int) -> list[str] | None:
    """How a worker is started; None if its environment is not there."""
    environment, module = WORKERS[worker]
    python = peers / environment / "bin" / "python" if environment else Path(sys.executable)
    return [str(python), "-m", module, str(threads)] if python.exists() else None


def start(worker: str, peers: Path, threads: int) -> Worker | None:
    """The worker's process, with as many threads as cores; None if it is not installed."""
    command = command_of(worker, peers, threads)
    if command is None:
        return None
    environment = threads_environment(threads) | {"JAX_PLATFORMS": "cpu"}
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    return Worker(command, environment)


def measure(
    row: Row, workers: Mapping[str, Worker], rounds: int, wanted: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """{arm: {"cpu", "wall", "tokens": a figure a round}} of the arms that have a worker."""
    arms = [a for a in row.arms if a.worker in workers and (not wanted or a.worker in wanted)]

    def ask(arm: Arm, repeats: int) -> dict[str, Any]:
        return workers[arm.worker].ask({**row.request, **arm.extra, "repeats": repeats})

    times: dict[str, dict[str, Any]] = {}
    for arm in arms:
        made = ask(arm, 0)  # compiles, and has its warm-up
        times[arm.name] = {"cpu": [], "wall": [], "tokens": [], "temporaries": made["temporaries"]}
    for number in range(rounds):
        for arm in arms[:: -1 if number % 2 else 1]:
            turn = ask(arm, row.block)
            for key in ("cpu", "wall", "tokens"):
                times[arm.name][key].append(sum(turn[key]))
    return times


def ratios(times: Mapping[str, Any], arm: str, clock: str) -> float:
    """How many times the seconds of ours an arm takes for as many tokens."""
    ours, theirs = times[OURS], times[arm]
    work = ours["tokens"][0] / theirs["tokens"][0]
    return statistics.median(t / o * work for t, o in zip(theirs[clock], ours[clock]))


def lines(row: Row, times: Mapping[str, Any]) -> list[str]:
    """The row's lines: | row, arm | tokens a second | spread | ratios | target |"""
    out = []
    for arm in (a.name for a in row.arms):
        if arm not in times:
            out.append(f"| {row.name}: {arm} | not installed | | | | | |")
            continue
        t = times[arm]
        tokens = t["tokens"][0]
        cells = [f"{tokens / statistics.median(t[clock]):,.0f}" for clock in ("cpu", "wall")]
        slow, fast = tokens / max(t["wall"]), tokens / min(t["wall"])
        cells.append(f"{slow:,.0f} to {fast:,.0f}")
        cells.append(f"{t['temporaries'] / 1e6:,.0f} MB" if t["temporaries"] else "")
        both = OURS in times and arm != OURS
        by = [f"{ratios(times, arm, clock):.2f}x" for clock in ("cpu", "wall")] if both else []
        cells.append(" / ".join(by))
        cells.append(f"{row.target[arm]}x" if arm in row.target else "")
        out.append(f"| {row.name}: {arm} | " + " | ".join(cells) + " |")
    return out


HEAD = (
    "| row: arm | tokens per CPU second | per second | spread | temporaries | ours is faster by "
    "(CPU / wall) | target |"
)


def commit() -> str:
    """The commit of this checkout, with a + if it is changed."""
    got = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return got.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", default="", help="such as 0,1; all that this process may use")
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--arms", default="", help="only these workers: " + ", ".join(WORKERS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, set(map(int, args.cores.split(","))))
    cores = sorted(os.sched_getaffinity(0))
    about: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": cores,
        "threads": len(cores),
        "commit": commit(),
        "rounds": args.rounds,
        "load before": os.getloadavg(),
        "workers": {},
    }
    wanted = tuple(filter(None, args.arms.split(",")))
    results = []
    print(f"{len(cores)} thread(s) on cores {cores}, commit {about['commit']}\n")
    print(HEAD + "\n|" + " --- |" * (HEAD.count("|") - 1), flush=True)
    for row in (row for row in ROWS if args.rows in row.name):
        names = {a.worker for a in row.arms} & set(wanted or WORKERS)
        started = {name: start(name, args.peers, len(cores)) for name in sorted(names)}
        workers = {name: w for name, w in started.items() if w is not None}
        for name, w in workers.items():
            if w.hello["cores"] != cores:
                raise RuntimeError(f"{name} runs on cores {w.hello['cores']}, not {cores}")
            about["workers"][name] = w.hello
        times = measure(row, workers, args.rounds, wanted)
        for w in workers.values():
            w.close()
        print("\n".join(lines(row, times)), flush=True)
        results.append({"name": row.name, "request": dict(row.request), "arms": times})
    about["load after"] = os.getloadavg()
    if args.out:
        text = json.dumps({"about": about, "rows": results}, indent=1)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
