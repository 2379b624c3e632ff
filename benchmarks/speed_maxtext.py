"""MaxText for benchmarks/speed.py: its own model and compiled training step.

    PYTHON -m benchmarks.speed_maxtext

PYTHON (3.12) has maxtext; nothing of ours is imported.
"""

from __future__ import annotations

import importlib.metadata
import tempfile

import jax
import numpy as np
from flax import nnx
from flax.core.spmd import logical_axis_rules
from maxtext.trainers.pre_train import train
from maxtext.utils import maxtext_utils, sharding, train_utils

from benchmarks import worker

BASE = "maxtext/configs/base.yml"


def settings_of(*, batch, length, vocab, width, layers, heads, inner, remat):
    """What differs from its base.yml: the shape, float32, AdamW as in the other arms, a CPU, and
    nothing written.
    """
    return {
        "run_name": "benchmark", "base_output_directory": tempfile.mkdtemp(), "hardware": "cpu",
        "enable_checkpointing": False, "enable_tensorboard": False, "dataset_type": "synthetic",
        "skip_jax_distributed_system": True, "steps": 10**6, "per_device_batch_size": batch,
        "max_target_length": length, "vocab_size": vocab, "base_emb_dim": width,
        "base_num_decoder_layers": layers, "base_num_query_heads": heads,
        "base_num_kv_heads": heads, "base_mlp_dim": inner, "head_dim": width // heads,
        "dtype": "float32", "weight_dtype": "float32", "attention": "dot_product",
        "remat_policy": remat, "learning_rate": 1e-4, "warmup_steps_fraction": 0.0,
        "learning_rate_final_fraction": 1.0, "adam_b2": 0.999, "adam_weight_decay": 0.01,
        "gradient_clipping_threshold": 0.0, "enable_dropout": False,
    }  # fmt: skip


class Training:
    """Its trainer's compiled step on one batch, put together as its training loop does it."""

    def __init__(self, **shape):
        words = [f"{name}={value}" for name, value in settings_of(**shape).items()]
        base = importlib.metadata.distribution("maxtext").locate_file(BASE)
        self.config, recorder = train.initialize(["maxtext", str(base), *words])
        _, _, shardings, _, self.mesh, *_, state = train_utils.setup_train_loop(
            self.config, recorder
        )
        graph, self.state = nnx.split(state)
        of_params, shardings = sharding.maybe_update_params_sharding_with_opt(
            self.config, shardings
        )
        self.step, _ = train_utils.jit_train_and_eval_step(
            self.config, graph, self.mesh, self.state, shardings, train.train_step,
            params_shardings=of_params,
        )  # fmt: skip
        with self.context():
            placed = sharding.get_input_data_sharding(self.config, self.mesh)
            shaped = maxtext_utils.get_shaped_batch(self.config, batch_sharding=placed)
            batch = train.make_synthetic_batch(self.config, shaped)
        # The label of a position is the next token.
        rows = np.asarray(batch["inputs"])
        targets = jax.device_put(np.roll(rows, -1, 1), batch["targets"].sharding)
        self.batch = {**batch, "targets": targets}
        self.tokens, self.loss = rows.size, 0.0

    def context(self):
        stack = worker.contextlib.ExitStack()
        stack.enter_context(jax.set_mesh(self.mesh))
        stack.enter_context(logical_axis_rules(self.config.logical_axis_rules))
        return stack

    def __call__(self):
        with self.context():
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        self.loss = float(metrics["scalar"]["learning/loss"])
        return self.tokens

    def facts(self):
        leaves = jax.tree.leaves(nnx.filter_state(self.state.model, nnx.Param))
        (dtype,) = {str(x.dtype) for x in leaves}
        return {
            "parameters": sum(x.size for x in leaves), "dtype": dtype, "training loss": self.loss,
            "computes in": str(self.config.dtype),
        }  # fmt: skip


def main():
    version = importlib.metadata.version("maxtext")
    worker.serve({"training": Training}, {"maxtext": version, "jax": jax.__version__})


if __name__ == "__main__":
    main()
