"""A tiny training, as a process to be killed: `python -m tests.faults.trainer DIR [KIND]`.

KIND is "match" (SequenceMatch, the default) or "stages" (Coconut). It says on stdout when it enters
and leaves a save and before each batch.
"""

import sys
from pathlib import Path

from reasoning_jax.commands import train as command
from reasoning_jax.data.staged import CurriculumSource
from reasoning_jax.rl.matched import MatchedSource
from reasoning_jax.train.checkpoint import Checkpoints
from tests.small import matching_run, thinking_run

STEPS = 12


def config(kind="match"):
    if kind == "stages":
        # Stage 1 begins with step 4, stage 2 with step 7; steps 4 and 8 are saved.
        return thinking_run(
            latent={"stage_steps": (3, 3, 9)},
            train={"steps": STEPS, "log_every_steps": 3, "checkpoint_every_steps": 4},
            evaluate={"problems": 2},
        )
    return matching_run(
        sequencematch={"bc_steps": 3, "anneal_steps": 4},
        replay={"sample_every_steps": 2, "noise_rate": 0.1},
        train={"steps": STEPS, "log_every_steps": 3, "checkpoint_every_steps": 2},
        evaluate={"problems": 2},
    )


def loud(cls, name, before, after=None):
    original = getattr(cls, name)

    def call(self, *args, **kwargs):
        print(before, flush=True)
        out = original(self, *args, **kwargs)
        if after:
            print(after, flush=True)
        return out

    setattr(cls, name, call)


def main():
    loud(Checkpoints, "save", "saving")
    loud(MatchedSource, "next", "batch", "drawn")
    loud(MatchedSource, "refresh", "refresh")
    loud(CurriculumSource, "next", "batch", "drawn")
    return command.train(config(*sys.argv[2:]), Path(sys.argv[1]), [], quiet=True)


if __name__ == "__main__":
    sys.exit(main())
