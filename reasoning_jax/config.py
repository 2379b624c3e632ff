"""Typed configuration: frozen dataclasses, what values they may take, and the batch tree.

A config file is Python: `get_config(arg)` starts from `default_config()` and changes fields. At the
edge it is an `ml_collections.ConfigDict`; `from_dict` turns it into the frozen dataclasses below
and refuses whatever is misspelt, of the wrong type, or out of range. No JAX backend is needed, and
nothing here touches a file.

One unit per key, in its name. Batch sizes are global; `batch_tree` shows how they divide.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names key, value, rule and nearest legal."""


# Steps, rows and positions are counted in int32 on devices.
_MAX_INT = 2**31 - 1
_SHOWN = 80


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
        high = _MAX_INT
    rules = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata=rules)


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"choices": (default, *options)})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the decoder. Dimension letters: D d_model, N n_heads, K n_kv_heads, ...

    `rope_factor` 1 leaves RoPE unscaled; above 1 the Llama-3 frequency scaling applies.
    `loss_chunk_tokens` bounds how many tokens' vocabulary logits exist at once (0: automatic).
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
    position: str = _choice("rope", "learned")
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
    remat: str = _choice("none", "full", "dots")
    loss_chunk_tokens: int = _number(0, 0)


# What a weight file decides; the rest of ModelConfig says how to compute.
COMPUTE_FIELDS = ("compute_dtype", "param_dtype", "remat", "loss_chunk_tokens")
ARCHITECTURE_FIELDS = tuple(
    f.name for f in dataclasses.fields(ModelConfig) if f.name not in COMPUTE_FIELDS
)


@dataclass(frozen=True)
class WeightsConfig:
    """Pretrained weights: a Hugging Face folder, a .gguf file, or "smollm2"; "" starts fresh.

    With a path, the architecture is read from there and must not be set under `model`.
    """

    path: str = ""


