"""Countdown: reach a target with three numbers, writing the operations and then the expression.

Claim    a small decoder learns the format and a part of the search; it is the base for the
         experiments on search traces, not a good player.
Command  reasoning-jax train --config=configs/countdown.py --workdir=runs/countdown
Time     5 minutes on 2 CPU cores
Expect   36 % of 256 validation problems at one sample, 70 % at four (seed 0); see docs/results.md
"""

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, objective="bc", seed=0, numbers=3)
    config = rc.default_config()
    config.seed = arg.seed
    dials = {"min_numbers": arg.numbers, "max_numbers": arg.numbers}
    config.task = {"name": "countdown", **task_dials("countdown"), **dials}
    config.data.question_suffix = "\n"
    config.data.answer_prefix = "= "
    config.data.seq_len = 32 + 16 * arg.numbers
    config.objective.name = arg.objective
    config.noise.rate = 0.02 if arg.objective == "bc" else 0.0
    config.model.d_model = 64
    config.model.n_layers = 2
    config.model.head_dim = 16
    config.model.d_ff = 192
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_fraction = 1 / 15
    config.train.steps = 1500
    config.train.batch_rows = 64
    config.train.evaluate_every_steps = 500
    config.train.checkpoint_every_steps = 500
    config.sampling.max_actions = 96
    config.evaluate.problems = 256
    config.evaluate.samples_per_problem = 4
    config.evaluate.pass_at_k = (1, 4)
    config.evaluate.batch_rows = 256
    return config
