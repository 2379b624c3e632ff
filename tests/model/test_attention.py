"""Each path of attention against the one that is written out, and what none may do: [T, T] arrays,
other numbers on a mesh, a kernel where it cannot run.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import backspace, sharding
from reasoning_jax.config import ConfigError, ModelConfig, ObjectiveConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.model import attention, blockwise, decoding_weights, kernels, transformer
from reasoning_jax.model.attention import Causal, Dense
from reasoning_jax.model.visibility import Marks, columns_of, sees, visibility
from reasoning_jax.train import losses
from tests.small import LLAMA, init

BKID = 11


def edited(rng, B, T):
    """Actions, segments and floors of rows with several segments, many backspaces and padding."""
    actions = np.where(rng.random((B, T)) < 0.4, BKID, rng.integers(0, BKID, (B, T)))
    segments = np.zeros((B, T), int)
    for b in range(B):
        ends = np.sort(rng.integers(1, T + 1, 3))
        segments[b] = (np.arange(T)[:, None] >= ends).sum(1) + 1
        segments[b, ends[-1] :] = 0
    floor = np.zeros((B, T), int) + rng.integers(0, 3, (B, 1))
    return tuple(jnp.asarray(x, jnp.int32) for x in (actions, segments, floor))


def descriptions(rng, B, T):
    actions = edited(rng, B, T)
    mask = rng.random((B, T, T)) < 0.3
    # A row that sees nothing, and one that sees the future alone.
    mask[0, T // 2] = False
    mask[-1, 0] = np.arange(T) == T - 1
    return {
        "causal": Causal(),
        "segments": Causal(actions[1]),
        "live P1": backspace.pack(*actions, BKID).live,
        "live P2": backspace.deduplicate(*actions, BKID, T).live,
        "dense": Dense(jnp.asarray(mask)),
    }


def qkv(rng, B, T, N=4, K=2, H=8, dtype=jnp.float32):
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    return tuple(jnp.asarray(rng.standard_normal(s), jnp.float32).astype(dtype) for s in shapes)


def with_gradients(attend, arrays, description):
    """The output and the gradients of its inputs, of a function that weighs every entry apart."""

    def total(arrays):
        out = attend(*arrays, description)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        if sharding.has_mesh():
            weight = jax.reshard(weight, jax.typeof(out).sharding.spec)
        return (out.astype(jnp.float32) * weight).sum(), out

    gradients, out = jax.grad(total, has_aux=True)(arrays)
    return out, *gradients


@functools.partial(jax.jit, static_argnums=0)
def run(names, arrays, said):
    """`with_gradients` of each path and description: compiled together, which is quicker."""
    return [[with_gradients(PATHS[name], arrays, d) for d in said] for name in names]


PATHS = {
    "explicit": functools.partial(attention.attend_within, path="explicit"),
    "blockwise": functools.partial(blockwise.attend, block=16),
    "xla": functools.partial(attention.attend_within, path="xla"),
    "default": functools.partial(attention.attend_within, path="blockwise"),
    "splash": functools.partial(kernels.splash, interpret=True),
}


def assert_same(got, want, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, want)


# One column, less than a block, one block, more than one, and runs of two blocks and a rest.
@pytest.mark.parametrize("T", [1, 7, 16, 41, 150])
def test_blocks_equal_what_is_written_out(unoptimised, T):
    # Catches: a wrong end of a block's keys, padding that is seen, a missing term of the gradient,
    # groups of queries in another order, a query that sees nothing and scales the gradient.
    rng = np.random.default_rng(T)
    arrays, said = qkv(rng, 2, T), descriptions(rng, 2, T)

    got, want = run(("blockwise", "explicit"), arrays, list(said.values()))
    assert_same(got, want, 2e-5)


def test_the_default_block_and_equal_heads(unoptimised):
    # T beyond a block, and K = N, where a group is one query.
    rng = np.random.default_rng(0)
    T = blockwise.BLOCK + 5
    arrays, live = qkv(rng, 1, T, N=2, K=2), descriptions(rng, 1, T)["live P1"]
    got, want = run(("default", "explicit"), arrays, [live])
    assert_same(got, want, 2e-5)


def test_jax_own_attention_equals_what_is_written_out(unoptimised):
    # Catches: a mask without its head axis, which at B = N is taken for another.
    rng = np.random.default_rng(1)
    arrays = qkv(rng, 4, 9)
    got, want = run(("xla", "explicit"), arrays, list(descriptions(rng, 4, 9).values()))
    assert_same(got, want, 2e-5)


def test_splash_equals_what_is_written_out():
    rng = np.random.default_rng(2)
    arrays, segments = qkv(rng, 2, 256), edited(rng, 2, 256)[1]
    got, want = run(("splash", "explicit"), arrays, [Causal(), Causal(segments)])
    assert_same(got, want, 5e-5)


def test_half_precision_is_nearly_as_exact_as_what_is_written_out(unoptimised):
    # Catches: a sum or a quotient that is rounded to bfloat16 before its time.
    rng = np.random.default_rng(3)
    arrays, description = qkv(rng, 2, 60, H=16), descriptions(rng, 2, 60)["live P1"]
    half = tuple(x.astype(jnp.bfloat16) for x in arrays)
    ((exact,),) = run(("explicit",), tuple(x.astype(jnp.float32) for x in half), [description])
    (mine,), (theirs,) = run(("blockwise", "explicit"), half, [description])
    assert all(x.dtype == jnp.bfloat16 for x in mine)
    for i, (a, b, true) in enumerate(zip(mine, theirs, exact)):
        ours, other = (
            float(jnp.sqrt(jnp.square(x.astype(jnp.float32) - true).mean())) for x in (a, b)
        )
        print(ours, other)
        # Of the gradient's factors one more is rounded, as in every flash attention.
        assert ours < (1.8 if i else 1.0) * other


@pytest.mark.parametrize("path", ["blockwise", "xla", "explicit", "splash"])
def test_eight_devices_equal_one(path):
    # Rows over data and fsdp, heads over tensor. Splash: its kernel knows nothing of meshes.
    rng = np.random.default_rng(4)
    T = 128 if path == "splash" else 37
    names = ("segments",) if path == "splash" else ("segments", "live P2", "dense")
    arrays, said = qkv(rng, 4, T), [descriptions(rng, 4, T)[name] for name in names]
    (want,) = run((path,), arrays, said)
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        spec = sharding.P(sharding.BATCH_AXES, None, "tensor", None)
        there = tuple(jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in arrays)
        placed = jax.tree.map(lambda x: sharding.place_rows(np.asarray(x), mesh), said)
        (got,) = run((path,), there, placed)
        assert "tensor" in str(jax.typeof(got[0][0]))
    assert_same(jax.device_get(got), want, 2e-5)


def test_masks_of_parts_are_parts_of_the_mask():
    # Catches: a description whose block of a mask is not that of the whole. The masks themselves
    # are held against lists in test_backspace.
    actions = edited(np.random.default_rng(5), 3, 30)

    @jax.jit
    def masks(actions):
        found = []
        for packed in (
            backspace.pack(*actions, BKID),
            backspace.deduplicate(*actions, BKID, 30),
            backspace.deduplicate(*actions, BKID, 15),
        ):
            marks = Marks(columns_of(packed.tokens), packed.live)
            n = packed.tokens.shape[1]
            parts = [sees(marks.part(i, min(n, i + 7)), marks.part(0, n)) for i in range(0, n, 7)]
            whole = visibility(packed.live, packed.tokens)
            found.append((packed.mask, whole, jnp.concatenate(parts, axis=1)))
        return found

    for mask, whole, parts in masks(actions):
        np.testing.assert_array_equal(whole, mask)
        np.testing.assert_array_equal(parts, mask)


def arrays_of(jaxpr):
    """The shape of every value that a program makes, in all its parts."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from arrays_of(inner)


