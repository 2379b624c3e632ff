"""Typed configuration: frozen dataclasses, and what values their fields may take.

A config file is Python: `get_config(arg)` starts from `default_config()` and changes fields. At the
edge it is an `ml_collections.ConfigDict`; `config_check.from_dict` turns it into the frozen
dataclasses below. No JAX backend is needed, and nothing here checks a value or touches a file.

One unit per key, in its name. Batch sizes are global.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_jax.config_argument import parse_assignments
from reasoning_jax.config_fields import (
    COLDEST,
    HUGE,
    MAX_SECONDS,
    TINY,
    ConfigError,
    choice,
    nearest_name,
    number,
    show,
)
from reasoning_jax.config_objectives import (
    LatentConfig,
    ObjectiveConfig,
    ReplayConfig,
    SequenceMatchConfig,
)

__all__ = [
    "Config", "ConfigError", "DataConfig", "EvaluateConfig", "LatentConfig", "LoraConfig",
    "MeshConfig", "ModelConfig", "NoiseConfig", "ObjectiveConfig", "OptimizerConfig",
    "ReplayConfig", "SamplingConfig", "SequenceMatchConfig", "TaskConfig", "TrainConfig",
    "VocabConfig", "WeightsConfig", "check_choice", "default_config", "nearest_name",
    "parse_arg", "to_dict", "warmup_steps",
]  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the decoder. Dimension letters: D d_model, N n_heads, K n_kv_heads, ...

    `rope_factor` 1 leaves RoPE unscaled; above 1 it is scaled as `rope_scaling` says: "llama3" with
    `rope_low_frequency` and `rope_high_frequency`, "linear", or "yarn" with the betas, and cosine
    and sine times `rope_attention_factor` (0: 0.1 ln rope_factor + 1). `rope_truncate` rounds the
    ends of YaRN's ramp to whole pairs.
    `remat`: what the backward pass computes again: nothing ("none"), all but the products of
    weights ("dots"), or "full" layers. "auto" is "dots" on CPUs, where writing activations down
    costs more than computing them, and "none" elsewhere.
    `attention`: how training attends (`model/attention.py`). "auto": on a GPU by cuDNN and on a TPU
    by the splash kernel, where these take the rows; in blocks elsewhere. Evaluation and sampling do
    that whatever is said here. What has earlier columns before it is always "explicit".
    `loss_chunk_tokens` bounds how many tokens' vocabulary logits exist at once (0: automatic).
    `pair_rows`: input ids at or above vocab_size are pairs of the first `pair_rows` ids: their
    embedding is the sum of the first one's row and a row of a second table. 0 follows the
    vocabulary.
    """

    vocab_size: int = number(0, 0)
    d_model: int = number(128, 1)
    n_layers: int = number(2, 1)
    n_heads: int = number(4, 1)
    n_kv_heads: int = number(4, 1)
    head_dim: int = number(32, 1)
    d_ff: int = number(512, 1)
    norm: str = choice("rmsnorm", "layernorm")
    norm_eps: float = number(1e-5, TINY, 1.0)
    position: str = choice("rope", "learned", "none")
    max_positions: int = number(1024, 1)
    rope_theta: float = number(10_000.0, 1.0, 1e30)
    rope_scaling: str = choice("llama3", "linear", "yarn")
    rope_factor: float = number(1.0, 1.0, HUGE)
    rope_low_frequency: float = number(1.0, 0.0, HUGE)
    rope_high_frequency: float = number(4.0, 0.0, HUGE)
    rope_original_positions: int = number(8192, 1)
    rope_beta_fast: float = number(32.0, TINY, HUGE)
    rope_beta_slow: float = number(1.0, TINY, HUGE)
    rope_attention_factor: float = number(0.0, 0.0, HUGE, least=TINY)
    rope_truncate: bool = True
    mlp: str = choice("swiglu", "gelu")
    tied_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    init_std: float = number(0.02, 0.0, 10.0)
    compute_dtype: str = choice("float32", "bfloat16", "float16")
    param_dtype: str = choice("float32", "bfloat16")
    attention: str = choice("auto", "explicit", "blockwise", "xla", "cudnn", "splash")
    remat: str = choice("auto", "none", "full", "dots")
    loss_chunk_tokens: int = number(0, 0)
    pair_rows: int = number(0, 0)


