"""The public reference of Coconut on a small GPT-2: logits, loss, thoughts, gradients, steps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.config import ModelConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.model import latent, readout, spec
from reasoning_jax.objectives.likelihood import cross_entropy
from reasoning_jax.train import losses, program
from reasoning_jax.train import state as states
from reasoning_jax.weights.assemble import assemble, check_shapes
from reasoning_jax.weights.layout import HUGGING_FACE, Tensors
from tests.small import tiny_run
from tests.weights.support import GOLDEN

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "coconut.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def model(golden):
    c = json.loads(str(golden["config"]))
    return ModelConfig(
        vocab_size=c["vocab_size"], max_positions=c["n_positions"], d_model=c["n_embd"],
        n_layers=c["n_layer"], n_heads=c["n_head"], n_kv_heads=c["n_head"],
        head_dim=c["n_embd"] // c["n_head"], d_ff=4 * c["n_embd"], norm="layernorm", norm_eps=1e-5,
        position="learned", mlp="gelu", qkv_bias=True, output_bias=True, tied_embeddings=True,
    )  # fmt: skip


def tree(golden, model, prefix):
    """Tensors under the reference's names as a tree like our parameters."""
    found = {
        name.removeprefix(f"{prefix}/transformer."): x
        for name, x in golden.items()
        if name.startswith(f"{prefix}/transformer.")
    }
    tensors = Tensors({name: x.shape for name, x in found.items()}, found.__getitem__, prefix)
    check_shapes(model, HUGGING_FACE["gpt2"], tensors)
    return assemble(model, HUGGING_FACE["gpt2"], tensors, param_dtype="float32")


@pytest.fixture(scope="module")
def params(golden, model):
    return jax.tree.map(jnp.asarray, tree(golden, model, "weight"))


