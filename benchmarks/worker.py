"""Two sides of a benchmark as processes: a request a line, an answer a line, both JSON.

A worker (`serve`) makes what a request names once, and runs it in blocks when it is asked; a
benchmark (`Worker`) asks several of them in turns, so that all see the same moments of a machine
that others use too. Only the standard library is needed, since peers live in environments of their
own. What the works are is said elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A function that does one run to its end, and returns how many tokens are in it. Making it may
# compile; its first run is not timed. It may have `temporaries`, the bytes that its program needs
# beside arguments and results.
Run = Callable[[], int]

def threads_environment(count: int) -> dict[str, str]:
    """What keeps the libraries of a process to `count` threads; its cores are pinned besides."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(count) for name in names}


class Worker:
    """A worker's process, as the benchmark sees it; `hello` is what it says of itself."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]):
        self.process = subprocess.Popen(
            [str(word) for word in command], env=os.environ | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker's process ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its times. RuntimeError if it has none to give."""
        assert self.process.stdin is not None
        # A process that is gone may break the pipe here, or be found out by the read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(f"{request}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it did not read any more
            self.process.stdin.close()
        self.process.wait()


def timed(run: Run, repeats: int = 1) -> dict[str, list[float]]:
    """CPU and wall seconds of each run, and the tokens in it. CPU time is that of all threads."""
    times: dict[str, list[float]] = {"cpu": [], "wall": [], "tokens": []}
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = run()
        times["cpu"].append(time.process_time() - cpu)
        times["wall"].append(time.perf_counter() - wall)
        times["tokens"].append(tokens)
    return times


def answer(
    request: Mapping[str, Any], works: Mapping[str, Callable[..., Run]], made: dict[Any, Run]
) -> dict[str, Any]:
    """The times (and temporaries) of request["repeats"] runs of request["work"]; the rest are its arguments.

    `made` keeps what earlier requests set up; a new one has one run outside timing.
    """
    arguments = dict(request)
    name, repeats = arguments.pop("work"), arguments.pop("repeats")
    key = (name, *sorted(arguments.items()))
    if key not in made:
        made[key] = works[name](**arguments)
        made[key]()
    return {"temporaries": getattr(made[key], "temporaries", 0), **timed(made[key], repeats)}


def serve(works: Mapping[str, Callable[..., Run]], hello: Mapping[str, Any]) -> None:
    """Answer the requests on stdin until it ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    print(json.dumps({"cores": sorted(os.sched_getaffinity(0)), **hello}), file=answers, flush=True)
    made: dict[Any, Run] = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), works, made)
        except Exception as error:  # one bad request does not end the run
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(reply), file=answers, flush=True)
