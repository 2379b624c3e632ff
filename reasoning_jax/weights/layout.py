"""How stored tensors hold our parameters: a table a format and family, read in both directions.

A table maps a tensor name to a `Stored`; "{}" in a name stands for the layer. Entries whose
parameters a model does not have (biases, a tied unembedding) play no part. The tables say nothing
about files; `assemble.py` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np


@dataclass(frozen=True)
class Stored:
    """One stored tensor: a vector, or a matrix (inputs, outputs), transposed where so marked.

    `paths` are our parameters side by side along the outputs (a fused query-key-value matrix).
    `inputs` is how many of our leading axes, after the layer, are its inputs; 0 marks a vector.
    `adjacent_pairs`: rows are ordered as GGUF orders Llama's, so that the two members of a rotary
    pair are neighbours; ours are half a head apart.
    """

    paths: tuple[str, ...]
    inputs: int = 0
    transposed: bool = False
    adjacent_pairs: bool = False

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one of our parameters (without its layer axis) as a stored (inputs, outputs)."""
        inputs, outputs = prod(shape[: self.inputs]), prod(shape[self.inputs :])
        return (inputs, outputs) if self.inputs else (outputs,)


def vector(*paths: str) -> Stored:
    """A bias or a norm's scale."""
    return Stored(paths)


def rows(path: str, inputs: int = 1) -> Stored:
    """(inputs, outputs), as in an embedding table."""
    return Stored((path,), inputs)


def linear(path: str, inputs: int = 1) -> Stored:
    """(outputs, inputs), as in torch's Linear."""
    return Stored((path,), inputs, transposed=True)


Layout = Mapping[str, Stored]


