"""The process in which reasoning-gym runs; started by `gym.py`, never imported.

It speaks JSON lines over its standard input and output. The parent of two processes imports
reasoning-gym and forks a child, which answers one request after the other; when a child is killed
the parent says so and forks the next one, within milliseconds and without importing again.

Some of reasoning-gym's scorers evaluate the answer as Python or sympy code. Three things keep
model text from running: scorers known or suspected to evaluate are handed only text that spells
numbers, operators, lists and a few functions (`harmless`); while a scorer runs, an audit hook
refuses processes, sockets and writes; and a timer whose signal has no Python handler ends the
child, whatever it is doing. The hook and the limits are a second line, not a sandbox.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import json
import math
import os
import random
import re
import resource
import signal
import sys
from collections import OrderedDict
from typing import Any

MAKE_S = 60.0
SCORE_S = 0.6
_MEMORY_BYTES = 4 << 30
_KEPT_ENTRIES = 64

# Scorers read in reasoning-gym 0.1.25 that do not evaluate the answer, although their module does
# evaluate something else. Every other scorer in a module that names one of _EVALUATORS is guarded.
_EVALUATORS = re.compile(r"\b(?:eval|exec|sympy)\b")
_READ_AND_SAFE = frozenset(
    {
        "advanced_geometry",
        "basic_arithmetic",
        "bitwise_arithmetic",
        "codeio",
        "decimal_arithmetic",
        "number_sorting",
        "polynomial_equations",
        "simple_equations",
    }
)
_HARMLESS_TEXT = re.compile(r"[0-9A-Za-z+\-*/()\[\],.'\"_ \t\n]*")
# Words of letters that such text may hold: one letter, the letters of string_insertion, functions.
_HARMLESS_WORD = re.compile(
    r"[A-Za-z]|[A-E]+|sin|cos|tan|asin|acos|atan|sinh|cosh|tanh|exp|log|sqrt|Integral"
)
# Attribute access, and names that begin or end with an underscore.
_REACHING_OUT = re.compile(r"\.(?![0-9])|_\w|\w_")

_SIDE_EFFECTS = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "urllib.")
_READS = frozenset({"os.listdir", "os.scandir", "os.walk", "os.fwalk"})
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_scoring = False


def main() -> None:
    # Whatever a library prints must not end up among the replies.
    channel = os.dup(1)
    os.dup2(2, 1)
    sys.dont_write_bytecode = True
    try:
        import reasoning_gym  # noqa: F401
    except BaseException as error:
        _reply(channel, {"fatal": f"{type(error).__name__}: {error}"[:300]})
        return
    _warm_up()
    _limit()
    _reply(channel, {"ready": True})
    while True:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _serve(channel)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            os._exit(0)
        _reply(channel, {"died": status})


def harmless(text: str) -> bool:
    """Can this text, evaluated as Python or by sympy, do no more than compute?

    With parentheses there are no quotes, so that nothing can be called with a string.
    """
    return (
        _HARMLESS_TEXT.fullmatch(text) is not None
        and not _REACHING_OUT.search(text)
        and not ("(" in text and ("'" in text or '"' in text))
        and all(_HARMLESS_WORD.fullmatch(word) for word in re.findall(r"[A-Za-z]+", text))
    )


def _warm_up() -> None:
    """Have sympy load what it loads late, so that each child need not do it over again."""
    with contextlib.suppress(ImportError):
        from sympy.parsing.sympy_parser import parse_expr

        parse_expr("(1 + 2.5)*x**2/3 - y")
    gc.collect()
    gc.freeze()


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            # Not every system lets each limit be set; the timer does not depend on them.
            continue


def _serve(channel: int) -> None:
    sys.addaudithook(_refuse_side_effects)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    entries: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, SCORE_S if request["op"] == "score" else MAKE_S)
        try:
            answer = _OPERATIONS[request["op"]](request, entries)
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _reply(channel, {**answer, "id": request["id"]})


def _reply(channel: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def _refuse_side_effects(event: str, args: tuple[Any, ...]) -> None:
    if not _scoring:
        return
    if event == "open":
        refused = bool((args[2] or 0) & _WRITE_FLAGS)
    else:
        refused = event.startswith(_SIDE_EFFECTS) and event not in _READS
    if refused:
        raise PermissionError(f"{event} while scoring")


def _check(request: dict[str, Any], entries: Any) -> dict[str, Any]:
    """Does this dataset exist and take these dials?"""
    from reasoning_gym.factory import DATASETS

    if request["dataset"] not in DATASETS:
        return {"datasets": sorted(DATASETS)}
    config_class = DATASETS[request["dataset"]][1]
    fields = sorted(set(inspect.signature(config_class).parameters) - {"seed", "size"})
    unknown = sorted(set(request["dials"]) - set(fields))
    if unknown:
        return {"unknown": unknown[0], "fields": fields}
    config = config_class(seed=0, size=1, **request["dials"])
    if hasattr(config, "validate"):
        config.validate()
    return {"fields": fields}


def _make(request: dict[str, Any], entries: OrderedDict[str, Any]) -> dict[str, Any]:
    """The question and reference answer of one seed; keeps the entry for scoring."""
    key = _key(request)
    if key not in entries:
        entries[key] = _build(request["dataset"], request["dials"], request["seed"])
        while len(entries) > _KEPT_ENTRIES:
            entries.popitem(last=False)
    entries.move_to_end(key)
    dataset, entry = entries[key]
    return {"question": entry["question"], "answer": _reference(dataset, entry)}


def _build(name: str, dials: dict[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    import numpy as np
    import reasoning_gym

    # A few datasets draw from the global generators besides their own.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=1, **dials)
    return dataset, dataset[0]


def _reference(dataset: Any, entry: dict[str, Any]) -> str:
    """The reference answer; where the dataset has none, an example that its scorer takes, or ""."""
    if isinstance(entry["answer"], str):
        return entry["answer"]
    for key in ("possible_answer", "example_answer", "example_correct_answer"):
        example = entry["metadata"].get(key)
        if example is not None:
            text = example if isinstance(example, str) else json.dumps(example)
            if dataset.score_answer(text, copy.deepcopy(entry)) == 1.0:
                return text
    return ""


def _score(request: dict[str, Any], entries: OrderedDict[str, Any]) -> dict[str, Any]:
    """The scorer's number for an answer to an entry that `_make` has kept."""
    global _scoring
    dataset, entry = entries[_key(request)]
    if _evaluates(type(dataset), request["dataset"]) and not harmless(request["answer"]):
        return {
            "error": "this dataset's scorer evaluates its input; only numbers, operators, lists "
            "and elementary functions are passed on"
        }
    entry = copy.deepcopy(entry)
    _scoring = True
    try:
        score = float(dataset.score_answer(request["answer"], entry))
    finally:
        _scoring = False
    if not math.isfinite(score):
        return {"error": f"the scorer gave {score}"}
    return {"score": score}


@functools.cache
def _evaluates(dataset_class: type, name: str) -> bool:
    if name in _READ_AND_SAFE:
        return False
    modules = {ancestor.__module__ for ancestor in dataset_class.__mro__}
    return any(
        module.startswith("reasoning_gym.")
        and _EVALUATORS.search(inspect.getsource(sys.modules[module]))
        for module in modules
    )


def _key(request: dict[str, Any]) -> str:
    return json.dumps([request["dataset"], request["dials"], request["seed"]], sort_keys=True)


_OPERATIONS = {"check": _check, "make": _make, "score": _score}

if __name__ == "__main__":
    main()
