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
    seen = {state_hash(tree())}
    rng = np.random.default_rng(1)
    for _ in range(50):
        changed = tree()
        at = tuple(rng.integers(0, n) for n in (16, 8, 4))
        changed["a"].view(np.uint32)[at] ^= np.uint32(1 << rng.integers(32))
        seen.add(state_hash(changed))
    swapped, moved, shaped, sign = tree(), tree(), tree(), tree()
    swapped["a"][[0, 1]] = swapped["a"][[1, 0]]
    moved["d"][0, 1] = True
    shaped["a"] = shaped["a"].reshape(8, 16, 4)
    sign["c"] = np.int32(-3)
    other = {"a": tree()["b"], "b": tree()["a"], "c": tree()["c"], "d": tree()["d"]}
    seen |= {state_hash(t) for t in (swapped, moved, sign, other)}
    assert len(seen) >= 53  # of 50 random flips a few may be the same
    assert state_hash(shaped) == state_hash(tree())  # the bits in their order
    assert state_hash({"x": jnp.float32(0.0)}) != state_hash({"x": jnp.float32(-0.0)})
