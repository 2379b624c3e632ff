"""LoRA adapters in the format of the PEFT library (version 0.5 and later), beside their base model.

An adapter of a projection is a pair of matrices there: lora_A [rank, inputs] and lora_B [outputs,
rank], added as (alpha / rank) lora_B @ lora_A. GPT-2 keeps query, key and value in one projection:
their adapters are one of the ranks' sum, with lora_B in blocks, and an alpha of the same ratio.
Nothing here reads adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from reasoning_jax.config import LoraConfig, ModelConfig
from reasoning_jax.weights.huggingface import PREFIX
from reasoning_jax.weights.layout import HUGGING_FACE

# Of a folder that holds the base model too: where the adapters are, and their two files.
FOLDER, CONFIG, TENSORS = "adapter", "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """adapter_config.json, and the tensors of adapter_model.safetensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


def peft_adapter(
    config: ModelConfig, lora: LoraConfig, adapters: Mapping[str, Any], family: str, base: str
) -> Adapter:
    """The adapters {"path/down": [L, inputs..., R], "path/up": [L, R, outputs...]} for PEFT.

    Args:
      base: what adapter_config.json calls the model to add them to.
    """
    from reasoning_jax.model.spec import flatten
    from reasoning_jax.model.transformer import param_specs

    specs = flatten(param_specs(config))
    tensors: dict[str, np.ndarray] = {}
    targets: list[str] = []
    ranks: dict[str, int] = {}
    for pattern, stored in HUGGING_FACE[family].items():
        adapted = [path for path in stored.paths if f"{path}/down" in adapters]
        if not adapted:
            continue
        module = pattern.removesuffix(".weight")
        # Two parts of the name: GPT-2 calls two projections c_proj.
        target = ".".join(module.split(".")[-2:])
        targets.append(target)
        if len(adapted) > 1:
            ranks[target] = lora.rank * len(adapted)
        widths = [prod(stored.matrix_shape(specs[path].shape[1:])[1:]) for path in stored.paths]
        for layer in range(config.n_layers):
            name = f"base_model.model.{PREFIX[family]}{module.format(layer)}"
            down, up = [], np.zeros((sum(widths), lora.rank * len(adapted)), np.float32)
            for i, path in enumerate(adapted):
                a = np.asarray(adapters[f"{path}/down"][layer], np.float32)
                b = np.asarray(adapters[f"{path}/up"][layer], np.float32)
                down.append(a.reshape(-1, lora.rank).T)
                place = stored.paths.index(path)
                top = sum(widths[:place])
                column = i * lora.rank
                block = b.reshape(lora.rank, -1).T
                up[top : top + widths[place], column : column + lora.rank] = block
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(np.concatenate(down))
            tensors[f"{name}.lora_B.weight"] = up
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": family == "gpt2",
        "init_lora_weights": True,
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": {t: _number(lora.alpha * rank / lora.rank) for t, rank in ranks.items()},
        "modules_to_save": None,
    }
    return Adapter(values, tensors)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
