"""Coconut on symbolic ProsQA: thoughts against text, pauses and nothing, on graphs.

Claim    (the first author's, arXiv 2505.12514: two layers with thoughts solve what a chain of text of
         the same model does not.) What came out here is in docs/results.md.
Command  reasoning-jax reproduce coconut/prosqa-symbolic --scale=cpu --workdir=runs/prosqa_symbolic
         reasoning-jax train --config=configs/coconut/prosqa_symbolic.py:mode=coconut --workdir=runs/coconut
Time     about 1 hour on 2 CPU cores (cpu: 24 runs of 2 to 3 minutes)
Scales   cpu: two mirrored halves, 3 hops, one column an edge; the setting is ours, not the paper's.
         Harder at that scale: edges=symbolic (three tokens an edge); graph=fitted (random graphs like
         the published ones, nine tenths of which are answered by depth alone) or graph=even (those
         whose answers are equally deep); layers=6, hops=4, longer=2, mastery=0.9. All arms of one:
         reasoning-jax sweep configs/coconut/prosqa_symbolic.py:graph=even --all --workdir=runs/even
         gpu: graphs fitted to the published ones, three tokens an edge, 3 and 4 hops, 2 layers x 256.
         paper: that with 2 layers x 768 and the paper's schedule. smoke: a minute, to see that
         everything runs.

Every arm but CoT and iCoT is trained on one token a row: the next step, or the answer behind [A].
The authors' dropout is not supported, and a mixed row's stage is drawn from all of its steps, where
their code draws from those up to the present stage.
"""  # noqa: E501

from reasoning_jax import config as rc
from reasoning_jax.report.study import PaperNumber, Study
from reasoning_jax.sweep import chain, product, sweep
from reasoning_jax.tasks import task_dials