@pytest.mark.parametrize("layout", ["causal", "p1", "p2"])
def test_training_makes_no_array_of_columns_by_columns(layout):
    # Catches: a mask, scores, or liveness as an array of [T, T] anywhere in a step of training.
    T = 3 * blockwise.BLOCK + 40
    ids = ActionIds(eos=9, backspace=BKID)
    name = "mle" if layout == "causal" else "bc"
    objective = ObjectiveConfig(name=name, layout="auto" if layout == "causal" else layout)
    int32 = jax.ShapeDtypeStruct((2, T), jnp.int32)
    batch = Batch(int32, int32, jax.ShapeDtypeStruct((2, T), jnp.float32), int32, int32, int32)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), init(LLAMA))

    def square(config):
        def loss(params, batch):
            return losses.make_loss(config, objective, ids)(params, None, batch)[0].value

        program = jax.make_jaxpr(jax.grad(loss))(params, batch)
        return [shape for shape in arrays_of(program.jaxpr) if sum(n >= T for n in shape) > 1]

    assert square(LLAMA) == []
    # What would be found: the walk is not blind.
    assert square(dataclasses.replace(LLAMA, attention="explicit"))


def hidden_and_gradients(config):
    live = descriptions(np.random.default_rng(7), 2, 21)["live P1"]
    params = init(config)
    tokens = jnp.asarray(np.random.default_rng(6).integers(0, 12, (2, 21)), jnp.int32)
    positions = jnp.zeros_like(tokens) + jnp.arange(21)

    def total(params):
        out = transformer.apply(
            params, config, tokens, positions=positions, attention=live, capture_states=(0, 1)
        )
        return jnp.sin(out.hidden).sum(), (out.hidden, out.states)

    return jax.jit(jax.grad(total, has_aux=True))(params)


