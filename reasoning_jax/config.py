"""Typed configuration: frozen dataclasses, and what values their fields may take.

A config file is Python: `get_config(arg)` starts from `default_config()` and changes fields. At the
edge it is an `ml_collections.ConfigDict`; `config_check.from_dict` turns it into the frozen
dataclasses below. No JAX backend is needed, and nothing here checks a value or touches a file.

One unit per key, in its name. Batch sizes are global.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names key, value, rule and nearest legal."""


# Steps, rows and positions are counted in int32 on devices.
MAX_INT = 2**31 - 1
SHOWN = 80


def _number(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A number in [low, high]; `above` and `below` are bounds that it must not reach."""
    if high is None and isinstance(default, int):
        high = MAX_INT
    rules = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata=rules)


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"choices": (default, *options)})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the decoder. Dimension letters: D d_model, N n_heads, K n_kv_heads, ...

    `rope_factor` 1 leaves RoPE unscaled; above 1 the Llama-3 frequency scaling applies.
    `remat`: what the backward pass computes again: nothing ("none"), all but the products of
    weights ("dots"), or "full" layers. "auto" is "dots" on CPUs, where writing activations down
    costs more than computing them, and "none" elsewhere.
    `loss_chunk_tokens` bounds how many tokens' vocabulary logits exist at once (0: automatic).
    `pair_rows`: input ids at or above vocab_size are pairs of the first `pair_rows` ids: their
    embedding is the sum of the first one's row and a row of a second table. 0 follows the
    vocabulary.
    """

    vocab_size: int = _number(0, 0)
    d_model: int = _number(128, 1)
    n_layers: int = _number(2, 1)
    n_heads: int = _number(4, 1)
    n_kv_heads: int = _number(4, 1)
    head_dim: int = _number(32, 1)
    d_ff: int = _number(512, 1)
    norm: str = _choice("rmsnorm", "layernorm")
    norm_eps: float = _number(1e-5, 0.0, 1.0)
    position: str = _choice("rope", "learned", "none")
    max_positions: int = _number(1024, 1)
    rope_theta: float = _number(10_000.0, 1.0)
    rope_factor: float = _number(1.0, 1.0)
    rope_low_frequency: float = _number(1.0, 0.0)
    rope_high_frequency: float = _number(4.0, 0.0)
    rope_original_positions: int = _number(8192, 1)
    mlp: str = _choice("swiglu", "gelu")
    tied_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    init_std: float = _number(0.02, 0.0, 10.0)
    compute_dtype: str = _choice("float32", "bfloat16", "float16")
    param_dtype: str = _choice("float32", "bfloat16")
    remat: str = _choice("auto", "none", "full", "dots")
    loss_chunk_tokens: int = _number(0, 0)
    pair_rows: int = _number(0, 0)


# What a weight file decides; the rest of ModelConfig says how to compute.
COMPUTE_FIELDS = ("compute_dtype", "param_dtype", "remat", "loss_chunk_tokens")
ARCHITECTURE_FIELDS = tuple(
    f.name for f in dataclasses.fields(ModelConfig) if f.name not in COMPUTE_FIELDS
)


@dataclass(frozen=True)
class WeightsConfig:
    """Pretrained weights: a Hugging Face folder, a .gguf file, or "smollm2"; "" starts fresh.

    With a path, the architecture is read from there and must not be set under `model`.
    `backspace_probability`: the new output row of <backspace> starts with about this probability
    (on a few training examples); 0 leaves it the mean of all rows.
    """

    path: str = ""
    backspace_probability: float = _number(0.001, 0.0, below=1.0)


@dataclass(frozen=True)
class VocabConfig:
    """How text becomes ids. "weights" takes the tokenizer that comes with `weights.path`.

    "pair" is "word" with each `a>b` of two words as one input, for questions only.
    `path` is a `tokenizer.json` for kind "tokenizer", else unused. `latent` adds the three markers
    of latent thought (<bot>, <eot>, <latent>).
    """

    kind: str = _choice("char", "byte", "word", "pair", "tokenizer", "weights")
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

    `reshuffle_edges` puts the edges and the two choices of a ProsQA question into a new order each
    time it is trained on.
    """

    source: str = _choice("task", "jsonl", "tfds", "text")
    path: str = ""
    validation_path: str = ""
    train_problems: int = _number(100_000, 1)
    seq_len: int = _number(64, 2)
    pack_examples: bool = False
    with_steps: bool = True
    window_chars: int = _number(0, 0)
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

    rate: float = _number(0.0, 0.0, 1.0)
    run_length: int = _number(1, 1, 64)
    source: str = _choice("task", "random", "ngram")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised. "mle": clean data. "bc": MLE on backspace-augmented data. "sequencematch":
    bc, then its mixture with SequenceMatch (section `sequencematch`). "unlikelihood": mle, and
    `unlikelihood_weight` times the token-level unlikelihood of what the row already holds.

    `layout` "p1" is time-aligned (a row per action), "p2" deduplicated (a row per token) with at
    most `p2_rows` rows (0: as many as a batch needs, in eighths of data.seq_len). "auto" takes p2
    for batches in which that is fewer rows, where rows are long enough to pay for it.
    """

    name: str = _choice("mle", "bc", "sequencematch", "unlikelihood")
    layout: str = _choice("auto", "p1", "p2")
    p2_rows: int = _number(0, 0)
    unlikelihood_weight: float = _number(1.0, 0.0)


@dataclass(frozen=True)
class SequenceMatchConfig:
    """The SequenceMatch objective (arXiv 2306.05426) and its schedule.

    divergence: between the occupancies of data and model. "chi2_mixture" (the recommended one) is
      "chi2" with `kappa_m` = alpha / 4.
    alpha: weight of the causal entropy; enters as phi(alpha x) / alpha.
    gamma: discount per action.
    kappa_m: coefficient of the squared model reward; -1 takes the divergence's own (alpha / 4 for
      chi2_mixture, else 0). `kappa_on_prompt` applies it to given prompt actions too.
    terminal: what is done for ever after <eos>: nothing ("noop"), <eos> again ("repeat"), or the
      trajectory just ends with value 0 ("none").
    value_weight_data: weight of the value term on data; the rest falls on model samples.
    value_form: "collapsed" takes the value terms as V(s_0), "explicit" as the sums they are.
    clamp: hold chi2's phi at its maximum beyond its vertex, 2 / alpha.
    domain_guard: where phi is defined for x > lo only, below lo + 0.001: go on as its tangent
      ("linear") or as a constant ("clamp").
    start: where time and discounting begin. At <bos> the reward also falls on the prompts of the
      data, which bc leaves alone; without a <bos> or at the end of the "prompt" the two sides
      start in different states, for which value_weight_data = 1 (or paired prompts) is better.
    floor_backspace: at the prompt's end there is no such action ("masked"), or one without effect
      ("noop").
    horizon: the loss is J times (1 - gamma) if 0, else J / (1 + gamma + ... + gamma^(horizon-1)).
    bc_steps, anneal_steps, beta_end: beta is 1 for bc_steps, then falls linearly to beta_end.
    passes: data and model rows go through the model together ("one"), or one after the other with
      their activations recomputed ("two"): half the memory, and faster on CPUs, where it is "auto".
    """

    divergence: str = _choice(
        "chi2_mixture", "chi2", "identity", "reverse_kl", "forward_kl", "js", "hellinger"
    )
    alpha: float = _number(0.01, 0.0)
    gamma: float = _number(0.998, high=1.0, above=0.0)
    kappa_m: float = _number(-1.0, -1.0)
    kappa_on_prompt: bool = False
    terminal: str = _choice("noop", "repeat", "none")
    value_weight_data: float = _number(0.5, 0.0, 1.0)
    value_form: str = _choice("collapsed", "explicit")
    clamp: bool = False
    domain_guard: str = _choice("linear", "clamp")
    start: str = _choice("bos", "prompt")
    floor_backspace: str = _choice("masked", "noop")
    horizon: int = _number(0, 0)
    bc_steps: int = _number(1000, 0)
    anneal_steps: int = _number(2000, 0)
    beta_end: float = _number(0.2, 0.0, 1.0)
    passes: str = _choice("auto", "one", "two")


@dataclass(frozen=True)
class ReplayConfig:
    """Rollouts of the model, kept in a first-in-first-out buffer.

    capacity_rollouts: 0 keeps 16 batches. Every `sample_every_steps`, `refresh_rollouts` (0: one
    batch) are sampled with the current parameters, at `temperature`, until data.seq_len rows are
    full. `noise_rate`: how often a chosen token is replaced by a noise token, as in noised data.
    `prefix_tokens`: up to that many tokens of the true response are given after the prompt.
    `paired_prompts`: the data of a step are those of the same prompts as its rollouts.
    """

    capacity_rollouts: int = _number(0, 0)
    sample_every_steps: int = _number(8, 1)
    refresh_rollouts: int = _number(0, 0)
    temperature: float = _number(1.0, high=100.0, above=0.0)
    noise_rate: float = _number(0.0, 0.0, 1.0)
    prefix_tokens: int = _number(0, 0)
    paired_prompts: bool = False


@dataclass(frozen=True)
class LatentConfig:
    """Coconut (arXiv 2412.06769), its curriculum, its baselines and controls; "off" is none of
    them.

    mode: "coconut"; "no_curriculum" (rows of the last stage from the start); "no_thought" (the
      curriculum without thoughts); "pause_as_thought" (a learned token in the thoughts' place);
      "pause" (that, and no curriculum: question, pauses, answer); "cot" (all steps in text);
      "no_cot" (none); "icot" (steps removed token by token, Deng et al. 2024).
    c_thought: thoughts for each step that they replace.
    max_latent_stage: stage s replaces the first s steps; stages beyond this replace all of them.
    pad_latent_to_max: beyond it, thoughts for max_latent_stage steps even where a row has fewer.
    epochs_per_stage: an epoch is all training examples once. stage_steps, if given, says instead
      how many training steps each stage from start_stage on takes; the last one goes on.
    advance: by "schedule", or by "mastery": when the stage's validation frontier_mass (accuracy,
      where the target is the "rest") reaches `mastery`, looked at every `mastery_every_steps`, but
      not later than the schedule.
    uniform_prob: the share of rows whose stage is drawn from 0 to their number of steps.
    reset_optimizer: at the start of every "stage" (the paper's text) or "epoch" (its code), or
      "never".
    markers: <bot> before and <eot> behind the thoughts.
    target: the "rest" of the text, or the "next_step" alone: of stage s the step s + 1, drawn from
      those on a "shortest" path or from the whole "frontier" (`draw`), and beyond the last step
      the answer behind answer_prefix, which is given.
    thought: what is fed back: the state after the "final_norm", or the "residual" before it.
    thought_scale: "embedding" scales every thought to the root mean square of the embeddings.
    jacobi_iterations: 0 is the chain of thoughts; T > 0 updates all of them in parallel T times.
    icot_tokens_per_epoch, icot_offset_decay, icot_remove_all_from: that many tokens are removed an
      epoch, and o more of a row with P(o) proportional to exp(-decay o); all, once the schedule is
      at the last number.
    prompt_columns: the columns that a batch has for prompts; 0 fits them to each batch.
    """

    mode: str = _choice(
        "off", "coconut", "no_curriculum", "no_thought", "pause_as_thought", "pause", "cot",
        "no_cot", "icot",
    )  # fmt: skip
    c_thought: int = _number(1, 0, 64)
    epochs_per_stage: int = _number(5, 1)
    stage_steps: tuple[int, ...] = ()
    start_stage: int = _number(0, 0)
    max_latent_stage: int = _number(6, 0, 64)
    pad_latent_to_max: bool = True
    uniform_prob: float = _number(0.0, 0.0, 1.0)
    reset_optimizer: str = _choice("stage", "epoch", "never")
    advance: str = _choice("schedule", "mastery")
    mastery: float = _number(0.95, 0.0, 1.0)
    mastery_every_steps: int = _number(100, 1)
    markers: bool = True
    target: str = _choice("rest", "next_step")
    draw: str = _choice("shortest", "frontier")
    thought: str = _choice("final_norm", "residual")
    thought_scale: str = _choice("none", "embedding")
    jacobi_iterations: int = _number(0, 0, 64)
    icot_tokens_per_epoch: float = _number(8.0, above=0.0)
    icot_offset_decay: float = _number(4.0, above=0.0)
    icot_remove_all_from: int = _number(39, 1)
    prompt_columns: int = _number(0, 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. `freeze` and `no_decay` are regular expressions over parameter paths; one that
    matches nothing is an error. `accumulate` splits a batch into that many sequential parts.
    """

    name: str = _choice("adamw", "lion", "adafactor", "muon", "sgd")
    learning_rate: float = _number(1e-3, above=0.0)
    schedule: str = _choice("cosine", "constant", "linear", "wsd")
    warmup_steps: int = _number(100, 0)
    decay_fraction: float = _number(0.2, 0.0, 1.0)
    final_fraction: float = _number(0.1, 0.0, 1.0)
    weight_decay: float = _number(0.1, 0.0)
    b1: float = _number(0.9, 0.0, below=1.0)
    b2: float = _number(0.98, 0.0, below=1.0)
    eps: float = _number(1e-8, 0.0)
    clip_norm: float = _number(1.0, 0.0)
    accumulate: int = _number(1, 1)
    no_decay: tuple[str, ...] = ("norm|bias|embedding",)
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; rank 0 is off. `targets` and `train_also` are regular expressions over
    parameter paths: where adapters go, and which whole parameters are trained beside them.
    """

    rank: int = _number(0, 0)
    alpha: float = _number(16.0, 0.0)
    targets: tuple[str, ...] = ("layers/attention/(query|key|value|output)", "layers/mlp/")
    train_also: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1 and takes what is left."""

    data: int = _number(-1, -1)
    fsdp: int = _number(1, -1)
    tensor: int = _number(1, -1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `batch_rows` is the global number of rows of `data.seq_len` per step.

    `peak_flops` is one device's peak, for MFU; 0 takes the table in `train/flops.py`, and where
    that has no entry MFU is reported as unknown.
    """

    steps: int = _number(1000, 1)
    batch_rows: int = _number(64, 1)
    log_every_steps: int = _number(50, 1)
    evaluate_every_steps: int = _number(0, 0)
    checkpoint_every_steps: int = _number(500, 1)
    keep_checkpoints: int = _number(3, 1)
    peak_flops: float = _number(0.0, 0.0)


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    `max_actions` counts everything executed, backspaces too; `max_new_tokens` bounds how much
    visible text there can be beyond the prompt (0: max_actions). At either limit <eos> is forced.

    `method` "contrastive" (Su et al. 2022) is deterministic and never deletes: of the
    `contrastive_candidates` most probable tokens it takes the one with the best balance of
    probability and, weighted by `contrastive_penalty`, dissimilarity to the text so far.
    """

    method: str = _choice("sample", "contrastive")
    contrastive_candidates: int = _number(4, 1)
    contrastive_penalty: float = _number(0.6, 0.0, 1.0)
    temperature: float = _number(1.0, 0.0, 100.0)
    top_k: int = _number(0, 0)
    top_p: float = _number(1.0, high=1.0, above=0.0)
    min_p: float = _number(0.0, 0.0, 1.0)
    max_actions: int = _number(32, 1)
    max_new_tokens: int = _number(0, 0)


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on `problems` problems of `split`, `samples_per_problem` completions each.

    `pass_at_k` lists the k of unbiased pass@k. `corrupt_tokens` wrong tokens are put after a random
    correct prefix of the response to measure recovery; 0 leaves that out. `corrupt_also` lists
    further numbers of them, each measured by itself.

    With latent thoughts: `thoughts` replaces so many steps by them, the rest is text; -1 is what
    the checkpoint's stage does. `thought_controls` lists what takes the place of the thoughts in
    further measures: "zeros", "noise", "other_row".

    For data.source "text": documents are continued after `prompt_tokens` tokens, and `mauve` (with
    features of `feature_weights`: "" is the trained model itself, else a weight file or "smollm2")
    compares the continuations with the true ones.
    """

    split: str = _choice("validation", "test", "train")
    problems: int = _number(256, 1)
    samples_per_problem: int = _number(1, 1)
    pass_at_k: tuple[int, ...] = (1,)
    corrupt_tokens: int = _number(1, 0, 64)
    corrupt_also: tuple[int, ...] = ()
    batch_rows: int = _number(256, 1)
    saved_samples: int = _number(16, 0)
    prompt_tokens: int = _number(16, 0)
    thoughts: int = _number(-1, -1, 64)
    thought_controls: tuple[str, ...] = ()
    mauve: bool = False
    feature_weights: str = ""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = _number(0, 0)
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
    sampling: SamplingConfig = SamplingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def default_config() -> Any:
    """The defaults as a mutable `ml_collections.ConfigDict`, for a config file to start from."""
    from ml_collections import config_dict

    return config_dict.ConfigDict(to_dict(Config()), convert_dict=True)


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """Parse the ARG of `--config=FILE:ARG`, "seed=1,objective=bc", over typed defaults.

    A bare word sets the boolean of that name. Returns a ConfigDict of the defaults and their types,
    which are bool, int, float or str.

    Raises:
      ConfigError: an unknown name, or a value that is not of its default's type.
    """
    from ml_collections import config_dict

    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ConfigError(f"config argument {name!r} is unknown{nearest_name(name, defaults)}")
        if not given and not isinstance(defaults[name], bool):
            raise ConfigError(
                f"config argument {name} needs a value, as in {name}={defaults[name]}"
            )
        values[name] = _parse_as(name, text if given else "true", defaults[name])
    return config_dict.ConfigDict(values)


def _parse_as(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"config argument {name} must be {article(kind.__name__)}, got {text!r} "
            f"(default {default!r}){int_hint(kind, text)}"
        ) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts; `task` becomes one flat section of name and dials."""
    values = dataclasses.asdict(config)
    if isinstance(config, Config):
        values["task"] = {"name": config.task.name, **dict(config.task.dials)}
    return values


def show(value: Any) -> str:
    """A value for a message: one line, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = "a very long integer"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def int_hint(kind: type, value: Any) -> str:
    """ "; write 100000" for 1e5 given as an int, whether as a number or as text."""
    try:
        whole = kind is int and float(value).is_integer() and abs(float(value)) <= MAX_INT
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"; write {int(float(value))}" if whole and not isinstance(value, bool) else ""


def nearest_name(name: str, options: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:SHOWN], list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(options)}"


def as_tuple(value: Any) -> Any:
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def article(kind: str) -> str:
    return {"int": "an int", "str": "a string", "bool": "true or false"}.get(kind, f"a {kind}")
