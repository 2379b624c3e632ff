"""Runs of tiny trainings in processes of their own, to be killed, starved and compared.

A fork server has the imports done, so that a process costs what it computes; compiled programs come
from the session's cache. Any objective can go through: a kind is a config in `KINDS`.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

from reasoning_jax.train.checkpoint import Checkpoints
from reasoning_jax.train.faults import _IO_SITES
from tests.small import matching_run, thinking_run, tiny_run

STEPS = 12
TIMEOUT_S = 300
KILLED = -9


def mle():
    """48 problems in batches of 8: an epoch ends with step 6. Every third step is saved."""
    return tiny_run(
        objective={"name": "mle"}, noise={"rate": 0.0}, data={"train_problems": 48},
        train={"steps": STEPS, "log_every_steps": 2, "checkpoint_every_steps": 3},
        evaluate={"problems": 2},
    )  # fmt: skip


def match():
    """SequenceMatch: rollouts from step 4 on, every second step is saved."""
    return matching_run(
        sequencematch={"bc_steps": 3, "anneal_steps": 4},
        replay={"sample_every_steps": 2, "noise_rate": 0.1},
        train={"steps": STEPS, "log_every_steps": 3, "checkpoint_every_steps": 2},
        evaluate={"problems": 2},
    )


def stages():
    """Coconut: stage 1 begins with step 4, stage 2 with step 7; every second step is saved."""
    return thinking_run(
        latent={"stage_steps": (3, 3, 9)},
        train={"steps": STEPS, "log_every_steps": 3, "checkpoint_every_steps": 2},
        evaluate={"problems": 2},
    )


KINDS = {"mle": mle, "match": match, "stages": stages}


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    output: str


def changed(config, **sections):
    """A config with some values of its sections replaced."""
    return dataclasses.replace(
        config,
        **{n: dataclasses.replace(getattr(config, n), **values) for n, values in sections.items()},
    )


def start(config, workdir, faults=""):
    """A process that trains, and the file of what it says."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.harness", "reasoning_jax.commands.train"])
    with tempfile.NamedTemporaryFile(prefix="reasoning-jax-run-", delete=False) as file:
        said = Path(file.name)
    environment = {n: v for n, v in os.environ.items() if n.startswith(("JAX_", "XLA_", "XDG_"))}
    process = context.Process(
        target=_child, args=(config, str(workdir), faults, str(said), environment)
    )
    process.start()
    return process, said


def finish(process, said, timeout_s=TIMEOUT_S):
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {timeout_s} s:\n{said.read_text()}")
    outcome = Outcome(process.exitcode, said.read_text(errors="replace"))
    said.unlink()
    return outcome


def run(config, workdir, faults=""):
    """Train in a process of its own. A negative code is the signal that ended it."""
    return finish(*start(config, workdir, faults))


def _child(config, workdir, faults, said, environment):
    """What `reasoning-jax train` does once its line is parsed, with its exit code."""
    descriptor = os.open(said, os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    os.environ.update(environment)
    # One device, and code that is not optimised: compiling is most of such a run.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    import jax
    from absl import flags

    from reasoning_jax.commands import train as command
    from reasoning_jax.exit_codes import exit_code

    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        code = command.train(config, Path(workdir), [], quiet=True, faults=faults)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        print(f"error: {error}", flush=True)
    sys.exit(code)


def everything_in(workdir, step=STEPS):
    """All arrays ({path: array}) and JSON (data, meta) of a checkpoint, as comparable values."""
    import jax

    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        items = checkpoints.read_all(step)
    data, meta = items.pop("data"), items.pop("meta")
    arrays = {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(items)
    }
    return arrays, data, meta


def metrics_of(workdir):
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def assert_same(unbroken, broken, step=STEPS):
    """Every array bit by bit, the place in the data, meta and all logged numbers."""
    want, *want_json = everything_in(unbroken, step)
    got, *got_json = everything_in(broken, step)
    assert want.keys() == got.keys()
    for path, x in want.items():
        assert x.tobytes() == got[path].tobytes(), path
    assert want_json == got_json
    assert metrics_of(unbroken) == metrics_of(broken)


def random_plan(rng, config, kills):
    """So many kills, at least half of them inside a save, at random places and moments."""
    every = config.train.checkpoint_every_steps
    saves = range(every, config.train.steps + 1, every)
    plan = set()
    while len(plan) < kills:
        if len(plan) < (kills + 1) // 2:
            site, step = rng.choice(_IO_SITES), rng.choice(saves)
        else:
            site, step = rng.choice(("data", "step")), rng.randint(1, config.train.steps)
        delay = rng.choice(("", f"+{rng.randint(1, 60)}"))
        plan.add(f"kill@{site}:{step}{delay}")
    return ",".join(sorted(plan))


def run_with(config, workdir, plan):
    """The same command again and again until it is done. Returns the number of kills."""
    kills = 0
    while True:
        outcome = run(config, workdir, plan)
        if outcome.code == 0:
            return kills
        assert outcome.code == KILLED, outcome
        assert_nothing_lost(workdir)
        kills += 1


def assert_nothing_lost(workdir):
    """What a killed run leaves: every step that counts is intact, and one stays once it was there.

    A first save that was cut off leaves none.
    """
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        for step in steps:
            assert checkpoints.verify(step) == [], (workdir, step)
    seen = Path(workdir) / "most_steps"
    most = int(seen.read_text()) if seen.exists() else 0
    assert max(steps, default=0) >= most, (steps, most)
    seen.write_text(str(max(steps, default=0)))


def kill_and_compare(kind, folder, seed, kills, unbroken=None):
    """One run folder killed by a random plan and finished; compared with the unbroken run. Returns
    the number of kills.
    """
    config = KINDS[kind]()
    if unbroken is None:
        unbroken = Path(folder) / "unbroken"
        assert run(config, unbroken).code == 0
    plan = random_plan(random.Random(seed), config, kills)
    done = run_with(config, Path(folder) / f"broken_{seed}", plan)
    assert_same(unbroken, Path(folder) / f"broken_{seed}")
    return done