# What a weight file decides; the rest of ModelConfig says how to compute.
COMPUTE_FIELDS = ("compute_dtype", "param_dtype", "attention", "remat", "loss_chunk_tokens")
ARCHITECTURE_FIELDS = tuple(
    f.name for f in dataclasses.fields(ModelConfig) if f.name not in COMPUTE_FIELDS
)


@dataclass(frozen=True)
class WeightsConfig:
    """Pretrained weights: a Hugging Face folder, a .gguf file, or "smollm2"; "" starts fresh.

    With a path, the architecture is read from there and must not be set under `model`.
    `backspace_probability`: the new output row of <backspace> starts with about this probability
    (on a few training examples); 0 leaves it the mean of all rows.
    `latent_rows`: the rows that <bot>, <eot> and <latent> start with, in embedding and unembedding:
    the "mean" of all, or that of the one token of a text, as "<<" in the published Coconut code.
    """

    path: str = ""
    backspace_probability: float = number(0.001, 0.0, below=1.0)
    latent_rows: str = "mean"


@dataclass(frozen=True)
class VocabConfig:
    """How text becomes ids. "weights" takes the tokenizer that comes with `weights.path`.

    "pair" is "word" with each `a>b` of two words as one input, for questions only.
    `path` is a `tokenizer.json` for kind "tokenizer", else unused. `latent` adds the three markers
    of latent thought (<bot>, <eot>, <latent>).
    """

    kind: str = choice("char", "byte", "word", "pair", "tokenizer", "weights")
    path: str = ""
    backspace: bool = True
    latent: bool = False


