"""config.json of a Hugging Face model <-> ModelConfig, for GPT-2, Llama, Qwen 2/2.5 and Qwen 3.

A setting that our model cannot honour is refused, never ignored. Field names and defaults are those
of transformers 5 (`models/*/configuration_*.py`), with the older spelling of RoPE settings beside
the newer one. Nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from reasoning_jax.config import ModelConfig
from reasoning_jax.weights.files import WeightsError, field, short

_ROPE: dict[str, Any] = {
    "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qkv_bias": False,
    "output_bias": False, "qk_norm": False,
}  # fmt: skip

# What belonging to a family (a `model_type` of transformers) says about ModelConfig.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm", "position": "learned", "mlp": "gelu", "qkv_bias": True,
        "output_bias": True, "qk_norm": False,
    },
    "llama": _ROPE,
    "qwen2": {**_ROPE, "qkv_bias": True},
    "qwen3": {**_ROPE, "qk_norm": True},
}  # fmt: skip

# Settings with one accepted meaning: key -> accepted values, where the key is present.
_ANY_FAMILY = {"quantization_config": (None,)}
_ACCEPTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        **_ANY_FAMILY,
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {
        **_ANY_FAMILY,
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    "qwen2": {**_ANY_FAMILY, "hidden_act": ("silu", "swish")},
    "qwen3": {**_ANY_FAMILY, "hidden_act": ("silu", "swish"), "attention_bias": (False,)},
}
# Keys that each kind of RoPE scaling has beside its type, and their fields of ModelConfig.
_ORIGINAL = {"original_max_position_embeddings": "rope_original_positions"}
_ROPE_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor", "low_freq_factor": "rope_low_frequency",
        "high_freq_factor": "rope_high_frequency", **_ORIGINAL,
    },
    "yarn": {
        "factor": "rope_factor", "beta_fast": "rope_beta_fast", "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor", "truncate": "rope_truncate", **_ORIGINAL,
    },
}  # fmt: skip
# Read otherwise, or without effect.
_ROPE_ALSO = {
    "default": (),
    "linear": (),
    "llama3": (),
    "yarn": ("mscale", "mscale_all_dim", "finetuned"),
}
# Without these keys a kind is not said; the others have a default.
_ROPE_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
_FIELD_TYPES = {f.name: type(f.default) for f in dataclasses.fields(ModelConfig)}


def family_of(config: ModelConfig) -> str:
    """The Hugging Face `model_type` that expresses a model: a key of FAMILIES.

    Raises:
      WeightsError: none does; names the field that stands in the way.
    """
    if config.pair_rows:
        raise WeightsError(
            f"no Hugging Face family ({', '.join(FAMILIES)}) reads pairs of words, and this model "
            f'has pair_rows={config.pair_rows}; to export, train with vocab.kind="word" (the run '
            "folder itself can be sampled, evaluated and continued)"
        )
    distance = {
        family: [name for name, value in fixed.items() if getattr(config, name) != value]
        for family, fixed in FAMILIES.items()
    }
    family = min(distance, key=lambda name: len(distance[name]))
    if distance[family]:
        got = ", ".join(f"{name}={getattr(config, name)!r}" for name in distance[family])
        wanted = ", ".join(f"{name}={FAMILIES[family][name]!r}" for name in distance[family])
        raise WeightsError(
            f"no Hugging Face family ({', '.join(FAMILIES)}) has {got}; the nearest, {family}, "
            f"has {wanted}; to export, train with that (the run folder itself can be sampled, "
            "evaluated and continued)"
        )
    if family == "gpt2":
        for name, wanted in (
            ("n_kv_heads", config.n_heads),
            ("head_dim", config.d_model / config.n_heads),
        ):
            if getattr(config, name) != wanted:
                raise WeightsError(f"gpt2 has {name}={wanted:g}, got {getattr(config, name)}")
    if family == "llama" and config.d_model % config.n_heads:
        raise WeightsError(
            f"llama wants d_model divisible by n_heads={config.n_heads}, got d_model="
            f"{config.d_model}"
        )
    return family


def from_config_json(values: Mapping[str, Any], source: str) -> tuple[str, ModelConfig]:
    """The family and the ModelConfig of a config.json.

    Raises:
      WeightsError: an unknown `model_type`, a missing or mistyped field, a setting that our model
        cannot honour, or dimensions that do not fit together.
    """
    family = field(values, "model_type", str, source)
    if family not in FAMILIES:
        raise WeightsError(
            f"{source}: model_type {short(family)} is unknown; known: {', '.join(FAMILIES)}"
        )
    for key, accepted in _ACCEPTED[family].items():
        value = values.get(key)
        if value is not None and value not in accepted:
            raise WeightsError(
                f"{source}: {key}={short(value)} cannot be honoured; wanted "
                f"{' or '.join(map(repr, accepted))}"
            )
    read = _read_gpt2 if family == "gpt2" else _read_rope_model
    return family, checked({**FAMILIES[family], **read(values, family, source)}, source)


def _read_gpt2(values: Mapping[str, Any], family: str, source: str) -> dict[str, Any]:
    del family
    width = field(values, "n_embd", int, source)
    heads = field(values, "n_head", int, source)
    if heads < 1 or width % heads:
        raise WeightsError(f"{source}: n_head={heads} does not divide n_embd={width}")
    return {
        "vocab_size": field(values, "vocab_size", int, source),
        "d_model": width,
        "n_layers": field(values, "n_layer", int, source),
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "d_ff": field(values, "n_inner", int, source, 4 * width),
        "norm_eps": field(values, "layer_norm_epsilon", float, source, 1e-5),
        "max_positions": field(values, "n_positions", int, source, 1024),
        "tied_embeddings": field(values, "tie_word_embeddings", bool, source, True),
        "init_std": field(values, "initializer_range", float, source, 0.02),
    }


def _read_rope_model(values: Mapping[str, Any], family: str, source: str) -> dict[str, Any]:
    width = field(values, "hidden_size", int, source)
    heads = field(values, "num_attention_heads", int, source)
    layers = field(values, "num_hidden_layers", int, source)
    default_dim = 128 if family == "qwen3" else width // max(heads, 1)
    default_positions = 2048 if family == "llama" else 32_768
    positions = field(values, "max_position_embeddings", int, source, default_positions)
    _refuse_sliding_windows(values, layers, source)
    return {
        "vocab_size": field(values, "vocab_size", int, source),
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": field(values, "num_key_value_heads", int, source, heads),
        "head_dim": field(values, "head_dim", int, source, default_dim),
        "d_ff": field(values, "intermediate_size", int, source),
        "norm_eps": field(values, "rms_norm_eps", float, source, 1e-6),
        "max_positions": positions,
        "tied_embeddings": field(values, "tie_word_embeddings", bool, source, False),
        "init_std": field(values, "initializer_range", float, source, 0.02),
        **_read_rope(values, positions, source),
    }


def _read_rope(values: Mapping[str, Any], positions: int, source: str) -> dict[str, Any]:
    """RoPE settings: `rope_theta` and `rope_scaling` (to transformers 4), `rope_parameters` (5)."""
    merged = _merged_rope(values, source)
    kind = field(merged, "rope_type", str, source, "default")
    if kind not in _ROPE_KEYS:
        raise WeightsError(
            f"{source}: RoPE scaling of type {short(kind)} is not known; known: "
            f"{', '.join(_ROPE_KEYS)}"
        )
    also = ("rope_type", "rope_theta", "partial_rotary_factor", *_ROPE_ALSO[kind])
    for key, value in merged.items():
        whole = key != "partial_rotary_factor" or (type(value) in (int, float) and value == 1)
        if key not in (*_ROPE_KEYS[kind], *also) or not whole:
            raise WeightsError(
                f"{source}: the RoPE setting {short(key)}={short(value)} cannot be honoured with "
                f"type {kind!r}"
            )
    rope: dict[str, Any] = {"rope_theta": field(merged, "rope_theta", float, source, 10_000.0)}
    where = f"{source}: {kind} RoPE scaling"
    for key in _ROPE_REQUIRED[kind]:
        field(merged, key, float, where)
    if "rope_original_positions" in _ROPE_KEYS[kind].values():
        merged.setdefault("original_max_position_embeddings", positions)
    for key, name in _ROPE_KEYS[kind].items():
        if key in merged:
            rope[name] = field(merged, key, _FIELD_TYPES[name], where)
    if kind == "yarn":
        original = rope["rope_original_positions"]
        if original < 1:
            raise WeightsError(f"{where}: original_max_position_embeddings={original} is below 1")
        rope.setdefault("rope_factor", positions / original)
        rope |= _yarn_attention(merged, rope["rope_factor"], where)
    if kind != "default" and (rope["rope_factor"] != 1.0 or rope.get("rope_attention_factor")):
        return {**rope, "rope_scaling": kind}
    return {"rope_theta": rope["rope_theta"]}


def _merged_rope(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The RoPE settings of all the places that may have them, without nulls; "type" is called
    "rope_type".
    """
    merged: dict[str, Any] = {}
    for name in ("rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters"):
        part = values.get(name)
        if part is None:
            continue
        if name in ("rope_theta", "partial_rotary_factor"):
            part = {name: part}
        if not isinstance(part, Mapping):
            raise WeightsError(f"{source}: {name} must be an object, got {short(part)}")
        for spelt, value in part.items():
            key = "rope_type" if spelt == "type" else spelt
            if value is None:
                continue
            known = merged.setdefault(key, value)
            if known is not value and known != value:
                raise WeightsError(
                    f"{source}: {name} says {key}={short(value)}, elsewhere {key}="
                    f"{short(merged[key])}; keep one of them"
                )
    # Phi-3's place for it, which transformers reads for every family.
    key = "original_max_position_embeddings"
    outside = values.get(key)
    if merged.get("rope_type") not in ("llama3", "yarn") or outside is None:
        return merged
    if merged.setdefault(key, outside) != outside:
        raise WeightsError(
            f"{source}: {key}={short(outside)}, but the RoPE settings say {short(merged[key])}; "
            "keep one of them"
        )
    return merged


