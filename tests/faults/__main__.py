"""Kills at random, in any number: `python -m tests.faults [--kills=20] [--kind=mle] [--seed=0]`.

For each kind: run folders are killed by random plans of ten (at least half of them inside a save)
and finished until there were so many kills; each finished run is compared with the unbroken one.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import harness

PLAN = 10


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--kind", choices=harness.KINDS, action="append")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    failed = False
    print(f"{'run':<10} {'killed':>7} {'goal':>5} {'folders':>8} {'hash-equal':>11} {'seconds':>8}")
    for kind in given.kind or harness.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            began, kills, folders, same = time.monotonic(), 0, 0, 0
            unbroken = Path(folder) / "unbroken"
            outcome = harness.run(harness.KINDS[kind](), unbroken)
            assert outcome.code == 0, outcome.output
            while kills < given.kills:
                plan = min(PLAN, given.kills - kills)
                seed = given.seed + folders
                try:
                    kills += harness.kill_and_compare(kind, folder, seed, plan, unbroken)
                    same += 1
                except AssertionError as error:
                    print(f"{kind}, seed {seed}: {error}", file=sys.stderr)
                    failed = True
                    break
                finally:
                    folders += 1
            seconds = time.monotonic() - began
            print(
                f"{kind:<10} {kills:>7} {given.kills:>5} {folders:>8} {f'{same}/{folders}':>11} "
                f"{seconds:>8.0f}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
