"""Thoughts against a full recomputation for each; padding, mates, gradients, meshes, variants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import LoraConfig
from reasoning_jax.model import cache as kv
from reasoning_jax.model import latent, lora, readout, spec, transformer
from reasoning_jax.model.attention import Causal, KeyValues
from tests.recompute import recomputed
from tests.small import GPT2, LLAMA, MODELS, init, random_tree

pytestmark = pytest.mark.usefixtures("unoptimised")

LATENT = 11
THOUGHTS = latent.Thoughts(LATENT)
# Of five thoughts, two, none (twice), one and five: (question, thoughts, what follows).
ROWS = [
    ([1, 2, 3], 2, [4, 5]),
    ([6], 0, [7, 8, 1, 2, 3, 4]),
    ([9, 8, 7, 6, 5], 5, [10]),
    ([2, 2], 1, [3, 3, 3]),
    ([5, 4], 0, []),
    ([3], 5, [6, 2, 9]),
]

forward = jax.jit(latent.forward, static_argnames=("config", "thoughts", "prefix", "n"))


def laid_out(rows, left=0, right=0):
    """The arguments of `forward`: rows whose thoughts begin in one column, padded with garbage."""
    prefix = max(len(question) for question, _, _ in rows) + left
    width = max(count + len(rest) for _, count, rest in rows) + right
    rng = np.random.default_rng(len(rows) + left)
    tokens = rng.integers(0, LATENT, (len(rows), prefix + width)).astype(np.int32)
    real = np.zeros(tokens.shape, bool)
    positions = np.zeros(tokens.shape, np.int32)
    for b, (question, count, rest) in enumerate(rows):
        ids = [*question, *[LATENT] * count, *rest]
        begin = prefix - len(question)
        tokens[b, begin : begin + len(ids)] = ids
        real[b, begin : begin + len(ids)] = True
        positions[b, begin : begin + len(ids)] = np.arange(len(ids))
    n = max(count for _, count, _ in rows)
    arrays = {"tokens": tokens, "positions": positions, "real": real}
    return {**{k: jnp.asarray(x) for k, x in arrays.items()}, "prefix": prefix, "n": n}


def expected(params, config, rows, thoughts=THOUGHTS):
    ids = [[*question, *[LATENT] * count, *rest] for question, count, rest in rows]
    return recomputed(params, config, ids, thoughts)


def assert_same(out, want, rows, atol=2e-5):
    states, fed = want
    for b, (question, count, rest) in enumerate(rows):
        own = states[b][len(question) - 1 :]
        np.testing.assert_allclose(out.hidden[b, : count + len(rest) + 1], own, atol=atol)
        for k, x in enumerate(fed[b]):
            np.testing.assert_allclose(out.inputs[b, k], x, atol=atol)


@pytest.fixture(scope="module")
def llama():
    params = init(LLAMA)
    return params, expected(params, LLAMA, ROWS)


@pytest.mark.parametrize("name", MODELS)
def test_the_scan_is_the_recomputation(name, llama):
    """Grouped queries with rotary positions, learned positions, norms of queries; rows of 0, 1, 2
    and 5 thoughts in one batch.

    Catches: a thought made of the wrong column, a row that goes on thinking, a thought that the
    later ones do not see, positions that leave thoughts out.
    """
    config = MODELS[name]
    params = llama[0] if name == "llama" else init(config)
    want = llama[1] if name == "llama" else expected(params, config, ROWS)
    out = forward(params, config, THOUGHTS, **laid_out(ROWS))
    assert out.inputs.shape == (len(ROWS), 5, config.d_model)
    assert_same(out, want, ROWS)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_fewer_thoughts(most, llama):
    """No thought is one pass, one thought has nothing to scan."""
    params, (states, fed) = llama
    kept = [b for b, (_, count, _) in enumerate(ROWS) if count <= most]
    rows = [ROWS[b] for b in kept]
    out = forward(params, LLAMA, THOUGHTS, **laid_out(rows))
    assert out.inputs.shape == (len(rows), most, LLAMA.d_model)
    assert_same(out, ([states[b] for b in kept], [fed[b] for b in kept]), rows)


def test_jacobi_iterations_end_in_the_chain(llama):
    """Each iteration makes one more thought exact; the first is so from the start.

    Catches: an iteration too few or too many, text in the slots of rows with fewer thoughts that is
    overwritten.
    """
    params, want = llama
    arguments = laid_out(ROWS)
    thoughts = dataclasses.replace(THOUGHTS, iterations=4)
    assert_same(forward(params, LLAMA, thoughts, **arguments), want, ROWS)
    out = forward(params, LLAMA, dataclasses.replace(THOUGHTS, iterations=3), **arguments)
    _, fed = want
    for k in range(5):
        distance = float(jnp.abs(out.inputs[2, k] - fed[2][k]).max())
        assert (distance < 2e-5) == (k < 4)


def test_padding_order_and_mates_change_no_row(llama):
    params, _ = llama
    arguments = laid_out(ROWS)
    base = forward(params, LLAMA, THOUGHTS, **arguments)

    def same(out, b, other):
        _, count, rest = ROWS[other]
        n = count + len(rest) + 1
        np.testing.assert_allclose(out.hidden[b, :n], base.hidden[other, :n], atol=2e-6)
        np.testing.assert_allclose(out.inputs[b, :count], base.inputs[other, :count], atol=2e-6)

    order = [3, 0, 5, 2, 4, 1]
    out = forward(params, LLAMA, THOUGHTS, **laid_out([ROWS[i] for i in order]))
    for b, other in enumerate(order):
        same(out, b, other)
    mates = [ROWS[0], ([4] * 5, 5, [1]), ROWS[3], ([1], 0, [2] * 8), ([7, 7], 1, []), ROWS[5]]
    out = forward(params, LLAMA, THOUGHTS, **laid_out(mates))
    for b, other in ((0, 0), (2, 3), (5, 5)):
        same(out, b, other)
    out = forward(params, LLAMA, THOUGHTS, **laid_out(ROWS, left=3, right=2))
    for b in range(len(ROWS)):
        same(out, b, b)


def test_rows_of_padding_alone_make_no_nan(llama):
    params, _ = llama
    arguments = laid_out(ROWS)
    nothing = {**arguments, "real": jnp.zeros_like(arguments["real"])}
    out = forward(params, LLAMA, THOUGHTS, **nothing)
    assert jnp.isfinite(out.hidden).all()
    assert jnp.isfinite(out.inputs).all()


def loss(table, params, config, arguments, weights, prefix, n):
    params = {**params, "embedding": {"tokens": table}}
    out = latent.forward(params, config, THOUGHTS, **arguments, prefix=prefix, n=n)
    return (jnp.sin(out.hidden) * weights[..., None]).sum()


table_gradient = jax.jit(jax.grad(loss), static_argnames=("config", "prefix", "n"))


def gradient_by_state(params, config, rows, b, t):
    """Of a loss of row b's column `prefix - 1 + t` alone: the gradient of the table of tokens."""
    arguments = laid_out(rows)
    prefix, n = arguments.pop("prefix"), arguments.pop("n")
    weights = np.zeros((len(rows), arguments["tokens"].shape[1] - prefix + 1), np.float32)
    weights[b, t] = 1.0
    table = params["embedding"]["tokens"]
    return table_gradient(table, params, config, arguments, jnp.asarray(weights), prefix, n)


