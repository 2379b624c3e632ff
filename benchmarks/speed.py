"""Speed beside peers: one table, every row of which is measured in one run, its arms in turns.

    make bench                                        (installs the peers first)
    python -m benchmarks.speed [--peers=.venv-bench] [--rounds=5] [--cores=0,1]
        [--rows=train,sample] [--arms=ours,transformers] [--out=FILE.json] [--list]

Every arm is a process of its own that lives through the row and runs a block of steps when asked
(`worker.py`), all pinned to the same cores with as many threads; which arm begins alternates. A
figure is the median over rounds, beside the least and the most; a ratio is the median of the
rounds' ratios. CPU seconds are those of all threads of a process: where others use the machine too,
they say more than wall seconds. Peers run as they come; ours as `reasoning-jax train` sets itself
up. A peer that is not installed, or that fails, does not end the run: the table says why. Models
are random: it does not say how well anything learns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import missing, python_of
from benchmarks.speed_rows import MODULES, OURS, ROWS, Arm, Goal, Row
from benchmarks.worker import Worker, threads_environment

# What arms of a row must agree on, if they say it.
SAME = ("parameters", "dtype", "tokens")
# Of an untrained model's loss, relative: seeds differ from arm to arm.
LOSS_TOLERANCE = 0.1
LOSSES = ("training loss", "loss")
HEAD = (
    "| row: arm | per CPU second | per second | spread | temporaries | ours against it "
    "(CPU / wall) | target |"
)

Times = dict[str, Any]


def start(name: str, peers: Path, threads: int) -> Worker:
    """The worker's process, with as many threads as cores. RuntimeError if it is not installed or
    does not come up.
    """
    peer, module = MODULES[name]
    if peer and (why := missing(peers, peer)):
        raise RuntimeError(why)
    python = str(python_of(peers, peer)) if peer else sys.executable
    environment = threads_environment(threads) | {"JAX_PLATFORMS": "cpu"}
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    return Worker([python, "-m", module, str(threads)], environment)


def measure(
    row: Row, workers: Mapping[str, Worker], rounds: int
) -> tuple[dict[str, Times], dict[str, str]]:
    """{arm: {"cpu", "wall", "tokens": a figure a round, "temporaries", "facts"}} of the arms that
    have a worker, and {arm: why} of those that failed. RuntimeError if an arm of ours fails.
    """
    arms = [arm for arm in row.arms if arm.worker in workers]
    times: dict[str, Times] = {}
    failed: dict[str, str] = {}

    def ask(arm: Arm, repeats: int) -> dict[str, Any] | None:
        try:
            return workers[arm.worker].ask({**row.request, **arm.extra, "repeats": repeats})
        except RuntimeError as error:
            if not MODULES[arm.worker][0]:
                raise RuntimeError(f"{row.name}: {arm.name}: {error}") from None
            failed[arm.name] = f"failed: {error}"
            times.pop(arm.name, None)
            return None

    for arm in arms:
        if (made := ask(arm, 0)) is not None:  # compiles, and has its warm-up
            times[arm.name] = {
                "cpu": [], "wall": [], "tokens": [], "temporaries": made["temporaries"],
                "facts": made["facts"],
            }  # fmt: skip
    for number in range(min(rounds, row.most_rounds or rounds)):
        for arm in arms[:: -1 if number % 2 else 1]:
            if arm.name in times and (turn := ask(arm, row.block)) is not None:
                for key in ("cpu", "wall", "tokens"):
                    times[arm.name][key].append(sum(turn[key]))
                times[arm.name]["facts at the end"] = turn["facts"]
    check_same_work(row, times)
    return times, failed


def check_same_work(row: Row, times: Mapping[str, Times]) -> None:
    """ValueError if arms differ in what shows that they do the same work."""
    of_first: dict[str, tuple[str, Any]] = {}
    for arm, t in times.items():
        facts = {**t["facts"], "tokens": t["tokens"][0] if t["tokens"] else None}
        for name in SAME:
            if facts.get(name) is None:
                continue
            other, value = of_first.setdefault(name, (arm, facts[name]))
            if value != facts[name]:
                raise ValueError(
                    f"{row.name}: {name} is {value} of {other!r} and {facts[name]} of {arm!r}: "
                    "they do not do the same work"
                )
        for name in LOSSES:
            if name not in facts:
                continue
            other, value = of_first.setdefault(name, (arm, facts[name]))
            if abs(value - facts[name]) > LOSS_TOLERANCE * value:
                raise ValueError(
                    f"{row.name}: the {name} at the start is {value} of {other!r} and "
                    f"{facts[name]} of {arm!r}"
                )
        later = t.get("facts at the end", {})
        if "training loss" in later and not later["training loss"] < facts["training loss"]:
            raise ValueError(f"{row.name}: the loss of {arm!r} does not fall; does it learn?")
        if later.get("distinct", 2) < 2:
            raise ValueError(f"{row.name}: all tokens of {arm!r} are the same; does it sample?")


def ratio(times: Mapping[str, Times], arm: str, clock: str) -> float:
    """How many times the seconds of ours an arm takes for as much work."""
    ours, theirs = times[OURS], times[arm]
    work = ours["tokens"][0] / theirs["tokens"][0]
    return statistics.median(t / o * work for t, o in zip(theirs[clock], ours[clock]))


def figure(row: Row, work: float, seconds: float) -> str:
    """In the row's unit: how much work a second, or the seconds themselves."""
    return f"{seconds:,.2f} s" if row.unit == "s" else f"{work / seconds:,.0f}"


