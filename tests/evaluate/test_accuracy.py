"""Estimates against enumeration, and models whose every choice is known measured by all of it."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import SamplingConfig
from reasoning_jax.evaluate import accuracy, completions
from reasoning_jax.evaluate.accuracy import (
    EvaluationItem,
    Measure,
    backspace_probability,
    corrupt,
    evaluate_items,
    pass_at_k,
)
from reasoning_jax.evaluate.completions import Completion, Prompt, complete
from reasoning_jax.model import readout, spec, transformer
from reasoning_jax.report import replay
from reasoning_jax.vocab import ByteCodec, CharCodec, WordCodec, make_vocab
from tests import oracle
from tests.small import LLAMA, apply, init

pytestmark = pytest.mark.usefixtures("unoptimised")

VOCAB = make_vocab(CharCodec("0123456="))
BACK, EOS, EQUALS = VOCAB.backspace_id, VOCAB.eos_id, 7
assert VOCAB.size == LLAMA.vocab_size
MODEL = dataclasses.replace(LLAMA, n_layers=1, tied_embeddings=False)
SAMPLING = SamplingConfig(max_actions=6)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def markov(likely):
    """Parameters of a model that looks at the last token alone; `likely[token]` is what follows.

    An action or a dict of probabilities; a token that is not named is followed by `likely[None]`.
    """
    specs = transformer.param_specs(MODEL)
    params = spec.map_specs(lambda _, s: np.zeros(s.shape, np.float32), specs)
    params["final_norm"] = {"scale": np.ones(MODEL.d_model, np.float32)}
    params["embedding"]["tokens"] = np.eye(VOCAB.size, MODEL.d_model, dtype=np.float32)
    logits = np.full((MODEL.d_model, VOCAB.size), -50.0)
    for token in range(VOCAB.size):
        wanted = likely.get(token, likely.get(None))
        for action, p in (wanted if isinstance(wanted, dict) else {wanted: 1.0}).items():
            logits[token, action] = math.log(p)
    # A one-hot row has this norm behind the final normalisation.
    params["unembedding"] = (logits / math.sqrt(MODEL.d_model)).astype(np.float32)
    return params


# Writes "34" behind "=", ends behind it; what else it finds, it deletes or ends on.
WRITES = {EQUALS: 3, 3: 4, 4: EOS}
MENDER, ENDER = WRITES | {None: BACK}, WRITES | {None: EOS}


def items(n=6, answer="34"):
    """Questions "0=", "1=", ... that all have one answer."""
    response = (*VOCAB.encode(answer), EOS)
    return [
        EvaluationItem(
            (VOCAB.bos_id, i % 3, EQUALS), response, f"d={i % 2}", lambda text: text == answer
        )
        for i in range(n)
    ]


def place(params, mesh):
    shardings = spec.shardings(transformer.param_specs(MODEL), mesh)
    return jax.tree.map(jax.device_put, params, shardings)


def evaluate(likely, mesh, items=items(), **changes):  # noqa: B008
    arguments = {
        "samples_per_problem": 1, "ks": (1,), "corrupt_tokens": 1, "corrupt_ids": (5, 6),
        "batch_rows": 2, "saved_samples": 3, "key": jax.random.key(0), "seed": 0, "mesh": mesh,
    }  # fmt: skip
    params = place(markov(likely), mesh)
    with jax.set_mesh(mesh):
        return evaluate_items(
            params, None, MODEL, VOCAB, SAMPLING, items, **arguments | changes
        )  # fmt: skip


def values(result):
    return {name: measure.to_dict()["value"] for name, measure in result.metrics.items()}


# ---- estimates


def test_pass_at_k_is_the_mean_over_all_subsets():
    # Catches: the biased 1 - (1 - c/n)^k; a product over the wrong range.
    for n in range(1, 7):
        for correct in range(n + 1):
            outcomes = [True] * correct + [False] * (n - correct)
            for k in range(1, n + 1):
                draws = list(itertools.combinations(outcomes, k))
                assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    for n, correct, k in ((3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1)):
        with pytest.raises(ValueError, match=f"pass@{k} needs 1 <= k <= samples"):
            pass_at_k(n, correct, k)


def test_standard_error_of_a_mean():
    # Catches: the variance of a population; the standard deviation in place of the error.
    rng = np.random.default_rng(0)
    sample = rng.random(30)
    got = Measure(list(sample)).to_dict()
    assert got["n"] == 30
    assert got["value"] == pytest.approx(sample.mean())
    assert got["stderr"] == pytest.approx(sample.std(ddof=1) / math.sqrt(30))
    assert Measure([0.25]).to_dict() == {"value": 0.25, "stderr": None, "n": 1}
    assert Measure().to_dict() == {"value": 0.0, "stderr": None, "n": 0}


# ---- completions


def test_completions_are_in_order_and_depend_on_nothing_but_their_place(mesh):
    """Neither larger batches nor a long mate that widens every row change a completion.

    Catches: a row id that counts within its batch, filler rows that shift the rest, attention to
    padding.
    """
    rng = np.random.default_rng(0)
    prompts = []
    for _ in range(10):
        ids = tuple(rng.integers(0, 8, int(rng.integers(1, 9))).tolist())
        prompts.append(Prompt(ids, int(rng.integers(0, len(ids)))))
    params = place(init(MODEL), mesh)

    def run(prompts, rows):
        with jax.set_mesh(mesh):
            # Folded as `evaluate_items` does, so that both use one compiled program.
            key = jax.random.fold_in(jax.random.key(1), 0)
            return complete(params, None, MODEL, VOCAB, SAMPLING, prompts, key, rows, mesh)

    want = run(prompts, 2)
    assert [c.prompt for c in want] == prompts
    assert len({tuple(c.actions) for c in want}) > 5
    # 25 prompts in one batch; the 10 came from a queue whose other 22 are filler.
    more = run([*prompts, *[Prompt((1,) * 20, 3)] * 3, *[Prompt((1,), 0)] * 2, *prompts], 32)
    for c, other in zip(want, more):
        assert (other.actions, other.text) == (c.actions, c.text)
    assert [c.prompt for c in more[15:]] == prompts
    for c in want:
        ids = c.prompt.ids
        actions = [oracle.BK if a == BACK else a for a in c.actions]
        left = oracle.states(ids[0], [*ids[1:], *actions], c.prompt.floor)[-1]
        assert left.pop() == EOS
        assert c.text == VOCAB.decode(left[c.prompt.floor + 1 :])
        assert c.truncated == any(c.forced)
        assert len(c.actions) == len(c.log_probs) == len(c.forced)
    assert run([], 4) == []


def test_queues_have_one_shape_and_the_samples_of_one_batch(mesh, monkeypatch):
    """Of 43 prompts and of 4, 3 samples each, 2 rows at a time in queues of 30, against one batch.

    Catches: row ids that count within a queue, or prompts; a prompt with another's samples; filler
    that is decoded; a shape for every number of prompts.
    """
    group, shapes, budgets = 3, set(), []
    original = completions.make_sampler

    def watched(*arguments, **options):
        sampler = original(*arguments, **options)

        def sample(params, prompts, length, floor, row_ids, key, lora, limit):
            shapes.add((prompts.shape, row_ids.shape))
            budgets.append(np.asarray(limit))
            return sampler(params, prompts, length, floor, row_ids, key, lora, limit)

        return sample

    rng = np.random.default_rng(1)
    prompts = [Prompt(tuple(rng.integers(0, 8, n + 1).tolist()), n // 2) for n in range(15)] * 3
    params = place(init(MODEL), mesh)

    def run(n, rows):
        with jax.set_mesh(mesh):
            key = jax.random.fold_in(jax.random.key(1), 0)
            return complete(
                params, None, MODEL, VOCAB, SAMPLING, prompts[:n], key, rows, mesh,
                samples_per_prompt=group,
            )  # fmt: skip

    want = run(43, 43 * group)
    assert [c.prompt for c in want] == [p for p in prompts[:43] for _ in range(group)]
    monkeypatch.setattr(completions, "make_sampler", watched)
    for n in (43, 4):
        for c, other in zip(run(n, 2), want[: n * group], strict=True):
            assert (c.prompt, c.actions, c.text) == (other.prompt, other.actions, other.text)
    assert shapes == {((10, 16), (30,))}
    assert sum(int((b > 0).sum()) for b in budgets) == 47 * group


# ---- corruption


def test_corruption_is_one_wrong_token_behind_a_uniform_prefix():
    # Catches: a "wrong" token that is right, a prefix that is never empty or never whole, a floor
    # that lets the prompt be deleted or keeps the wrong token.
    prompt, response = (9, 1, 7), (3, 4, 3, EOS)
    rng = np.random.default_rng(0)
    cuts = []
    for _ in range(2000):
        corrupted = corrupt(prompt, response, 2, (3, 4, 5), rng)
        assert corrupted.ids[:3] == prompt
        assert corrupted.floor == 2
        cut = len(corrupted.ids) - 5
        assert corrupted.ids[3 : 3 + cut] == response[:cut]
        first, second = corrupted.ids[-2:]
        assert first != response[cut]
        assert {first, second} <= {3, 4, 5}
        cuts.append(cut)
    counts = np.bincount(cuts, minlength=4)
    assert len(counts) == 4
    assert abs(counts - 500).max() < 4 * math.sqrt(2000 * 0.25 * 0.75)


def test_where_nothing_can_be_wrong_nothing_is_corrupted(mesh):
    # Catches: the right token as its own corruption; a crash when no item is left.
    rng = np.random.default_rng(0)
    assert corrupt((1,), (3, 3), 1, (3,), rng) is None
    result = evaluate(MENDER, mesh, items(answer="333"), corrupt_ids=(3,), seed=2)
    assert "corrupted_exact_match" in result.metrics, "the draw of the end of the response"
    assert result.metrics["corrupted_exact_match"].to_dict()["n"] < 6
    only = dataclasses.replace(items()[0], response=(3, 3), difficulty="")
    result = evaluate(MENDER, mesh, [only, only], corrupt_ids=(3,))
    assert "corrupted_exact_match" not in result.metrics
    assert result.by_difficulty == {}


# ---- measures of models that are known


def test_a_model_that_mends_is_measured_so(mesh):
    # Catches: truncated for ended, <backspace> counted in the wrong runs, a probability after the
    # wrong token, the corrupted part outside the judged text.
    result = evaluate(MENDER, mesh)
    assert values(result) == pytest.approx(
        {
            "exact_match": 1.0, "pass@1": 1.0, "backspaces_per_completion": 0.0, "truncated": 0.0,
            "corrupted_exact_match": 1.0, "backspace_corrupted": 1.0, "backspace_clean": 0.0,
            "backspace_model": 0.0,
        },
        abs=1e-6,
    )  # fmt: skip
    groups = result.to_dict()["by_difficulty"]
    assert list(groups) == ["d=0", "d=1"]
    assert all(
        group["exact_match"] == {"value": 1, "stderr": 0, "n": 3} for group in groups.values()
    )
    clean, corrupted = result.samples[:3], result.samples[3:]
    assert {s["kind"] for s in clean} == {"clean"}
    assert {s["kind"] for s in corrupted} == {"corrupted"}
    for s in clean:
        assert (s["prompt"], s["question"], s["deletable"]) == (s["question"], s["prompt"], [])
        assert [a["text"] for a in s["actions"]] == ["3", "4", "<eos>"]
    for s in corrupted:
        assert s["prompt"] == s["question"] + "".join(s["deletable"])
        assert s["actions"][0]["kind"] == "backspace"
    for s in result.samples:
        assert replay(s["actions"], s["deletable"])[-1] == s["text"] == s["answer"] == "34"
        assert s["correct"] is True


def test_a_model_that_never_mends_is_measured_so(mesh):
    result = evaluate(ENDER, mesh)
    assert values(result) == pytest.approx(
        {
            "exact_match": 1.0, "pass@1": 1.0, "backspaces_per_completion": 0.0, "truncated": 0.0,
            "corrupted_exact_match": 0.0, "backspace_corrupted": 0.0, "backspace_clean": 0.0,
            "backspace_model": 0.0,
        },
        abs=1e-6,
    )  # fmt: skip
    for s in result.samples[3:]:
        assert s["correct"] is False
        assert replay(s["actions"], s["deletable"])[-1] == s["text"] == "".join(s["deletable"])


def test_a_model_that_doubts_for_ever_is_cut_off(mesh):
    """Writes 3, deletes it, and so on: of 6 actions, 3 writes, 2 deletions, a forced end."""
    # Catches: `truncated` by length alone; an item without a backspace counted as one.
    result = evaluate({EQUALS: 3, None: BACK}, mesh, corrupt_tokens=0)
    assert values(result) == pytest.approx(
        {"exact_match": 0, "pass@1": 0, "backspaces_per_completion": 2, "truncated": 1,
         "backspace_clean": 1, "backspace_model": 1},
        abs=1e-6,
    )  # fmt: skip
    (sample, *_) = result.samples
    assert sample["text"] == "3"
    assert [a["forced"] for a in sample["actions"]] == [False] * 5 + [True]
    # One that ends of itself at the limit is not cut off.
    counts = {EQUALS: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: EOS, None: BACK}
    result = evaluate(counts, mesh, items(answer="12345"), corrupt_tokens=0)
    assert (values(result)["exact_match"], values(result)["truncated"]) == (1, 0)


def test_states_above_the_floor_are_told_by_whether_they_begin_the_answer():
    """Against a list: at each action the probability that stood before it.

    Catches: the state after an action, the state at the floor counted, a beginning that is longer
    than the answer, a backspace at the floor that takes from what comes later.
    """
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        actions = rng.choice([3, 4, BACK], int(rng.integers(0, 10)), p=[0.35, 0.25, 0.4]).tolist()
        completion = Completion(Prompt((1,), 0), actions, [], [], "", False, rng.random(9).tolist())
        stacks = oracle.states(9, [oracle.BK if a == BACK else a for a in actions])
        want = [
            (p, stack[1:] == [3, 4, 3][: len(stack) - 1])
            for p, stack, _ in zip(completion.backspace, stacks, actions)
            if len(stack) > 1
        ]
        assert accuracy.visited_backspace(completion, (3, 4, 3), VOCAB) == want
        seen |= {on_track for _, on_track in want}
    assert seen == {True, False}


def test_backspaces_in_the_models_own_samples(mesh):
    """Writes 3, then 5, which is wrong: there it deletes with probability 1/4, or ends.

    Catches: states before which nothing stands, wrong states among all or all among wrong, a mean
    over the items' states together.
    """
    result = evaluate({EQUALS: 3, 3: 5, 5: {BACK: 0.25, EOS: 0.75}}, mesh, items(8))
    assert result.metrics["backspace_model_wrong"].values == pytest.approx([0.25] * 8, abs=1e-4)
    # Each visit of "3" is followed by one of "35", unless the limit of six actions comes between.
    for value in result.metrics["backspace_model"].values:
        assert value == pytest.approx(0.125, abs=1e-4) or value == pytest.approx(0.1, abs=1e-4)
    # A search that draws nothing has no such probability.
    params, search = (
        place(markov(MENDER), mesh),
        dataclasses.replace(SAMPLING, method="contrastive"),
    )
    with jax.set_mesh(mesh):
        result = evaluate_items(
            params, None, MODEL, VOCAB, search, items(), samples_per_problem=1, ks=(1,),
            corrupt_tokens=0, corrupt_ids=(), batch_rows=2, saved_samples=0, seed=0,
            key=jax.random.key(0), mesh=mesh,
        )  # fmt: skip
    assert not [name for name in result.metrics if name.startswith("backspace_model")]


def test_recovery_from_more_wrong_tokens_is_measured_beside(mesh):
    """A model that takes back 5 and stops at 6 recovers where all wrong tokens are 5.

    Catches: another number of wrong tokens, draws of another number, a floor that keeps them, other
    measures that change with what is measured beside them.
    """
    model = WRITES | {5: BACK, None: EOS}
    result = evaluate(model, mesh, items(20), corrupt_also=(2, 3))
    for n in (2, 3):
        rng = np.random.default_rng([0, n])
        prompts = [corrupt(item.prompt, item.response, n, (5, 6), rng) for item in items(20)]
        want = [float(6 not in p.ids[-n:]) for p in prompts]
        assert 0 < sum(want) < 20
        assert result.metrics[f"corrupted_{n}_exact_match"].values == want
        assert len(result.by_difficulty["d=0"][f"corrupted_{n}_exact_match"].values) == 10
    alone = evaluate(model, mesh, items(20))
    beside = {"corrupted_2_exact_match", "corrupted_3_exact_match"}
    assert alone.metrics == {n: m for n, m in result.metrics.items() if n not in beside}
    assert alone.samples == result.samples


def test_at_the_floor_there_is_no_backspace_or_one_without_effect(mesh):
    # Catches: floor_masked lost on the way to the sampler.
    wants_to_delete = {None: BACK}
    result = evaluate(wants_to_delete, mesh, corrupt_tokens=0, floor_masked=False, batch_rows=6)
    got = values(result)
    assert (got["backspaces_per_completion"], got["truncated"]) == (5, 1)
    assert "backspace_model" not in got, "no state above the floor was visited"
    assert {s["text"] for s in result.samples} == {""}
    masked = values(evaluate(wants_to_delete, mesh, corrupt_tokens=0))
    assert masked["backspaces_per_completion"] <= 2
    assert masked["backspace_model"] == pytest.approx(1, abs=1e-6)


def test_completions_are_judged_as_answers_to_their_own_problem(mesh):
    # Catches: samples dealt to problems in the wrong order, or saved beside another problem.
    chosen = [dataclasses.replace(item, prompt=item.prompt[:2]) for item in items(4, "3")]
    result = evaluate(
        {0: 3, 1: 4, None: EOS},
        mesh,
        chosen,
        samples_per_problem=3,
        corrupt_tokens=0,
        batch_rows=12,
    )
    assert result.metrics["exact_match"].values == [1, 0, 0, 1]
    assert [(s["question"], s["text"]) for s in result.samples] == [
        ("0", "3"),
        ("1", "4"),
        ("2", ""),
    ]


def test_means_are_over_problems_and_pass_at_k_over_their_samples(mesh):
    """Right with probability 1/2: pass@2 of n samples per problem follows from the hits alone.

    Catches: completions dealt to the wrong problem, a standard error over samples.
    """
    half = {EQUALS: {3: 0.5, 5: 0.5}, 3: 4, 4: EOS, 5: EOS, None: BACK}
    result = evaluate(
        half, mesh, items(8), samples_per_problem=4, ks=(1, 2, 4), corrupt_tokens=0, batch_rows=32
    )
    hits = [round(4 * v) for v in result.metrics["exact_match"].values]
    assert len(hits) == 8
    assert len(set(hits)) > 2
    for k in (1, 2, 4):
        assert result.metrics[f"pass@{k}"].values == [pass_at_k(4, h, k) for h in hits]
    # What was drawn is what the samples say: each saved one is the first of its problem.
    assert [s["question"] for s in result.samples] == ["0=", "1=", "2="]
    assert 0.2 < np.mean(hits) / 4 < 0.8


def test_backspace_probability_is_the_softmax_at_those_states(mesh):
    # Catches: the state before or after, a masked softmax, a mean over padding, rows out of order.
    params, rng = init(MODEL), np.random.default_rng(3)
    sequences = [rng.integers(0, 12, n).tolist() for n in (6, 13, 6)]
    states = [[5], [0, 3, 12], range(2, 5)]
    with jax.set_mesh(mesh):
        placed = place(params, mesh)
        got = backspace_probability(placed, None, MODEL, VOCAB, sequences, states, 2, mesh)
    for sequence, at, value in zip(sequences, states, got, strict=True):
        ids = jnp.array([sequence])
        hidden = apply(params, MODEL, ids, positions=jnp.arange(len(sequence))[None]).hidden
        probs = jax.nn.softmax(readout.logits(params, MODEL, hidden)[0], axis=-1)
        assert value == pytest.approx(float(probs[jnp.array(list(at)), BACK].mean()), abs=1e-6)


# ---- records of samples

WORDS = make_vocab(WordCodec(("one", "two", "3", "\n")))
BYTES = make_vocab(ByteCodec())
TEXTS = {
    "char": (VOCAB, "12=", ["0", "3", "45"]),
    "word": (WORDS, "one two\n", ["one", "two", "\n", "3 3", "two\n", "\n\none"]),
    "byte": (BYTES, "1+é=", ["a", "é", "\n", "😀", "\x00"]),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("whole", [True, False], ids=["texts", "tokens"])
def test_a_record_replays_to_its_text(name, whole, monkeypatch, mesh):
    """Any actions, also over a corrupted prefix: the pieces shown join to what is judged.

    By `whole` texts, or by single tokens, so that bytes need not make characters. Catches: pieces
    without the space between words, with half characters, a deletable part that is not the end of
    the prompt.
    """
    vocab, question, texts = TEXTS[name]
    rng, seen = np.random.default_rng(0), []

    def scripted(params, lora, config, vocab, sampling, prompts, *rest):
        done = []
        for prompt in prompts:
            before = len(prompt.ids) - 1 - prompt.floor
            actions = [vocab.backspace_id] * (rng.random() < 0.3) * before
            for _ in range(rng.integers(0, 7)):
                ids = vocab.encode(texts[rng.integers(len(texts))])
                ids = ids if whole else [ids[rng.integers(len(ids))]]
                erased = len(ids) if whole else 1
                actions += [*ids, *[vocab.backspace_id] * (rng.random() < 0.4) * erased]
            plain = [oracle.BK if a == vocab.backspace_id else a for a in actions]
            stacks = oracle.states(prompt.ids[0], [*prompt.ids[1:], *plain], prompt.floor)
            states = [vocab.decode(stack[prompt.floor + 1 :]) for stack in stacks]
            seen.append([*states[len(prompt.ids) :], states[-1]])
            actions.append(vocab.eos_id)
            n, text = len(actions), states[-1]
            done.append(Completion(prompt, actions, [-1.0] * n, [False] * n, text, False))
        return done

    monkeypatch.setattr(accuracy, "complete", scripted)
    monkeypatch.setattr(accuracy, "backspace_probability", lambda *a: [0.0] * len(a[4]))
    prompt = (vocab.bos_id, *vocab.encode(question))
    some = [
        EvaluationItem(prompt, (*vocab.encode(texts[i % len(texts)]), vocab.eos_id), "", bool)
        for i in range(60)
    ]
    candidates = vocab.encode(texts[0])
    result = evaluate_items(
        None, None, None, vocab, SAMPLING, some, samples_per_problem=1, ks=(1,), corrupt_tokens=1,
        corrupt_ids=[*candidates, *vocab.encode(texts[1])[:1]], batch_rows=8, saved_samples=60,
        key=jax.random.key(0), seed=0, mesh=mesh,
    )  # fmt: skip
    assert {s["kind"] for s in result.samples} == {"clean", "corrupted"}
    for s, states in zip(result.samples, seen, strict=True):
        assert s["question"] == question
        replayed = replay(s["actions"], s["deletable"])
        assert replayed[-1] == s["text"]
        assert replayed == states or name == "byte"
        # Where half a character stands in the prompt and half is written, it is shown as written.
        assert s["prompt"].endswith("".join(s["deletable"])) or (name, whole) == ("byte", False)


@pytest.mark.parametrize(
    ("actions", "mark", "steps"),
    [
        ((5, 6, 9, 7), (9,), (5, 6, 9)), ((5, 9, 6, 9, 7), (9,), (5, 9)), ((5, 6), (9,), None),
        ((5, 8, 9, 7), (8, 9), (5, 8, 9)), ((5, 6), (), ()), ((), (9,), None),
        ((9, 8), (8, 9), None),
    ],
)  # fmt: skip
def test_an_answer_begins_behind_its_mark(actions, mark, steps):
    # Catches: the last mark instead of the first; a part of the mark; no mark read as no steps.
    assert accuracy.steps_before(actions, mark) == steps
