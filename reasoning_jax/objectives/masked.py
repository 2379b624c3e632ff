"""Sums with counts, and statistics over masked arrays: the one home of masking arithmetic.

A loss is a `Sum`: it is divided once, after every part of the batch has been added, so that
accumulation, packing and several hosts give the same number as one big batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@struct.dataclass
class Sum:
    """A weighted sum and its total weight, both float32 scalars."""

    value: Float[Array, ""]
    count: Float[Array, ""]

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.value + other.value, self.count + other.count)

    def mean(self) -> jax.Array:
        """The mean; 0 where nothing was counted."""
        return self.value / jnp.maximum(self.count, 1e-9) * (self.count > 0)


@struct.dataclass
class Mixture:
    """A weighted sum of means: sum over k of weights[k] * sums[k].value / sums[k].count.

    Each part has its own denominator (tokens, trajectories), and is still divided only once, after
    everything has been added. The weights are the same for every part of a batch.
    """

    weights: tuple[Float[Array, ""], ...]
    sums: tuple[Sum, ...]

    def mean(self) -> jax.Array:
        return sum((w * s.mean() for w, s in zip(self.weights, self.sums)), jnp.zeros(()))


def as_mixture(total: Sum | Mixture) -> Mixture:
    """A lone sum as the mixture of one."""
    return total if isinstance(total, Mixture) else Mixture((jnp.float32(1),), (total,))


def masked_sum(values: Float[Array, "..."], weights: Float[Array, "..."]) -> Sum:
    """Sum of values * weights. A value with weight 0 may be anything, NaN included."""
    weights = weights.astype(jnp.float32)
    kept = jnp.where(weights != 0, values.astype(jnp.float32), 0.0)
    return Sum((kept * weights).sum(), weights.sum())
