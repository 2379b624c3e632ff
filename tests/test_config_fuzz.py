"""Bad command lines are refused before anything starts, good ones are taken: R11.

The long form, 10,000 bad and 1,000 good ones: `pytest -m slow -s tests/test_config_fuzz.py`; sizes
from FUZZ_BAD, FUZZ_GOOD and FUZZ_PROCESSES.
"""

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import config_fuzz as fuzz

ROOT = Path(__file__).parent.parent
# A backend that is started all the same cannot be.
NO_BACKEND = {**os.environ, "JAX_PLATFORMS": "none_such"}


def survey(bad, good, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.config_fuzz", str(bad), str(good), str(seed)],
        capture_output=True, text=True, timeout=60 + bad, check=False, env=NO_BACKEND, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found):
    assert found["faults"] == []
    assert (found["refused"], found["accepted"]) == (found["of_bad"], found["of_good"])
    assert found["left_behind"] == []
    assert found["slowest_s"] < fuzz.MAX_SECONDS
    assert not found["backend_started"]
    # As it is never imported, it cannot have started one, and nobody waits for it.
    assert not found["jax_imported"]


def cpu_of_processes():
    """CPU seconds of all processes that have ended: whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processes(count, folder, clock=cpu_of_processes):
    """Seconds of each of `count` bad command lines as a process of its own."""
    cases = list(fuzz.bad_cases(20 * count, 2, folder))
    spent = []
    for case in random.Random(0).sample(cases, count):
        began = clock()
        done = subprocess.run(
            [sys.executable, "-m", "reasoning_jax.main", *case.argv],
            capture_output=True, text=True, timeout=60, check=False, env=NO_BACKEND, cwd=folder,
        )  # fmt: skip
        spent.append(clock() - began)
        fault = fuzz.fault_of(case, done.returncode, done.stdout, done.stderr, spent[-1])
        assert fault is None, (fault, case, done.stderr)
    return sorted(spent)


def import_seconds():
    """The shortest of five imports of the package, and of the command line, in fresh processes."""
    program = (
        "import sys, time; t = time.perf_counter(); import {0}; "
        "print(time.perf_counter() - t, 'jax' in sys.modules)"
    )
    best = []
    for module in ("reasoning_jax", "reasoning_jax.main"):
        runs = [
            subprocess.run(
                [sys.executable, "-c", program.format(module)],
                capture_output=True, text=True, check=True, env=NO_BACKEND,
            ).stdout.split()
            for _ in range(5)
        ]  # fmt: skip
        assert {jax for _, jax in runs} == {"False"}
        best.append(min(float(seconds) for seconds, _ in runs))
    return best


def test_bad_command_lines_are_refused_and_good_ones_taken():
    """Catches: a rule that is dropped, an override that is ignored, an error in other words."""
    found = survey(640, 100, 0)
    check(found)
    assert found["of_bad"] == 640
    assert set(found["kinds"]) == {family.__name__ for family in fuzz.FAMILIES}


def test_every_key_is_mutated_and_every_file_is_a_base():
    # Catches: a section or a config file that the generator does not reach.
    assert set(fuzz.TIED) <= set(fuzz.LEAVES)
    bases = fuzz.bases()
    assert {b.path for b in bases} == {*fuzz.FILES}
    assert len(bases) > 40
    rng = random.Random(0)
    for family in (fuzz.wrong_type, fuzz.by_hand, fuzz.lost_dashes):
        named = " ".join(str(family(rng, bases[0])[0]) for _ in range(6000))
        missed = [
            key for key, (kind, _) in fuzz.LEAVES.items()
            if key not in named and not (family is fuzz.wrong_type and kind is str)
        ]  # fmt: skip
        assert not missed, family


def test_as_a_process_it_is_over_at_once(tmp_path):
    spent = processes(4, tmp_path)
    assert spent[-1] < fuzz.MAX_SECONDS


def test_the_package_is_imported_at_once_and_without_jax():
    package, _ = import_seconds()
    assert package <= 0.2


@pytest.mark.slow
def test_ten_thousand_bad_command_lines(tmp_path):
    sizes = [int(os.environ.get(f"FUZZ_{n}", d)) for n, d in (("BAD", 10_000), ("GOOD", 1_000))]
    found = survey(*sizes, 1)
    count = int(os.environ.get("FUZZ_PROCESSES", 48))
    spent = processes(count, tmp_path, time.perf_counter)
    package, command = import_seconds()
    rows = [
        ("bad lines refused, exit 2, <= 6 lines", f"{found['refused']:,}", f"{sizes[0]:,}"),
        ("good lines accepted with their values", f"{found['accepted']:,}", f"{sizes[1]:,}"),
        ("slowest answer, in process", f"{found['slowest_s']:.2f} s", "< 2 s"),
        (f"slowest of {len(spent)} processes", f"{spent[-1]:.2f} s", "< 2 s"),
        ("JAX imported, backend started", str(found["jax_imported"]), "False"),
        ("import reasoning_jax", f"{package:.3f} s", "<= 0.2 s"),
        ("import reasoning_jax.main", f"{command:.3f} s", "-"),
    ]
    print("\n| what | figure | goal |\n| --- | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    for kind, count in found["kinds"].items():
        print(f"  {kind:<16} {count:,}")
    check(found)
    assert spent[-1] < fuzz.MAX_SECONDS
    assert package <= 0.2
