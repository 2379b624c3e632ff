"""Coconut on ProsQA as text: thoughts in place of sentences.

Claim    (the paper's, arXiv 2412.06769, GPT-2: Coconut 97.0 %, CoT 77.5 %, pause as thought 96.6 %.)
         What came out here is in docs/results.md.
Command  reasoning-jax reproduce coconut/prosqa --scale=cpu --workdir=runs/prosqa_text
         reasoning-jax reproduce coconut/prosqa --scale=paper --workdir=runs/prosqa_paper --config.weights.path=GPT2_FOLDER
         reasoning-jax train --config=configs/coconut/prosqa.py:mode=coconut --workdir=runs/coconut_text
Time     cpu: 9 arms x 3 seeds of about 20 minutes on one core, 9 hours (one arm was run)
Scales   cpu: small graphs (2 and 3 hops) in words, 2 layers x 96. gpu: graphs fitted to the
         published ones, 6 layers x 384, in words. paper: those, the paper's schedule and GPT-2
         weights of your own; for the published rows add --config.data.source=jsonl
         --config.data.path=FILE --config.data.validation_path=FILE. smoke: two minutes, to see that
         everything runs.
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
    "smoke": (1, 32, 8, 8, 16, 8),
    "cpu": (2, 96, 32, 4000, 24_000, 500),
    "gpu": (6, 384, 128, 20_000, 100_000, 500),
    "paper": (0, 0, 128, 7000, 17_886, 500),
}


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, mode="coconut", seed=0, scale="cpu", mixed=0)
    rc.check_choice("scale", arg.scale, SCALES)
    rc.check_choice("mode", arg.mode, MODES)
    layers, width, rows, steps, problems, evaluated = SCALES[arg.scale]
    small = arg.scale in ("smoke", "cpu")
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {"name": "prosqa", **task_dials("prosqa")}
    if small:
        config.task.update(n_nodes=12, min_hops=2, max_hops=3)
    most = 3 if small else 6
    config.vocab.backspace = False
    config.vocab.latent = True
    config.data.question_suffix = "\n"
    config.data.answer_prefix = "### "
    config.data.train_problems = problems
    config.data.seq_len = 256 if small else 512 if layers else 1024
    latent = config.latent
    latent.mode = arg.mode
    if arg.mode not in ("cot", "no_cot", "icot"):
        latent.max_latent_stage = most
    if arg.mixed and arg.mode not in STAGED:
        raise rc.ConfigError(f"mixed goes with a mode that has stages, not with {arg.mode}")
    if arg.mode in STAGED:
        # The paper: 5 epochs a stage and 50 in all, a new optimizer at each stage.
        latent.epochs_per_stage = 1 if small or arg.scale == "gpu" else 5
        latent.uniform_prob = arg.mixed / 100
    if arg.mode == "icot":
        config.latent.icot_tokens_per_epoch = 8.0
        config.latent.icot_remove_all_from = 39
        if not layers:
            config.optimizer.clip_norm = 1.0
    if layers:
        config.vocab.kind = "word"
        config.model.n_layers = layers
        config.model.d_model = width
        config.model.n_heads = config.model.n_kv_heads = max(2, width // 32)
        config.model.head_dim = 32 if width > 32 else 16
        config.model.d_ff = 3 * width
        config.optimizer.learning_rate = 2e-3 if small else 5e-4
        config.optimizer.weight_decay = 0.01
        config.optimizer.warmup_fraction = min(100, steps // 4) / steps
    else:
        config.weights.path = "smollm2"
        config.vocab.kind = "weights"
        config.optimizer.learning_rate = 1e-4
        config.optimizer.weight_decay = 0.01
        config.optimizer.no_decay = ()
        config.optimizer.b2 = 0.999
        config.optimizer.clip_norm = 0.0
        config.optimizer.warmup_fraction = 0.0
    config.optimizer.schedule = "constant"
    config.train.steps = steps
    config.train.batch_rows = rows
    config.train.log_every_steps = max(1, steps // 40)
    config.train.evaluate_every_steps = max(1, steps // 10)
    config.train.checkpoint_every_steps = max(1, steps // 10)
    config.sampling.temperature = 0.0
    config.sampling.max_actions = 64 if small else 128
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
    modes = ("coconut", "icot") if arg.scale == "smoke" else MODES
    arms = [f"mode={mode},scale={arg.scale}" for mode in modes]
    # A random stage for 30 % of the rows: without, no model goes on in text after fewer thoughts.
    arms.append(f"mode=coconut,scale={arg.scale},mixed=30")
    return product(sweep("arg", arms), seeds, split)


# Accuracy %, spread and generated tokens (thoughts among them) of GPT-2, the paper's table 1.
PAPER = {
    "cot": ("77.5 ± 1.9", "49.4"), "no_cot": ("76.7 ± 1.0", "8.2"), "icot": ("98.2 ± 0.3", "8.2"),
    "pause": ("75.9 ± 0.7", "8.2"), "coconut": ("97.0 ± 0.3", "14.2"),
    "no_curriculum": ("76.1 ± 0.2", "14.2"), "no_thought": ("95.5 ± 1.1", "8.2"),
    "pause_as_thought": ("96.6 ± 0.8", "8.2"),
}  # fmt: skip


def get_study(scale: str) -> Study:
    return Study(
        title=f"Coconut on ProsQA as text ({scale})",
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
            "Chance is 50 %. The target is deeper than the wrong answer in published and fitted "
            "graphs, so depth alone tells something.",
            "Graphs are of our generator, fitted to the published rows; at scale cpu they are "
            "smaller.",
        ),
    )
