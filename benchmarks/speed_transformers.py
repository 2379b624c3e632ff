"""transformers with torch.compile, for benchmarks/speed.py: the same works, in torch.

    PYTHON -m benchmarks.speed_transformers THREADS

PYTHON has torch and transformers; nothing of ours is imported.
"""

from __future__ import annotations

import sys

import torch
import transformers

from benchmarks import worker


def model_of(*, vocab, width, layers, heads, inner, positions):
    """A Llama of random weights, float32, with torch's own attention (sdpa)."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=inner, max_position_embeddings=positions,
        tie_word_embeddings=False, attn_implementation="sdpa", bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def training(*, batch, length, compiled, **shape):
    """Steps of torch's fused AdamW on one batch; the label of a position is the next token."""
    model = model_of(positions=length, **shape)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ids = torch.randint(0, shape["vocab"], (batch, length))
    forward = torch.compile(model) if compiled else model

    def run():
        forward(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch * length

    run()
    return run


def sampling(*, batch, prompt, new_tokens, cache, **shape):
    """generate() at temperature 1; nothing ends a row. `cache` "static" is compiled, or "dynamic"."""
    model = model_of(positions=prompt + new_tokens, **shape)
    model.eval()
    ids = torch.randint(1, shape["vocab"], (batch, prompt))
    if cache == "static":
        model.forward = torch.compile(model.forward, dynamic=False)
    settings = {"cache_implementation": "static"} if cache == "static" else {}

    def run():
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                max_new_tokens=new_tokens, min_new_tokens=None, use_cache=True, **settings,
            )  # fmt: skip
        assert out.shape == (batch, prompt + new_tokens), out.shape
        return batch * new_tokens

    run()
    return run


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    hello = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    worker.serve({"training": training, "sampling": sampling}, hello)


if __name__ == "__main__":
    main()
