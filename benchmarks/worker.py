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
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A function that does one run to its end, and returns how much work is in it (tokens, say). Making
# it may compile; its first run is not timed. It may have
#   warm_up      a function to be called in place of that first run, where a run is long
#   temporaries  the bytes that its program needs beside arguments and results
#   facts        a function that says, after a run, what shows that arms do the same work
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
        self.hello = self._first()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker's process ended with {self.process.wait()}")
        return line

    def _first(self) -> dict[str, Any]:
        """The first line that is an answer; before it stands what libraries print on import."""
        while True:
            with contextlib.suppress(json.JSONDecodeError):
                hello = json.loads(self._line())
                if isinstance(hello, dict):
                    return hello

    def _read(self) -> dict[str, Any]:
        return json.loads(self._line())

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its times. RuntimeError if it has none to give."""
        assert self.process.stdin is not None
        # A process that is gone may break the pipe here, or be found out by the read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it did not read any more
            self.process.stdin.close()
        self.process.wait()


def cpu_seconds() -> float:
    """Of all threads of this process, and of the processes it started that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(run: Run, repeats: int = 1) -> dict[str, list[float]]:
    """CPU and wall seconds of each run, and the tokens in it."""
    times: dict[str, list[float]] = {"cpu": [], "wall": [], "tokens": []}
    for _ in range(repeats):
        cpu, wall = cpu_seconds(), time.perf_counter()
        tokens = run()
        times["cpu"].append(cpu_seconds() - cpu)
        times["wall"].append(time.perf_counter() - wall)
        times["tokens"].append(tokens)
    return times


def answer(
    request: Mapping[str, Any], works: Mapping[str, Callable[..., Run]], made: dict[Any, Run]
) -> dict[str, Any]:
    """The times of request["repeats"] runs of request["work"], the rest of which are its arguments;
    with what else the run has to say.

    `made` keeps what earlier requests set up; a new one has one run outside timing.
    """
    arguments = dict(request)
    name, repeats = arguments.pop("work"), arguments.pop("repeats")
    key = (name, *sorted(arguments.items()))
    if key not in made:
        made[key] = works[name](**arguments)
        getattr(made[key], "warm_up", made[key])()
    run = made[key]
    times = timed(run, repeats)
    facts = getattr(run, "facts", dict)()
    return {"temporaries": getattr(run, "temporaries", 0), "facts": facts, **times}


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