@dataclass(frozen=True)
class VocabConfig:
    """How text becomes ids. "weights" takes the tokenizer that comes with `weights.path`.

    `path` is a `tokenizer.json` for kind "tokenizer", else unused. `latent` adds the three markers
    of latent thought (<bot>, <eot>, <latent>).
    """

    kind: str = _choice("char", "byte", "word", "tokenizer", "weights")
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
    """

    source: str = _choice("task", "jsonl", "tfds")
    path: str = ""
    validation_path: str = ""
    train_problems: int = _number(100_000, 1)
    seq_len: int = _number(64, 2)
    pack_examples: bool = False
    with_steps: bool = True
    question_suffix: str = ""
    step_suffix: str = "\n"
    answer_prefix: str = ""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise + backspace augmentation: per response token, with `rate`, insert `run_length` noise
    tokens and as many backspaces. `source` "random": any text token; "task": the task's own units.
    """

    rate: float = _number(0.0, 0.0, 1.0)
    run_length: int = _number(1, 1, 64)
    source: str = _choice("task", "random")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised. "mle": clean data. "bc": MLE on backspace-augmented data.

    `layout` "p1" is time-aligned (a row per action), "p2" deduplicated (a row per token) with at
    most `p2_rows` rows (0: data.seq_len).
    """

    name: str = _choice("mle", "bc")
    layout: str = _choice("p1", "p2")
    p2_rows: int = _number(0, 0)


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
    """

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
    correct prefix of the response to measure recovery; 0 leaves that out.
    """

    split: str = _choice("validation", "test", "train")
    problems: int = _number(256, 1)
    samples_per_problem: int = _number(1, 1)
    pass_at_k: tuple[int, ...] = (1,)
    corrupt_tokens: int = _number(1, 0, 64)
    batch_rows: int = _number(256, 1)
    saved_samples: int = _number(16, 0)


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
            raise ConfigError(f"config argument {name!r} is unknown{_nearest(name, defaults)}")
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
            f"config argument {name} must be {_article(kind.__name__)}, got {text!r} "
            f"(default {default!r}){int_hint(kind, text)}"
        ) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts; `task` becomes one flat section of name and dials."""
    values = dataclasses.asdict(config)
    if isinstance(config, Config):
        values["task"] = {"name": config.task.name, **dict(config.task.dials)}
    return values


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`, checking each key's name, type and range, then `validate`.

    Raises:
      ConfigError
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a config is a dict of sections, got {show(values)}")
    rest = {name: value for name, value in values.items() if name != "task"}
    config = dataclasses.replace(_build(Config, rest, ""), task=_task(values.get("task", {})))
    validate(config)
    return config


def _task(section: Any) -> TaskConfig:
    if not isinstance(section, Mapping):
        raise ConfigError(f"task must be a section with a name, got {show(section)}")
    dials = {}
    for key, value in section.items():
        if not isinstance(key, str):
            raise ConfigError(f"task has a key that is not a string: {show(key)}")
        if key != "name":
            dials[key] = _dial(f"task.{key}", value)
    name = _checked("task.name", section.get("name", TaskConfig.name), str, {})
    return TaskConfig(name, tuple(sorted(dials.items())))


def _dial(key: str, value: Any) -> Any:
    """A task's dial: its range is the task's business, its type must survive JSON."""
    if isinstance(value, list | tuple):
        return tuple(_dial(f"{key}[{i}]", v) for i, v in enumerate(value))
    if value is not None and type(value) not in (bool, int, float, str):
        raise ConfigError(
            f"{key} must be true or false, a number, a string or a tuple of these, got "
            f"{show(value)} ({type(value).__name__})"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{key} must fit into 64 bits, got {show(value)}")
    return value


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix[:-1]} must be a section, got {show(values)}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            text = name if isinstance(name, str) and name.isidentifier() else show(name)
            raise ConfigError(f"unknown key {prefix}{text[:_SHOWN]}{_nearest(text, hints)}")
    arguments = {}
    for f in dataclasses.fields(cls):
        if f.name not in values:
            continue
        key, value = prefix + f.name, values[f.name]
        if dataclasses.is_dataclass(hints[f.name]):
            arguments[f.name] = _build(hints[f.name], value, key + ".")
        else:
            arguments[f.name] = _checked(key, value, hints[f.name], f.metadata)
    return cls(**arguments)


def _checked(key: str, value: Any, kind: Any, rules: Mapping[str, Any]) -> Any:
    """`value` as `kind` (int -> float is the only conversion), inside its range or choices."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        value = _as_tuple(value)
        element = typing.get_args(kind)[0]
        if not isinstance(value, tuple):
            raise ConfigError(f"{key} must be a tuple of {element.__name__}, got {show(value)}")
        return tuple(_checked(f"{key}[{i}]", v, element, {}) for i, v in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not kind:
        got = f"{show(value)} ({type(value).__name__})"
        raise ConfigError(
            f"{key} must be {_article(kind.__name__)}, got {got}{int_hint(kind, value)}"
        )
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    low, high, above, below = (rules.get(name) for name in ("low", "high", "above", "below"))
    if low is not None and value < low:
        raise ConfigError(f"{key} must be >= {low}, got {show(value)}; the nearest legal is {low}")
    if high is not None and value > high:
        raise ConfigError(
            f"{key} must be <= {high}, got {show(value)}; the nearest legal is {high}"
        )
    if above is not None and value <= above:
        raise ConfigError(f"{key} must be above {above}, got {show(value)}")
    if below is not None and value >= below:
        raise ConfigError(f"{key} must be below {below}, got {show(value)}")
    choices = rules.get("choices")
    if choices and value not in choices:
        raise ConfigError(
            f"{key} must be one of {', '.join(choices)}; got {show(value)}"
            f"{_nearest(value, choices)}"
        )
    return value


def validate(config: Config) -> None:
    """Refuse a configuration whose parts do not fit together.

    Raises:
      ConfigError
    """
    model, data, train, optimizer = config.model, config.data, config.train, config.optimizer
    if config.weights.path:
        for name in ARCHITECTURE_FIELDS:
            if getattr(model, name) != getattr(ModelConfig(), name):
                raise ConfigError(
                    f"model.{name} is read from weights.path={config.weights.path!r} and cannot be "
                    f"set to {getattr(model, name)!r}; remove one of the two"
                )
    else:
        _check_architecture(model)
        if config.vocab.kind == "weights":
            raise ConfigError('vocab.kind="weights" needs weights.path; got an empty path')
    if (config.vocab.kind == "tokenizer") != bool(config.vocab.path):
        raise ConfigError(
            'vocab.path names a tokenizer.json and goes with vocab.kind="tokenizer"; got '
            f"kind={config.vocab.kind!r}, path={config.vocab.path!r}"
        )
    if (data.source == "task") != (not data.path):
        raise ConfigError(
            'data.path goes with data.source="jsonl" or "tfds"; got '
            f"source={data.source!r}, path={data.path!r}"
        )
    if data.validation_path and data.source != "jsonl":
        raise ConfigError(
            'data.validation_path goes with data.source="jsonl"; got '
            f"source={data.source!r}, validation_path={data.validation_path!r}"
        )
    if config.noise.rate > 0 and config.objective.name == "mle":
        raise ConfigError(
            f'noise.rate={config.noise.rate} has no effect on objective.name="mle"; set noise.rate '
            'to 0, or the objective to "bc"'
        )
    if config.noise.rate > 0 and not config.vocab.backspace:
        raise ConfigError(
            f"noise.rate={config.noise.rate} needs a vocabulary with <backspace>; set "
            "vocab.backspace=True or noise.rate=0"
        )
    if config.objective.layout == "p2" and config.objective.name != "bc":
        raise ConfigError('objective.layout="p2" needs backspaces; use it with objective.name="bc"')
    if train.batch_rows % optimizer.accumulate:
        raise ConfigError(
            f"train.batch_rows={train.batch_rows} is not divisible by optimizer.accumulate="
            f"{optimizer.accumulate}; nearest legal: "
            f"{nearest_multiples(train.batch_rows, optimizer.accumulate)}"
        )
    if optimizer.warmup_steps >= train.steps and optimizer.warmup_steps > 0:
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} must be below train.steps="
            f"{train.steps}"
        )
    if config.lora.train_also and not config.lora.rank:
        raise ConfigError(
            f"lora.train_also={config.lora.train_also} has no effect with lora.rank=0; set a rank, "
            "or use optimizer.freeze"
        )
    if config.lora.rank and optimizer.freeze:
        raise ConfigError("lora.rank > 0 already freezes the base; use lora.train_also, not freeze")
    _check_evaluate(config.evaluate)
    if (config.mesh.data, config.mesh.fsdp, config.mesh.tensor).count(-1) > 1:
        raise ConfigError(f"at most one mesh axis may be -1, got {config.mesh}")
    for name in ("data", "fsdp", "tensor"):
        if getattr(config.mesh, name) == 0:
            raise ConfigError(f"mesh.{name} must be -1 or >= 1, got 0")


def _check_architecture(model: ModelConfig) -> None:
    if model.n_heads % model.n_kv_heads:
        n = model.n_heads
        small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
        legal = sorted({*small, *(n // k for k in small)}, key=lambda k: abs(k - model.n_kv_heads))
        raise ConfigError(
            f"model.n_kv_heads={model.n_kv_heads} does not divide model.n_heads={n}; nearest "
            f"legal: {', '.join(map(str, sorted(legal[:3])))}"
        )
    if model.position == "rope" and model.head_dim % 2:
        raise ConfigError(f"model.head_dim must be even for RoPE, got {model.head_dim}")
    if model.rope_high_frequency <= model.rope_low_frequency:
        raise ConfigError("model.rope_high_frequency must be above model.rope_low_frequency")


def _check_evaluate(evaluate: EvaluateConfig) -> None:
    for k in evaluate.pass_at_k:
        if not 1 <= k <= evaluate.samples_per_problem:
            raise ConfigError(
                f"evaluate.pass_at_k={evaluate.pass_at_k}: every k must be between 1 and "
                f"evaluate.samples_per_problem={evaluate.samples_per_problem}"
            )


def check_devices(config: Config, model: ModelConfig, devices: int) -> tuple[int, int, int]:
    """The mesh shape on `devices` devices. Refuses what does not divide, with legal values.

    Raises:
      ConfigError
    """
    shape = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    known = math.prod(n for n in shape if n != -1)
    if -1 in shape and devices % known == 0:
        shape[shape.index(-1)] = devices // known
    if math.prod(shape) != devices or -1 in shape:
        raise ConfigError(
            f"mesh {config.mesh.data} x {config.mesh.fsdp} x {config.mesh.tensor} (data x fsdp x "
            f"tensor) does not cover {devices} devices; make the product {devices}, or one axis -1"
        )
    data, fsdp, tensor = shape
    split = data * fsdp
    micro = config.train.batch_rows // config.optimizer.accumulate
    if micro % split:
        raise ConfigError(
            f"train.batch_rows / optimizer.accumulate = {micro} is not divisible by data x fsdp = "
            f"{split}; nearest legal train.batch_rows: "
            f"{nearest_multiples(config.train.batch_rows, split * config.optimizer.accumulate)}"
        )
    for name, parts in (("n_heads", tensor), ("n_kv_heads", tensor), ("d_ff", tensor)):
        if getattr(model, name) % parts:
            raise ConfigError(
                f"model.{name}={getattr(model, name)} is not divisible by mesh.tensor={parts}"
            )
    if model.d_model % fsdp:
        raise ConfigError(
            f"model.d_model={model.d_model} is not divisible by mesh.fsdp={fsdp}; nearest legal: "
            f"{nearest_multiples(model.d_model, fsdp)}"
        )
    return data, fsdp, tensor


def batch_tree(config: Config, mesh_shape: Sequence[int]) -> str:
    """How the global batch divides, one line a level."""
    data, fsdp, tensor = mesh_shape
    rows, parts = config.train.batch_rows, config.optimizer.accumulate
    per_device = rows // parts // (data * fsdp)
    lines = [
        f"global batch     {rows} rows x {config.data.seq_len} = {rows * config.data.seq_len:,} "
        "positions a step",
        f"  accumulation   {parts} part(s) of {rows // parts} rows",
        f"    per device   {per_device} rows (data {data} x fsdp {fsdp}; tensor {tensor} shares)",
    ]
    return "\n".join(lines)


def nearest_multiples(value: int, factor: int, count: int = 3) -> str:
    """The `count` positive multiples of `factor` nearest to `value`, as text."""
    base = max(1, value // factor)
    near = sorted({factor * max(1, base + i) for i in range(-count, count + 1)})
    chosen = sorted(sorted(near, key=lambda m: (abs(m - value), m))[:count])
    return ", ".join(map(str, chosen))


def show(value: Any) -> str:
    """A value for a message: one line, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = "a very long integer"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def int_hint(kind: type, value: Any) -> str:
    """ "; write 100000" for 1e5 given as an int, whether as a number or as text."""
    try:
        whole = kind is int and float(value).is_integer() and abs(float(value)) <= _MAX_INT
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"; write {int(float(value))}" if whole and not isinstance(value, bool) else ""


def _nearest(name: str, options: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:_SHOWN], list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(options)}"


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def _article(kind: str) -> str:
    return {"int": "an int", "str": "a string", "bool": "true or false"}.get(kind, f"a {kind}")