@dataclass(frozen=True)
class TaskConfig:
    """A task by name; every other key of the `task` section is a dial of that task."""

    name: str = "arithmetic"
    dials: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are laid out as text.

    An example reads: question + question_suffix | step + step_suffix ... answer_prefix + answer,
    then <eos>. Loss falls on everything after the bar.

    `source` "text" is a folder of .txt files (or one): each document is read in windows of
    `window_chars` characters (0: what `seq_len` positions hold), without question or steps.

    `columns` names the columns of a "jsonl" source, ("question=prompt", "answer=text"); "steps=" is
    no steps. Without it the common names are known (docs/data.md). `bad_rows`: whether records that
    cannot be read, encoded, held by a row or judged right are refused before the first step, or
    left out and counted.

    `reshuffle_edges` puts the edges and the two choices of a ProsQA question into a new order each
    time it is trained on.
    """

    source: str = choice("task", "jsonl", "tfds", "text")
    path: str = ""
    validation_path: str = ""
    columns: tuple[str, ...] = ()
    bad_rows: str = choice("refuse", "skip")
    train_problems: int = number(100_000, 1)
    seq_len: int = number(64, 2)
    pack_examples: bool = False
    with_steps: bool = True
    window_chars: int = number(0, 0)
    reshuffle_edges: bool = False
    question_suffix: str = ""
    step_suffix: str = "\n"
    answer_prefix: str = ""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise + backspace augmentation: per response token, with `rate`, insert `run_length` noise
    tokens and as many backspaces. `source` "random": any text token; "task": the task's own units;
    "ngram": what followed the same last token elsewhere in the training data (bigram counts), so
    that the error is locally plausible.
    """

    rate: float = number(0.0, 0.0, 1.0)
    run_length: int = number(1, 1, 64)
    source: str = choice("task", "random", "ngram")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. `freeze` and `no_decay` are regular expressions over parameter paths; one that
    matches nothing is an error, but for the default of `no_decay`. `accumulate` splits a batch into
    that many sequential parts.

    The learning rate rises from 0 over the first `warmup_fraction` of train.steps, whatever their
    number; `warmup_steps` from 0 on says a number of steps instead.
    """

    name: str = choice("adamw", "lion", "adafactor", "muon", "sgd")
    learning_rate: float = number(1e-3, TINY, HUGE)
    schedule: str = choice("cosine", "constant", "linear", "wsd")
    warmup_steps: int = number(-1, -1)
    warmup_fraction: float = number(0.05, 0.0, below=1.0)
    decay_fraction: float = number(0.2, 0.0, 1.0)
    final_fraction: float = number(0.1, 0.0, 1.0)
    weight_decay: float = number(0.1, 0.0, HUGE)
    b1: float = number(0.9, 0.0, below=1.0)
    b2: float = number(0.98, 0.0, below=1.0)
    eps: float = number(1e-8, TINY, HUGE)
    clip_norm: float = number(1.0, 0.0, 1e30, least=TINY)
    accumulate: int = number(1, 1)
    no_decay: tuple[str, ...] = ("norm|bias|embedding",)
    freeze: tuple[str, ...] = ()


def warmup_steps(optimizer: OptimizerConfig, steps: int) -> int:
    """Steps of warm-up in a training of `steps`: as many as are set, or their share of all."""
    if optimizer.warmup_steps >= 0:
        return optimizer.warmup_steps
    return min(round(optimizer.warmup_fraction * steps), max(steps - 1, 0))


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; rank 0 is off. `targets` and `train_also` are regular expressions over
    parameter paths: where adapters go, and which whole parameters are trained beside them.
    """

    rank: int = number(0, 0)
    alpha: float = number(16.0, 0.0, HUGE)
    targets: tuple[str, ...] = ("layers/attention/(query|key|value|output)", "layers/mlp/")
    train_also: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1 and takes what is left."""

    data: int = number(-1, -1)
    fsdp: int = number(1, -1)
    tensor: int = number(1, -1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `batch_rows` is the global number of rows of `data.seq_len` per step.

    `peak_flops` is one device's peak, for MFU; 0 takes the table in `train/flops.py`, and where
    that has no entry MFU is reported as unknown.

    Of the checkpoints the newest `keep_last` are kept, and every multiple of `keep_every_steps` (0:
    none). A step with a NaN or Inf is skipped; after `skipped_steps_limit` in a row training ends
    (exit 3). Every `hash_every_logs`-th training row has a hash of the state (0: none).
    """

    steps: int = number(1000, 1)
    batch_rows: int = number(64, 1)
    log_every_steps: int = number(50, 1)
    evaluate_every_steps: int = number(0, 0)
    checkpoint_every_steps: int = number(500, 1)
    keep_last: int = number(3, 1)
    keep_every_steps: int = number(0, 0)
    skipped_steps_limit: int = number(10, 1)
    hash_every_logs: int = number(1, 0)
    peak_flops: float = number(0.0, 0.0, 1e30)


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run counts as stuck and is ended with the stacks of its threads (exit 134): a step
    after `step_medians` times the median of the last ones, but at least `step_s`; compiling, saving
    and evaluating after limits of their own.
    """

    enabled: bool = True
    step_s: float = number(60.0, 1e-3, MAX_SECONDS)
    step_medians: float = number(10.0, 1.0, HUGE)
    compile_s: float = number(3600.0, 1e-3, MAX_SECONDS)
    checkpoint_s: float = number(900.0, 1e-3, MAX_SECONDS)
    evaluate_s: float = number(7200.0, 1e-3, MAX_SECONDS)


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. Actions that tie at
    the border of top_k or top_p are all kept. These settings are of `sample`, `evaluate` and the
    evaluations of `train`; rollouts have a temperature of their own (`replay.temperature`) and no
    filters.

    `max_actions` counts everything executed, backspaces too; `max_new_tokens` bounds how much
    visible text there can be beyond the prompt (0: max_actions). At either limit <eos> is forced.

    `method` "contrastive" (Su et al. 2022) is deterministic and never deletes: of the
    `contrastive_candidates` most probable tokens it takes the one with the best balance of
    probability and, weighted by `contrastive_penalty`, dissimilarity to the text so far.
    """

    method: str = choice("sample", "contrastive")
    contrastive_candidates: int = number(4, 1)
    contrastive_penalty: float = number(0.6, 0.0, 1.0)
    temperature: float = number(1.0, 0.0, 100.0, least=COLDEST)
    top_k: int = number(0, 0)
    top_p: float = number(1.0, high=1.0, above=0.0)
    min_p: float = number(0.0, 0.0, 1.0)
    max_actions: int = number(32, 1)
    max_new_tokens: int = number(0, 0)


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on `problems` problems of `split`, `samples_per_problem` completions each.

    `pass_at_k` lists the k of unbiased pass@k. `corrupt_tokens` wrong tokens are put after a random
    correct prefix of the response to measure recovery; 0 leaves that out. `corrupt_also` lists
    further numbers of them, each measured by itself. So many as `batch_rows` are decoded at a time;
    a completion that has ended gives its place to the next one.

    With latent thoughts: `thoughts` replaces so many steps by them, the rest is text; -1 is what
    the checkpoint's stage does. `thought_controls` lists what takes the place of the thoughts in
    further measures: "zeros", "noise", "other_row".

    For data.source "text": documents are continued after `prompt_tokens` tokens, and `mauve` (with
    features of `feature_weights`: "" is the trained model itself, else a weight file or "smollm2")
    compares the continuations with the true ones.
    """

    split: str = choice("validation", "test", "train")
    problems: int = number(256, 1)
    samples_per_problem: int = number(1, 1)
    pass_at_k: tuple[int, ...] = (1,)
    corrupt_tokens: int = number(1, 0, 64)
    corrupt_also: tuple[int, ...] = ()
    batch_rows: int = number(256, 1)
    saved_samples: int = number(16, 0)
    prompt_tokens: int = number(16, 0)
    thoughts: int = number(-1, -1, 64)
    thought_controls: tuple[str, ...] = ()
    mauve: bool = False
    feature_weights: str = ""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = number(0, 0)
    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()
    vocab: VocabConfig = VocabConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    noise: NoiseConfig = NoiseConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    sequencematch: SequenceMatchConfig = SequenceMatchConfig()
    replay: ReplayConfig = ReplayConfig()
    latent: LatentConfig = LatentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def default_config() -> Any:
    """The defaults as a mutable `ml_collections.ConfigDict`, for a config file to start from."""
    return as_config_dict(to_dict(Config()))


def as_config_dict(values: dict[str, Any]) -> Any:
    """A config's nested dicts as a ConfigDict, in which keys of a word or a number take either."""
    from ml_collections import config_dict

    found: Any = config_dict.ConfigDict(values, convert_dict=True)
    for key in keys_of_word_or_int():
        section, _, name = key.partition(".")
        if isinstance(values.get(section), dict) and name in values[section]:
            found[section][name] = config_dict.FieldReference(values[section][name], object)
    return found


