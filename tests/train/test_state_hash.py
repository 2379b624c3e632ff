"""The hash of a state: of its bits alone, wherever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.train.state_hash import state_hash


def tree():
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((16, 8, 4)).astype(np.float32),
        "b": rng.standard_normal(8).astype(jnp.bfloat16),
        "c": np.int32(3),
        "d": np.zeros((2, 2), bool),
    }


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_does_not_depend_on_the_mesh(shape):
    placed = tree()
    mesh = sharding.make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed["a"] = jax.device_put(placed["a"], jax.P("fsdp", "tensor", None))
        placed["b"] = jax.device_put(placed["b"], jax.P("tensor"))
        assert state_hash(placed) == state_hash(tree())


def test_every_bit_and_place_counts():
    """Catches: a sum of values, a hash without places, leaves that may be exchanged."""
    same = state_hash(tree())
    seen = {same}
    rng = np.random.default_rng(1)
    flips = rng.choice(16 * 8 * 4 * 32, 50, replace=False)
    for flip in flips:
        changed = tree()
        changed["a"].reshape(-1).view(np.uint32)[flip // 32] ^= np.uint32(1 << flip % 32)
        seen.add(state_hash(changed))
    assert len(seen) == 51
    swapped, moved, sign = tree(), tree(), tree()
    swapped["a"][[0, 1]] = swapped["a"][[1, 0]]
    moved["d"][0, 1] = True
    sign["c"] = np.int32(-3)
    for name, other in (("swapped", swapped), ("moved", moved), ("sign", sign)):
        assert state_hash(other) != same, name
    x, y = np.arange(4.0), np.arange(4.0) + 1
    assert state_hash({"a": x, "b": y}) != state_hash({"a": y, "b": x})
    assert state_hash({"x": jnp.float32(0.0)}) != state_hash({"x": jnp.float32(-0.0)})
    shaped = tree()
    shaped["a"] = shaped["a"].reshape(8, 16, 4)
    assert state_hash(shaped) == same  # the bits in their order
