"""Named architectures. Facts of the published configs; vocabulary sizes are the published ones."""

from __future__ import annotations

from typing import Any

from reasoning_jax.config import ConfigError, ModelConfig

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "tied_embeddings": False,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "norm": "layernorm", "position": "learned", "mlp": "gelu", "tied_embeddings": True,
    "qkv_bias": True, "output_bias": True, "vocab_size": 50_257, "norm_eps": 1e-5,
}  # fmt: skip


def _dims(d_model: int, layers: int, heads: int, kv: int, head_dim: int, ff: int) -> dict[str, Any]:
    return {
        "d_model": d_model, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv,
        "head_dim": head_dim, "d_ff": ff,
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _dims(64, 2, 4, 4, 16, 256),
    "small": _dims(128, 4, 4, 4, 32, 512),
    "gpt2": {**_GPT2, **_dims(768, 12, 12, 12, 64, 3072), "max_positions": 1024},
    "gpt2-medium": {**_GPT2, **_dims(1024, 24, 16, 16, 64, 4096), "max_positions": 1024},
    "smollm2-135m": {
        **_LLAMA, **_dims(576, 30, 9, 3, 64, 1536), "tied_embeddings": True, "vocab_size": 49_152,
        "max_positions": 8192, "rope_theta": 100_000.0,
    },
    "llama2-7b": {
        **_LLAMA, **_dims(4096, 32, 32, 32, 128, 11_008), "vocab_size": 32_000,
        "max_positions": 4096,
    },
    "llama3.2-1b": {
        **_LLAMA, **_dims(2048, 16, 32, 8, 64, 8192), "tied_embeddings": True,
        "vocab_size": 128_256, "max_positions": 131_072, "rope_theta": 500_000.0,
        "rope_factor": 32.0,
    },
    "llama3.1-8b": {
        **_LLAMA, **_dims(4096, 32, 32, 8, 128, 14_336), "vocab_size": 128_256,
        "max_positions": 131_072, "rope_theta": 500_000.0, "rope_factor": 8.0,
    },
    "qwen2.5-0.5b": {
        **_LLAMA, **_dims(896, 24, 14, 2, 64, 4864), "tied_embeddings": True, "qkv_bias": True,
        "vocab_size": 151_936, "max_positions": 32_768, "rope_theta": 1e6, "norm_eps": 1e-6,
    },
    "qwen3-0.6b": {
        **_LLAMA, **_dims(1024, 28, 16, 8, 128, 3072), "tied_embeddings": True, "qk_norm": True,
        "vocab_size": 151_936, "max_positions": 40_960, "rope_theta": 1e6, "norm_eps": 1e-6,
    },
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The ModelConfig of a preset. Raises ConfigError with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}; known: {', '.join(PRESETS)}")
    return ModelConfig(**PRESETS[name])
