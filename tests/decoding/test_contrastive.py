"""Contrastive search = greedy at k 1 or alpha 0 = full recompute in numpy = transformers'."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding, weights
from reasoning_jax.config import LoraConfig, SamplingConfig
from reasoning_jax.decoding.actions import FORBIDDEN
from reasoning_jax.decoding.contrastive import contrastive_scores, make_contrastive_sampler
from reasoning_jax.decoding.sampler import ActionIds, make_sampler
from reasoning_jax.model import lora as lora_lib
from reasoning_jax.model import readout, spec, transformer
from tests.decoding.test_sampler import biased, random_prompts
from tests.small import LLAMA, MODELS, apply, init, random_tree
from tests.weights.support import GOLDEN

EOS, BKID, NEVER = 9, 10, (11,)
IDS = ActionIds(EOS, BKID, NEVER)
A = 10
SEARCH = SamplingConfig(
    method="contrastive", contrastive_candidates=4, contrastive_penalty=0.6, max_actions=A
)
WIDTH = 5 + A + 1
MESH_LLAMA = dataclasses.replace(LLAMA, d_ff=32)


def arrays_of(prompts, width=None):
    width = width or max(map(len, prompts))
    return [
        np.array([p + [0] * (width - len(p)) for p in prompts], np.int32),
        np.array([len(p) for p in prompts], np.int32),
        np.array([len(p) - 1 for p in prompts], np.int32),
        np.arange(len(prompts), dtype=np.int32),
    ]


def search(config, params, prompts, sampling=SEARCH, ids=IDS, width=None, lora=None):
    run = make_contrastive_sampler(config, sampling, ids)
    arrays = map(jnp.asarray, arrays_of(prompts, width))
    return jax.device_get(run(params, *arrays, jax.random.key(0), lora))


def texts(out):
    return [a[:n].tolist() for a, n in zip(out.actions, out.length)]


def some_prompts(seed, rows=8):
    return random_prompts(np.random.default_rng(seed), rows)[0]


def hidden_of(config, params, sequences):
    """One shape for all, so that one program is compiled."""
    rows = sequences + [[]] * (config.vocab_size - len(sequences))
    padded = jnp.array([s + [0] * (WIDTH - len(s)) for s in rows])
    positions = jnp.broadcast_to(jnp.arange(WIDTH), padded.shape)
    return apply(params, config, padded, positions=positions).hidden


def oracle(config, params, prompt, sampling, ids=IDS):
    """Equation 5 with plain lists: everything computed anew for every candidate of every step.

    Returns actions, log-probabilities, whether the last was forced, and the smallest margin by
    which a decision was taken.
    """
    never = [i for i in (*ids.never, ids.backspace) if i is not None]
    text, actions, log_probs, margin = list(prompt), [], [], np.inf
    new_tokens = sampling.max_new_tokens or sampling.max_actions
    while True:
        hidden = hidden_of(config, params, [text])[:, : len(text)]
        logits = np.array(readout.logits(params, config, hidden[:, -1])[0], np.float64)
        logits[never] = -np.inf
        p = np.exp(logits - logits.max())
        p /= p.sum()
        candidates = np.argsort(-p, kind="stable")[: sampling.contrastive_candidates]
        candidates = [int(v) for v in candidates if p[v] > 0]
        ahead = hidden_of(config, params, [[*text, v] for v in candidates])
        scores = []
        for v, h in zip(candidates, np.array(ahead[:, len(text)], np.float64)):
            context = np.array(hidden[0], np.float64)
            cosines = context @ h / np.linalg.norm(context, axis=1) / np.linalg.norm(h)
            alpha = sampling.contrastive_penalty
            scores.append((1 - alpha) * p[v] - alpha * cosines.max())
        ordered = sorted(scores, reverse=True)
        margin = min([margin, *(a - b for a, b in itertools.pairwise(ordered))])
        action = candidates[int(np.argmax(scores))]
        wanted = action
        if len(actions) == sampling.max_actions - 1 or len(text) - len(prompt) >= new_tokens:
            action = ids.eos
        actions.append(action)
        log_probs.append(np.log(p[action]))
        text.append(action)
        if action == ids.eos:
            return actions, log_probs, wanted != action, margin


@pytest.mark.parametrize(
    ("name", "penalty", "new_tokens"),
    [("llama", 0.2, 0), ("llama", 0.6, 2), ("llama", 1.0, 0), ("gpt2", 0.6, 0), ("qwen3", 0.6, 4)],
)
def test_it_equals_a_full_recompute_in_numpy(name, penalty, new_tokens):
    config = MODELS[name]
    params, prompts = init(config), some_prompts(0)
    assert len({len(p) for p in prompts}) > 2, "padding must differ between the rows"
    sampling = dataclasses.replace(SEARCH, contrastive_penalty=penalty, max_new_tokens=new_tokens)
    out = search(config, params, prompts, sampling)
    for b, prompt in enumerate(prompts):
        actions, log_probs, forced, margin = oracle(config, params, prompt, sampling)
        assert margin > 1e-5, "too close for float32; take another seed"
        assert texts(out)[b] == actions
        np.testing.assert_allclose(out.log_probs[b, : len(actions)], log_probs, atol=1e-5)
        standing = out.tokens[b, : out.token_count[b]].tolist()
        assert standing == prompt + actions
        assert out.forced[b, : len(actions)].tolist() == [False] * (len(actions) - 1) + [forced]
        assert not out.tokens[b, out.token_count[b] :].any(), "written after <eos>"
    greedy = dataclasses.replace(sampling, contrastive_penalty=0.0)
    unlike = [a != b for a, b in zip(texts(out), texts(search(config, params, prompts, greedy)))]
    assert sum(unlike) > 2, "the penalty changes too little to be tested"


@pytest.mark.parametrize("change", [{"contrastive_candidates": 1}, {"contrastive_penalty": 0.0}])
def test_one_candidate_or_no_penalty_is_greedy_search(change):
    params, prompts = init(LLAMA), some_prompts(1)
    sampling = dataclasses.replace(SEARCH, **change)
    out = search(LLAMA, params, prompts, sampling)
    # Greedy search that may not delete: <backspace> is one of the ids never drawn.
    greedy = make_sampler(
        LLAMA, SamplingConfig(temperature=0.0, max_actions=A), ActionIds(EOS, None, (BKID, *NEVER))
    )
    want = jax.device_get(greedy(params, *map(jnp.asarray, arrays_of(prompts)), jax.random.key(0)))
    assert texts(out) == texts(want)
    np.testing.assert_allclose(out.log_probs, want.log_probs, atol=1e-5)
    for field in ("forced", "length", "token_count"):
        np.testing.assert_array_equal(getattr(out, field), getattr(want, field))
    rows = zip(out.tokens, want.tokens, out.token_count)
    assert all(got[:n].tolist() == right[:n].tolist() for got, right, n in rows)


def test_neither_batch_mates_nor_padding_change_a_row():
    params, prompts = init(LLAMA), some_prompts(2, 12)
    together = search(LLAMA, params, prompts)
    some = [7, 2, 9]
    apart = search(LLAMA, params, [prompts[i] for i in some], width=11)
    assert texts(apart) == [texts(together)[i] for i in some]
    np.testing.assert_allclose(apart.log_probs, together.log_probs[some], atol=1e-5)


def test_what_stands_in_the_padding_counts_for_nothing():
    params, prompts = init(LLAMA), some_prompts(3)
    arrays = arrays_of(prompts)
    run = make_contrastive_sampler(LLAMA, SEARCH, IDS)
    outs = []
    for filler in (0, 7):
        padding = np.arange(arrays[0].shape[1])[None, :] >= arrays[1][:, None]
        filled = np.where(padding, filler, arrays[0])
        outs.append(run(params, filled, *map(jnp.asarray, arrays[1:]), jax.random.key(0)))
    assert texts(outs[0]) == texts(outs[1])


def test_only_text_and_eos_are_chosen_even_where_candidates_are_more_than_those():
    sampling = dataclasses.replace(SEARCH, contrastive_candidates=40, contrastive_penalty=1.0)
    for favourite in (BKID, NEVER[0]):
        config, params = biased(LLAMA, favourite)
        out = search(config, params, [[1, 2], [3]], sampling)
        assert not {BKID, *NEVER} & {a for row in texts(out) for a in row}
        assert (out.log_probs > FORBIDDEN).all()
    params, prompts = init(LLAMA), some_prompts(4, 4)
    out = search(LLAMA, params, prompts, sampling)
    for b, prompt in enumerate(prompts):
        assert texts(out)[b] == oracle(LLAMA, params, prompt, sampling)[0]


def test_limits_force_eos_and_say_so():
    config, params = biased(LLAMA, 5)
    sampling = dataclasses.replace(SEARCH, contrastive_penalty=0.1, max_new_tokens=3)
    out = search(config, params, [[1, 2], [1, 2, 3, 4]], sampling)
    assert texts(out) == [[5, 5, 5, EOS]] * 2
    assert out.forced[:, :4].tolist() == [[False, False, False, True]] * 2
    assert (out.log_probs[:, 3] < -10).all(), "a forced action keeps its own log-probability"
    sampling = dataclasses.replace(SEARCH, contrastive_penalty=0.1, max_actions=4)
    out = search(config, params, [[1, 2]], sampling)
    assert texts(out) == [[5, 5, 5, EOS]]
    assert out.forced[0].tolist() == [False, False, False, True]
    assert out.tokens[0, : out.token_count[0]].tolist() == [1, 2, 5, 5, 5, EOS]


def test_forced_says_whether_the_limit_changed_the_choice():
    """A row is forced exactly where, without the limit, it would have gone on."""
    params, prompts = init(LLAMA), some_prompts(7, 256)
    free = search(LLAMA, params, prompts)
    limited = search(LLAMA, params, prompts, dataclasses.replace(SEARCH, max_new_tokens=2))
    at_limit = free.length > 2
    ends = free.actions[at_limit, 2] == EOS
    assert 3 < ends.sum() < at_limit.sum()
    assert (limited.actions[at_limit, 2] == EOS).all()
    np.testing.assert_array_equal(limited.forced[at_limit, 2], ~ends)
    np.testing.assert_array_equal(limited.actions[:, :2], free.actions[:, :2])


def test_nothing_is_written_after_eos():
    config, params = biased(LLAMA, EOS)
    out = search(config, params, [[1], [2, 3]])
    assert out.length.tolist() == [1, 1]
    assert not out.actions[:, 1:].any()
    assert not out.forced.any()


def test_adapters_act_as_when_merged():
    params, prompts = init(LLAMA), some_prompts(5, 4)
    settings = LoraConfig(rank=2)
    adapters = random_tree(lora_lib.lora_specs(LLAMA, settings), np.random.default_rng(1))
    lora = lora_lib.Lora(adapters, 0.5)
    with_lora = search(LLAMA, params, prompts, lora=lora)
    merged = search(LLAMA, lora_lib.merge(params, lora), prompts)
    assert texts(with_lora) == texts(merged)
    assert texts(with_lora) != texts(search(LLAMA, params, prompts))


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)])
def test_a_mesh_changes_nothing(shape):
    prompts, params = some_prompts(6), init(MESH_LLAMA)
    plain = search(MESH_LLAMA, params, prompts)
    mesh = sharding.make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(a, sharding.batch_sharding(mesh, a.ndim)) for a in arrays_of(prompts)
        ]
        shardings = spec.shardings(transformer.param_specs(MESH_LLAMA), mesh)
        params = jax.tree.map(jax.device_put, params, shardings)
        run = make_contrastive_sampler(MESH_LLAMA, SEARCH, IDS)
        out = jax.device_get(run(params, *placed, jax.random.key(0)))
    assert texts(out) == texts(plain)
    np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-5)


def test_scores_by_hand():
    """Two candidates, two context vectors and a padded one that equals the first candidate."""
    candidates = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    context = jnp.array([[[0.6, 0.8], [-1.0, 0.0], [1.0, 0.0]]])
    log_probs = jnp.array([[np.log(0.7), np.log(0.2), FORBIDDEN]])
    seen = jnp.array([[True, True, False]])
    scores = contrastive_scores(log_probs, candidates, context, seen, 0.6)
    want = [0.4 * 0.7 - 0.6 * 0.6, 0.4 * 0.2 - 0.6 * 0.8]
    np.testing.assert_allclose(scores[0, :2], want, atol=1e-6)
    assert scores[0, 2] <= FORBIDDEN


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_equals_transformers(family):
    """Prompts of several lengths in one batch; transformers ran each of them alone."""
    model = weights.load(GOLDEN / family)
    cases = json.loads((GOLDEN / "contrastive.json").read_text())["cases"]
    cases = [c for c in cases if c["model"] == family]
    longest = max(len(c["tokens"]) for c in cases)
    for penalty, k in sorted({(c["penalty"], c["candidates"]) for c in cases}):
        mine = [c for c in cases if (c["penalty"], c["candidates"]) == (penalty, k)]
        assert len({len(c["prompt"]) for c in mine}) > 2
        sampling = dataclasses.replace(
            SEARCH, contrastive_penalty=penalty, contrastive_candidates=k, max_actions=longest + 1
        )
        ids = ActionIds(eos=2, backspace=None)
        out = search(model.config, model.params, [c["prompt"] for c in mine], sampling, ids)
        for case, text in zip(mine, texts(out)):
            assert text[: len(case["tokens"])] == case["tokens"]
