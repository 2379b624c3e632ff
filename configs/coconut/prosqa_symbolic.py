"""Coconut on symbolic ProsQA: thoughts against text, pauses and nothing, on graphs.

Claim    (the first author's, arXiv 2505.12514: two layers with thoughts solve what a chain of text of
         the same model does not.) What came out here is in docs/results.md.
Command  reasoning-jax reproduce coconut/prosqa-symbolic --scale=cpu --workdir=runs/prosqa_symbolic
         reasoning-jax train --config=configs/coconut/prosqa_symbolic.py:mode=coconut --workdir=runs/coconut
Time     cpu: 8 arms x 3 seeds of about 2 minutes on 2 CPU cores
Scales   cpu: two mirrored halves, 3 hops, an edge a column (the setting is ours, not the paper's); gpu
         and paper: graphs fitted to the published ones, three tokens an edge, 3 and 4 hops, two layers
         of 768. smoke: a minute, to see that everything runs.
"""  # noqa: E501

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials

MODES = (
    "coconut", "pause_as_thought", "no_thought", "no_curriculum", "pause", "cot", "no_cot",
)  # fmt: skip
STAGED = ("coconut", "pause_as_thought", "no_thought")


def get_config(arg: str = ""):
    arg = rc.parse_arg(
        arg, mode="coconut", seed=0, scale="cpu", graph="mirrored", form="fused", hops=3,
        mastery=False, longer=1.0,
    )  # fmt: skip
    if arg.scale not in ("smoke", "cpu", "gpu", "paper"):
        raise rc.ConfigError(f"scale must be smoke, cpu, gpu or paper, got {arg.scale!r}")
    small = arg.scale in ("smoke", "cpu")
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {
        "name": "prosqa", **task_dials("prosqa"), "form": arg.form if small else "symbolic",
        "family": arg.graph if small else "fitted",
    }  # fmt: skip
    if small and arg.graph == "mirrored":
        config.task.update(min_hops=arg.hops, max_hops=arg.hops)
    else:
        config.task.update(relabel=True, min_hops=3, max_hops=4)
    config.vocab.kind = "pair" if config.task["form"] == "fused" else "word"
    config.vocab.backspace = False
    config.vocab.latent = True
    config.data.answer_prefix = " [A] "
    config.data.step_suffix = " "
    config.data.train_problems = 100_000_000
    config.data.seq_len = 32 if config.task["form"] == "fused" else 64
    config.latent.mode = arg.mode
    if arg.mode != "icot":
        config.latent.target = "next_step"
    if arg.mode not in ("cot", "no_cot", "icot"):
        config.latent.max_latent_stage = arg.hops
    if arg.mode in STAGED:
        lengths = (1000, 400, 400, 800) if arg.scale == "cpu" else (4, 2, 2, 2)
        config.latent.stage_steps = tuple(round(n * arg.longer) for n in lengths)
        config.latent.uniform_prob = 0.1
        config.latent.reset_optimizer = "never"
        if arg.mastery:
            config.latent.advance = "mastery"
    if arg.mode not in ("cot", "no_cot", "icot", "no_thought"):
        config.latent.markers = False
    config.model.n_layers = 2
    config.model.d_model = 64
    config.model.n_heads = config.model.n_kv_heads = 4
    config.model.head_dim = 16
    config.model.d_ff = 128
    config.model.norm = "layernorm"
    config.model.mlp = "gelu"
    config.model.position = "none" if config.task["form"] == "fused" else "learned"
    config.model.max_positions = 256
    config.model.init_std = 0.125
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0
    config.train.steps = round(2600 * arg.longer) if arg.scale == "cpu" else 10
    config.optimizer.warmup_steps = 100 if arg.scale == "cpu" else 2
    config.train.batch_rows = 64 if arg.scale == "cpu" else 8
    config.train.log_every_steps = 50
    config.train.evaluate_every_steps = 200
    config.train.checkpoint_every_steps = 1000
    config.sampling.temperature = 0.0
    config.sampling.max_actions = 2 if arg.mode != "cot" else 12
    config.evaluate.problems = 512
    config.evaluate.batch_rows = 512
    config.evaluate.corrupt_tokens = 0
    if arg.mode in ("coconut", "no_curriculum"):
        config.evaluate.thought_controls = ("zeros", "noise", "other_row")
    return config
