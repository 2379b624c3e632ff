"""SequenceMatch on text: diversity, repetition, perplexity and MAUVE of continuations.

Claim    (the paper's, on openwebtext with Llama2-7b: SequenceMatch raises MAUVE above maximum
         likelihood at some cost in perplexity.) At cpu scale: a byte-level decoder on your own
         folder of .txt files, every arm in one harness. What came out is in docs/results.md.
Command  reasoning-jax reproduce sequencematch/text --scale=cpu --workdir=runs/text --config.data.path=FOLDER
         reasoning-jax train --config=configs/sequencematch/text.py:objective=bc --workdir=runs/text_bc --config.data.path=FOLDER
         reasoning-jax train --config=configs/sequencematch/text.py:scale=real --workdir=runs/text_lora --config.data.path=FOLDER
Time     about 30 minutes on 2 CPU cores (cpu: 6 runs, one seed)
Scales   cpu: byte-level, 2 layers x 128, windows of 128. gpu: 6 x 512, windows of 512, one GPU.
         paper: Llama-2-7B sized weights of your own (--config.weights.path=...), LoRA, windows of
         1,024; the paper quantised them, which is not supported here. smoke: a minute. The argument
         scale=real: SmolLM2-135M and LoRA (sweep it with `sweep FILE:scale=real`).

The feature model of MAUVE here is the one of `evaluate.feature_weights` (SmolLM2, or "" for the
trained model itself). It is not the paper's, which our sources do not name: its MAUVE and ours do
not compare.
"""  # noqa: E501

from reasoning_jax import config as rc
from reasoning_jax.report.study import PaperNumber, Study
from reasoning_jax.sweep import chain, product, sweep

SCALES = {
    # model (layers, width, heads), window, rows, steps, bc steps, prompt, continuation
    "smoke": ((1, 16, 1), 64, 8, 8, 4, 8, 16),
    "cpu": ((2, 128, 4), 128, 16, 700, 350, 32, 80),
    "gpu": ((6, 512, 8), 512, 64, 20_000, 5_000, 128, 256),
    "paper": (None, 1024, 16, 5_000, 1_000, 256, 512),
    "real": (None, 128, 4, 200, 100, 24, 64),
}


def get_config(arg: str = ""):
    arg = rc.parse_arg(
        arg, objective="sequencematch", noise=0.001, source="random", seed=0, scale="cpu"
    )
    rc.check_choice("scale", arg.scale, SCALES)
    model, window, rows, steps, bc_steps, prompt, continuation = SCALES[arg.scale]
    config = rc.default_config()
    config.seed = arg.seed
    config.data.source = "text"
    config.data.seq_len = window
    config.objective.name = arg.objective
    if arg.objective in ("bc", "sequencematch"):
        config.noise.rate = arg.noise
        config.noise.source = arg.source
    if model is None:
        config.weights.path = "smollm2"
        config.vocab.kind = "weights"
        config.lora.rank = 8 if arg.scale == "real" else 64
        config.lora.alpha = 16.0
        config.lora.train_also = ("embedding/tokens",)
        config.optimizer.no_decay = ()
        config.optimizer.weight_decay = 0.0
        config.optimizer.learning_rate = 3e-4
        config.model.loss_chunk_tokens = 256
    else:
        layers, width, heads = model
        config.vocab.kind = "byte"
        config.model.n_layers = layers
        config.model.d_model = width
        config.model.n_heads = config.model.n_kv_heads = heads
        config.model.head_dim = width // heads
        config.model.d_ff = 3 * width
        config.optimizer.learning_rate = 6e-4 if arg.scale == "gpu" else 3e-3
    config.train.steps = steps
    config.train.batch_rows = rows
    config.train.log_every_steps = max(1, steps // 30)
    config.train.checkpoint_every_steps = steps
    config.sampling.max_actions = continuation
    config.evaluate.prompt_tokens = prompt
    config.evaluate.problems = {"smoke": 32, "cpu": 256, "real": 64}.get(arg.scale, 512)
    config.evaluate.batch_rows = 128
    config.evaluate.mauve = True
    config.evaluate.feature_weights = "" if arg.scale == "smoke" else "smollm2"
    if arg.objective == "sequencematch":
        match = config.sequencematch
        # As in docs/results.md. The defaults, "auto" and -1, give an action the weight that it has
        # in bc and let rollouts err as the data do; they were not measured here.
        match.horizon = 0
        config.replay.noise_rate = 0.0
        match.bc_steps = bc_steps
        match.anneal_steps = bc_steps // 4
        config.replay.prefix_tokens = prompt
    return config


# The arms of scales that do not run all.
FEW = {"smoke": ("mle", "sequencematch"), "real": ("mle", "bc", "sequencematch")}


def get_sweep(arg: str = ""):
    arg = rc.parse_arg(arg, scale="cpu")
    tail = f"scale={arg.scale}"
    arms = FEW.get(arg.scale, ("mle", "unlikelihood", "bc", "sequencematch"))
    seeds = sweep("seed", (0, 1, 2) if arg.scale in ("gpu", "paper") else (0,))
    base = product(sweep("arg", [f"objective={name},{tail}" for name in arms]), seeds)
    if arg.scale in FEW:
        return base
    noises = [
        f"objective={name},noise=0.02,source={source},{tail}"
        for source in (("ngram",) if arg.scale == "cpu" else ("random", "ngram"))
        for name in ("bc", "sequencematch")
    ]
    return chain(base, product(sweep("arg", noises), seeds))


def get_study(scale: str) -> Study:
    arms = ("MLE", "MLE + contrastive", "MLE + unlikelihood", "MLE + bkspc (BC)", "SequenceMatch")
    table = (
        ("MAUVE", ("0.85 ± 0.03 V", "0.86 ± 0.03 M", "0.89 ± 0.02 V", "0.84 V", "0.91 ± 0.02 V")),
        ("n-gram entropy", ("4.57 V", "4.43 ± 0.02 M", "4.57 ± 0.01 M", "4.59 ± 0.01 M", "4.60 V")),
        ("diversity", ("0.56 M", "0.35 ± 0.03 M", "0.57 V", "0.56 M", "0.56 M")),
        ("perplexity", ("6.99 M", "", "7.10 M", "7.02 M", "7.13 M")),
    )
    paper = tuple(
        PaperNumber(arm, measure, value[:-2], value[-1])
        for measure, values in table
        for arm, value in zip(arms, values)
        if value
    )
    return Study(
        title=f"SequenceMatch on text ({scale})",
        columns=(
            ("mauve", "MAUVE"),
            ("diversity", "diversity"),
            ("rep_2", "rep-2, %"),
            ("rep_4", "rep-4, %"),
            ("ngram_entropy_2", "2-gram entropy, nats"),
            ("perplexity", "perplexity"),
            ("perplexity_without_backspace", "without backspace"),
            ("backspaces_per_completion", "backspaces"),
            ("human_diversity", "human diversity"),
            ("human_ngram_entropy_2", "human 2-gram entropy"),
        ),
        plotted=("mauve", "diversity"),
        paper=paper,
        notes=(
            "MAUVE's features are of another model than the paper's, on shorter and fewer texts, "
            "and the n-gram entropy is defined by us, in nats: the two tables do not compare.",
            "Perplexity is of a token of the vocabulary in use: bytes at cpu and gpu scale.",
        ),
        decoders={"MLE + contrastive search": ("mle", {"sampling.method": "contrastive"})},
    )
