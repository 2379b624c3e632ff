"""Small models that the tests share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.model import spec, transformer

LLAMA = ModelConfig(
    vocab_size=12, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=24
)
GPT2 = dataclasses.replace(
    LLAMA, norm="layernorm", position="learned", mlp="gelu", n_kv_heads=4, max_positions=64,
    qkv_bias=True, output_bias=True,
)  # fmt: skip
QWEN3 = dataclasses.replace(
    LLAMA, qk_norm=True, tied_embeddings=False, head_dim=6, rope_factor=4.0,
    rope_original_positions=8,
)  # fmt: skip
MODELS = {"llama": LLAMA, "gpt2": GPT2, "qwen3": QWEN3}


def init(config, seed=0):
    """Parameters with every leaf random, so that norms and biases count too."""
    rng = np.random.default_rng(seed)
    return random_tree(transformer.param_specs(config), rng)


def random_tree(specs, rng):
    """A value for every spec, of scale 0.3 or its own if larger; numpy compiles nothing."""
    return spec.map_specs(
        lambda _, s: jnp.asarray(max(s.std, 0.3) * rng.standard_normal(s.shape), jnp.float32), specs
    )


apply = jax.jit(transformer.apply, static_argnames=("config", "capture_states", "capture_weights"))
