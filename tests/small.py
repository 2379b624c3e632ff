"""Small models that the tests share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax import config as config_lib
from reasoning_jax.config import ModelConfig
from reasoning_jax.config_check import from_dict
from reasoning_jax.model import spec, transformer

LLAMA = ModelConfig(
    vocab_size=12, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=24
)
GPT2 = dataclasses.replace(
    LLAMA, norm="layernorm", position="learned", mlp="gelu", n_kv_heads=4, max_positions=64,
    qkv_bias=True, output_bias=True,
)  # fmt: skip
QWEN3 = dataclasses.replace(
    LLAMA, qk_norm=True, tied_embeddings=False, head_dim=6, rope_factor=4.0,
    rope_original_positions=8,
)  # fmt: skip
MODELS = {"llama": LLAMA, "gpt2": GPT2, "qwen3": QWEN3}


def init(config, seed=0):
    """Parameters with every leaf random, so that norms and biases count too."""
    rng = np.random.default_rng(seed)
    return random_tree(transformer.param_specs(config), rng)


def random_tree(specs, rng):
    """A value for every spec, of scale 0.3 or its own if larger; numpy compiles nothing."""
    return spec.map_specs(
        lambda _, s: jnp.asarray(max(s.std, 0.3) * rng.standard_normal(s.shape), jnp.float32), specs
    )


apply = jax.jit(
    transformer.apply,
    static_argnames=("config", "return_keys", "capture_states", "capture_weights"),
)


def tiny_run(**sections):
    """A Config of a run that takes a second: `tiny_run(train={"steps": 3})`."""
    values = config_lib.to_dict(config_lib.Config())
    values["task"] = {"name": "arithmetic", "max_digits": 1}
    base = {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8,
                  "d_ff": 16},
        "data": {"seq_len": 8, "train_problems": 50},
        "objective": {"name": "bc"},
        "noise": {"rate": 0.2},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 6, "batch_rows": 8, "log_every_steps": 2, "checkpoint_every_steps": 4},
        "sampling": {"max_actions": 4},
        "evaluate": {"problems": 4},
    }  # fmt: skip
    for section, changes in [*base.items(), *sections.items()]:
        # Another task has other dials.
        if isinstance(values[section], dict) and section != "task":
            values[section].update(changes)
        else:
            values[section] = changes
    return from_dict(values)


def matching_run(**sections):
    """`tiny_run` with SequenceMatch: two steps of bc, then rollouts every other step."""
    base = {
        "data": {"seq_len": 16, "train_problems": 50},
        "objective": {"name": "sequencematch"},
        "sequencematch": {"bc_steps": 2, "anneal_steps": 2, "gamma": 0.9, "horizon": 0},
        "replay": {"sample_every_steps": 2, "capacity_rollouts": 16},
    }
    return tiny_run(**{k: {**base.get(k, {}), **sections.get(k, {})} for k in {**base, **sections}})


def thinking_run(**sections):
    """`tiny_run` with Coconut on graphs of one hop: a stage without a thought, one with one, and
    one with the answer behind it, all of one shape.
    """
    base = {
        "task": {"name": "prosqa", "family": "mirrored", "form": "fused", "min_hops": 1,
                 "max_hops": 1},
        "vocab": {"kind": "pair", "backspace": False, "latent": True},
        "data": {"seq_len": 12, "train_problems": 50, "answer_prefix": " [A] ", "step_suffix": " "},
        "objective": {"name": "mle"},
        "noise": {"rate": 0.0},
        "latent": {"mode": "coconut", "max_latent_stage": 1, "target": "next_step",
                   "markers": False, "uniform_prob": 0.3, "stage_steps": (2, 2, 2),
                   "prompt_columns": 10},
        "sampling": {"max_actions": 2, "temperature": 0.0},
        "evaluate": {"problems": 4, "corrupt_tokens": 0},
    }  # fmt: skip
    names = {**base, **sections}
    return tiny_run(
        **{k: sections[k] if k == "task" and k in sections
           else {**base.get(k, {}), **sections.get(k, {})} for k in names}
    )  # fmt: skip


def with_a_step(workdir):
    """Log a row of a step in a run folder: it can only be gone on with now."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "split": "train", "loss": 1.0}\n')