def _yarn_attention(merged: Mapping[str, Any], factor: float, where: str) -> dict[str, float]:
    """The factor of cosine and sine, where it is not what YaRN's own rule gives."""
    given = field(merged, "attention_factor", float, where, None)
    if given is not None and given <= 0:
        raise WeightsError(f"{where}: attention_factor must be above 0, got {given}")
    mscale, of_all = (field(merged, k, float, where, 0.0) for k in ("mscale", "mscale_all_dim"))
    if given is not None or not (mscale and of_all):
        return {}

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(max(factor, 1.0)) + 1.0

    if scale(mscale) <= 0 or scale(of_all) <= 0:
        raise WeightsError(f"{where}: mscale={mscale} and mscale_all_dim={of_all} give no factor")
    return {"rope_attention_factor": scale(mscale) / scale(of_all)}


def _refuse_sliding_windows(values: Mapping[str, Any], layers: int, source: str) -> None:
    window = values.get("sliding_window", 4096)
    first = field(values, "max_window_layers", int, source, 28)
    if values.get("use_sliding_window") and window is not None and first < layers:
        raise WeightsError(
            f"{source}: use_sliding_window with max_window_layers={first} of {layers} layers "
            "cannot be honoured; every layer must attend to the whole prefix"
        )
    kinds = values.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
    ):
        raise WeightsError(
            f"{source}: layer_types={short(kinds)} cannot be honoured; every layer must be "
            "'full_attention'"
        )