@pytest.fixture(scope="module")
def written_out(unoptimised):
    return hidden_and_gradients(dataclasses.replace(LLAMA, attention="explicit", remat="none"))


@pytest.mark.parametrize(
    ("remat", "unrolled"), [("none", False), ("dots", False), ("full", False), ("none", True)]
)
def test_layers_equal_what_is_written_out(written_out, monkeypatch, remat, unrolled):
    # Catches: a way to recompute, or layers one after the other, that change a number.
    monkeypatch.setattr(transformer, "_unrolled", lambda *_: unrolled)
    got = hidden_and_gradients(dataclasses.replace(LLAMA, remat=remat))
    assert_same(got, written_out, 1e-4)


def test_passes_of_moderate_size_alone_are_unrolled():
    small = dataclasses.replace(LLAMA, n_layers=8)
    assert transformer._unrolled(small, 1 << 20)
    assert not transformer._unrolled(small, 1 << 10)
    assert not transformer._unrolled(small, 1 << 24)
    assert not transformer._unrolled(dataclasses.replace(small, n_layers=9), 1 << 20)
    assert not transformer._unrolled(dataclasses.replace(small, remat="dots"), 1 << 20)


def test_segments_and_edits_are_refused_with_a_cache():
    # Catches: segments that are ignored, since with a cache only what is live counts.
    params, prompts = init(LLAMA), jnp.zeros((1, 2), jnp.int32)
    cache, _ = jax.eval_shape(lambda: transformer.prefill(params, LLAMA, prompts, 4))
    live = jax.eval_shape(lambda: backspace.pack(prompts, prompts, prompts, BKID).live)

    def with_cache(cache, description):
        return transformer.apply(
            params, LLAMA, prompts, positions=prompts, attention=description, cache=cache
        )

    jax.eval_shape(with_cache, cache, Causal())
    for description in (Causal(prompts), live):
        with pytest.raises(ValueError, match="segments cannot"):
            jax.eval_shape(with_cache, cache, description)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_turned_weights_give_the_same_products(dtype):
    # Catches: input and output axes in another order, the query's and the output's above all.
    rng = np.random.default_rng(8)
    for shape, n_in in (((6, 4, 2), 1), ((4, 2, 6), 2), ((6, 10), 1)):
        w = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        x = jnp.asarray(rng.standard_normal((3, 2, *shape[:n_in])), dtype)
        got = decoding_weights.Turned.of(w, n_in).apply(x)
        want = sharding.linear(x, w.astype(x.dtype), n_in)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, atol=1e-5 if dtype == "float32" else 0.1)


