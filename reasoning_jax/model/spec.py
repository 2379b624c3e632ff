"""ParamSpec: one declaration of a parameter, from which everything else about it follows.

A model is described by a tree (nested dicts) of `ParamSpec`. Initial values, abstract shapes,
shardings and parameter counts are all derived from that tree, never written a second time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from reasoning_jax import sharding

Params = dict[str, Any]


@dataclass(frozen=True)
class ParamSpec:
    """Shape, logical axes (names of `sharding.RULES`) and initialiser of one parameter.

    `init` is "zeros", "ones" or "normal"; "normal" draws with standard deviation `std`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: str = "normal"
    std: float = 0.02

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")


def map_specs(f: Callable[[str, ParamSpec], Any], specs: Mapping[str, Any]) -> Params:
    """Apply `f(path, spec)` to every spec of a tree; paths look like "layers/attention/query"."""

    def visit(tree: Mapping[str, Any], prefix: str) -> Params:
        return {
            name: f(prefix + name, node)
            if isinstance(node, ParamSpec)
            else visit(node, f"{prefix}{name}/")
            for name, node in tree.items()
        }

    return visit(specs, "")


def init_params(
    key: jax.Array, specs: Mapping[str, Any], dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Draw all parameters, each with a key of its own path, so that adding one moves no other.

    With a mesh the values are created in their shards, equal to those drawn without one up to the
    last bit.
    """
    build = {"zeros": _zeros, "ones": _ones, "normal": _normal}

    def draw(key: jax.Array) -> Params:
        return map_specs(
            lambda path, spec: build[spec.init](
                jax.random.fold_in(key, zlib.crc32(path.encode())), spec, dtype
            ),
            specs,
        )

    if mesh is None:
        return jax.jit(draw)(key)
    return jax.jit(draw, out_shardings=shardings(specs, mesh))(key)


def abstract_params(
    specs: Mapping[str, Any], dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """The tree of `ShapeDtypeStruct`s, with shardings where a mesh is given. Allocates nothing."""
    return map_specs(
        lambda _, spec: jax.ShapeDtypeStruct(
            spec.shape, dtype, sharding=None if mesh is None else _sharding(spec, mesh)
        ),
        specs,
    )


def shardings(specs: Mapping[str, Any], mesh: Mesh) -> Params:
    """The tree of `NamedSharding`s."""
    return map_specs(lambda _, spec: _sharding(spec, mesh), specs)


def count_params(specs: Mapping[str, Any]) -> int:
    """The number of scalar parameters."""
    total = 0

    def add(_: str, spec: ParamSpec) -> None:
        nonlocal total
        total += math.prod(spec.shape)

    map_specs(add, specs)
    return total


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as {"a/b/c": leaf}, sorted by path."""
    flat: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for name, child in sorted(node.items()):
            if isinstance(child, Mapping):
                visit(child, f"{prefix}{name}/")
            else:
                flat[prefix + name] = child

    visit(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _sharding(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, sharding.param_spec(spec.axes, spec.shape, mesh))


def _zeros(key: jax.Array, spec: ParamSpec, dtype: Any) -> jax.Array:
    del key
    return jnp.zeros(spec.shape, dtype)


def _ones(key: jax.Array, spec: ParamSpec, dtype: Any) -> jax.Array:
    del key
    return jnp.ones(spec.shape, dtype)


def _normal(key: jax.Array, spec: ParamSpec, dtype: Any) -> jax.Array:
    return (spec.std * jax.random.normal(key, spec.shape, jnp.float32)).astype(dtype)
