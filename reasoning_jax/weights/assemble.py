"""From named tensors to the parameter tree and back, by the tables of `layout.py`.

Shapes are compared before anything is allocated, leaves are made and placed one at a time, and
values are copied, never computed. No file is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes
import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.model.spec import Params, ParamSpec, flatten, shardings, unflatten
from reasoning_jax.model.transformer import param_specs
from reasoning_jax.weights.files import WeightsError, short
from reasoning_jax.weights.layout import Layout, Stored, Tensors
from reasoning_jax.weights.resize import VOCAB_AXIS, fill_rows, grow

if TYPE_CHECKING:
    from jax.sharding import Mesh

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class _Entry:
    """A layout entry of one model: the paths it has there, and its stored shape."""

    pattern: str
    stored: Stored
    specs: dict[str, ParamSpec]
    shape: tuple[int, ...]
    layers: int

    @property
    def layered(self) -> bool:
        return "{}" in self.pattern

    def names(self) -> Iterator[str]:
        return (self.pattern.format(i) for i in range(self.layers))

    def part_shape(self, path: str) -> tuple[int, ...]:
        shape = self.specs[path].shape
        return shape[1:] if self.layered else shape


def _entries(config: ModelConfig, layout: Layout) -> list[_Entry]:
    specs = flatten(param_specs(config))
    entries = []
    for pattern, stored in layout.items():
        if stored.paths[0] not in specs:
            continue
        own = {path: specs[path] for path in stored.paths}
        layered = "{}" in pattern
        shapes = [
            stored.matrix_shape(spec.shape[1:] if layered else spec.shape) for spec in own.values()
        ]
        shape = (*shapes[0][:-1], sum(s[-1] for s in shapes))
        if stored.transposed:
            shape = shape[::-1]
        entries.append(_Entry(pattern, stored, own, shape, config.n_layers if layered else 1))
    return entries


def check_shapes(
    config: ModelConfig, layout: Layout, tensors: Tensors, ignored: str = r"(?!)"
) -> None:
    """Compare the stored shapes with those that `config` wants, before anything is allocated.

    Names that match `ignored` may be there without being read. Stops at the first missing tensor,
    so that a config with a billion layers costs no more than the file has tensors.

    Raises:
      WeightsError: a tensor that is missing, has another shape, or is not part of the model.
    """
    wanted = set()
    for entry in _entries(config, layout):
        for name in entry.names():
            shape = tensors.shapes.get(name)
            where = f"{', '.join(entry.specs)} of a model with {_dimensions(config)}"
            if shape is None:
                tied = ""
                if "unembedding" in entry.specs:
                    tied = "; if the embeddings are tied, set tie_word_embeddings=true in config"
                raise WeightsError(
                    f"{tensors.source}: tensor {name} {entry.shape} is missing; it holds {where}"
                    f"{tied}"
                )
            if tuple(shape) != entry.shape:
                raise WeightsError(
                    f"{tensors.source}: tensor {name} has shape {tuple(shape)}, wanted "
                    f"{entry.shape} for {where}"
                )
            wanted.add(name)
    extra = [n for n in tensors.shapes if n not in wanted and not re.fullmatch(ignored, n)]
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise WeightsError(
            f"{tensors.source}: tensor {short(extra[0])} {short(tensors.shapes[extra[0]])}{more} "
            "has no place in this model; is it of another family, or does it carry another head?"
        )


def assemble(
    config: ModelConfig,
    layout: Layout,
    tensors: Tensors,
    *,
    param_dtype: str,
    mesh: Mesh | None = None,
    vocab_rows: int | None = None,
    copied_rows: Mapping[int, int | None] | None = None,
    check_finite: bool = False,
) -> Params:
    """The parameter tree, after `check_shapes` has passed. Leaves are made and placed one by one.

    `vocab_rows` and `copied_rows` are those of `weights.load`.

    Without a mesh leaves are numpy arrays; with one, jax arrays in their shards. On several hosts
    every one reads all tensors and keeps its shards.

    Raises:
      WeightsError: with `check_finite`, a NaN or an infinity.
    """
    final = config if vocab_rows is None else replace(config, vocab_size=vocab_rows)
    placement = {} if mesh is None else flatten(shardings(param_specs(final), mesh))
    params = {}
    for entry in _entries(config, layout):
        leaves = {
            path: np.empty(spec.shape, DTYPES[param_dtype]) for path, spec in entry.specs.items()
        }
        for i, name in enumerate(entry.names()):
            array = tensors.read(name)
            if check_finite and not np.isfinite(array).all():
                raise WeightsError(f"{tensors.source}: tensor {name} holds a NaN or an infinity")
            for path, part in _unpack(entry, array).items():
                target = leaves[path][i] if entry.layered else leaves[path]
                target[...] = part
        for path in list(leaves):
            leaf = leaves.pop(path)
            if vocab_rows is not None and path in VOCAB_AXIS:
                leaf = grow(leaf, VOCAB_AXIS[path], vocab_rows)
            if copied_rows and path in VOCAB_AXIS:
                fill_rows(leaf, VOCAB_AXIS[path], copied_rows, config.vocab_size)
            if mesh is not None:
                leaf = jax.make_array_from_callback(leaf.shape, placement[path], leaf.__getitem__)
            params[path] = leaf
    return unflatten(params)


def disassemble(
    config: ModelConfig, layout: Layout, params: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """(name, stored shape, dtype, function that makes the array) of every tensor, layer by layer.

    Raises:
      WeightsError: parameters that are not those of `config`, of a type that is not stored, or not
        all on this process's devices.
    """
    leaves = flatten(params)
    specs = flatten(param_specs(config))
    if other := sorted(set(leaves) ^ set(specs)):
        state = "missing" if other[0] in specs else "not part of it"
        raise WeightsError(f"parameter {other[0]} of a model with {_dimensions(config)} is {state}")
    for path, spec in specs.items():
        leaf = leaves[path]
        if tuple(leaf.shape) != spec.shape:
            raise WeightsError(f"parameter {path} has shape {leaf.shape}, wanted {spec.shape}")
        if np.dtype(leaf.dtype) not in DTYPES.values():
            raise WeightsError(f"parameter {path} is {leaf.dtype}, wanted {' or '.join(DTYPES)}")
        if not getattr(leaf, "is_fully_addressable", True):
            raise WeightsError(f"parameter {path} lies on several hosts; gather it first")
    entries = _entries(config, layout)
    order = [(i, entry) for entry in entries for i in range(entry.layers)]
    for i, entry in sorted(order, key=lambda item: item[0]):
        dtype = np.dtype(leaves[next(iter(entry.specs))].dtype)
        yield entry.pattern.format(i), entry.shape, dtype, partial(_pack, entry, leaves, i)


def _unpack(entry: _Entry, array: np.ndarray) -> dict[str, np.ndarray]:
    stored = entry.stored
    if stored.adjacent_pairs:
        *_, heads, dim = entry.part_shape(stored.paths[0])
        array = array.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)
    if stored.transposed:
        array = array.T
    parts, start = {}, 0
    for path in entry.specs:
        shape = entry.part_shape(path)
        width = stored.matrix_shape(shape)[-1]
        parts[path] = array[..., start : start + width].reshape(shape)
        start += width
    return parts


def _pack(entry: _Entry, leaves: Mapping[str, Any], layer: int) -> np.ndarray:
    """The inverse of `_unpack`, from whole leaves; GGUF's row order is never written."""
    stored, arrays = entry.stored, []
    for path in entry.specs:
        part = np.asarray(leaves[path][layer] if entry.layered else leaves[path])
        arrays.append(part.reshape(stored.matrix_shape(part.shape)))
    array = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
    return np.ascontiguousarray(array.T if stored.transposed else array)


def _dimensions(config: ModelConfig) -> str:
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    return ", ".join(f"{name}={getattr(config, name)}" for name in names)
