"""transformers with torch.compile, for benchmarks/speed.py: the same works, in torch.

    PYTHON -m benchmarks.speed_transformers THREADS

PYTHON has torch and transformers; nothing of ours is imported.
"""

from __future__ import annotations

import shutil
import sys

import torch
import transformers

from benchmarks import worker

COMPILERS = ("g++", "c++", "clang++")


def need_compiler():
    """RuntimeError where torch.compile has nothing to make machine code with."""
    if not any(map(shutil.which, COMPILERS)):
        raise RuntimeError(f"torch.compile needs a C++ compiler; found none of {COMPILERS}")


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


def same_work(model):
    """What an arm with the same model has too."""
    (dtype,) = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": dtype}


class Training:
    """Steps of torch's fused AdamW on one batch; the label of a position is the next token."""

    def __init__(self, *, batch, length, compiled, **shape):
        if compiled:
            need_compiler()
        self.model = model_of(positions=length, **shape)
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )
        self.ids = torch.randint(0, shape["vocab"], (batch, length))
        self.forward = torch.compile(self.model) if compiled else self.model
        self.loss = 0.0

    def __call__(self):
        loss = self.forward(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.item()
        return self.ids.numel()

    def warm_up(self):
        self()
        self()  # torch may compile again when the optimizer has made its state

    def facts(self):
        return {**same_work(self.model), "training loss": self.loss}


class Sampling:
    """generate() at temperature 1; nothing ends a row. A "static" `cache` is compiled for."""

    def __init__(self, *, batch, prompt, new_tokens, cache, **shape):
        if cache == "static":
            need_compiler()
        self.model = model_of(positions=prompt + new_tokens, **shape)
        self.model.train(False)
        self.ids = torch.randint(1, shape["vocab"], (batch, prompt))
        self.new_tokens, self.distinct = new_tokens, 0
        self.settings = {}
        if cache == "static":
            self.model.forward = torch.compile(self.model.forward, dynamic=False)
            self.settings = {"cache_implementation": "static"}

    def __call__(self):
        with torch.inference_mode():
            out = self.model.generate(
                self.ids, attention_mask=torch.ones_like(self.ids), do_sample=True,
                temperature=1.0, top_k=0, max_new_tokens=self.new_tokens, use_cache=True,
                **self.settings,
            )  # fmt: skip
        (batch, prompt), new = self.ids.shape, self.new_tokens
        assert out.shape == (batch, prompt + new), out.shape
        self.distinct = len(out[0, prompt:].unique())
        return batch * new

    def warm_up(self):
        self()
        self()

    def facts(self):
        return {**same_work(self.model), "distinct": self.distinct}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    hello = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    worker.serve({"training": Training, "sampling": Sampling}, hello)


if __name__ == "__main__":
    main()
