"""The decoder: parameter specs and `apply`. Layers are stacked on a leading axis and scanned, but
with a cache they are run one by one.

One implementation covers GPT-2, Llama 2/3, SmolLM2, Qwen 2/2.5 and Qwen 3; `ModelConfig` says which
parts are on. Outputs are hidden states; `readout.py` turns them into logits or log-probabilities.
Nothing here samples, and nothing here computes a loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from reasoning_jax import sharding
from reasoning_jax.config import ModelConfig
from reasoning_jax.model import attention as attn
from reasoning_jax.model import cache as kv
from reasoning_jax.model import rope
from reasoning_jax.model.blockwise import SAVED
from reasoning_jax.model.cache import Cache
from reasoning_jax.model.decoding_weights import Turned, unstacked
from reasoning_jax.model.spec import Params, ParamSpec
from reasoning_jax.model.visibility import visibility

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from reasoning_jax.model.lora import Lora

# With "dots" attention's own products are not saved, but what its gradient begins with.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(*SAVED),
    ),
}


CAUSAL = attn.Causal()


@struct.dataclass
class Output:
    """What `apply` returns. `hidden` is after the final norm: exactly what the unembedding reads;
    `residual` before it.

    `states[i]` is the residual stream after the i-th captured layer and `weights[i]` the attention
    probabilities of the i-th captured layer, in the order asked for. `keys` and `values` are those
    of the T new columns, where they were asked for.
    """

    hidden: Float[Array, "B T D"]
    residual: Float[Array, "B T D"]
    cache: Cache | None = None
    keys: Float[Array, "L B T K H"] | None = None
    values: Float[Array, "L B T K H"] | None = None
    states: tuple[Float[Array, "B T D"], ...] = ()
    weights: tuple[Float[Array, "B N T S"], ...] = ()


def param_specs(config: ModelConfig) -> Params:
    """The tree of `ParamSpec`s of a model; layer parameters have a leading `layers` axis.

    Tree (shapes without the layer axis; biases where the config has them):
      embedding/tokens [V, D], embedding/positions [P, D] (learned positions), embedding/pairs
        [pair_rows, D]
      layers/attention_norm/{scale,bias}, layers/mlp_norm/{scale,bias} [D]
      layers/attention/query [D, N, H], key and value [D, K, H], output [N, H, D], *_bias,
        query_norm and key_norm [H] (QK norm)
      layers/mlp/gate [D, F] (SwiGLU), up [D, F], down [F, D], up_bias, down_bias
      final_norm/{scale,bias}, unembedding [D, V] (untied)
    """
    c, L = config, config.n_layers
    fan = lambda n: 1.0 / math.sqrt(n)  # noqa: E731
    residual = 1.0 / math.sqrt(2 * L)

    def layered(shape: tuple[int, ...], axes: tuple[str, ...], init: str = "normal", std=0.0):
        return ParamSpec((L, *shape), ("layers", *axes), init, std)

    def norm(stack: bool) -> Params:
        make = layered if stack else ParamSpec
        specs: Params = {"scale": make((c.d_model,), ("norm",), "ones")}
        if c.norm == "layernorm":
            specs["bias"] = make((c.d_model,), ("norm",), "zeros")
        return specs

    attention: Params = {
        "query": layered((c.d_model, c.n_heads, c.head_dim), ("embed", "heads", "head_dim"),
                         std=fan(c.d_model)),
        "key": layered((c.d_model, c.n_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"),
                       std=fan(c.d_model)),
        "value": layered((c.d_model, c.n_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"),
                         std=fan(c.d_model)),
        "output": layered((c.n_heads, c.head_dim, c.d_model), ("heads", "head_dim", "embed"),
                          std=residual * fan(c.n_heads * c.head_dim)),
    }  # fmt: skip
    if c.qkv_bias:
        attention["query_bias"] = layered((c.n_heads, c.head_dim), ("heads", "head_dim"), "zeros")
        for name in ("key_bias", "value_bias"):
            attention[name] = layered((c.n_kv_heads, c.head_dim), ("kv_heads", "head_dim"), "zeros")
    if c.output_bias:
        attention["output_bias"] = layered((c.d_model,), ("norm",), "zeros")
    if c.qk_norm:
        attention["query_norm"] = layered((c.head_dim,), ("head_dim",), "ones")
        attention["key_norm"] = layered((c.head_dim,), ("head_dim",), "ones")

    mlp: Params = {
        "up": layered((c.d_model, c.d_ff), ("embed", "ff"), std=fan(c.d_model)),
        "down": layered((c.d_ff, c.d_model), ("ff", "embed"), std=residual * fan(c.d_ff)),
    }
    if c.mlp == "swiglu":
        mlp["gate"] = layered((c.d_model, c.d_ff), ("embed", "ff"), std=fan(c.d_model))
    if c.output_bias:
        mlp["up_bias"] = layered((c.d_ff,), ("ff",), "zeros")
        mlp["down_bias"] = layered((c.d_model,), ("norm",), "zeros")

    embedding: Params = {
        "tokens": ParamSpec((c.vocab_size, c.d_model), ("vocab", "embed"), std=c.init_std)
    }
    if c.position == "learned":
        embedding["positions"] = ParamSpec(
            (c.max_positions, c.d_model), ("positions", "embed"), std=c.init_std
        )
    if c.pair_rows:
        embedding["pairs"] = ParamSpec(
            (c.pair_rows, c.d_model), ("positions", "embed"), std=c.init_std
        )
    specs: Params = {
        "embedding": embedding,
        "layers": {
            "attention_norm": norm(True),
            "attention": attention,
            "mlp_norm": norm(True),
            "mlp": mlp,
        },
        "final_norm": norm(False),
    }
    if not c.tied_embeddings:
        specs["unembedding"] = ParamSpec(
            (c.d_model, c.vocab_size), ("embed", "vocab"), std=c.init_std
        )
    return specs


def embed(params: Params, config: ModelConfig, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token embeddings in the compute dtype, without positions.

    An id V + i * pair_rows + j (an input only) is the pair (i, j): row i and row j of a second.
    """
    table = params["embedding"]["tokens"]
    if not config.pair_rows:
        return sharding.lookup(table, tokens).astype(config.compute_dtype)
    is_pair = tokens >= config.vocab_size
    first, second = jnp.divmod(jnp.maximum(tokens - config.vocab_size, 0), config.pair_rows)
    x = sharding.lookup(table, jnp.where(is_pair, first, tokens))
    y = sharding.lookup(params["embedding"]["pairs"], second)
    return (x + jnp.where(is_pair[..., None], y, 0.0)).astype(config.compute_dtype)


