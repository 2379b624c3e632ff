"""Every key of the config, away from its default, through `train` on one device and on eight.

A run sets all keys that stand together in it, and each must be read by code that uses it, with the
value that was set: a key that is accepted and ignored fails. (The tables are in `keys.py`.)
"""

import contextlib
import io
import json
import time

import pytest

from reasoning_jax import main
from reasoning_jax.commands.assemble import task_of
from reasoning_jax.config import Config
from reasoning_jax.config_check import from_dict
from reasoning_jax.tasks import TASKS, task_dials
from reasoning_jax.train import loop, watchdog
from tests.walk import places as places_lib
from tests.walk.keys import BESIDE, DIALS, EARLIER, EVALUATED, KEYS, RUNS, SPLIT, Each
from tests.walk.reads import Reads, keys

DEVICES = (1, 8)
# The default tests walk each run once, with eight devices where what it sets is split over them.
_SPLIT_FIRST = ("edits", "adapters", "matching", "records")
# Keys that change how something is computed, kept or told, and no number.
STILL = {
    "model.attention", "model.remat", "model.loss_chunk_tokens", "sequencematch.passes",
    "evaluate.batch_rows", "latent.prompt_columns", "objective.layout", "objective.p2_rows",
    "train.skipped_steps_limit", "train.peak_flops", "mesh.data", "mesh.fsdp", "mesh.tensor",
    *(key for key in KEYS if key.startswith("watchdog.")),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return places_lib.make(tmp_path_factory.mktemp("walk"))


def earlier(places):
    """A run of two steps, made once, with which another begins."""
    if not places["earlier"].exists():
        code, said, _, _ = train("earlier", 1, {}, places)
        assert code == loop.PREEMPTED, said


def key_values(run, devices):
    """{key: value} of the keys that a run sets."""
    found = {key: value for key, (name, value) in KEYS.items() if name == run}
    return {k: v[devices > 1] if isinstance(v, Each) else v for k, v in found.items()}


def in_turn(run):
    """Both numbers of devices for a run, one of them in the default tests."""
    first = 8 if run in _SPLIT_FIRST else 1
    return [
        pytest.param(run, n, marks=[] if n == first else pytest.mark.slow, id=f"{run}-{n}")
        for n in DEVICES
    ]


@pytest.mark.parametrize(("run", "devices"), [case for run in RUNS for case in in_turn(run)])
def test_every_key_is_read(run, devices, places, unoptimised):
    changed = key_values(run, devices)
    code, said, reads, _ = train(run, devices, changed, places)
    assert code == (0 if run in EVALUATED else loop.PREEMPTED), said
    ignored = []
    for key, value in changed.items():
        value = places_lib.filled(value, places)
        if value not in reads.seen.get(key, ()):
            ignored.append(f"{key}={value!r} (read: {sorted(map(str, reads.seen.get(key, ())))})")
    assert not ignored, f"set and not read in the run {run!r}: " + ", ".join(ignored)


@pytest.fixture(scope="module")
def whole():
    """What each run with all of its keys has left behind; made once."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in KEYS if key not in STILL])
def test_a_key_at_its_default_is_another_run(key, places, whole, unoptimised):
    """Each key alone back at its default, everything else as it is in the walk: other numbers,
    other files, or a refusal.

    Catches: a key that is read, and does nothing.
    """
    run = KEYS[key][0]
    changed = key_values(run, 1)
    if run not in whole:
        code, said, _, workdir = train(run, 1, changed, places, stop=False)
        assert code == 0, said
        whole[run] = left_behind(workdir)
    section, _, name = key.rpartition(".")
    usual = getattr(getattr(Config(), section) if section else Config(), name)
    code, said, _, workdir = train(run, 1, {**changed, key: usual}, places, key, stop=False)
    assert code in (0, 2), said
    assert code == 2 or left_behind(workdir) != whole[run]


def left_behind(workdir):
    """Everything in a run folder that does not depend on the clock or the place, as text."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [{k: v for k, v in row.items() if k != "time"} for row in rows]
    found += [sorted(p.name for p in (workdir / "checkpoints").iterdir())]
    found += [p.read_text() for p in sorted(workdir.glob("samples/*"))]
    found += [p.read_text() for p in sorted(workdir.glob("eval/*.json"))]
    return json.dumps([*found, (workdir / "vocab.json").read_text()])


def train(run, devices, changed, places, without="", stop=True):
    """(exit code, what was said of mistakes, reads, folder) of `train` with the keys of a run."""
    if run == "continued":
        earlier(places)
    base = {**(SPLIT if devices == 8 else {}), **(EARLIER if run == "earlier" else RUNS[run])}
    config = places_lib.config_file(places, f"{run}_{devices}", base)
    flags = [places_lib.flag(key, value, places) for key, value in changed.items()]
    if stop and run not in EVALUATED:
        flags.append("--faults=term@step:2")
    reads, workdir = Reads(), places["tmp"] / f"run_{run}_{devices}_{without}_{stop}"
    workdir = places["earlier"] if run == "earlier" else workdir
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        places_lib.use_devices(patch, devices)
        # How long a step may take is looked at now and then: soon, and long enough.
        patch.setattr(watchdog, "_POLL_S", 0.01)
        patch.setattr(watchdog.Watchdog, "step_done", _slowly(watchdog.Watchdog.step_done))
        reads.watch(patch)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(["", "train", f"--config={config}", f"--workdir={workdir}", *flags])
    return code, err.getvalue(), reads, workdir


def _slowly(done):
    def step_done(self, seconds):
        done(self, seconds)
        time.sleep(0.1)

    return step_done


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