def lines(row: Row, times: Mapping[str, Times], absent: Mapping[str, str]) -> list[str]:
    """The row's lines, as HEAD has it; an arm without times says why."""
    out = []
    for arm in (a.name for a in row.arms if a.name in times or a.name in absent):
        if arm not in times:
            why = " ".join(absent[arm].replace("|", "/").split())
            out.append(f"| {row.name}: {arm} | {why[:200]} | | | | | |")
            continue
        t = times[arm]
        work = t["tokens"][0]
        cells = [figure(row, work, statistics.median(t[clock])) for clock in ("cpu", "wall")]
        spread = [figure(row, work, edge(t["wall"])) for edge in (max, min)]
        cells.append(" to ".join(spread))
        cells.append(f"{t['temporaries'] / 1e6:,.0f} MB" if t["temporaries"] else "")
        both = OURS in times and arm != OURS
        cells.append(against(row, times, arm) if both else "")
        goal = row.goals.get(arm)
        cells.append("" if goal is None else target(goal, times, arm))
        out.append(f"| {row.name}: {arm} | " + " | ".join(cells) + " |")
    return out


def against(row: Row, times: Mapping[str, Times], arm: str) -> str:
    """Ours is so many times as fast, by CPU and by wall seconds; or costs so much more."""
    by = [ratio(times, arm, clock) for clock in ("cpu", "wall")]
    goal = row.goals.get(arm)
    if goal is not None and goal.kind == "share":
        return " / ".join(f"{100 * (1 / r - 1):+.1f} %" for r in by)
    return " / ".join(f"{r:.2f}x" for r in by)


def target(goal: Goal, times: Mapping[str, Times], arm: str) -> str:
    """What is aimed at; and of temporaries also what they are, which stands nowhere else."""
    texts = {
        "faster": f">= {goal.value:g}x",
        "seconds": f"<= {goal.value:g} s",
        "share": f"<= {100 * goal.value:g} %",
        "temporaries": f"temporaries <= {goal.value:g}x",
    }
    text = texts[goal.kind]
    if goal.kind == "temporaries" and OURS in times:
        text += f" ({times[OURS]['temporaries'] / times[arm]['temporaries']:.3f}x)"
    return text


def commit() -> str:
    """The commit of this checkout, with a + if it is changed."""
    got = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return got.stdout.strip()


def machine() -> dict[str, Any]:
    """What this runs on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else ""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "memory bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "c++": next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), "none"),
    }


def run_row(
    row: Row, peers: Path, cores: list[int], rounds: int, wanted: Sequence[str]
) -> tuple[dict[str, Times], dict[str, str], dict[str, Any]]:
    """(times, {arm: why it has none}, {worker: what it says of itself}) of a row."""
    names = list(dict.fromkeys(a.worker for a in row.arms if a.worker in wanted))
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    try:
        for name in names:
            try:
                workers[name] = start(name, peers, len(cores))
            except RuntimeError as error:
                if not MODULES[name][0]:
                    raise
                absent |= {a.name: str(error) for a in row.arms if a.worker == name}
                continue
            if workers[name].hello["cores"] != cores:
                found = workers[name].hello["cores"]
                raise RuntimeError(f"{name} runs on cores {found}, not {cores}")
        times, failed = measure(row, workers, rounds)
    finally:
        for w in workers.values():
            w.close()
    return times, absent | failed, {name: w.hello for name, w in workers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", default="", help="such as 0,1; all that this process may use")
    parser.add_argument("--rows", default=",".join(row.key for row in ROWS), help="only these")
    parser.add_argument("--arms", default=",".join(MODULES), help="only these workers")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--list", action="store_true", help="print the rows, measure none")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    wanted = args.arms.split(",")
    if unknown := set(wanted) - set(MODULES):
        parser.error(f"no worker {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    keys = [row.key for row in ROWS]
    if unknown := set(args.rows.split(",")) - set(keys):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    rows = [row for row in ROWS if row.key in args.rows.split(",")]
    if args.list:
        print("\n".join(f"{row.key:<14}{row.name}" for row in rows))
        return
    if args.cores:
        os.sched_setaffinity(0, set(map(int, args.cores.split(","))))
    cores = sorted(os.sched_getaffinity(0))
    about: dict[str, Any] = {
        "commit": commit(),
        "machine": machine(),
        "cores": cores,
        "threads": len(cores),
        "rounds": args.rounds,
        "load before": os.getloadavg(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "workers": {},
    }
    results: list[dict[str, Any]] = []
    print(f"{len(cores)} thread(s) on cores {cores}, commit {about['commit']}\n")
    print(HEAD + "\n|" + " --- |" * (HEAD.count("|") - 1), flush=True)
    for row in rows:
        before = os.getloadavg()
        times, absent, hellos = run_row(row, args.peers, cores, args.rounds, wanted)
        about["workers"] |= hellos
        print("\n".join(lines(row, times, absent)), flush=True)
        result = {"key": row.key, "name": row.name, "request": dict(row.request), "unit": row.unit}
        result |= {"arms": times, "absent": absent, "load": [before, os.getloadavg()]}
        results.append(result)
        about["load after"], about["ended"] = os.getloadavg(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if args.out:
            write(args.out, {"about": about, "rows": results})


def write(path: Path, whole: Mapping[str, Any]) -> None:
    """The file, whole at any moment: a run that is cut off leaves the rows before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(json.dumps(whole, indent=1) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


if __name__ == "__main__":
    main()
