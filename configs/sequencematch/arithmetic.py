"""draft"""

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(
        arg,
        objective="sequencematch",
        noise=0.02,
        source="task",
        seed=0,
        run=1,
        digits=3,
        problems=5000,
        steps=2000,
    )
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {
        "name": "arithmetic",
        **task_dials("arithmetic"),
        "min_digits": 1,
        "max_digits": arg.digits,
    }
    config.data.train_problems = arg.problems
    config.data.seq_len = 3 * arg.digits + 11
    config.objective.name = arg.objective
    if arg.objective != "mle":
        config.noise.rate = arg.noise
        config.noise.source = arg.source
        config.noise.run_length = arg.run
    m = config.model
    m.d_model = 64
    m.n_heads = m.n_kv_heads = 4
    m.head_dim = 16
    m.d_ff = 192
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.01
    config.train.steps = arg.steps
    config.train.batch_rows = 64
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 10_000
    config.train.evaluate_every_steps = 1000
    config.sampling.max_actions = 16
    config.evaluate.problems = 1024
    config.evaluate.batch_rows = 1024
    if arg.objective == "sequencematch":
        s = config.sequencematch
        s.bc_steps = arg.steps // 2
        s.anneal_steps = arg.steps // 10
        s.gamma = 0.9
        s.horizon = 4
        s.start = "prompt"
        s.value_weight_data = 1.0
    return config