MODES = (
    "coconut", "pause_as_thought", "no_thought", "no_curriculum", "pause", "icot", "cot", "no_cot",
)  # fmt: skip
STAGED = ("coconut", "pause_as_thought", "no_thought")
# layers, width, heads, rows, steps, problems evaluated
SCALES = {
    "smoke": (2, 16, 2, 8, 10, 16),
    "cpu": (2, 64, 4, 64, 2600, 2000),
    "gpu": (2, 256, 8, 256, 40_000, 2000),
    "paper": (2, 768, 8, 256, 18_000, 2000),
}
# Steps of stages, where these are not counted in epochs: the first, each one between, and the last.
STAGE_STEPS = {"smoke": (4, 2, 2), "cpu": (1000, 400, 800), "gpu": (12_000, 7_000, 7_000)}
# At scale cpu, by whether graphs are mirrored and by the form of edges.
HARDER_STEPS = {
    (False, "fused"): (1500, 800, 1000),
    (True, "symbolic"): (3000, 1000, 1000),
    (False, "symbolic"): (3000, 1000, 1000),
}
SETTING = {
    "graph": "mirrored", "edges": "fused", "hops": 3, "layers": 0, "longer": 1.0, "mastery": 0.0,
}  # fmt: skip


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, mode="coconut", seed=0, scale="cpu", **SETTING)
    rc.check_choice("scale", arg.scale, SCALES)
    rc.check_choice("mode", arg.mode, MODES)
    layers, width, heads, rows, steps, problems = SCALES[arg.scale]
    if arg.scale in ("gpu", "paper"):
        for name, value in (("graph", "mirrored"), ("edges", "fused"), ("hops", 3)):
            if arg[name] != value:
                raise rc.ConfigError(f"{name} is an argument of the scales smoke and cpu")
    if arg.scale == "paper" and arg.longer != 1:
        raise rc.ConfigError("longer is no argument of the scale paper, whose stages are epochs")
    small = arg.scale in ("smoke", "cpu")
    config = rc.default_config()
    config.seed = arg.seed
    form, graph = (arg.edges, arg.graph) if small else ("symbolic", "fitted")
    config.task = {"name": "prosqa", **task_dials("prosqa"), "form": form}
    rc.check_choice("graph", graph, ("mirrored", "fitted", "even"))
    if graph == "mirrored":
        config.task["family"] = graph
    else:
        config.task["even_depth"] = graph == "even"
    hops = arg.hops if small else 4
    if arg.scale in STAGE_STEPS:
        lengths = STAGE_STEPS[arg.scale]
        if arg.scale == "cpu":
            lengths = HARDER_STEPS.get((graph == "mirrored", form), lengths)
        first, middle, last = (round(n * arg.longer) for n in lengths)
        lengths = (first, *[middle] * (hops - 1), last)
        steps = sum(lengths)
    config.task.update(min_hops=min(3, hops), max_hops=hops)
    if graph != "mirrored":
        config.task.update(relabel=True, **({"n_nodes": 14} if small else {}))
        if form == "fused":
            # One compiled program; room for 50 edges, where 18 are usual and 40 were not seen.
            config.latent.prompt_columns = 56
    config.vocab.kind = "pair" if form == "fused" else "word"
    config.vocab.backspace = False
    config.vocab.latent = True
    config.data.answer_prefix = " [A] "
    config.data.step_suffix = " "
    config.data.seq_len = 96 if form == "fused" else 224
    # Every row a fresh graph, but at the paper's scale: its rows, in a new order each time.
    config.data.train_problems = 100_000_000 if arg.scale != "paper" else 15_000
    config.data.reshuffle_edges = arg.scale == "paper"

    latent = config.latent
    latent.mode = arg.mode
    if arg.mode == "icot":
        # A token, which is a step, in as long as a stage of the others takes on average.
        epochs = steps * rows / config.data.train_problems
        latent.icot_tokens_per_epoch = (hops + 1) / epochs
        latent.icot_remove_all_from = hops
        latent.reset_optimizer = "never"
    elif arg.mode != "cot":
        latent.target = "next_step"
    if arg.mode not in ("cot", "no_cot", "icot"):
        latent.max_latent_stage = hops
    if arg.mode not in ("cot", "no_cot", "icot", "no_thought"):
        # As in the first author's code: a row with fewer hops has fewer thoughts.
        latent.pad_latent_to_max = False
    if arg.mode in STAGED:
        if arg.scale == "paper":
            latent.epochs_per_stage = 25
        else:
            latent.stage_steps = lengths
        latent.uniform_prob = 0.1
        latent.reset_optimizer = "never"
        if arg.mastery:
            latent.advance = "mastery"
            latent.mastery = arg.mastery
    if arg.mode not in ("cot", "no_cot", "icot", "no_thought"):
        latent.markers = False

    config.model.n_layers = arg.layers or layers
    config.model.d_model = width
    config.model.n_heads = config.model.n_kv_heads = heads
    config.model.head_dim = width // heads
    config.model.d_ff = 2 * width if small else 4 * width
    config.model.norm = "layernorm"
    config.model.mlp = "gelu"
    config.model.position = "none" if form == "fused" else "learned"
    config.model.max_positions = 256
    config.model.init_std = 0.125 if small else 0.02
    if small and form == "symbolic":
        # An edge's end must find its start, which is always the token before.
        config.model.position = "rope"
        config.model.n_heads = config.model.n_kv_heads = 2
        config.model.head_dim = width // 2
        config.model.init_std = 0.25
    config.optimizer.learning_rate = 2e-3 if small else 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0 if small else 0.01
    config.optimizer.b2 = 0.98 if small else 0.999
    config.train.steps = steps
    config.optimizer.warmup_fraction = {"smoke": 2, "paper": 0}.get(arg.scale, 100) / steps
    if arg.scale == "paper":
        config.optimizer.clip_norm = 0.0
        config.optimizer.no_decay = ()
    config.train.batch_rows = rows
    config.train.log_every_steps = max(1, config.train.steps // 52)
    config.train.evaluate_every_steps = max(1, config.train.steps // 13)
    config.train.checkpoint_every_steps = config.train.steps
    config.sampling.temperature = 0.0
    # The answer and <eos>; in text, one a step, [A], the answer and <eos>.
    config.sampling.max_actions = hops + 4 if arg.mode in ("cot", "icot") else 2
    config.evaluate.problems = problems
    config.evaluate.batch_rows = min(problems, 1000)
    config.evaluate.corrupt_tokens = 0
    if arg.mode in ("coconut", "no_curriculum"):
        config.evaluate.thought_controls = ("zeros", "noise", "other_row")
    return config


def get_sweep(arg: str = ""):
    arg = rc.parse_arg(arg, scale="cpu", **SETTING)
    setting = "".join(f",{name}={arg[name]}" for name in SETTING if arg[name] != SETTING[name])
    seeds = sweep("seed", (0,) if arg.scale == "smoke" else (0, 1, 2))
    split = sweep("evaluate.split", ("test",))
    modes = ("coconut", "pause_as_thought", "cot") if arg.scale == "smoke" else MODES
    arms = sweep("arg", [f"mode={mode},scale={arg.scale}{setting}" for mode in modes])
    return product(chain(arms), seeds, split)


def get_study(scale: str) -> Study:
    return Study(
        title=f"Coconut on symbolic ProsQA ({scale})",
        columns=(
            ("exact_match", "answer right"),
            ("choice", "right one preferred"),
            ("tokens", "tokens"),
            ("exact_match_zeros", "thoughts: zeros"),
            ("exact_match_noise", "noise"),
            ("exact_match_other_row", "another row's"),
        ),
        plotted=("exact_match",),
        paper=(
            PaperNumber("coconut, 2 layers", "accuracy", "about 100 %", "V"),
            PaperNumber("cot, 2 layers", "accuracy", "about 75 %", "V"),
            PaperNumber("cot, 12 layers", "accuracy", "83 %", "V"),
            PaperNumber("no_cot", "accuracy", "50-75 % (sources disagree)", "M"),
        ),
        notes=(
            "The paper's numbers are of arXiv 2505.12514: graphs of ProsQA with 3 and 4 hops, "
            "three tokens an edge, 2 layers x 768. At scale cpu graphs and columns are simpler, "
            "and the setting is ours.",
            "Chance is 50 %. On mirrored graphs the two choices are alike in depth and degree; on "
            "fitted ones the target is deeper, so that depth alone tells something.",
            "CoT's 75 % on mirrored graphs follow from their construction: which of the root's "
            "two chains to enter is a coin flip for it, and a wrong one leaves a guess.",
            "Controls replace the thoughts of a trained model.",
        ),
    )
