"""More rows in the vocabulary: room for new special tokens in a pretrained model.

Rows are never taken away. Choosing which id a new token gets is the vocabulary's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reasoning_jax.config import ModelConfig
from reasoning_jax.weights.files import WeightsError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Parameters with a row a token, and the axis that counts the tokens.
VOCAB_AXIS = {"embedding/tokens": 0, "unembedding": 1}


def resize_vocab(
    params: Mapping[str, Any],
    config: ModelConfig,
    rows: int,
    init_rows: Float[Array, "R D"] | None = None,
) -> tuple[dict[str, Any], ModelConfig]:
    """Give a model `rows` vocabulary rows in all; the first `config.vocab_size` stay as they are.

    New rows of the embedding, and of the unembedding where there is one, are `init_rows`, or each
    table's mean row: the new logit is then the average logit, which favours no new token. A sharded
    parameter passes through the host and is sharded again by the same rules, so all of it must be
    on this process's devices; on several hosts give `vocab_rows` to `load` instead.

    Raises:
      WeightsError: fewer rows than there are, or `init_rows` of another shape.
    """
    wanted = (rows - config.vocab_size, config.d_model)
    if rows < config.vocab_size:
        raise WeightsError(
            f"the vocabulary has {config.vocab_size} rows and is never shrunk; got rows={rows}"
        )
    if init_rows is not None and tuple(init_rows.shape) != wanted:
        raise WeightsError(f"init_rows must have shape {wanted}, got {tuple(init_rows.shape)}")

    def resized(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        result = {}
        for name, node in tree.items():
            path = prefix + name
            if isinstance(node, Mapping):
                result[name] = resized(node, path + "/")
            elif path in VOCAB_AXIS:
                result[name] = _grow_like(node, path, rows, init_rows)
            else:
                result[name] = node
        return result

    return resized(params, ""), replace(config, vocab_size=rows)


def grow(leaf: np.ndarray, axis: int, rows: int, init_rows: Any = None) -> np.ndarray:
    """`leaf` with `rows` entries along `axis`; new ones are `init_rows` [R, D] or the mean."""
    extra = rows - leaf.shape[axis]
    if init_rows is None:
        mean = leaf.mean(axis=axis, keepdims=True, dtype=np.float32).astype(leaf.dtype)
        new = np.repeat(mean, extra, axis=axis)
    else:
        new = np.moveaxis(np.asarray(init_rows).astype(leaf.dtype), 0, axis)
    return np.concatenate([leaf, new], axis=axis)


def fill_rows(leaf: np.ndarray, axis: int, copies: Mapping[int, int | None], stored: int) -> None:
    """Set entries of `leaf` along `axis`, in place: to another entry, or for None to the mean of
    the first `stored`.

    Raises:
      WeightsError: an entry to copy that is not among those.
    """
    table = np.moveaxis(leaf, axis, 0)
    mean = table[:stored].mean(0, dtype=np.float32)
    for row, other in copies.items():
        if not 0 <= row < len(table):
            raise WeightsError(f"row {row} is none of the {len(table)} of the vocabulary")
        if other is None:
            table[row] = mean
        elif 0 <= other < stored:
            table[row] = table[other]
        else:
            raise WeightsError(f"row {other} cannot be copied; the weights have {stored}")


def _grow_like(leaf: Any, path: str, rows: int, init_rows: Any) -> Any:
    """`grow` for a numpy or a jax array; the latter keeps its mesh."""
    grown = grow(np.asarray(leaf), VOCAB_AXIS[path], rows, init_rows)
    if isinstance(leaf, np.ndarray):
        return grown
    import jax
    from jax.sharding import NamedSharding

    from reasoning_jax import sharding

    if not isinstance(leaf.sharding, NamedSharding):
        return jax.device_put(grown, leaf.sharding)
    axes = ("vocab", "embed") if VOCAB_AXIS[path] == 0 else ("embed", "vocab")
    mesh: Any = leaf.sharding.mesh
    return jax.device_put(grown, NamedSharding(mesh, sharding.param_spec(axes, grown.shape, mesh)))
