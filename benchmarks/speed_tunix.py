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
    drawn = jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape), jnp.float32), nnx.state(model)
    )
    nnx.update(model, drawn)
    return model, config


def training(*, batch, length, **shape):
    """Its trainer's own compiled step; the label of a position is the next token."""
    model, _ = model_of(**shape)
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=10**9, max_steps=10**9, checkpoint_root_directory=tempfile.mkdtemp()
    )
    trainer = peft_trainer.PeftTrainer(model, optax.adamw(1e-4, weight_decay=0.01), config)
    step, _ = trainer.jit_train_and_eval_step()
    ids = np.random.default_rng(0).integers(0, shape["vocab"], (batch, length)).astype(np.int32)
    inputs = {
        "input_tokens": jnp.asarray(ids),
        "input_mask": jnp.ones((batch, length), bool),
        "positions": jnp.broadcast_to(jnp.arange(length), (batch, length)),
        "attention_mask": jnp.broadcast_to(
            jnp.tril(jnp.ones((length, length), bool)), (batch, length, length)
        ),
    }

    def run():
        loss, _, _ = step(inputs)
        jax.block_until_ready((loss, nnx.state(trainer.model)))
        return batch * length

    return run


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


def sampling(*, batch, prompt, new_tokens, **shape):
    """Its sampler at temperature 1; no token ends a row."""
    model, config = model_of(**shape)
    cache = sampler.CacheConfig(
        cache_size=prompt + new_tokens, num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
    )  # fmt: skip
    sample = sampler.Sampler(model, Numbers(), cache)
    rows = np.random.default_rng(0).integers(1, shape["vocab"], (batch, prompt))
    texts = [" ".join(map(str, row)) for row in rows]

    def run():
        out = sample(
            texts, max_generation_steps=new_tokens, max_prompt_length=prompt, temperature=1.0,
            top_p=1.0, seed=0, eos_tokens=[-1],
        )  # fmt: skip
        written = {len(tokens) for tokens in out.tokens}
        assert written == {new_tokens}, written
        return batch * new_tokens

    return run


def main() -> None:
    version = importlib.metadata.version("google-tunix")
    hello = {"google-tunix": version, "jax": jax.__version__}
    worker.serve({"training": training, "sampling": sampling}, hello)


if __name__ == "__main__":
    main()