def keys_of_word_or_int() -> list[str]:
    """The dotted names of the keys that take a number or a word ("auto")."""
    return [
        f"{section.name}.{f.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for f in dataclasses.fields(section.default)
        if f.type == "int | str"
    ]


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """Parse the ARG of `--config=FILE:ARG`, "seed=1,objective=bc", over typed defaults.

    A bare word sets the boolean of that name. Text may hold commas and signs of equality, as in
    "weights=runs/lr=0.1,seed=0": it ends where the name of another argument follows a comma. Where
    that leaves a doubt, an existing path is taken whole, and quotes settle it:
    "weights='runs/a,seed=0',seed=1". Returns a ConfigDict of the defaults and their types, which
    are bool, int, float or str.

    Raises:
      ConfigError: an unknown name, or a value that is not of its default's type.
    """
    from ml_collections import config_dict

    return config_dict.ConfigDict({**defaults, **parse_assignments(arg or "", defaults)})


def check_choice(name: str, value: str, options: Sequence[str] | Mapping[str, Any]) -> None:
    """For config files: refuse an argument that is none of `options`. Raises ConfigError."""
    if value not in options:
        hint = nearest_name(value, options)
        raise ConfigError(
            f"{name} must be one of {', '.join(options)}; got {show(value)}"
            f"{hint if hint.endswith('?') else ''}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts; `task` becomes one flat section of name and dials."""
    values = dataclasses.asdict(config)
    if isinstance(config, Config):
        values["task"] = {"name": config.task.name, **dict(config.task.dials)}
    return values
