"""Causality, caches, packing, captures and adapters of the decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.config import ConfigError, LoraConfig
from reasoning_jax.model import attention, lora, readout, rope, spec, transformer
from reasoning_jax.model import cache as kv
from tests.small import LLAMA, MODELS, apply, init, random_tree

T = 8


def tokens_for(config, batch=2, length=T, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, config.vocab_size)


def positions_for(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def hidden(params, config, tokens, **kwargs):
    return apply(params, config, tokens, positions=positions_for(tokens), **kwargs).hidden


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    config = MODELS[request.param]
    return config, init(config)


def test_gradients_flow_backwards_in_time_only(model):
    config, params = model
    x = transformer.embed(params, config, tokens_for(config, batch=1))

    @jax.jit
    def output_at(x, t):
        out = apply(params, config, embeddings=x, positions=jnp.arange(T)[None])
        return (out.hidden[0, t] * jnp.arange(config.d_model)).sum()

    gradient = jax.jit(jax.grad(output_at))
    for t in (0, 3, T - 1):
        reach = jnp.abs(gradient(x, t)[0]).sum(-1)
        assert (reach[: t + 1] > 1e-6).all()
        assert (reach[t + 1 :] == 0).all()


def test_segments_equal_separate_sequences(model):
    config, params = model
    tokens = tokens_for(config, batch=1)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0]])
    joined = apply(
        params, config, tokens, positions=positions, attention=attention.Causal(segments)
    ).hidden
    first, second = hidden(params, config, tokens[:, :3]), hidden(params, config, tokens[:, 3:7])
    np.testing.assert_allclose(joined[:, :3], first, atol=2e-5)
    np.testing.assert_allclose(joined[:, 3:7], second, atol=2e-5)


def test_cache_equals_recomputation_with_ragged_rows(model):
    config, params = model
    tokens = tokens_for(config, batch=2)
    want = hidden(params, config, tokens)
    prompt = jnp.array([3, 5])
    positions = positions_for(tokens[:, :5])
    out = apply(params, config, tokens[:, :5], positions=positions, return_keys=True)
    cache = kv.rewind(kv.of_columns(out.keys, out.values, T + 3), prompt)
    for step in range(3):
        at = prompt + step
        out = apply(
            params, config, tokens[jnp.arange(2), at][:, None],
            positions=at[:, None], cache=cache,
        )  # fmt: skip
        cache = out.cache
        np.testing.assert_allclose(out.hidden[:, 0], want[jnp.arange(2), at], atol=2e-5)
    assert cache.length.tolist() == [6, 8]


def test_embeddings_in_place_of_tokens(model):
    config, params = model
    tokens = tokens_for(config)
    out = apply(
        params, config, embeddings=transformer.embed(params, config, tokens),
        positions=positions_for(tokens),
    )  # fmt: skip
    np.testing.assert_allclose(out.hidden, hidden(params, config, tokens), atol=2e-6)
    with pytest.raises(ValueError, match="either tokens or embeddings"):
        apply(params, config, positions=positions_for(tokens))


def test_captures_are_of_the_layers_asked_for(model):
    config, params = model
    tokens = tokens_for(config)
    out = apply(
        params, config, tokens, positions=positions_for(tokens),
        capture_states=(1, 0), capture_weights=(0,),
    )  # fmt: skip
    np.testing.assert_allclose(out.hidden, hidden(params, config, tokens), atol=2e-5)
    # A model cut after its first layer has the first layer's state as its last.
    short = dataclasses.replace(config, n_layers=1)
    cut = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    alone = apply(cut, short, tokens, positions=positions_for(tokens), capture_states=(0,))
    np.testing.assert_allclose(out.states[1], alone.states[0], atol=2e-5)
    final = transformer._norm(params["final_norm"], config, out.states[0])
    np.testing.assert_allclose(final, out.hidden, atol=2e-5)
    weights = out.weights[0]
    assert weights.shape == (2, config.n_heads, T, T)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert (jnp.triu(weights, 1) == 0).all()
    with pytest.raises(ValueError, match="layer 2 does not exist"):
        apply(params, config, tokens, positions=positions_for(tokens), capture_states=(2,))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    params, tokens = init(LLAMA), tokens_for(LLAMA)

    def loss(params, config):
        return jnp.sin(hidden(params, config, tokens)).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    want = gradient(params, LLAMA)
    got = gradient(params, dataclasses.replace(LLAMA, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), want, got)


def test_bfloat16_compute_keeps_float32_parameters_and_log_probs():
    config = dataclasses.replace(LLAMA, compute_dtype="bfloat16")
    params, tokens = init(config), tokens_for(config)
    out = hidden(params, config, tokens)
    assert out.dtype == jnp.bfloat16
    scores = readout.score_labels(params, config, out, tokens)
    assert scores.log_prob.dtype == jnp.float32
    exact = readout.score_labels(params, LLAMA, hidden(params, LLAMA, tokens), tokens)
    np.testing.assert_allclose(scores.log_prob, exact.log_prob, atol=0.3)


@pytest.mark.parametrize("chunk", [2, 6, 1000])
def test_chunked_scores_equal_whole_logits(model, chunk):
    config, params = model
    tokens = tokens_for(config)
    out = hidden(params, config, tokens)
    chunked = dataclasses.replace(config, loss_chunk_tokens=chunk)
    log_probs = jax.nn.log_softmax(readout.logits(params, config, out), axis=-1)
    want = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

    def total(hidden):
        return jnp.sin(readout.score_labels(params, chunked, hidden, tokens).log_prob).sum()

    scores = jax.jit(readout.score_labels, static_argnums=1)(params, chunked, out, tokens)
    np.testing.assert_allclose(scores.log_prob, want, atol=1e-5)
    assert (scores.correct == (log_probs.argmax(-1) == tokens)).all()

    def whole(hidden):
        log_probs = jax.nn.log_softmax(readout.logits(params, config, hidden), axis=-1)
        return jnp.sin(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)).sum()

    np.testing.assert_allclose(
        jax.jit(jax.grad(total))(out), jax.jit(jax.grad(whole))(out), atol=1e-5
    )


def test_chunks_keep_the_vocabulary_array_small():
    config = dataclasses.replace(LLAMA, vocab_size=5000, loss_chunk_tokens=64)
    params = spec.abstract_params(transformer.param_specs(config))

    def loss(params, hidden, tokens):
        return readout.score_labels(params, config, hidden, tokens).log_prob.sum()

    tokens = jax.ShapeDtypeStruct((4, 512), jnp.int32)
    states = jax.ShapeDtypeStruct((4, 512, config.d_model), jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = gradient.lower(params, states, tokens).compile()
    whole = 4 * 512 * 5000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def test_llama3_rope_scaling_limits():
    config = dataclasses.replace(
        LLAMA, head_dim=64, rope_factor=8.0, rope_original_positions=256, rope_theta=500_000.0
    )
    plain = rope.frequencies(dataclasses.replace(config, rope_factor=1.0))
    scaled = rope.frequencies(config)
    wavelength = 2 * np.pi / plain
    fast, slow = wavelength < 256 / 4, wavelength > 256 / 1
    assert fast.any()
    assert slow.any()
    assert (~fast & ~slow).any()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    middle = (scaled / plain)[~fast & ~slow]
    assert ((middle > 1 / 8) & (middle < 1)).all()


def test_rope_depends_on_distance_only():
    config = dataclasses.replace(LLAMA, n_layers=1)
    params, tokens = init(config), tokens_for(config)
    near = apply(params, config, tokens, positions=positions_for(tokens)).hidden
    far = apply(params, config, tokens, positions=positions_for(tokens) + 90).hidden
    np.testing.assert_allclose(near, far, atol=1e-4)


def test_the_backspace_row_is_never_an_input():
    config = dataclasses.replace(LLAMA, tied_embeddings=False)
    params, tokens = init(config), tokens_for(config)
    backspace_id = config.vocab_size - 1
    tokens = jnp.where(tokens == backspace_id, 0, tokens)

    def loss(params):
        out = hidden(params, config, tokens)
        return readout.score_labels(
            params, config, out, jnp.full_like(tokens, backspace_id)
        ).log_prob.sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert (grads["embedding"]["tokens"][backspace_id] == 0).all()
    assert (grads["unembedding"][:, backspace_id] != 0).any()


def test_adapters_start_at_nothing_and_merge_to_the_same_function(model):
    config, params = model
    settings = LoraConfig(rank=3, alpha=6.0)
    specs = lora.lora_specs(config, settings)
    tokens = tokens_for(config)
    rng = np.random.default_rng(3)
    pairs = random_tree(specs, rng)
    zero = jax.tree.map(jnp.zeros_like, pairs)
    flat, ups = spec.flatten(pairs), spec.flatten(zero)
    fresh = lora.Lora(
        spec.unflatten({p: ups[p] if p.endswith("/up") else x for p, x in flat.items()}), 2.0
    )
    plain = hidden(params, config, tokens)
    np.testing.assert_allclose(hidden(params, config, tokens, lora=fresh), plain, atol=1e-6)
    assert {s.init for p, s in spec.flatten(specs).items() if p.endswith("/up")} == {"zeros"}
    trained = lora.Lora(pairs, 2.0)
    got = hidden(params, config, tokens, lora=trained)
    assert jnp.abs(got - plain).max() > 0.05
    np.testing.assert_allclose(
        got, hidden(lora.merge(params, trained), config, tokens), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(ConfigError, match="matches no projection"):
        lora.lora_specs(config, LoraConfig(rank=1, targets=("nothing",)))


def test_parameters_do_not_depend_on_each_other():
    """A key of its own path: leaving one parameter out moves no other."""
    specs = {name: spec.ParamSpec((3, 2), ("embed", "ff")) for name in ("a", "b", "c")}
    whole = spec.init_params(jax.random.key(0), specs)
    part = spec.init_params(jax.random.key(0), {"a": specs["a"], "c": specs["c"]})
    assert (part["a"] == whole["a"]).all()
    assert (part["c"] == whole["c"]).all()
    assert (whole["a"] != whole["b"]).any()
