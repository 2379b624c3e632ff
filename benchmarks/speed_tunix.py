"""google-tunix for benchmarks/speed.py: its own Llama, trainer step and sampler.

    PYTHON -m benchmarks.speed_tunix

PYTHON has google-tunix; nothing of ours is imported.
"""

from __future__ import annotations

import importlib.metadata
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer

from benchmarks import worker


def model_of(*, vocab, width, layers, heads, inner):
    """A Llama of random weights in float32 (its own initial MLP weights are zeros)."""
    config = llama.ModelConfig(
        num_layers=layers, vocab_size=vocab, embed_dim=width, hidden_dim=inner, num_heads=heads,
        head_dim=width // heads, num_kv_heads=heads, rope_theta=10_000, norm_eps=1e-5,
    )  # fmt: skip
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def drawn_again(x):
        return x if x.ndim < 2 else jnp.asarray(0.02 * rng.standard_normal(x.shape), jnp.float32)

    drawn = jax.tree.map(drawn_again, nnx.state(model))
    nnx.update(model, drawn)
    return model, config


def same_work(model):
    """What an arm with the same model has too."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    (dtype,) = {str(x.dtype) for x in leaves}
    return {"parameters": sum(x.size for x in leaves), "dtype": dtype}


class Training:
    """Its trainer's own compiled step; the label of a position is the next token."""

    def __init__(self, *, batch, length, **shape):
        model, _ = model_of(**shape)
        config = peft_trainer.TrainingConfig(
            eval_every_n_steps=10**9, max_steps=10**9, checkpoint_root_directory=tempfile.mkdtemp()
        )
        optimizer = optax.adamw(1e-4, weight_decay=0.01)
        self.trainer = peft_trainer.PeftTrainer(model, optimizer, config)
        self.step, _ = self.trainer.jit_train_and_eval_step()
        ids = np.random.default_rng(0).integers(0, shape["vocab"], (batch, length))
        causal = jnp.tril(jnp.ones((length, length), bool))
        self.inputs = {
            "input_tokens": jnp.asarray(ids.astype(np.int32)),
            "input_mask": jnp.ones((batch, length), bool),
            "positions": jnp.broadcast_to(jnp.arange(length), (batch, length)),
            "attention_mask": jnp.broadcast_to(causal, (batch, length, length)),
        }
        self.tokens, self.loss = batch * length, 0.0

    def __call__(self):
        loss, _, _ = self.step(self.inputs)
        jax.block_until_ready((loss, nnx.state(self.trainer.model)))
        self.loss = float(loss)
        return self.tokens

    def warm_up(self):
        self()
        self()  # its second step may be compiled again, for the layout of the optimizer's state

    def facts(self):
        return {**same_work(self.trainer.model), "training loss": self.loss}


class Numbers:
    """A tokenizer of texts that are numbers already."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0

    def eos_id(self):
        return -1

    def pad_id(self):
        return 0


class Sampling:
    """Its sampler at temperature 1; no token ends a row."""

    def __init__(self, *, batch, prompt, new_tokens, **shape):
        self.model, config = model_of(**shape)
        cache = sampler.CacheConfig(
            cache_size=prompt + new_tokens, num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        )  # fmt: skip
        self.sample = sampler.Sampler(self.model, Numbers(), cache)
        rows = np.random.default_rng(0).integers(1, shape["vocab"], (batch, prompt))
        self.texts = [" ".join(map(str, row)) for row in rows]
        self.prompt, self.new_tokens, self.calls, self.distinct = prompt, new_tokens, 0, 0

    def __call__(self):
        self.calls += 1
        out = self.sample(
            self.texts, max_generation_steps=self.new_tokens, max_prompt_length=self.prompt,
            temperature=1.0, top_p=1.0, seed=self.calls, eos_tokens=[-1],
        )  # fmt: skip
        written = {len(tokens) for tokens in out.tokens}
        assert written == {self.new_tokens}, written
        self.distinct = len(set(np.asarray(out.tokens[0]).tolist()))
        return len(self.texts) * self.new_tokens

    def facts(self):
        return {**same_work(self.model), "distinct": self.distinct}


def main() -> None:
    version = importlib.metadata.version("google-tunix")
    hello = {"google-tunix": version, "jax": jax.__version__}
    worker.serve({"training": Training, "sampling": Sampling}, hello)


if __name__ == "__main__":
    main()
