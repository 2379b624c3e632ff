"""From nested dicts to a checked `Config`: types, ranges, rules between keys, and the batch tree.

`from_dict` refuses whatever is misspelt, of the wrong type, out of range, or does not fit together,
in words that name key, value and rule. `check_devices` does what needs the number of devices. No
JAX backend is needed.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from reasoning_jax.config import (
    ARCHITECTURE_FIELDS,
    Config,
    ConfigError,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    TaskConfig,
    WeightsConfig,
)
from reasoning_jax.config_check_objectives import check_latent, check_sequencematch
from reasoning_jax.config_fields import (
    LEAST_FLOAT,
    MOST_FLOAT,
    SHOWN,
    article,
    as_float32,
    as_tuple,
    int_hint,
    nearest_name,
    show,
)
from reasoning_jax.config_unread import check_read


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
            raise ConfigError(f"unknown key {prefix}{text[:SHOWN]}{nearest_name(text, hints)}")
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
        value = as_tuple(value)
        element = typing.get_args(kind)[0]
        if not isinstance(value, tuple):
            raise ConfigError(f"{key} must be a tuple of {element.__name__}, got {show(value)}")
        return tuple(_checked(f"{key}[{i}]", v, element, {}) for i, v in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if isinstance(kind, types.UnionType):
        # A word or a number: whatever is no number is judged as a word.
        if type(value) is str and value in rules["choices"]:
            return value
        if type(value) is not int:
            word = rules["choices"][0]
            near = nearest_name(value, (word,)) if isinstance(value, str) else ""
            raise ConfigError(
                f'{key} must be "{word}" or an int, got {show(value)} ({type(value).__name__})'
                f"{near if near.endswith('?') else int_hint(int, value)}"
            )
        kind, rules = int, {**rules, "choices": None}
    if type(value) is not kind:
        got = f"{show(value)} ({type(value).__name__})"
        raise ConfigError(
            f"{key} must be {article(kind.__name__)}, got {got}{int_hint(kind, value)}"
        )
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    names = ("low", "high", "above", "below", "least")
    low, high, above, below, least = (rules.get(name) for name in names)
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
    if least is not None and 0 != abs(value) < least:
        raise ConfigError(
            f"{key} must be 0 or at least {least}, got {show(value)}; the nearest legal are 0 and "
            f"{least}"
        )
    if kind is float:
        _check_float32(key, value, above, below)
    choices = rules.get("choices")
    if choices and value not in choices:
        raise ConfigError(
            f"{key} must be one of {', '.join(choices)}; got {show(value)}"
            f"{nearest_name(str(value), choices)}"
        )
    return value


def _check_float32(key: str, value: float, above: float | None, below: float | None) -> None:
    """Refuse a number that is another one, or none, in the float32 that devices compute in."""
    if value and not LEAST_FLOAT <= abs(value) <= MOST_FLOAT:
        nearest = LEAST_FLOAT if abs(value) < LEAST_FLOAT else MOST_FLOAT
        raise ConfigError(
            f"{key}={value!r} is beyond float32, in which devices compute: its size must be from "
            f"{LEAST_FLOAT:.4g} to {MOST_FLOAT:.4g}; the nearest is {nearest:.4g}"
        )
    for bound, word in ((above, "above"), (below, "below")):
        if bound is not None and as_float32(value) == bound:
            raise ConfigError(
                f"{key} must be {word} {bound} in float32, in which devices compute; got "
                f"{value!r}, which is {bound} there"
            )


def validate(config: Config) -> None:
    """Refuse a configuration whose parts do not fit together.

    Raises:
      ConfigError
    """
    model, data, train, optimizer = config.model, config.data, config.train, config.optimizer
    replay = config.replay
    if config.weights.path:
        for name in ARCHITECTURE_FIELDS:
            if getattr(model, name) != getattr(ModelConfig(), name):
                raise ConfigError(
                    f"model.{name} is read from weights.path={show(config.weights.path)} and "
                    f"cannot be set to {getattr(model, name)!r}; remove one of the two"
                )
    else:
        _check_architecture(model)
        for name in ("backspace_probability", "latent_rows"):
            value = getattr(config.weights, name)
            if value != getattr(WeightsConfig(), name):
                raise ConfigError(
                    f"weights.{name}={show(value)} has no effect without weights.path; give a "
                    "path, or leave it out"
                )
        if config.vocab.kind == "weights":
            raise ConfigError('vocab.kind="weights" needs weights.path; got an empty path')
    if config.weights.latent_rows != WeightsConfig().latent_rows and not config.vocab.latent:
        raise ConfigError(
            f"weights.latent_rows={show(config.weights.latent_rows)} has no effect without "
            "vocab.latent=True; set it, or leave latent_rows out"
        )
    if (config.vocab.kind == "tokenizer") != bool(config.vocab.path):
        raise ConfigError(
            'vocab.path names a tokenizer.json and goes with vocab.kind="tokenizer"; got '
            f"kind={config.vocab.kind!r}, path={show(config.vocab.path)}"
        )
    if config.vocab.kind == "pair" and config.objective.name in ("sequencematch", "unlikelihood"):
        raise ConfigError(
            f'vocab.kind="pair" does not go with objective.name="{config.objective.name}", which '
            "scores the tokens of the question, and pairs cannot be predicted; use another "
            'objective, or vocab.kind="word"'
        )
    if data.source != "task" and not data.path:
        what = "FOLDER" if data.source in ("text", "tfds") else "FILE"
        raise ConfigError(
            f'data.path is empty, and data.source="{data.source}" reads from there; write '
            f"--config.data.path={what}"
        )
    if data.source == "task" and data.path:
        raise ConfigError(
            'data.path goes with data.source="jsonl", "tfds" or "text"; got '
            f"source={data.source!r}, path={show(data.path)}"
        )
    if data.window_chars and data.source != "text":
        raise ConfigError(
            f'data.window_chars={data.window_chars} goes with data.source="text"; got '
            f"source={data.source!r}"
        )
    if data.validation_path and data.source != "jsonl":
        raise ConfigError(
            'data.validation_path goes with data.source="jsonl"; got '
            f"source={data.source!r}, validation_path={show(data.validation_path)}"
        )
    if data.columns and data.source != "jsonl":
        raise ConfigError(
            f'data.columns={show(data.columns)} goes with data.source="jsonl"; got '
            f"source={data.source!r}"
        )
    name = config.objective.name
    if config.noise.rate > 0 and name in ("mle", "unlikelihood"):
        raise ConfigError(
            f'noise.rate={config.noise.rate} has no effect on objective.name="{name}"; set '
            'noise.rate to 0, or the objective to "bc"'
        )
    for key, rate in (("replay.noise_rate", replay.noise_rate), ("noise.rate", config.noise.rate)):
        if rate > 0 and not config.vocab.backspace:
            raise ConfigError(
                f"{key}={rate} needs a vocabulary with <backspace>; set vocab.backspace=True or "
                f"{key}=0"
            )
    if config.objective.layout == "p2" and name not in ("bc", "sequencematch"):
        raise ConfigError('objective.layout="p2" needs backspaces; use it with objective.name="bc"')
    if config.objective.p2_rows and config.objective.layout != "p2":
        raise ConfigError(
            f"objective.p2_rows={config.objective.p2_rows} has no effect on objective.layout="
            f'"{config.objective.layout}"; set layout to "p2", or p2_rows to 0'
        )
    if name != "unlikelihood" and (
        config.objective.unlikelihood_weight != ObjectiveConfig.unlikelihood_weight
    ):
        raise ConfigError(
            f"objective.unlikelihood_weight={config.objective.unlikelihood_weight} has no effect "
            f'on objective.name="{name}"; leave it at {ObjectiveConfig.unlikelihood_weight}'
        )
    check_read(config)
    check_sequencematch(config)
    check_latent(config)
    _check_attention(config)
    if train.batch_rows % optimizer.accumulate:
        raise ConfigError(
            f"train.batch_rows={train.batch_rows} is not divisible by optimizer.accumulate="
            f"{optimizer.accumulate}; nearest legal: "
            f"{nearest_multiples(train.batch_rows, optimizer.accumulate)}"
        )
    if optimizer.warmup_steps >= train.steps and optimizer.warmup_steps > 0:
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} must be below train.steps="
            f"{train.steps}; write --config.optimizer.warmup_steps={train.steps // 20}, or -1 for "
            "the share optimizer.warmup_fraction of the steps"
        )
    if config.lora.train_also and not config.lora.rank:
        raise ConfigError(
            f"lora.train_also={config.lora.train_also} has no effect with lora.rank=0; set a rank, "
            "or write --config.lora.train_also=() and use optimizer.freeze"
        )
    if config.lora.rank and optimizer.freeze:
        raise ConfigError("lora.rank > 0 already freezes the base; use lora.train_also, not freeze")
    _check_evaluate(config.evaluate)
    if (config.mesh.data, config.mesh.fsdp, config.mesh.tensor).count(-1) > 1:
        raise ConfigError(f"at most one mesh axis may be -1, got {config.mesh}")
    for name in ("data", "fsdp", "tensor"):
        if getattr(config.mesh, name) == 0:
            raise ConfigError(f"mesh.{name} must be -1 or >= 1, got 0; the nearest legal is 1")
    known = (max(1, n) for n in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor))
    _check_split(config, None if config.weights.path else model, *known)


def _check_architecture(model: ModelConfig) -> None:
    if model.n_heads % model.n_kv_heads:
        raise ConfigError(
            f"model.n_kv_heads={model.n_kv_heads} does not divide model.n_heads={model.n_heads}; "
            f"nearest legal: {nearest_divisors(model.n_kv_heads, model.n_heads)}; for as many as "
            f"heads write --config.model.n_kv_heads={model.n_heads}"
        )
    if model.position == "rope" and model.head_dim % 2:
        raise ConfigError(f"model.head_dim must be even for RoPE, got {model.head_dim}")
    low, high = (as_float32(x) for x in (model.rope_low_frequency, model.rope_high_frequency))
    if high <= low:
        raise ConfigError(
            f"model.rope_high_frequency={model.rope_high_frequency} must be above "
            f"model.rope_low_frequency={model.rope_low_frequency} in float32; the usual are 4.0 "
            "and 1.0"
        )
    _check_rope_scaling(model)


def _check_rope_scaling(model: ModelConfig) -> None:
    kind, plain = model.rope_scaling, ModelConfig()
    if kind != plain.rope_scaling and model.rope_factor == 1.0:
        raise ConfigError(
            f'model.rope_scaling="{kind}" has no effect with model.rope_factor=1.0; set a factor '
            f'above 1, or leave rope_scaling at "{plain.rope_scaling}"'
        )
    for name in ("rope_beta_fast", "rope_beta_slow", "rope_attention_factor", "rope_truncate"):
        if kind != "yarn" and getattr(model, name) != getattr(plain, name):
            raise ConfigError(
                f"model.{name}={getattr(model, name)} has no effect on model.rope_scaling="
                f'"{kind}"; set "yarn", or leave it at {getattr(plain, name)}'
            )
    if kind == "yarn" and model.rope_beta_fast < model.rope_beta_slow:
        raise ConfigError(
            f"model.rope_beta_fast={model.rope_beta_fast} must not be below model.rope_beta_slow="
            f"{model.rope_beta_slow}"
        )
    if kind == "yarn" and as_float32(model.rope_theta) == 1.0:
        raise ConfigError(
            f'model.rope_scaling="yarn" needs model.rope_theta above 1 in float32, got '
            f"{model.rope_theta}; 10000.0 is usual"
        )


def _check_attention(config: Config) -> None:
    """Refuse kernels that cannot take the rows of this training, on whatever machine.

    What the machine lacks is found by `model.attention.check`.
    """
    name, T = config.model.attention, config.data.seq_len
    if name == "cudnn":
        if config.model.compute_dtype == "float32":
            raise ConfigError(
                'model.attention="cudnn" needs model.compute_dtype="bfloat16" or "float16", got '
                '"float32"; or set model.attention="auto"'
            )
        if T % 2:
            raise ConfigError(
                f'model.attention="cudnn" needs an even data.seq_len, got {T}; nearest legal: '
                f"{nearest_multiples(T, 2)}"
            )
    if name == "splash":
        objective = config.objective.name
        edited = objective == "bc" or (objective == "sequencematch" and config.vocab.backspace)
        if edited or config.latent.mode != "off":
            has = "objective.name" if edited else "latent.mode"
            value = objective if edited else config.latent.mode
            raise ConfigError(
                f'model.attention="splash" is for rows without backspaces and thoughts, got {has}='
                f'"{value}"; set model.attention="auto"'
            )
        if T % 128:
            raise ConfigError(
                f'model.attention="splash" needs a multiple of 128 as data.seq_len, got {T}; '
                f"nearest legal: {nearest_multiples(T, 128)}"
            )


def _check_evaluate(evaluate: EvaluateConfig) -> None:
    for n in evaluate.corrupt_also:
        if not 1 <= n <= 64 or n == evaluate.corrupt_tokens:
            raise ConfigError(
                f"evaluate.corrupt_also={evaluate.corrupt_also}: every number must be between 1 "
                f"and 64, and not evaluate.corrupt_tokens={evaluate.corrupt_tokens} again"
            )
    if evaluate.feature_weights and not evaluate.mauve:
        raise ConfigError(
            f"evaluate.feature_weights={show(evaluate.feature_weights)} has no effect with "
            "evaluate.mauve=False; set it to True"
        )
    for k in evaluate.pass_at_k:
        if not 1 <= k <= evaluate.samples_per_problem:
            raise ConfigError(
                f"evaluate.pass_at_k={evaluate.pass_at_k}: every k must be between 1 and "
                f"evaluate.samples_per_problem={evaluate.samples_per_problem}; write "
                f"--config.evaluate.pass_at_k={_some_ks(evaluate)}"
            )


def _some_ks(evaluate: EvaluateConfig) -> str:
    """The legal k of pass@k among those that are set, or 1, as the command line takes them."""
    most = evaluate.samples_per_problem
    return ",".join(map(str, [k for k in evaluate.pass_at_k if 1 <= k <= most] or [1]))


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
    _check_split(config, model, data, fsdp, tensor)
    return data, fsdp, tensor


def _check_split(
    config: Config, model: ModelConfig | None, data: int, fsdp: int, tensor: int
) -> None:
    """Refuse rows and a model that these axes do not divide; of an unknown model nothing is said.

    An axis of unknown size is 1 here: what a multiple divides, it divides, too.
    """
    split = data * fsdp
    micro = config.train.batch_rows // config.optimizer.accumulate
    if micro % split:
        raise ConfigError(
            f"train.batch_rows / optimizer.accumulate = {micro} is not divisible by data x fsdp = "
            f"{split}; nearest legal train.batch_rows: "
            f"{nearest_multiples(config.train.batch_rows, split * config.optimizer.accumulate)}"
        )
    refresh = config.replay.refresh_rollouts
    if refresh % split:
        raise ConfigError(
            f"replay.refresh_rollouts={refresh} is not divisible by data x fsdp = {split}; nearest "
            f"legal: {nearest_multiples(refresh, split)}"
        )
    if model is None:
        return
    shared = ("n_heads", "n_kv_heads", "d_ff")
    for name in shared:
        if getattr(model, name) % tensor:
            common = math.gcd(*(getattr(model, other) for other in shared))
            raise ConfigError(
                f"model.{name}={getattr(model, name)} is not divisible by mesh.tensor={tensor}; "
                f"nearest legal mesh.tensor: {nearest_divisors(tensor, common)}, or model.{name}: "
                f"{nearest_multiples(getattr(model, name), tensor)}"
            )
    if model.d_model % fsdp:
        raise ConfigError(
            f"model.d_model={model.d_model} is not divisible by mesh.fsdp={fsdp}; nearest legal: "
            f"{nearest_multiples(model.d_model, fsdp)}"
        )


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


def nearest_divisors(value: int, number: int, count: int = 3) -> str:
    """The `count` divisors of `number` nearest to `value`, as text."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    legal = sorted({*small, *(number // k for k in small)}, key=lambda k: (abs(k - value), k))
    return ", ".join(map(str, sorted(legal[:count])))
