"""Every key of the config, away from its default, through `train` on one device and on eight.

A run sets all keys that stand together in it, and each must be read by code that uses it, with the
value that was set: a key that is accepted and ignored fails. (The tables are in `keys.py`.)
"""

import contextlib
import io
import json

import pytest

from reasoning_jax import main
from reasoning_jax.config import Config
from reasoning_jax.commands.assemble import task_of
from reasoning_jax.config_check import from_dict
from reasoning_jax.tasks import TASKS, task_dials
from reasoning_jax.train import loop
from tests.walk import places as places_lib
from tests.walk.keys import BESIDE, DIALS, EVALUATED, KEYS, RUNS, SPLIT, Each
from tests.walk.reads import Reads, keys

DEVICES = (1, 8)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return places_lib.make(tmp_path_factory.mktemp("walk"))


def key_values(run, devices):
    """{key: value} of the keys that a run sets."""
    found = {key: value for key, (name, value) in KEYS.items() if name == run}
    return {k: v[devices > 1] if isinstance(v, Each) else v for k, v in found.items()}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("run", RUNS)
def test_every_key_is_read(run, devices, places, unoptimised):
    changed = key_values(run, devices)
    base = {**(SPLIT if devices == 8 else {}), **RUNS[run]}
    config = places_lib.config_file(places, f"{run}_{devices}", base)
    flags = [places_lib.flag(key, value, places) for key, value in changed.items()]
    if run not in EVALUATED:
        flags.append("--faults=term@step:2")
    reads, workdir = Reads(), places["tmp"] / f"run_{run}_{devices}"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        places_lib.use_devices(patch, devices)
        reads.watch(patch)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(["", "train", f"--config={config}", f"--workdir={workdir}", *flags])
    assert code == (0 if run in EVALUATED else loop.PREEMPTED), err.getvalue()
    ignored = []
    for key, value in changed.items():
        value = places_lib.filled(value, places)
        if value not in reads.seen.get(key, ()):
            ignored.append(f"{key}={value!r} (read: {sorted(map(str, reads.seen.get(key, ())))})")
    assert not ignored, f"set and not read in the run {run!r}: " + ", ".join(ignored)


def test_every_key_has_an_entry():
    known = set(keys())
    missing, gone = known - KEYS.keys(), KEYS.keys() - known
    assert not missing, (
        f"no test sets {', '.join(sorted(missing))}: add a line for each to KEYS in "
        "tests/walk/keys.py, (a run that reads the key, a legal value that is not the default)"
    )
    assert not gone, f"KEYS in tests/walk/keys.py names keys that do not exist: {sorted(gone)}"


def test_every_value_is_away_from_the_default():
    # Catches: a key that is "set" to what it is anyway.
    usual = Config()
    for key, (_, value) in KEYS.items():
        section, _, name = key.rpartition(".")
        default = getattr(getattr(usual, section) if section else usual, name)
        values = value if isinstance(value, Each) else (value,)
        assert all(v != default for v in values), f"{key}: {value!r} is the default"


def problems(task, dials, places, capsys):
    """The first problems of a task as the command line sets it."""
    base = {"task": {"name": task}}
    config = places_lib.config_file(places, f"task_{task}", base)
    flags = [f"--config.task.{name}={value}" for name, value in dials.items()]
    assert main.run(["", "train", f"--config={config}", "--print_config", *flags]) == 0
    made = task_of(from_dict(json.loads(capsys.readouterr().out)))
    return [made.problem(seed) for seed in range(60)]


@pytest.mark.parametrize(("task", "dial"), [(t, d) for t, dials in DIALS.items() for d in dials])
def test_every_dial_changes_the_problems(task, dial, places, capsys):
    # Catches: a dial that is accepted and makes the same problems.
    if task == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    beside = BESIDE.get(f"{task}.{dial}", {})
    usual = problems(task, beside, places, capsys)
    assert problems(task, {**beside, dial: DIALS[task][dial]}, places, capsys) != usual


def test_every_dial_has_an_entry():
    missing = {f"{t}.{d}" for t in TASKS for d in task_dials(t) if d not in DIALS.get(t, {})}
    assert not missing, (
        f"no test sets {', '.join(sorted(missing))}: add a value for each to DIALS in "
        "tests/walk/keys.py that changes the task's problems"
    )