def apply(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B T"] | None = None,
    *,
    embeddings: Float[Array, "B T D"] | None = None,
    positions: Int[Array, "B T"],
    attention: attn.Description = CAUSAL,
    cache: Cache | None = None,
    before: tuple[attn.KeyValues, ...] = (),
    return_keys: bool = False,
    lora: Lora | None = None,
    capture_states: tuple[int, ...] = (),
    capture_weights: tuple[int, ...] = (),
) -> Output:
    """Run the decoder on tokens, or on embeddings in their place (Coconut's latent feedback).

    With a cache, the T new tokens see its live slots, all of them, and each other as `attention`
    says; they go to the slots from `cache.length[b]` on, and the returned cache is T longer. With a
    `Dense` mask they are alternatives: the cache is only read, and their keys are returned.

    Args:
      positions: explicit, because packing and padding decide them: RoPE angles or rows of the
        learned table.
      before: keys and values of earlier columns of the same rows, which all T columns see. They are
        constants to the scan over layers, so that a loop over `apply` need not carry them. Not
        together with a cache.
      return_keys: give back the new columns' own, to stand before what follows.
      lora: adapters of `lora.py`, or None.
      capture_states, capture_weights: layer indices, static.

    Raises:
      ValueError: not exactly one of tokens and embeddings; a captured layer that does not exist;
        with a cache, segments, or something before or captured.
    """
    if (tokens is None) == (embeddings is None):
        raise ValueError("apply takes either tokens or embeddings")
    if cache is not None and before:
        raise ValueError("apply takes either a cache or what stands before")
    if cache is not None and (capture_states or capture_weights):
        raise ValueError("nothing is captured with a cache")
    for layer in (*capture_states, *capture_weights):
        if not 0 <= layer < config.n_layers:
            raise ValueError(f"layer {layer} does not exist; the model has {config.n_layers}")
    if tokens is not None:
        x = embed(params, config, tokens)
    else:
        assert embeddings is not None
        x = embeddings.astype(config.compute_dtype)
    if config.position == "learned":
        x = x + sharding.lookup(params["embedding"]["positions"], positions).astype(x.dtype)
    rotation = rope.rotation(config, positions) if config.position == "rope" else None

    B, T, _ = x.shape
    rows = sharding.axis_of(x, 0)
    lora_layers = None if lora is None else lora.params["layers"]
    layer_of = functools.partial(_layer, config, rotation, 1.0 if lora is None else lora.scale)
    if cache is not None:
        own = None
        if isinstance(attention, attn.Dense):
            own = sharding.reshard(attention.mask, sharding.P(rows, None, None))
        elif not isinstance(attention, attn.Causal) or attention.segments is not None:
            raise ValueError("segments cannot be combined with a cache; use attention.Dense")
        return _cached(params, config, x, lora_layers, layer_of, cache, own)

    # However it came here, each device has what its own rows see.
    attention = jax.tree.map(
        lambda a: sharding.reshard(a, sharding.P(rows, *[None] * (a.ndim - 1))), attention
    )
    alone = not (before or capture_weights)
    path = attn.choose(config, attention, T) if alone else "explicit"
    # Once for all layers, where it is an array at all.
    mask = visibility(attention, x) if path == "explicit" else None
    captured_states = tuple(jnp.zeros_like(x) for _ in capture_states)
    n_before = sum(part.keys.shape[3] for part in before)
    captured_weights = tuple(
        _zeros((B, config.n_heads, T, n_before + T), (rows, "tensor", None, None))
        for _ in capture_weights
    )

    unrolled = _unrolled(config, x.size)
    remat = config.remat
    if remat == "auto":
        remat = "dots" if jax.default_backend() == "cpu" and not unrolled else "none"
    policy = REMAT_POLICIES.get(remat)

    def layer_step(carry, xs):
        x, states, weights = carry
        index, layer, layer_lora, earlier = xs

        def block(x):
            def mix(q, k, v):
                if mask is None:
                    return attn.attend_within(q, k, v, attention, path), None
                parts = [
                    attn.KeyValues(old_keys, old_values, part.visible)
                    for (old_keys, old_values), part in zip(earlier, before)
                ]
                own = attn.KeyValues.of(k, v, mask)
                return attn.attend(q, (*parts, own), bool(capture_weights))

            return layer_of(layer, layer_lora, x, mix)

        if policy is not None:
            block = jax.checkpoint(block, policy=policy)
        x, probs, new = block(x)
        states = tuple(
            jnp.where(index == layer_no, x, s) for s, layer_no in zip(states, capture_states)
        )
        weights = tuple(
            w if probs is None else jnp.where(index == layer_no, probs, w)
            for w, layer_no in zip(weights, capture_weights)
        )
        return (x, states, weights), new if return_keys else None

    earlier = tuple((part.keys, part.values) for part in before)
    (x, states, weights), new = lax.scan(
        layer_step,
        (x, captured_states, captured_weights),
        (jnp.arange(config.n_layers), params["layers"], lora_layers, earlier),
        unroll=unrolled,
    )
    keys, values = (None, None) if new is None else new
    hidden = final_norm(params, config, x)
    return Output(hidden, x, None, keys, values, states, weights)


