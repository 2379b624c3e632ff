"""Low-rank adapters as a second pytree beside the parameters (Hu et al. 2021, arXiv 2106.09685).

An adapter of a projection W is a pair: `down` (W's inputs -> rank) and `up` (rank -> W's outputs),
added as (alpha / rank) x @ down @ up. `up` starts at zero, so a fresh adapter changes nothing.
`merge` adds the product to a copy of the weights.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax.numpy as jnp
from flax import struct

from reasoning_jax.config import ConfigError, LoraConfig, ModelConfig
from reasoning_jax.model.spec import Params, ParamSpec, flatten, unflatten
from reasoning_jax.model.transformer import param_specs

# Axes of a projection that are contracted with its input.
_INPUT_AXES = {"output": 2}
_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


@struct.dataclass
class Lora:
    """Adapters {"layers": {...: {"down", "up"}}} and their scale alpha / rank."""

    params: Params
    scale: float = struct.field(pytree_node=False)


def lora_specs(config: ModelConfig, lora: LoraConfig) -> Params:
    """Specs of the adapters of every projection whose path matches one of `lora.targets`.

    Raises:
      ConfigError: a pattern that matches no projection.
    """
    projections = {
        path: spec
        for path, spec in flatten(param_specs(config)).items()
        if path.startswith("layers/") and path.rsplit("/", 1)[1] in _PROJECTIONS
    }
    chosen: dict[str, ParamSpec] = {}
    for pattern in lora.targets:
        found = {p: s for p, s in projections.items() if re.search(pattern, p)}
        if not found:
            raise ConfigError(
                f"lora.targets pattern {pattern!r} matches no projection; there are "
                f"{', '.join(projections)}"
            )
        chosen |= found
    specs: dict[str, ParamSpec] = {}
    for path, spec in chosen.items():
        n_in = _INPUT_AXES.get(path.rsplit("/", 1)[1], 1)
        inputs, outputs = slice(1, 1 + n_in), slice(1 + n_in, None)
        fan_in = math.prod(spec.shape[inputs])
        specs[f"{path}/down"] = ParamSpec(
            (spec.shape[0], *spec.shape[inputs], lora.rank),
            ("layers", *spec.axes[inputs], "rank"),
            std=1.0 / math.sqrt(fan_in),
        )
        specs[f"{path}/up"] = ParamSpec(
            (spec.shape[0], lora.rank, *spec.shape[outputs]),
            ("layers", "rank", *spec.axes[outputs]),
            "zeros",
        )
    return unflatten(specs)


def merge(params: Params, lora: Lora) -> Params:
    """Parameters with the adapters added in: the same function without a second pytree."""
    flat: dict[str, Any] = flatten(params)
    adapters = flatten(lora.params)
    for path in {p.rsplit("/", 1)[0] for p in adapters}:
        down, up = adapters[f"{path}/down"], adapters[f"{path}/up"]
        n_in = down.ndim - 2
        letters = "abc"[:n_in]
        outputs = "xyz"[: up.ndim - 2]
        update = jnp.einsum(f"l{letters}r,lr{outputs}->l{letters}{outputs}", down, up)
        flat[path] = flat[path] + (lora.scale * update).astype(flat[path].dtype)
    return unflatten(flat)