@dataclass(frozen=True)
class Tensors:
    """Named tensors of a file or folder. Shapes come from headers; only `read` allocates.

    `notes` say how stored names differ from those of the tables.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    source: str
    notes: tuple[str, ...] = ()


_ATTENTION, _MLP = "layers/attention", "layers/mlp"
_QKV = tuple(f"{_ATTENTION}/{name}" for name in ("query", "key", "value"))

# Hugging Face names, without the prefix of the model's body ("model." or "transformer.").
_HF_ROPE: Layout = {
    "embed_tokens.weight": rows("embedding/tokens"),
    "layers.{}.input_layernorm.weight": vector("layers/attention_norm/scale"),
    "layers.{}.self_attn.q_proj.weight": linear(f"{_ATTENTION}/query"),
    "layers.{}.self_attn.k_proj.weight": linear(f"{_ATTENTION}/key"),
    "layers.{}.self_attn.v_proj.weight": linear(f"{_ATTENTION}/value"),
    "layers.{}.self_attn.q_proj.bias": vector(f"{_ATTENTION}/query_bias"),
    "layers.{}.self_attn.k_proj.bias": vector(f"{_ATTENTION}/key_bias"),
    "layers.{}.self_attn.v_proj.bias": vector(f"{_ATTENTION}/value_bias"),
    "layers.{}.self_attn.q_norm.weight": vector(f"{_ATTENTION}/query_norm"),
    "layers.{}.self_attn.k_norm.weight": vector(f"{_ATTENTION}/key_norm"),
    "layers.{}.self_attn.o_proj.weight": linear(f"{_ATTENTION}/output", inputs=2),
    "layers.{}.post_attention_layernorm.weight": vector("layers/mlp_norm/scale"),
    "layers.{}.mlp.gate_proj.weight": linear(f"{_MLP}/gate"),
    "layers.{}.mlp.up_proj.weight": linear(f"{_MLP}/up"),
    "layers.{}.mlp.down_proj.weight": linear(f"{_MLP}/down"),
    "norm.weight": vector("final_norm/scale"),
    "lm_head.weight": linear("unembedding"),
}
HUGGING_FACE: dict[str, Layout] = {
    "gpt2": {
        "wte.weight": rows("embedding/tokens"),
        "wpe.weight": rows("embedding/positions"),
        "h.{}.ln_1.weight": vector("layers/attention_norm/scale"),
        "h.{}.ln_1.bias": vector("layers/attention_norm/bias"),
        "h.{}.attn.c_attn.weight": Stored(_QKV, inputs=1),
        "h.{}.attn.c_attn.bias": vector(*(f"{path}_bias" for path in _QKV)),
        "h.{}.attn.c_proj.weight": rows(f"{_ATTENTION}/output", inputs=2),
        "h.{}.attn.c_proj.bias": vector(f"{_ATTENTION}/output_bias"),
        "h.{}.ln_2.weight": vector("layers/mlp_norm/scale"),
        "h.{}.ln_2.bias": vector("layers/mlp_norm/bias"),
        "h.{}.mlp.c_fc.weight": rows(f"{_MLP}/up"),
        "h.{}.mlp.c_fc.bias": vector(f"{_MLP}/up_bias"),
        "h.{}.mlp.c_proj.weight": rows(f"{_MLP}/down"),
        "h.{}.mlp.c_proj.bias": vector(f"{_MLP}/down_bias"),
        "ln_f.weight": vector("final_norm/scale"),
        "ln_f.bias": vector("final_norm/bias"),
        "lm_head.weight": linear("unembedding"),
    },
    "llama": _HF_ROPE,
    "qwen2": _HF_ROPE,
    "qwen3": _HF_ROPE,
}

# GGUF names. Matrices are (outputs, inputs) throughout, GPT-2's too.
_GGUF_ROPE: Layout = {
    "token_embd.weight": rows("embedding/tokens"),
    "blk.{}.attn_norm.weight": vector("layers/attention_norm/scale"),
    "blk.{}.attn_q.weight": linear(f"{_ATTENTION}/query"),
    "blk.{}.attn_k.weight": linear(f"{_ATTENTION}/key"),
    "blk.{}.attn_v.weight": linear(f"{_ATTENTION}/value"),
    "blk.{}.attn_q.bias": vector(f"{_ATTENTION}/query_bias"),
    "blk.{}.attn_k.bias": vector(f"{_ATTENTION}/key_bias"),
    "blk.{}.attn_v.bias": vector(f"{_ATTENTION}/value_bias"),
    "blk.{}.attn_q_norm.weight": vector(f"{_ATTENTION}/query_norm"),
    "blk.{}.attn_k_norm.weight": vector(f"{_ATTENTION}/key_norm"),
    "blk.{}.attn_output.weight": linear(f"{_ATTENTION}/output", inputs=2),
    "blk.{}.ffn_norm.weight": vector("layers/mlp_norm/scale"),
    "blk.{}.ffn_gate.weight": linear(f"{_MLP}/gate"),
    "blk.{}.ffn_up.weight": linear(f"{_MLP}/up"),
    "blk.{}.ffn_down.weight": linear(f"{_MLP}/down"),
    "output_norm.weight": vector("final_norm/scale"),
    "output.weight": linear("unembedding"),
}
GGUF: dict[str, Layout] = {
    "gpt2": {
        "token_embd.weight": rows("embedding/tokens"),
        "position_embd.weight": rows("embedding/positions"),
        "blk.{}.attn_norm.weight": vector("layers/attention_norm/scale"),
        "blk.{}.attn_norm.bias": vector("layers/attention_norm/bias"),
        "blk.{}.attn_qkv.weight": Stored(_QKV, inputs=1, transposed=True),
        "blk.{}.attn_qkv.bias": vector(*(f"{path}_bias" for path in _QKV)),
        "blk.{}.attn_output.weight": linear(f"{_ATTENTION}/output", inputs=2),
        "blk.{}.attn_output.bias": vector(f"{_ATTENTION}/output_bias"),
        "blk.{}.ffn_norm.weight": vector("layers/mlp_norm/scale"),
        "blk.{}.ffn_norm.bias": vector("layers/mlp_norm/bias"),
        "blk.{}.ffn_up.weight": linear(f"{_MLP}/up"),
        "blk.{}.ffn_up.bias": vector(f"{_MLP}/up_bias"),
        "blk.{}.ffn_down.weight": linear(f"{_MLP}/down"),
        "blk.{}.ffn_down.bias": vector(f"{_MLP}/down_bias"),
        "output_norm.weight": vector("final_norm/scale"),
        "output_norm.bias": vector("final_norm/bias"),
        "output.weight": linear("unembedding"),
    },
    "llama": {
        **_GGUF_ROPE,
        **{
            name: replace(_GGUF_ROPE[name], adjacent_pairs=True)
            for name in ("blk.{}.attn_q.weight", "blk.{}.attn_k.weight")
        },
    },
    "qwen2": _GGUF_ROPE,
    "qwen3": _GGUF_ROPE,
}
