"""A hash of a tree of arrays, computed where they are: the same bits give the same number, whatever
the mesh. It is for finding differences, not for security.

Each element's bits are mixed with its place and its leaf's, and all are added modulo 2^32; integer
sums do not depend on their order, so neither does the hash on how arrays are split over devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, UInt32

    from reasoning_jax.train.state import TrainState

# Odd constants of the golden ratio, and of murmur3's finaliser.
_PLACE, _LEAF = 0x9E3779B1, 0x85EBCA77
_MIX = (0x85EBCA6B, 0xC2B2AE35)
# Two lanes with different starts make 64 bits.
_LANES = (0x243F6A88, 0xB7E15162)


def fold(tree: Any) -> UInt32[Array, " 2"]:
    """The hash of all leaves, in the order of the tree, as two 32-bit lanes. May be traced."""
    lanes = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        lanes = lanes + _fold_leaf(jnp.asarray(leaf), jnp.uint32(_LEAF * (number + 1) % 2**32))
    return lanes


def _fold_leaf(leaf: jax.Array, number: Any) -> UInt32[Array, " 2"]:
    bits = _bits(leaf)
    place = _place(bits.shape)
    lanes = []
    for start in _LANES:
        # Of the leaf's number and shape: the same bits in another shape are another leaf.
        salt = number + np.uint32((start + math.prod(bits.shape)) % 2**32)
        lanes.append(_mix(_mix(bits ^ salt) + place).sum(dtype=jnp.uint32))
    return jnp.stack(lanes)


_jitted, _jitted_leaf = jax.jit(fold), jax.jit(_fold_leaf)


def state_hash(tree: Any) -> str:
    """The hash of a tree of arrays as 16 hexadecimal digits. Waits for the device."""
    return _text(jax.device_get(_jitted(tree)))


def of_leaves(leaves: Iterable[np.ndarray]) -> str:
    """The `state_hash` of a tree of those leaves, of which one at a time is in memory."""
    lanes = np.zeros(2, np.uint32)
    for number, leaf in enumerate(leaves):
        salt = np.uint32(_LEAF * (number + 1) % 2**32)
        lanes = lanes + np.asarray(_jitted_leaf(leaf, salt))
    return _text(lanes)


def _text(lanes: Any) -> str:
    high, low = np.asarray(lanes)
    return f"{int(high):08x}{int(low):08x}"


def of_state(state: TrainState) -> dict[str, str]:
    """The hashes of a state's parameters and of its optimizer."""
    return {"params": state_hash(state.params), "opt": state_hash(state.opt_state)}


def _bits(x: jax.Array) -> jax.Array:
    """The elements' bits as uint32, of the array's shape (64-bit elements get an axis of two)."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _bits(jax.random.key_data(x))
    width = x.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _place(shape: tuple[int, ...]) -> jax.Array:
    """Each element's number in row-major order, spread over 32 bits."""
    place = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        step = np.uint32(stride * _PLACE % 2**32)
        place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    return place


def _mix(x: jax.Array) -> jax.Array:
    for shift, factor in zip((16, 13), _MIX):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
