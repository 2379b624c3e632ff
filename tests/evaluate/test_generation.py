"""Evaluation of text against a token at a time, and against what the metrics say of the truth."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.evaluate.completions import Completion, Prompt
from reasoning_jax.evaluate.generation import (
    FeatureModel,
    evaluate_text,
    standing,
    window_perplexity,
)
from reasoning_jax.evaluate.text_metrics import measure_texts
from reasoning_jax.model import readout, spec, transformer
from reasoning_jax.report import replay
from reasoning_jax.vocab import CharCodec, make_vocab
from tests import oracle
from tests.small import LLAMA, apply, init

VOCAB = make_vocab(CharCodec("abcdefgh"))
PLAIN = make_vocab(CharCodec("abcdefghi"), backspace=False)
BARE = dataclasses.replace(
    PLAIN, specials={name: i for name, i in PLAIN.specials.items() if name != "<bos>"}
)
BACK, EOS = VOCAB.backspace_id, VOCAB.eos_id
assert VOCAB.size == PLAIN.size == LLAMA.vocab_size
MODEL = dataclasses.replace(LLAMA, n_layers=1, tied_embeddings=False)
PARAMS = init(MODEL)
SAMPLING = SamplingConfig(max_actions=6)
TEXTS = ("abcdefgh", "hgfedcba", "abab", "aabbccdd", "ccc", "hhhhgggg", "abcabcab")
WINDOWS = [[VOCAB.bos_id, *VOCAB.encode(text)] for text in TEXTS]


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def place(mesh):
    shardings = spec.shardings(transformer.param_specs(MODEL), mesh)
    return jax.tree.map(jax.device_put, PARAMS, shardings)


# ---- perplexity


def by_hand(windows, without=None):
    """exp of the mean loss, each token read off its own forward pass of what stands before it."""
    losses = []
    for window in windows:
        for i in range(1, len(window)):
            hidden = apply(
                PARAMS, MODEL, jnp.array([[*window[:i], *[0] * (9 - i)]]),
                positions=jnp.arange(9)[None],
            ).hidden[0, i - 1]  # fmt: skip
            z = np.asarray(readout.logits(PARAMS, MODEL, hidden[None])[0], np.float64)
            if without is not None:
                z[without] = -np.inf
            losses.append(np.log(np.exp(z).sum()) - z[window[i]])
    return math.exp(np.mean(losses)), len(losses)


def test_perplexity_is_that_of_each_token_by_itself(mesh):
    """With the mass of <backspace>, without it, and in a vocabulary that has none.

    Catches: labels moved by one, the first token counted, padding counted, a mean of windows,
    <backspace> taken out of the wrong rows.
    """
    windows = [*WINDOWS, WINDOWS[0][:2], WINDOWS[1][:1]]
    with jax.set_mesh(mesh):
        got = window_perplexity(place(mesh), None, MODEL, VOCAB, windows, 4, mesh)
        plain = window_perplexity(place(mesh), None, MODEL, PLAIN, windows, 4, mesh)
    want, tokens = by_hand(windows)
    assert got.value == pytest.approx(want, rel=1e-5)
    assert got.tokens == plain.tokens == tokens == sum(len(w) - 1 for w in windows)
    assert got.without_backspace == pytest.approx(by_hand(windows, BACK)[0], rel=1e-5)
    assert got.without_backspace < got.value
    assert plain.value == pytest.approx(want, rel=1e-5)
    assert plain.without_backspace is None


def test_batches_and_devices_change_no_perplexity(mesh):
    # Catches: filler rows that count, rows of the last batch that are lost, a batch that no mesh
    # divides.
    want, _ = by_hand(WINDOWS)
    eight = sharding.make_mesh(4, 2, 1)
    for rows, where in ((1, mesh), (3, mesh), (100, mesh), (3, eight)):
        with jax.set_mesh(where):
            got = window_perplexity(place(where), None, MODEL, VOCAB, WINDOWS, rows, where)
        assert got.value == pytest.approx(want, rel=1e-5)
        assert got.tokens == sum(len(w) - 1 for w in WINDOWS)


# ---- what stands


def test_what_stands_is_what_a_list_holds():
    # Catches: a backspace at the start that takes from the prompt, <eos> kept, or taken for text
    # that the last action did not end.
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.choice([0, 1, 2, BACK], int(rng.integers(0, 12)), p=[0.2, 0.2, 0.2, 0.4])
        actions = actions.tolist() + [EOS] * int(rng.integers(2))
        completion = Completion(Prompt((VOCAB.bos_id, 5), 1), actions, [], [], "", False)
        plain = [oracle.BK if a == BACK else a for a in actions if a != EOS]
        assert standing(completion, VOCAB) == oracle.states(9, plain)[-1][1:]


# ---- all of it


def evaluate(mesh, windows=WINDOWS, **changes):
    arguments = {
        "prompt_tokens": 2, "batch_rows": 4, "saved_samples": 3, "key": jax.random.key(0),
        "mesh": mesh, "vocab": VOCAB, "sampling": SAMPLING,
    } | changes  # fmt: skip
    vocab, sampling = arguments.pop("vocab"), arguments.pop("sampling")
    with jax.set_mesh(mesh):
        return evaluate_text(place(mesh), None, MODEL, vocab, sampling, windows, **arguments)


def values(result):
    return {name: measure.to_dict()["value"] for name, measure in result.metrics.items()}


def test_every_measure_is_there_and_those_of_the_truth_are_exact(mesh):
    """A continuation holds at most five tokens: the sixth action is <eos>. So does the truth.

    Catches: the truth with its prompt, or longer than a continuation can be; a window that is too
    short continued; n of a measure that is not the number of texts.
    """
    short = [VOCAB.bos_id, 0, 1]
    result = evaluate(mesh, [short, *WINDOWS])
    got = values(result)
    truth = [w[3:8] for w in WINDOWS]
    assert max(map(len, truth)) == SAMPLING.max_actions - 1
    for name, measure in measure_texts(truth).items():
        assert got[f"human_{name}"] == measure.pooled
        assert result.metrics[f"human_{name}"].to_dict()["n"] == measure.n
    names = measure_texts(truth)
    assert set(got) == {
        *names, *(f"human_{n}" for n in names), "perplexity", "perplexity_without_backspace",
        "tokens_per_completion", "truncated", "backspaces_per_completion", "backspace_model",
    }  # fmt: skip
    scored = result.metrics["perplexity"].to_dict()
    assert scored["value"] == pytest.approx(by_hand([short, *WINDOWS])[0], rel=1e-5)
    assert (scored["n"], scored["stderr"] > 0) == (len(WINDOWS) + 1, True)
    for name in ("tokens_per_completion", "truncated", "backspaces_per_completion"):
        assert result.metrics[name].to_dict()["n"] == len(WINDOWS), name
    assert got["tokens_per_completion"] <= SAMPLING.max_actions - 1
    assert got["backspaces_per_completion"] > 0
    assert 0 < got["backspace_model"] < 1
    assert result.by_difficulty == {}


def test_samples_are_continuations_and_nothing_is_right_or_wrong(mesh):
    # Catches: a verdict, a reference with the prompt, samples of other windows.
    result = evaluate(mesh)
    assert [s["question"] for s in result.samples] == [text[:2] for text in TEXTS[:3]]
    assert [s["answer"] for s in result.samples] == [text[2:7] for text in TEXTS[:3]]
    for s in result.samples:
        assert s["correct"] is None
        assert replay(s["actions"], s["deletable"])[-1] == s["text"]


def test_the_measures_are_those_of_what_was_written(mesh):
    """Of 7 windows all are saved: their records say what the measures must be.

    Catches: texts measured with what was taken back, or with <eos>.
    """
    result = evaluate(mesh, saved_samples=len(WINDOWS))
    written = [VOCAB.encode(s["text"]) for s in result.samples]
    got = values(result)
    for name, measure in measure_texts(written).items():
        assert got.get(name) == measure.pooled, name
    erased = [sum(a["kind"] == "backspace" for a in s["actions"]) for s in result.samples]
    assert result.metrics["backspaces_per_completion"].values == erased
    assert result.metrics["tokens_per_completion"].values == list(map(len, written))


def test_evaluation_depends_on_its_key_alone(mesh):
    # Catches: state kept between evaluations; batches that change a continuation.
    first, again = evaluate(mesh), evaluate(mesh, batch_rows=2)
    assert again.samples == first.samples
    assert values(again) == pytest.approx(values(first), rel=1e-6)
    assert evaluate(mesh, key=jax.random.key(1)).samples != first.samples


def test_a_vocabulary_without_backspace_and_without_a_prompt(mesh):
    """Only <bos> is given; without <bos> the first token is.

    Catches: a measure of backspaces where there is none; an empty prompt.
    """
    windows = [[PLAIN.bos_id, *PLAIN.encode(text)] for text in TEXTS]
    result = evaluate(mesh, windows, vocab=PLAIN, prompt_tokens=0)
    assert not [name for name in result.metrics if "backspace" in name]
    assert [s["question"] for s in result.samples] == ["", "", ""]
    result = evaluate(mesh, [w[1:] for w in windows], vocab=BARE, prompt_tokens=0)
    assert [s["question"] for s in result.samples] == [text[0] for text in TEXTS[:3]]
    assert [s["answer"] for s in result.samples] == [text[1:6] for text in TEXTS[:3]]


def test_contrastive_search_is_measured_and_never_deletes(mesh):
    # Catches: a probability of <backspace> that the search does not give, reported as 0.
    sampling = dataclasses.replace(SAMPLING, method="contrastive")
    result = evaluate(mesh, sampling=sampling)
    assert values(result)["backspaces_per_completion"] == 0
    assert "backspace_model" not in result.metrics
    assert evaluate(mesh, sampling=sampling, key=jax.random.key(3)).samples == result.samples


def test_mauve_is_there_where_texts_can_be_clustered(mesh):
    """Of one text there is none, and of copies of one none either: said, and no crash.

    Catches: MAUVE of the truth with itself, an undefined one written as a number, features of the
    empty text.
    """
    features = FeatureModel(place(mesh), None, MODEL, VOCAB, "self")
    got = values(evaluate(mesh, features=features))
    assert got["mauve_defined"] == 1
    assert 0 < got["mauve"] < 1
    assert 0 < got["mauve_star"] < 1
    for few in (WINDOWS[:1], [WINDOWS[2][:3]]):
        result = evaluate(mesh, few, features=features)
        assert values(result)["mauve_defined"] == 0
        assert "mauve" not in result.metrics
    # With one action nothing is written: all texts are the start alone, or <eos> without one.
    nothing = SamplingConfig(max_actions=1)
    for vocab in (VOCAB, BARE):
        features = FeatureModel(place(mesh), None, MODEL, vocab, "self")
        result = evaluate(mesh, sampling=nothing, features=features)
        assert values(result)["mauve_defined"] == 0
        assert values(result)["tokens_per_completion"] == 0