def test_decoding_turns_every_projection_and_nothing_else():
    config = dataclasses.replace(LLAMA, qkv_bias=True)
    params = init(config)
    layers = decoding_weights.unstacked(params)["layers"]
    turned = [
        sum(
            isinstance(w, decoding_weights.Turned) for part in layer.values() for w in part.values()
        )
        for layer in layers
    ]
    assert turned == [7, 7]
    for name, inputs in (("query", 16), ("output", 4 * 4)):
        want = params["layers"]["attention"][name][1].reshape(inputs, -1).T
        np.testing.assert_array_equal(layers[1]["attention"][name].matrix, want)
    assert isinstance(params["layers"]["attention"]["query"], jax.Array)


def test_each_platform_has_its_path(monkeypatch):
    # Catches: a kernel for masks, rows, models or devices that it does not take.
    half = dataclasses.replace(LLAMA, compute_dtype="bfloat16", head_dim=64)
    live = descriptions(np.random.default_rng(0), 1, 8)["live P1"]
    assert attention.choose(half, Causal(), 256) == "blockwise"

    def on(platform, capability="9.0", version="cuda 12080"):
        client = type("Client", (), {"platform_version": version})
        device = type("Device", (), {"compute_capability": capability, "client": client})
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])

    on("gpu")
    assert attention.choose(half, Causal(), 256) == "cudnn"
    assert attention.choose(half, Causal(), 255) == "blockwise"
    assert attention.choose(half, live, 256) == "blockwise"
    assert attention.choose(LLAMA, Causal(), 256) == "blockwise"
    for wrong in ({"head_dim": 12}, {"head_dim": 256}):
        assert attention.choose(dataclasses.replace(half, **wrong), Causal(), 8) == "blockwise"
    on("gpu", capability="7.5")
    assert attention.choose(half, Causal(), 256) == "blockwise"
    on("gpu", version="rocm 60300")
    assert attention.choose(half, Causal(), 256) == "blockwise"
    on("tpu")
    assert attention.choose(half, Causal(), 256) == "splash"
    assert attention.choose(half, Causal(), 200) == "blockwise"
    assert attention.choose(half, live, 256) == "blockwise"


@pytest.mark.parametrize(
    ("platform", "changes", "rows", "message"),
    [
        ("cpu", {"attention": "cudnn", "compute_dtype": "bfloat16"}, 8, "gpu, and this is a cpu"),
        ("cpu", {"attention": "splash"}, 128, "tpu, and this is a cpu"),
        ("gpu", {"attention": "cudnn"}, 8, 'compute_dtype="bfloat16"'),
        ("gpu", {"attention": "cudnn", "compute_dtype": "float16", "head_dim": 12}, 8, "got 12"),
        ("tpu", {"attention": "splash"}, 200, "nearest is 256"),
        ("tpu", {"attention": "splash"}, "live", "causal masks"),
    ],
)
def test_a_path_that_cannot_run_is_refused(monkeypatch, platform, changes, rows, message):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    config: ModelConfig = dataclasses.replace(LLAMA, **changes)
    description = Causal()
    if rows == "live":
        description, rows = descriptions(np.random.default_rng(0), 1, 8)["live P1"], 128
    with pytest.raises(ConfigError, match=message) as error:
        attention.choose(config, description, rows)
    assert "auto" in str(error.value)
