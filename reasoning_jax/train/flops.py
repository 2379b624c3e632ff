"""Analytic FLOPs of a training step, and what devices can do at most.

The count is that of PaLM's appendix B (arXiv 2204.02311): 6 per matmul parameter and token, and
12 * layers * heads * head_dim * T for attention, which counts the masked half too.
"""

from __future__ import annotations

from reasoning_jax.config import ModelConfig
from reasoning_jax.model.spec import count_params
from reasoning_jax.model.transformer import param_specs

# Peak dense bfloat16 FLOP/s of one device, by the start of its `device_kind`; vendors' figures.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}


def train_flops_per_token(
    config: ModelConfig, seq_len: int, frozen: int = 0, adapters: int = 0
) -> float:
    """Model FLOPs of forward and backward for one position of a row of `seq_len`.

    Of the matmul parameters `frozen` get no gradient, which saves 2 of their 6; `adapters` are
    parameters beside the model's.
    """
    specs = param_specs(config)
    matmul = count_params(specs) - count_params({"embedding": specs["embedding"]})
    if config.tied_embeddings:
        matmul += config.vocab_size * config.d_model
    products = 6.0 * (matmul + adapters) - 2.0 * frozen
    return products + 12.0 * config.n_layers * config.n_heads * config.head_dim * seq_len


def peak_flops(device_kind: str) -> float | None:
    """The table's figure for a device, or None where it is unknown (CPUs)."""
    for prefix, flops in PEAK_FLOPS.items():
        if device_kind.startswith(prefix):
            return flops
    return None