def test_gradients_run_through_the_chain_of_thoughts_alone(llama):
    """Without attention a column knows its own input only: behind thoughts, by way of all of them,
    the last token of the question.

    Catches: a detached thought, a chain that begins a column too early or goes on behind the
    thoughts.
    """
    params, _ = llama
    attention = {**params["layers"]["attention"]}
    attention["output"] = jnp.zeros_like(attention["output"])
    mute = {**params, "layers": {**params["layers"], "attention": attention}}
    # Row 2 has five thoughts behind the tokens 9 8 7 6 5, and then the token 10.
    for t in range(7):
        table = gradient_by_state(mute, LLAMA, ROWS, 2, t)
        reached = set(np.flatnonzero(np.abs(table).sum(1)).tolist())
        assert reached == ({5} if t < 6 else {10})
    # Row 1 has none: its columns are its own.
    table = gradient_by_state(mute, LLAMA, ROWS, 1, 1)
    assert np.flatnonzero(np.abs(table).sum(1)).tolist() == [7]


def test_gradients_flow_backwards_in_time_only_and_never_from_padding(llama):
    params, _ = llama
    for t, seen in ((0, {9, 8, 7, 6, 5}), (3, {9, 8, 7, 6, 5}), (6, {9, 8, 7, 6, 5, 10})):
        table = gradient_by_state(params, LLAMA, ROWS, 2, t)
        assert set(np.flatnonzero(np.abs(table).sum(1)).tolist()) == seen
        assert np.isfinite(table).all()