def to_config_json(config: ModelConfig, family: str, dtype: str) -> dict[str, Any]:
    """The config.json of a model whose `family_of` is `family`, tensors stored as `dtype`.

    RoPE settings are written in the older spelling, which transformers 4 and 5 both read.
    """
    shared = {
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        # transformers 4 reads the first, 5 the second.
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if family == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            **shared,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "n_positions": config.max_positions,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new",
        }
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        **shared,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
    }


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    if config.rope_factor == 1.0 and not config.rope_attention_factor:
        return None
    kind = config.rope_scaling
    scaling = {key: getattr(config, name) for key, name in _ROPE_KEYS[kind].items()}
    if not config.rope_attention_factor:
        scaling.pop("attention_factor", None)  # by YaRN's own rule
    return {"rope_type": kind, **scaling}


def checked(values: Mapping[str, Any], source: str) -> ModelConfig:
    """A ModelConfig whose numbers are inside the ranges that it declares and fit together.

    Raises:
      WeightsError
    """
    config = ModelConfig(**values)
    for f in dataclasses.fields(ModelConfig):
        value, low, high = getattr(config, f.name), f.metadata.get("low"), f.metadata.get("high")
        above = f.metadata.get("above")
        low = 1 if f.name == "vocab_size" else low
        if (low is not None and value < low) or (high is not None and value > high):
            raise WeightsError(f"{source}: {f.name}={value} is outside [{low}, {high or 'inf'}]")
        if above is not None and value <= above:
            raise WeightsError(f"{source}: {f.name}={value} must be above {above}")
    if config.n_heads % config.n_kv_heads:
        raise WeightsError(
            f"{source}: {config.n_kv_heads} key/value heads do not divide {config.n_heads} heads"
        )
    if config.position == "rope" and config.head_dim % 2:
        raise WeightsError(f"{source}: head_dim={config.head_dim} must be even for RoPE")
    if config.rope_high_frequency <= config.rope_low_frequency:
        raise WeightsError(
            f"{source}: high_freq_factor={config.rope_high_frequency} must be above "
            f"low_freq_factor={config.rope_low_frequency}"
        )
    if config.rope_scaling == "yarn":
        if config.rope_beta_fast < config.rope_beta_slow:
            raise WeightsError(
                f"{source}: beta_fast={config.rope_beta_fast} must not be below beta_slow="
                f"{config.rope_beta_slow}"
            )
        if config.rope_theta == 1.0:
            raise WeightsError(f"{source}: yarn RoPE scaling needs rope_theta above 1, got 1.0")
    return config
