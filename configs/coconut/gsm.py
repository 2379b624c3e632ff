"""Coconut on arithmetic word problems in the format of GSM8k-Aug.

Claim    (the paper's, arXiv 2412.06769, GPT-2: CoT 42.9 %, Coconut 34.1 %, pause as thought 24.1 %,
         No-CoT 16.5 %.) What came out here is in docs/results.md.
Command  reasoning-jax reproduce coconut/gsm --scale=cpu --workdir=runs/gsm
         reasoning-jax reproduce coconut/gsm --scale=paper --workdir=runs/gsm_paper --config.weights.path=GPT2_FOLDER --config.data.source=jsonl --config.data.path=train.txt --config.data.validation_path=test.txt
         reasoning-jax train --config=configs/coconut/gsm.py:mode=coconut --workdir=runs/coconut_gsm
Time     cpu: 9 arms x 3 seeds of about 25 minutes on one core, 11 hours (one arm was run)
Scales   cpu: chains of 1 or 2 sums up to 40 of our generator in characters, 2 layers x 96. gpu: up to
         6 steps of all operations, 6 layers x 384. paper: the paper's schedule, with GPT-2 weights
         and the files of GSM8k-Aug of your own. smoke: a minute, to see that everything runs.

Stage 0 is CoT here, as in the paper's text; its code takes a finished CoT run for it.
"""  # noqa: E501

from reasoning_jax import config as rc
from reasoning_jax.report.study import PaperNumber, Study
from reasoning_jax.sweep import product, sweep
from reasoning_jax.tasks import task_dials

MODES = (
    "coconut", "pause_as_thought", "no_thought", "no_curriculum", "pause", "icot", "cot", "no_cot",
)  # fmt: skip
STAGED = ("coconut", "pause_as_thought", "no_thought")
# layers, width, rows, steps, training problems, problems evaluated
SCALES = {
    "smoke": (1, 32, 4, 6, 16, 8),
    "cpu": (2, 96, 32, 5000, 32_000, 500),
    "gpu": (6, 384, 128, 30_000, 385_000, 1000),
    "paper": (0, 0, 128, 75_000, 385_000, 1319),
}


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, mode="coconut", seed=0, scale="cpu", thoughts=2)
    rc.check_choice("scale", arg.scale, SCALES)
    rc.check_choice("mode", arg.mode, MODES)
    layers, width, rows, steps, problems, evaluated = SCALES[arg.scale]
    small = arg.scale in ("smoke", "cpu")
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {"name": "gsm_chain", **task_dials("gsm_chain")}
    if small:
        config.task.update(
            max_steps=2, operations=("add", "sub"), max_number=20, max_value=40, long_steps=False
        )
    else:
        config.task.update(max_steps=6)
    config.vocab.backspace = False
    config.vocab.latent = True
    config.data.question_suffix = "\n"
    config.data.answer_prefix = "### "
    config.data.train_problems = problems
    config.data.seq_len = 640 if layers else 256
    latent = config.latent
    latent.mode = arg.mode
    if arg.mode not in ("cot", "no_cot", "icot"):
        latent.max_latent_stage = 2 if small else 3
    if arg.mode == "icot" and layers:
        # Characters: the longest chain, so that none is removed at once.
        latent.icot_remove_all_from = 30 if small else 120
        latent.icot_tokens_per_epoch = latent.icot_remove_all_from / (0.7 * steps * rows / problems)
    if arg.mode in ("coconut", "no_curriculum", "pause_as_thought", "pause"):
        latent.c_thought = arg.thoughts
    if arg.mode in STAGED:
        if arg.scale == "paper":
            # Six epochs of CoT, three a stage, and on to the end.
            latent.stage_steps = tuple(problems // rows * n for n in (6, 3, 3, 3, 10))
        else:
            latent.epochs_per_stage = 1
    if layers:
        config.vocab.kind = "char"
        config.model.n_layers = layers
        config.model.d_model = width
        config.model.n_heads = config.model.n_kv_heads = max(2, width // 32)
        config.model.head_dim = 32 if width > 32 else 16
        config.model.d_ff = 3 * width
        config.optimizer.learning_rate = 2e-3 if small else 5e-4
        config.optimizer.warmup_fraction = min(100, steps // 4) / steps
    else:
        config.weights.path = "smollm2"
        config.vocab.kind = "weights"
        config.optimizer.learning_rate = 1e-4
        config.optimizer.no_decay = ()
        config.optimizer.b2 = 0.999
        config.optimizer.clip_norm = 0.0
        config.optimizer.warmup_fraction = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "constant"
    config.train.steps = steps
    config.train.batch_rows = rows
    config.train.log_every_steps = max(1, steps // 40)
    config.train.evaluate_every_steps = max(1, steps // 10)
    config.train.checkpoint_every_steps = max(1, steps // 10)
    config.sampling.temperature = 0.0
    config.sampling.max_actions = 96 if small else 160
    config.evaluate.problems = evaluated
    config.evaluate.batch_rows = min(250, evaluated)
    config.evaluate.corrupt_tokens = 0
    if arg.mode in ("coconut", "no_curriculum"):
        config.evaluate.thought_controls = ("zeros", "noise", "other_row")
    return config


def get_sweep(arg: str = ""):
    arg = rc.parse_arg(arg, scale="cpu")
    seeds = sweep("seed", (0,) if arg.scale == "smoke" else (0, 1, 2))
    split = sweep("evaluate.split", ("test",))
    modes = ("coconut", "no_thought") if arg.scale == "smoke" else MODES
    arms = [f"mode={mode},scale={arg.scale}" for mode in modes]
    if arg.scale != "smoke":
        arms.append(f"mode=coconut,scale={arg.scale},thoughts=1")
    return product(sweep("arg", arms), seeds, split)


# Accuracy %, spread and generated tokens (thoughts among them) of GPT-2, the paper's table 1.
PAPER = {
    "cot": ("42.9 ± 0.2", "25.0"), "no_cot": ("16.5 ± 0.5", "2.2"), "icot": ("30.0", "2.2"),
    "pause": ("16.4 ± 1.8", "2.2"), "coconut": ("34.1 ± 1.5", "8.2"),
    "no_curriculum": ("14.4 ± 0.8", "8.2"), "no_thought": ("21.6 ± 0.5", "2.3"),
    "pause_as_thought": ("24.1 ± 0.7", "2.2"),
}  # fmt: skip


def get_study(scale: str) -> Study:
    return Study(
        title=f"Coconut on arithmetic word problems ({scale})",
        columns=(
            ("exact_match", "answer right"),
            ("tokens", "tokens"),
            ("exact_match_zeros", "thoughts: zeros"),
            ("exact_match_noise", "noise"),
            ("exact_match_other_row", "another row's"),
            ("truncated", "cut off"),
        ),
        plotted=("exact_match",),
        paper=tuple(
            PaperNumber(arm, measure, value, "V")
            for arm, values in PAPER.items()
            for measure, value in zip(("accuracy %", "tokens"), values)
        ),
        notes=(
            "Problems are of our generator, in the format of GSM8k-Aug, and much simpler; they are "
            "no measure beside the paper's.",
            "The paper's iCoT figure is from Deng et al. 2024.",
        ),
    )