@pytest.mark.slow
def test_remat_changes_no_gradient(llama):
    """A block that is recomputed has the keys before it as constants."""
    params, _ = llama
    rows = [ROWS[3], ROWS[1]]
    want, got = (
        gradient_by_state(params, dataclasses.replace(LLAMA, remat=remat), rows, 0, 2)
        for remat in ("none", "full")
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1


def test_thoughts_that_are_given_are_fed(llama):
    """The thoughts made, given again, change nothing; others do, and text in slots stays text."""
    params, want = llama
    arguments = laid_out(ROWS)
    made = forward(params, LLAMA, THOUGHTS, **arguments).inputs
    given = jnp.where(arguments["tokens"][:, 5:10, None] == LATENT, made, 9.0)
    again = forward(params, LLAMA, THOUGHTS, **arguments, inputs=given)
    assert_same(again, want, ROWS)
    np.testing.assert_allclose(again.inputs, made, atol=1e-6)
    zeros = forward(params, LLAMA, THOUGHTS, **arguments, inputs=jnp.zeros_like(given))
    changed = jnp.abs(zeros.hidden - again.hidden).max(axis=(1, 2)) > 1e-3
    assert changed.tolist() == [count > 0 for _, count, _ in ROWS]


@pytest.mark.parametrize(("source", "scale"), [("residual", "none"), ("final_norm", "embedding")])
def test_what_is_fed_back(source, scale):
    params = init(GPT2, seed=3)
    thoughts = latent.Thoughts(LATENT, source, scale)
    out = forward(params, GPT2, thoughts, **laid_out(ROWS))
    assert_same(out, expected(params, GPT2, ROWS, thoughts), ROWS, atol=5e-5)
    rms = np.sqrt(np.mean(np.square(out.inputs[2]), axis=-1))
    wanted = float(np.sqrt(np.mean(np.square(params["embedding"]["tokens"]))))
    assert np.allclose(rms, wanted, rtol=1e-4) == (scale == "embedding")


def test_adapters_take_part_in_thoughts(llama):
    params, _ = llama
    pairs = random_tree(lora.lora_specs(LLAMA, LoraConfig(rank=2)), np.random.default_rng(1))
    adapters = lora.Lora(pairs, 0.5)
    merged = lora.merge(params, adapters)
    arguments = laid_out(ROWS)
    out = forward(params, LLAMA, THOUGHTS, **arguments, lora=adapters)
    want = forward(merged, LLAMA, THOUGHTS, **arguments)
    real = arguments["real"][:, 4:, None]
    assert jnp.abs(want.hidden - forward(params, LLAMA, THOUGHTS, **arguments).hidden).max() > 0.05
    np.testing.assert_allclose(out.hidden * real, want.hidden * real, atol=1e-4)


def on_mesh(config, rows, function):
    """`function(params, arguments)` on one device, and with rows over four groups of devices, heads
    and vocabulary over two.
    """
    params, arguments = init(config), laid_out(rows)
    static = {name: arguments.pop(name) for name in ("prefix", "n")}
    compiled = jax.jit(lambda params, arguments: function(params, {**arguments, **static}))
    want = jax.device_get(compiled(params, arguments))
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda x: jax.device_put(x, sharding.batch_sharding(mesh, x.ndim)), arguments
        )
        shardings = spec.shardings(transformer.param_specs(config), mesh)
        split = jax.tree.map(jax.device_put, params, shardings)
        return want, jax.device_get(compiled(split, placed))


