"""Your own questions and answers, in one line: lengths, budgets and model size come from the file.

Command  reasoning-jax train --config=configs/jsonl.py:path=FILE --workdir=runs/mine
         then: reasoning-jax evaluate --workdir=runs/mine --config.evaluate.split=test
               reasoning-jax sample --workdir=runs/mine --prompt="a question"
File     JSONL, JSON, parquet, GSM8K, chats, each also packed: docs/data.md. A tenth of its rows is
         held out for validation and a tenth for the test, by a hash of the question.
Args     path, validation (a file of its own), steps (0: from the number of rows), seed, objective
         (bc, mle, sequencematch), weights (a Hugging Face folder or smollm2: fine-tunes that by
         LoRA), seq_len (0: the longest row)
Time     printed at start as an estimate
Expect   word problems of two steps, made from a template: 1,000 rows gave an exact match of 0.48
         on 99 held-out ones after 374 of 1,496 steps, 200 rows 0.21 on 19 after 600 (one seed)

The values that follow from the file stand in the run's config.json as those of any other config.
"""

from reasoning_jax import config as rc
from reasoning_jax.data.survey import survey

OBJECTIVES = ("bc", "mle", "sequencematch")
# A longer row than this costs more than it is worth without a word of the user: it is refused.
LONGEST_ROW = 2048
# Up to so many tokens of data: layers, width.
MODELS = ((1_000_000, 4, 128), (20_000_000, 6, 256), (float("inf"), 8, 512))
ROWS = 32
PASSES = 60


def get_config(arg: str = ""):
    arg = rc.parse_arg(
        arg, path="", validation="", steps=0, seed=0, objective="bc", weights="", seq_len=0
    )
    rc.check_choice("objective", arg.objective, OBJECTIVES)
    if not arg.path:
        raise rc.ConfigError("configs/jsonl.py needs a file: --config=configs/jsonl.py:path=FILE")
    config = rc.default_config()
    config.seed = arg.seed
    data = config.data
    data.source = "jsonl"
    data.path, data.validation_path = arg.path, arg.validation
    data.question_suffix = "\n"
    count = token_counter(arg.weights) if arg.weights else None
    found = survey(arg.path, arg.validation, answer_prefix="#### ", count=count)
    data.answer_prefix = "#### " if found.has_steps else ""

    config.objective.name = arg.objective
    noisy = arg.objective != "mle"
    config.noise.rate = 0.05 if noisy else 0.0
    config.noise.source = "random"
    # <bos>, <eos>, the state behind it; twice the noise that is expected, for rows that have more.
    longest = found.longest + 3 + (int(0.2 * found.longest_response) + 4 if noisy else 0)
    data.seq_len = arg.seq_len or min(rounded(longest, 16), LONGEST_ROW)
    # Room to take tokens back.
    config.sampling.max_actions = rounded(found.longest_response * 5 // 4 + 4, 8)
    config.sampling.temperature = 0.0

    rows = 4 if arg.weights else ROWS
    steps = arg.steps or min(max(PASSES * found.train // rows, 300), 20_000)
    if arg.weights:
        steps = arg.steps or min(max(3 * found.train // rows, 20), 2000)
        config.weights.path = arg.weights
        config.vocab.kind = "weights"
        config.lora.rank = 8
        config.lora.train_also = ("embedding/tokens",)
        config.optimizer.learning_rate = 1e-3
        config.optimizer.no_decay = ()
    else:
        # Bytes hold every prompt there can be; characters are much shorter for some scripts.
        config.vocab.kind = "byte" if found.bytes_per_character < 1.2 else "char"
        layers, width = next(sizes for most, *sizes in MODELS if found.total <= most)
        config.model.n_layers, config.model.d_model = layers, width
        config.model.n_heads = config.model.n_kv_heads = width // 32
        config.model.d_ff = 3 * width
        config.optimizer.learning_rate = 2e-3 if width <= 128 else 1e-3
    if arg.objective == "sequencematch":
        config.sequencematch.start = "prompt"
        config.sequencematch.gamma = 0.99
        config.sequencematch.bc_steps = steps // 2
        config.sequencematch.anneal_steps = max(1, steps // 10)
    config.optimizer.warmup_fraction = min(100, steps // 10) / steps
    config.train.steps = steps
    config.train.batch_rows = rows
    config.train.log_every_steps = max(1, steps // 30)
    config.train.evaluate_every_steps = max(1, steps // 4)
    config.train.checkpoint_every_steps = max(1, steps // 4)
    config.evaluate.problems = max(1, min(256, found.validation))
    config.evaluate.batch_rows = config.evaluate.problems
    return config


def rounded(n: int, unit: int) -> int:
    """`n` up to a multiple."""
    return n + -n % unit


def token_counter(weights: str):
    """How many tokens a text is in the vocabulary of some weights."""
    from reasoning_jax import vocab
    from reasoning_jax import weights as pretrained

    tokenizer = pretrained.read_tokenizer(weights).tokenizer_json
    if tokenizer is None:
        raise rc.ConfigError(f"weights={weights!r} comes without a tokenizer.json")
    codec = vocab.TokenizerCodec(tokenizer)
    return lambda text: len(codec.encode(text))
