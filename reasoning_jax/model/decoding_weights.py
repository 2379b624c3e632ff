"""Weights as decoding reads them: each layer's apart, and on CPUs the matrices turned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
from flax import struct
from jax import lax

from reasoning_jax import sharding

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@struct.dataclass
class Turned:
    """A weight as a matrix [outputs, inputs], as products of few rows want it on CPUs.

    `outputs`: the shape of the output axes, and `split` over which mesh axes; static.
    """

    matrix: Float[Array, "O I"]
    outputs: tuple[int, ...] = struct.field(pytree_node=False)
    split: tuple[Any, ...] = struct.field(pytree_node=False)

    @staticmethod
    def of(weight: jax.Array, n_in: int) -> Turned:
        weight = sharding.gather_fsdp(weight)
        inner, outputs = math.prod(weight.shape[:n_in]), weight.shape[n_in:]
        split = tuple(sharding.axis_of(weight, i) for i in range(n_in, weight.ndim))
        # Without the barrier XLA would turn it back in every product.
        matrix = lax.optimization_barrier(sharding.reshape(weight, (inner, -1)).T)
        return Turned(matrix, outputs, split)

    def apply(self, x: Float[Array, "B T *inputs"]) -> Float[Array, "B T *outputs"]:
        lead = tuple(sharding.axis_of(x, i) for i in (0, 1))
        columns = sharding.reshape(x, (x.shape[0] * x.shape[1], -1)).T
        y = self.matrix.astype(x.dtype) @ lax.optimization_barrier(columns)
        y = lax.optimization_barrier(y).T
        return sharding.reshape(y, (*x.shape[:2], *self.outputs), sharding.P(*lead, *self.split))


_PROJECTIONS = {"attention": ("query", "key", "value", "output"), "mlp": ("gate", "up", "down")}
_INPUTS = {"output": 2}


def unstacked(tree: Any) -> Any:
    """Parameters (or adapters) with a tuple of layers in place of the axis.

    Decoding reads them so. Made once before its loop: in the loop every slice would be a copy. On a
    CPU weights are `Turned` besides: a product with 32 rows is then a third faster.
    """
    layers = tree["layers"]
    if isinstance(layers, tuple):
        return tree
    n = len(jax.tree.leaves(layers)[0])
    turn = jax.default_backend() == "cpu" and sharding.one_device()

    def layer(i: int) -> Any:
        own = jax.tree.map(lambda x: x[i], layers)
        for part, names in _PROJECTIONS.items() if turn else ():
            weights = own.get(part, {})
            for name in names:
                if isinstance(weights.get(name), jax.Array):
                    weights[name] = Turned.of(weights[name], _INPUTS.get(name, 1))
        return own

    return tree | {"layers": tuple(map(layer, range(n)))}
