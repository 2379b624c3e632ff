"""Maximum likelihood: cross-entropy of labels. MLE and BC differ only in the data they see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasoning_jax.objectives.masked import Sum, masked_sum

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def cross_entropy(log_probs: Float[Array, "B T"], weights: Float[Array, "B T"]) -> Sum:
    """-sum of weights * log p(label), in nats, with the total weight."""
    total = masked_sum(log_probs, weights)
    return Sum(-total.value, total.count)
