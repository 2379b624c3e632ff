"""Any dataset of reasoning-gym as a task; the package is optional (`pip install reasoning-gym`).

reasoning-gym is never imported here. It runs in a worker process of its own (`gym_worker.py`),
started with the first task, because its scorers can stall on a hostile answer and some evaluate
it as code; a scorer that takes longer than `gym_worker.SCORE_S` is killed and its answer is wrong.
A dataset is built anew for each seed with size 1, so that datasets which build all items at once
cost no more than one. The worker's hash seed is fixed: some datasets depend on the order of a set.

`Score.correct` asks for a full score: partial scores (`Score.value`) of reasoning-gym are often
generous (a sudoku board with one digit wrong everywhere gets 0.8). Some full scores are wrong too;
`gym_answers` has what is refused all the same.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.tasks.base import Problem, Score, TaskError, Trace, draw_in_split
from reasoning_jax.tasks.checks import (
    did_you_mean,
    require_strategy,
    right,
    show,
    too_long,
    wrong,
)
from reasoning_jax.tasks.gym_answers import objection

# The longest reference answers (tower_of_hanoi) have about 2,000 characters.
MAX_RESPONSE = 10_000
_START_S = 120.0
_REPLY_S = 90.0
# Datasets that need a few fixed characters beyond printable ASCII, found by sampling each dataset
# of version 0.1.25 at its default dials.
_EXTRA_CHARACTERS = {
    "acre": "→",
    "advanced_geometry": "°",
    "circuit_logic": "↑↓⊕─│┌┐└┘├",
    "complex_arithmetic": "×÷",
    "figlet_font": "▀▄█▐",
    "futoshiki": "∧∨",
    "gsm_symbolic": "£€",
    "intermediate_integration": "∫",
    "knight_swap": "→↔",
    "modulo_grid": "✅❌❔",
    "needle_haystack": "’",
    "prime_factorization": "×",
    "propositional_logic": "¬→↔∧∨",
    "quantum_lock": "→",
    "rectangle_count": "█",
    "simple_geometry": "°",
    "simple_integration": "∫",
}
_MAX_REFUSED = 200


@dataclass(frozen=True)
class ReasoningGym:
    """One dataset of reasoning-gym; questions, answers and scores are its own.

    dataset: its name there.
    dials: its own settings, as pairs `(("max_terms", 3),)` or as JSON text `{"max_terms": 3}`.

    Problems with characters other than `characters()` are drawn again. `Problem.answer` is "" where
    the dataset ships no reference answer. Responses above MAX_RESPONSE characters are wrong unread.
    """

    dataset: str = "chain_sum"
    dials: tuple[tuple[str, Any], ...] | str = ()

    def __post_init__(self) -> None:
        if util.find_spec("reasoning_gym") is None:
            raise TaskError(
                f"{self.name}: the package reasoning-gym is not installed; "
                "pip install reasoning-gym"
            )
        if not isinstance(self.dataset, str):
            raise TaskError(f"{self.name}: dataset={show(self.dataset)}: must be a string")
        (reply,) = self._ask({"op": "check"})
        if "datasets" in reply:
            raise TaskError(
                f"{self.name}: dataset={show(self.dataset)}: reasoning-gym has none of that name."
                f"{did_you_mean(self.dataset, reply['datasets'])} "
                f"It has: {', '.join(reply['datasets'])}"
            )
        if "unknown" in reply:
            raise TaskError(
                f"{self.name}: {self.dataset} has no dial {show(reply['unknown'])}."
                f"{did_you_mean(reply['unknown'], reply['fields'])} "
                f"Its dials: {', '.join(reply['fields'])}"
            )
        if "error" in reply:
            raise TaskError(f"{self.name}: {self.dataset} refuses its dials: {reply['error']}")

    @property
    def name(self) -> str:
        return "reasoning_gym"

    def problem(self, seed: int, split: str = "train") -> Problem:
        """The problem of this seed in this split, drawn through reasoning-gym seeds.

        Raises:
          TaskError: as `draw_in_split` does; the dataset fails, takes more than a minute a problem,
            or uses characters that `characters()` does not have.
        """
        legal = frozenset(self.characters())
        refused = 0

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            nonlocal refused
            gym_seed = int(rng.integers(2**31 - 1))
            (reply,) = self._ask({"op": "make", "seed": gym_seed})
            made = self._made(reply)
            strange = set(made["question"] + made["answer"]) - legal
            if strange:
                refused += 1
                if refused > _MAX_REFUSED:
                    raise TaskError(
                        f"{self.name}: {self.dataset} uses {show(''.join(sorted(strange)))}; only "
                        "printable ASCII is carried, choose another dataset"
                    )
                return None
            return made["question"], Problem(
                task=self.name,
                seed=seed,
                split=split,
                question=made["question"],
                answer=made["answer"],
                difficulty=f"dataset={self.dataset}",
                data={
                    "dataset": self.dataset,
                    "dials": dict(self._settings()),
                    "gym_seed": gym_seed,
                },
            )

        return draw_in_split(draw, task=f"{self.name}/{self.dataset}", seed=seed, split=split)

    def verify(self, problem: Problem, response: str) -> Score:
        """The dataset's own score, bounded in time; a scorer that fails or stalls means wrong.

        Blanks around the response are dropped, unless the reference answer has some.

        Raises:
          TaskError: the worker does not run, or the dataset does not give the problem's question
            again. No response causes either.
        """
        if refusal := too_long(response, MAX_RESPONSE):
            return refusal
        parsed = response if problem.answer != problem.answer.strip() else response.strip()
        gym_seed = problem.data["gym_seed"]
        # The entry is made anew where the worker has not kept it: entries hold tuples, sets and
        # integer keys, which JSON cannot carry.
        made, scored = self._ask(
            {"op": "make", "seed": gym_seed}, {"op": "score", "seed": gym_seed, "answer": parsed}
        )
        if self._made(made)["question"] != problem.question:
            raise TaskError(
                f"{self.name}: {self.dataset} gave another question for seed {gym_seed}; the "
                "problem is of other dials or of another version of reasoning-gym"
            )
        if "died" in scored:
            return wrong("the scorer ran out of time or memory", parsed)
        if "error" in scored:
            return wrong(f"the scorer refused it: {scored['error']}", parsed)
        value = min(max(scored["score"], 0.0), 1.0)
        if value < 1.0:
            return wrong(f"the dataset's scorer gives {value:g}", parsed, value)
        if reason := objection(self.dataset, problem.answer, parsed):
            return wrong(reason, parsed)
        return right(parsed)

    def solve(self, problem: Problem, strategy: str = "direct", seed: int = 0) -> Trace:
        """The reference answer without steps; "direct" is the only strategy."""
        require_strategy(self.name, strategy, ("direct",))
        return Trace(steps=(), answer=problem.answer, solved=bool(problem.answer))

    def characters(self) -> str:
        printable = string.digits + string.ascii_letters + string.punctuation + " \n"
        return "".join(sorted(set(printable + _EXTRA_CHARACTERS.get(self.dataset, ""))))

    def words(self) -> tuple[str, ...]:
        return ()

    def noise_units(self) -> tuple[str, ...]:
        return ()

    def _settings(self) -> Mapping[str, Any]:
        try:
            settings = json.loads(self.dials) if isinstance(self.dials, str) else dict(self.dials)
            json.dumps(settings, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TaskError(
                f"{self.name}: dials={show(self.dials)}: must be (name, value) pairs or a JSON "
                f"object ({error})"
            ) from None
        if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
            raise TaskError(
                f"{self.name}: dials={show(self.dials)}: must name each dial by a string"
            )
        for key in ("seed", "size"):
            if key in settings:
                raise TaskError(f"{self.name}: dials: {key!r} is set by the problem's own seed")
        return settings

    def _made(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "question" not in reply:
            fault = reply.get("error", "it took too long or too much memory")
            raise TaskError(f"{self.name}: {self.dataset} makes no problem: {fault}")
        return reply

    def _ask(self, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        common = {"dataset": self.dataset, "dials": self._settings()}
        return _worker(os.getpid()).ask([{**common, **request} for request in requests])


class Worker:
    """The door to one worker process: one request at a time, restarted when it is lost.

    Safe to share between threads; a forked process needs one of its own.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._requests = 0

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The replies, with no other thread's requests between; {"died": ...} where it was killed.

        Raises:
          TaskError: the worker does not start, or is lost twice in a row.
        """
        with self._lock:
            for _ in range(2):
                process = self._process or self._start()
                try:
                    return [self._exchange(process, request) for request in requests]
                except (OSError, EOFError):
                    self._end()
            raise TaskError("reasoning_gym: the worker process was lost twice; is memory short?")

    def close(self) -> None:
        """End the worker, if there is one; of a forked parent's worker, do nothing."""
        if os.getpid() == self._owner:
            with self._lock:
                self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # -P: the tasks folder must not shadow top-level modules.
            [sys.executable, "-P", str(Path(__file__).with_name("gym_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Out of reach of a Ctrl-C at the terminal, and killed as a group.
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        self._process, self._unread = process, b""
        try:
            greeting = self._read(process, time.monotonic() + _START_S)
        except (OSError, EOFError, TimeoutError):
            greeting = {"fatal": f"it said nothing within {_START_S:g} s, or ended"}
        if "ready" not in greeting:
            self._end()
            raise TaskError(f"reasoning_gym: its worker does not start: {greeting['fatal']}")
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], request: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert process.stdin is not None
        self._requests += 1
        data = memoryview(json.dumps({**request, "id": self._requests}).encode() + b"\n")
        while data:
            data = data[os.write(process.stdin.fileno(), data) :]
        deadline = time.monotonic() + _REPLY_S
        try:
            while True:
                reply = self._read(process, deadline)
                if "died" in reply or reply.get("id") == self._requests:
                    return reply
        except TimeoutError:
            # The worker's own timer should have ended this long before.
            raise EOFError from None

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout.fileno(), select.POLLIN)
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise TimeoutError
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


@functools.cache
def _worker(process_id: int) -> Worker:
    """This process's worker. By process, since a fork must not talk through its parent's pipes."""
    worker = Worker()
    atexit.register(worker.close)
    return worker