def batch_of(golden, case):
    """(batch, the id of a thought) of the stored inputs."""
    ids, real = golden[f"{case}/input_ids"], golden[f"{case}/attention_mask"]
    labels = np.pad(golden[f"{case}/labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    at = golden[f"{case}/latent_pos"]
    latent_id = int(ids[tuple(at[0])]) if len(at) else -1
    first, count = latent.find_thoughts(ids, real > 0, latent_id)
    thoughts = int(count.max())
    if thoughts:
        assert len(set(first)) == 1, "the reference aligns thoughts as we do"
    zeros = jnp.zeros(ids.shape, jnp.int32)
    batch = Batch(
        actions=jnp.asarray(ids, jnp.int32), labels=jnp.asarray(np.maximum(labels, 0), jnp.int32),
        weights=jnp.asarray(labels >= 0, jnp.float32), segments=jnp.asarray(real, jnp.int32),
        floor=zeros, noised=zeros, prefix=int(first[0]) if thoughts else 1, thoughts=thoughts,
    )  # fmt: skip
    return batch, latent.Thoughts(latent_id)


MLE = {"objective": {"name": "mle"}, "noise": {"rate": 0.0}}
IDS = ActionIds(eos=0, backspace=None)


@pytest.fixture(scope="module")
def steps(golden, model, params):
    """Five training steps: [(loss, norm of the gradient, gradient, parameters)], all flat.

    The gradient is read from the optimizer's first moments, in float64.
    """
    batch, thoughts = batch_of(golden, "six")
    config = tiny_run(
        **MLE,
        model=dataclasses.asdict(model),
        optimizer={
            "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0, "b1": 0.9,
            "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "no_decay": (), "clip_norm": 0.0,
        },
    )  # fmt: skip
    run = program.make_program(config, model, IDS, thoughts)
    state = states.init_state({"model": params, "lora": {}}, run.tx, run.trained)
    # The step gives its input's memory away.
    state = jax.tree.map(jnp.copy, state)
    found, before = [], 0.0
    for _ in range(5):
        state, metrics = run.step(state, batch)
        (adam,) = (
            x
            for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
            if hasattr(x, "mu")
        )
        m = {path.removeprefix("model/"): np.float64(x) for path, x in adam.mu.items()}
        gradient = {path: (x - 0.9 * (before and before[path])) / 0.1 for path, x in m.items()}
        now = {path: np.asarray(x) for path, x in spec.flatten(state.params["model"]).items()}
        values = (float(metrics[name].mean()) for name in ("loss", "grad_norm"))
        found.append((*values, gradient, now))
        before = m
    return found


@pytest.mark.parametrize(("case", "iterations"), [("six", 0), ("six", 6), ("none", 0)])
def test_logits_and_thoughts(golden, model, params, case, iterations):
    """Catches: a state before the final norm, a position that skips the thoughts, thoughts that see
    padding, one thought too few.
    """
    batch, thoughts = batch_of(golden, case)
    thoughts = dataclasses.replace(thoughts, iterations=iterations)

    @jax.jit
    def run(params):
        positions = losses.causal_positions(batch.segments)
        out = latent.forward(
            params, model, thoughts, batch.actions, positions, batch.segments > 0,
            prefix=batch.prefix, n=batch.thoughts,
        )  # fmt: skip
        return readout.logits(params, model, out.hidden), out.inputs

    logits, inputs = run(params)
    rows, columns = golden[f"{case}/places"].T
    got = logits[rows, columns - (batch.prefix - 1)]
    np.testing.assert_allclose(got, golden[f"{case}/logits"], atol=1e-5)
    fed = golden[f"{case}/latent_embeds"].reshape(inputs.shape)
    np.testing.assert_allclose(inputs, fed, atol=1e-5)


def test_loss_of_rows_without_a_thought(golden, model, params):
    batch, _ = batch_of(golden, "none")
    loss = losses.make_loss(model, tiny_run(**MLE).objective, IDS)
    value = jax.jit(lambda params: loss(params, None, batch)[0].mean())(params)
    assert float(value) == pytest.approx(float(golden["none/loss"]), abs=1e-6)


def farthest(gradient, golden, model):
    want = spec.flatten(tree(golden, model, "six/gradient"))
    return max(float(np.abs(np.asarray(x) - want[path]).max()) for path, x in gradient.items())


def test_loss_and_all_gradients(golden, model, params, steps):
    loss, norm, gradient, _ = steps[0]
    assert loss == pytest.approx(float(golden["six/loss"]), abs=1e-6)
    assert norm == pytest.approx(float(golden["six/grad_norm"]), abs=2e-5)
    assert gradient.keys() == spec.flatten(params).keys()
    assert farthest(gradient, golden, model) < 2e-6


def test_a_detached_thought_would_be_seen(golden, model, params):
    """Thoughts that are given are thoughts without a gradient. The loss stays; gradients do not."""
    batch, thoughts = batch_of(golden, "six")
    fed = jnp.asarray(golden["six/latent_embeds"].reshape(4, batch.thoughts, -1))

    @jax.jit
    def evaluate(tokens):
        given = {**params, "embedding": {**params["embedding"], "tokens": tokens}}
        out = latent.forward(
            given, model, thoughts, batch.actions, losses.causal_positions(batch.segments),
            batch.segments > 0, prefix=batch.prefix, n=batch.thoughts, inputs=fed,
        )  # fmt: skip
        begin = batch.prefix - 1
        scores = readout.score_labels(given, model, out.hidden, batch.labels[:, begin:])
        return cross_entropy(scores.log_prob, batch.weights[:, begin:]).mean()

    value, gradient = jax.value_and_grad(evaluate)(params["embedding"]["tokens"])
    assert float(value) == pytest.approx(float(golden["six/loss"]), abs=1e-6)
    assert farthest({"embedding/tokens": gradient}, golden, model) > 0.05


def test_five_steps_are_those_of_torchs_adamw(params, steps):
    """The definition in float64: decay on everything, no warm-up, no clipping.

    Catches: decay through the moments, biases or norms without decay, a bias correction that is one
    step late.
    """
    want = {path: np.float64(x) for path, x in spec.flatten(params).items()}
    m, v = ({path: np.zeros_like(x) for path, x in want.items()} for _ in range(2))
    for t, (_, _, gradient, now) in enumerate(steps, start=1):
        for path, g in gradient.items():
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.999 * v[path] + 0.001 * g**2
            step = m[path] / (1 - 0.9**t) / (np.sqrt(v[path] / (1 - 0.999**t)) + 1e-8)
            want[path] = want[path] - 1e-4 * (step + 0.01 * want[path])
            # Keys shift all scores of a query alike: that gradient is rounding and nothing else.
            if not path.endswith("key_bias"):
                np.testing.assert_allclose(now[path], want[path], atol=1e-6, err_msg=path)
    losses = [loss for loss, *_ in steps]
    assert losses == sorted(losses, reverse=True)