@pytest.mark.parametrize("iterations", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_mesh_changes_no_state(iterations):
    thoughts = dataclasses.replace(THOUGHTS, iterations=iterations)
    rows = [*ROWS, *ROWS[:2]]
    want, got = on_mesh(LLAMA, rows, lambda p, a: latent.forward(p, LLAMA, thoughts, **a))
    real = np.asarray(laid_out(rows)["real"])[:, 4:, None]
    np.testing.assert_allclose(got.hidden * real, want.hidden * real, atol=2e-5)
    np.testing.assert_allclose(got.inputs, want.inputs, atol=2e-5)


@pytest.mark.slow
def test_a_mesh_changes_no_gradient():
    rows = [*ROWS, *ROWS[:2]]

    def gradient(params, arguments):
        def loss(params):
            out = latent.forward(params, LLAMA, THOUGHTS, **arguments)
            labels = jnp.zeros_like(arguments["tokens"][:, 4:]) + 1
            scores = readout.score_labels(params, LLAMA, out.hidden, labels)
            return jnp.where(arguments["real"][:, 4:], scores.log_prob, 0.0).sum()

        return jax.grad(loss)(params)

    want, got = on_mesh(LLAMA, rows, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), got, want)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_keys_that_stand_before_equal_a_cache_and_one_pass(name):
    """In two parts, with a column of the first that one row must not see.

    Catches: a mask on the wrong part, keys of another layer, weights in another order than values.
    """
    config, rng = MODELS[name], np.random.default_rng(2)
    params = init(config)
    tokens = jnp.asarray(rng.integers(0, 11, (2, 8)))
    positions = jnp.broadcast_to(jnp.arange(8), tokens.shape)
    run = jax.jit(transformer.apply, static_argnames=("config", "return_keys", "capture_weights"))

    def part(begin, end, **more):
        return run(params, config, tokens[:, begin:end], positions=positions[:, begin:end], **more)

    whole = part(0, 8).hidden[:, 4:]
    first = part(0, 4, return_keys=True)
    cache = kv.of_columns(first.keys, first.values, 8)
    by_cache = part(4, 8, cache=cache).hidden
    for seen in (True, False):
        visible = jnp.asarray([[True] * 4, [seen, True, True, True]])
        before = (KeyValues.of(first.keys, first.values, visible),)
        out = part(4, 8, before=before, capture_weights=(1,))
        np.testing.assert_allclose(out.hidden[0], whole[0], atol=2e-5)
        np.testing.assert_allclose(out.hidden[0], by_cache[0], atol=2e-5)
        assert np.allclose(out.hidden[1], whole[1], atol=2e-5) == seen
        weights = out.weights[0]
        assert weights.shape == (2, config.n_heads, 4, 8)
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
        assert (jnp.triu(weights[..., 4:], 1) == 0).all()
        assert bool((weights[1, ..., 0] == 0).all()) == (not seen)
    with pytest.raises(ValueError, match="either a cache or what stands before"):
        part(4, 8, cache=cache, before=before)
    with pytest.raises(ValueError, match="segments cannot be combined with a cache"):
        part(4, 8, cache=cache, attention=Causal(jnp.ones((2, 4), jnp.int32)))
    with pytest.raises(ValueError, match="nothing is captured with a cache"):
        part(4, 8, cache=cache, capture_weights=(1,))


def test_where_thoughts_stand():
    tokens = np.array([[0, 1, 11, 11, 2], [1, 2, 3, 4, 0], [0, 0, 1, 11, 0]])
    real = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]], bool)
    first, count = latent.find_thoughts(tokens, real, LATENT)
    assert first.tolist() == [2, 4, 3]
    assert count.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "real", "why"),
    [
        ([1, 11, 2, 11], [1, 1, 1, 1], "side by side"),
        ([1, 11, 11, 2], [1, 1, 0, 0], "padding"),
        ([11, 11, 1, 2], [1, 1, 1, 1], "token before"),
        ([0, 11, 1, 2], [0, 1, 1, 1], "token before"),
    ],
)
def test_thoughts_that_cannot_be_are_refused(tokens, real, why):
    with pytest.raises(ValueError, match=why):
        latent.find_thoughts(np.array([tokens]), np.array([real], bool), LATENT)


@pytest.mark.parametrize(("prefix", "n"), [(0, 1), (-1, 1), (3, 2), (5, 0)])
def test_a_prefix_without_room_is_refused(prefix, n):
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=f"no {n} thoughts from column {prefix} on"):
        latent.forward(
            init(LLAMA), LLAMA, THOUGHTS, tokens, tokens, tokens == 0, prefix=prefix, n=n
        )