def _unrolled(config: ModelConfig, size: int) -> bool:
    """Whether the layers of a pass over `size` numbers are laid out one after the other.

    On CPUs a scan copies what each layer leaves for the gradient into arrays of all layers, a tenth
    of a step; without it, nothing need be computed again, in twice the memory (temporaries of a
    gradient: 1.2 GiB for 6 layers x 384 and 16 x 256, else 0.6; 4.3 GiB at the largest, 8 layers x
    1024, else 1.9). Small passes are dominated by compiling, and large ones by memory. Who asks for
    rematerialisation gets it: XLA undoes it where it sees both passes of a layer side by side.
    """
    fits = config.n_layers <= 8 and 1 << 19 <= size <= 1 << 22
    return jax.default_backend() == "cpu" and config.remat in ("auto", "none") and fits


def prefill(
    params: Params,
    config: ModelConfig,
    prompts: Int[Array, "B P"],
    slots: int,
    lora: Lora | None = None,
) -> tuple[Cache, Output]:
    """Right-padded prompts in one pass: a cache of `slots` slots that begins with them, and what
    `apply` returns.
    """
    positions = jnp.zeros_like(prompts) + jnp.arange(prompts.shape[1])[None, :]
    out = apply(params, config, prompts, positions=positions, return_keys=True, lora=lora)
    assert out.keys is not None
    assert out.values is not None
    return kv.of_columns(out.keys, out.values, slots), out


