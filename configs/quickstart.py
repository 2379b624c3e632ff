"""Quickstart: adding numbers with a character model that can take digits back.

Claim    behavioural cloning on backspace-augmented data (bc) recovers from wrong digits that
         maximum likelihood (mle) is stuck with, at equal steps and no loss on clean prompts;
         SequenceMatch (sequencematch) starts as bc and learns from its own samples besides.
Time     one to two minutes an arm on 2 CPU cores
Expect   exact match from a corrupted prefix: see docs/results.md; mle 0, by construction
Command  make quickstart      (all arms and the report)
         reasoning-jax train --config=configs/quickstart.py:objective=bc --workdir=runs/bc
"""

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, objective="bc", seed=0)
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {
        "name": "arithmetic",
        **task_dials("arithmetic"),
        "max_digits": 2,
        "reverse": True,
    }
    config.objective.name = arg.objective
    config.noise.rate = 0.1 if arg.objective in ("bc", "sequencematch") else 0.0
    config.data.seq_len = 16
    if arg.objective == "sequencematch":
        # Time starts at the answer, which has three or four actions.
        config.sequencematch.start = "prompt"
        config.sequencematch.gamma = 0.99
        config.sequencematch.value_weight_data = 1.0
        config.sequencematch.bc_steps = 1000
        config.sequencematch.anneal_steps = 200
    config.model.d_model = 64
    config.model.n_heads = config.model.n_kv_heads = 4
    config.model.head_dim = 16
    config.model.d_ff = 192
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.01
    config.train.steps = 2000
    config.train.batch_rows = 64
    config.train.log_every_steps = 100
    config.train.evaluate_every_steps = 500
    config.train.checkpoint_every_steps = 1000
    config.sampling.max_actions = 16
    config.evaluate.problems = 512
    config.evaluate.batch_rows = 512
    return config
