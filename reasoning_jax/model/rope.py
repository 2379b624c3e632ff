"""Rotary positions: the angle of each pair of a head's numbers at a position, and the rotation.

Scaling for contexts longer than those of pre-training is that of transformers: Llama 3's, linear,
and YaRN (arXiv 2309.00071). Scaling that changes with the length of a row is not here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

from reasoning_jax.config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def frequencies(config: ModelConfig) -> Float[Array, " H/2"]:
    """Radians per position of each rotary pair, scaled where `rope_factor` is above 1.

    "linear": all are divided by the factor. "llama3": those of wavelengths above original/low are,
    those below original/high are kept, those between are interpolated. "yarn": those that turn less
    than `rope_beta_slow` times over the original positions are, those that turn more than
    `rope_beta_fast` times are kept, with a ramp over the pairs between.
    """
    half = config.head_dim // 2
    base = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    factor = config.rope_factor
    if factor == 1.0:
        return base
    if config.rope_scaling == "linear":
        return base / factor
    if config.rope_scaling == "yarn":
        low, high = _yarn_range(config)
        slowed = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
        return base / factor * slowed + base * (1 - slowed)
    wavelength = 2 * jnp.pi / base
    low, high = config.rope_low_frequency, config.rope_high_frequency
    smooth = (config.rope_original_positions / wavelength - low) / (high - low)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * base / factor + smooth * base


def _yarn_range(config: ModelConfig) -> tuple[float, float]:
    """The pairs between which YaRN's ramp rises from 0 to 1, as transformers rounds them."""

    def pair(turns: float) -> float:
        length = config.rope_original_positions / (turns * 2 * math.pi)
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    low, high = pair(config.rope_beta_fast), pair(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    return (low, high + 0.001) if low == high else (low, high)


def attention_factor(config: ModelConfig) -> float:
    """What YaRN multiplies cosine and sine by, and so the attention logits by its square."""
    if config.rope_scaling != "yarn":
        return 1.0
    return config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1.0


def trained_positions(config: ModelConfig) -> int | None:
    """How many positions a model is made for; None where positions play no part.

    `max_positions`, times the factor of linear scaling; YaRN's original positions times its factor,
    where that is more.
    """
    if config.position == "none":
        return None
    if config.position == "rope" and config.rope_scaling == "linear":
        return int(config.max_positions * config.rope_factor)
    if config.position == "rope" and config.rope_scaling == "yarn":
        longest = int(config.rope_original_positions * config.rope_factor)
        return max(config.max_positions, longest)
    return config.max_positions


def rotation(
    config: ModelConfig, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]:
    """Cosine and sine [B, T, H/2] in float32, shared by all layers and heads."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(config)
    factor = attention_factor(config)
    if factor == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H/2"], sin: Float[Array, "B T H/2"]
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (i, i + H/2) of every head by the position's angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