def _cached(
    params: Params,
    config: ModelConfig,
    x: jax.Array,
    lora_layers: Any,
    layer_of: Callable[..., tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]],
    cache: Cache,
    own: jax.Array | None,
) -> Output:
    """The layers one by one, not as a scan: neither the cache nor a layer's weights are copied.

    For the same reason a layer's keys are written before they are read: XLA writes in place what
    nothing reads afterwards. With `own` (what the new columns see of each other) they are not.
    """
    layers = unstacked(params)["layers"]
    adapters = (None,) * len(layers)
    if lora_layers is not None:
        adapters = unstacked({"layers": lora_layers})["layers"]
    slot = jnp.arange(cache.slots)
    live = slot < cache.length[:, None]
    column = cache.length[:, None] + jnp.arange(x.shape[1])[None, :]
    seen = slot <= column[..., None]
    new, written = [], []
    for layer, adapter, keys, values in zip(
        layers, adapters, cache.keys, cache.values, strict=True
    ):

        def mix(
            q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array = keys,
            values: jax.Array = values,
        ) -> tuple[jax.Array, None]:  # fmt: skip
            if own is not None:
                parts = attn.KeyValues(keys, values, live), attn.KeyValues.of(k, v, own)
                return attn.attend(q, parts)[0], None
            keys, values = (kv.write(*x, cache.length) for x in ((keys, k), (values, v)))
            written.append((keys, values))
            return attn.attend(q, (attn.KeyValues(keys, values, seen),))[0], None

        x, _, made = layer_of(layer, adapter, x, mix)
        new.append(made)
    hidden = final_norm(params, config, x)
    if own is None:
        keys, values = zip(*written)
        return Output(hidden, x, Cache(keys, values, cache.length + x.shape[1]))
    keys, values = zip(*new)
    return Output(hidden, x, None, jnp.stack(keys), jnp.stack(values))


def final_norm(params: Params, config: ModelConfig, residual: jax.Array) -> jax.Array:
    """What the unembedding reads, of the residual stream after the last layer, in its dtype."""
    return _norm(params["final_norm"], config, residual)


def _layer(
    config: ModelConfig,
    rotation: tuple[jax.Array, jax.Array] | None,
    scale: float,
    p: Params,
    lora: Params | None,
    x: jax.Array,
    mix: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]],
) -> tuple[jax.Array, jax.Array | None, tuple[jax.Array, jax.Array]]:
    """One pre-norm block: its output, the weights that `mix` gives, and its keys and values.

    `mix` attends: from queries, keys and values of the columns ([B, T, N or K, H]) to what each
    query gathers, and the weights if they are wanted.
    """
    p_attn, p_mlp = p["attention"], p["mlp"]
    lora_attn = (lora or {}).get("attention", {})
    lora_mlp = (lora or {}).get("mlp", {})

    h = _norm(p["attention_norm"], config, x)
    q = _project(h, p_attn, lora_attn, "query", scale)
    k = _project(h, p_attn, lora_attn, "key", scale)
    v = _project(h, p_attn, lora_attn, "value", scale)
    if config.qk_norm:
        q = _rms(q, p_attn["query_norm"], config.norm_eps)
        k = _rms(k, p_attn["key_norm"], config.norm_eps)
    if rotation is not None:
        q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
    mixed, weights = mix(q, k, v)
    x = x + _project(mixed, p_attn, lora_attn, "output", scale, n_in=2)

    h = _norm(p["mlp_norm"], config, x)
    up = _project(h, p_mlp, lora_mlp, "up", scale)
    if config.mlp == "swiglu":
        hidden = jax.nn.silu(_project(h, p_mlp, lora_mlp, "gate", scale)) * up
    else:
        hidden = jax.nn.gelu(up, approximate=True)
    x = x + _project(hidden, p_mlp, lora_mlp, "down", scale)
    return x, weights, (k, v)


def _project(
    x: jax.Array, p: Params, lora: Params, name: str, scale: float, n_in: int = 1
) -> jax.Array:
    """x @ W (+ low-rank update) (+ bias) for the projection `name` of a layer."""
    w = p[name]
    if isinstance(w, Turned):
        y = w.apply(x)
    else:
        y = sharding.linear(x, sharding.gather_fsdp(w).astype(x.dtype), n_in)
    if name in lora:
        down = sharding.gather_fsdp(lora[name]["down"]).astype(x.dtype)
        up = sharding.gather_fsdp(lora[name]["up"]).astype(x.dtype)
        y = y + scale * sharding.linear(sharding.linear(x, down, n_in), up)
    if f"{name}_bias" in p:
        y = y + p[f"{name}_bias"].astype(x.dtype)
    return y


def _norm(p: Params, config: ModelConfig, x: jax.Array) -> jax.Array:
    if config.norm == "rmsnorm":
        return _rms(x, p["scale"], config.norm_eps)
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + config.norm_eps)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def _rms(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def _zeros(shape: tuple[int, ...], spec: tuple[Any, ...]) -> jax.Array:
    kwargs = {"out_sharding": sharding.P(*spec)} if sharding.has_mesh() else {}
    return jnp.zeros(shape, jnp.float32, **kwargs)
