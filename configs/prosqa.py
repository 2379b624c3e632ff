"""ProsQA: find which of two nodes can be reached from a root in a directed graph.

Claim    a place to start from, not a result: with the chain of thought written out, this small
         decoder learns the format, and the right end a little more often than by chance (50 %).
Command  reasoning-jax train --config=configs/prosqa.py:form=symbolic --workdir=runs/prosqa
Time     5.5 minutes on 2 CPU cores
Expect   59 % of 256 validation problems (seed 0); see docs/results.md
"""

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, form="symbolic", seed=0, with_steps=True, nodes=12)
    config = rc.default_config()
    config.seed = arg.seed
    hops = {"min_hops": 2, "max_hops": 3} if arg.nodes < 20 else {}
    config.task = {
        "name": "prosqa", **task_dials("prosqa"), "form": arg.form, "n_nodes": arg.nodes, **hops,
    }  # fmt: skip
    config.vocab.kind = "word"
    config.data.question_suffix = "\n"
    config.data.answer_prefix = "### "
    config.data.with_steps = arg.with_steps
    config.data.seq_len = 16 * arg.nodes if arg.form == "text" else 8 * arg.nodes
    config.objective.name = "mle"
    config.model.d_model = 64
    config.model.n_layers = 2
    config.model.head_dim = 16
    config.model.d_ff = 192
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_fraction = 1 / 15
    config.train.steps = 1500
    config.train.batch_rows = 64
    config.train.evaluate_every_steps = 500
    config.train.checkpoint_every_steps = 500
    config.sampling.max_actions = 48
    config.evaluate.problems = 256
    config.evaluate.corrupt_tokens = 0
    return config
