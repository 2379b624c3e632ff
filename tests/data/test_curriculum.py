"""Stages and rows by hand: schedules, plans, the rows of every mode, padding, processes."""

import dataclasses
import json
import math
import os

import jax
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.config import ConfigError, DataConfig, LatentConfig, NoiseConfig
from reasoning_jax.data.batch import Encoder
from reasoning_jax.data.curriculum import MODES, Curriculum, StagedEncoder, aligned, rounded
from reasoning_jax.data.examples import Example
from reasoning_jax.data.staged import CurriculumSource, staged_batches
from reasoning_jax.vocab import ByteCodec, CharCodec, PairCodec, VocabError, WordCodec, make_vocab

MANY = 1000
WORDS = ("q", "r", "?", "a", "b", "c", "d", ";", "=>", "A", "B")
VOCAB = make_vocab(WordCodec(WORDS), latent=True)
LATENT = VOCAB.specials["<latent>"]
EXAMPLE = Example("q r", ("a", "b b", "c"), "A")
# Steps of one token each, as a target of one step needs them.
SINGLE = Example(
    "q r", ("a", "b", "c"), "A",
    step_choices=(("a",), ("b",), ("c", "d")), frontiers=(("a", "b"), ("b",), ("a", "c", "d")),
)  # fmt: skip


def curriculum(examples=100, rows=10, **changes):
    return Curriculum(LatentConfig(**{"mode": "coconut", **changes}), examples, rows)


def staged(data=None, vocab=VOCAB, **changes):
    layout = {
        "seq_len": 40, "question_suffix": " ?", "step_suffix": " ;", "answer_prefix": " => ",
        **(data or {}),
    }  # fmt: skip
    encoder = Encoder(vocab, DataConfig(**layout), NoiseConfig())
    return StagedEncoder(encoder, curriculum(**changes))


def shown(row, vocab=VOCAB):
    """A row in words, with a bar in front of what loss falls on; checks labels and weights."""
    given = int(np.argmax(row["weights"])) + 1
    assert (row["weights"][: given - 1] == 0).all()
    assert (row["weights"][given - 1 :] == 1).all()
    assert (row["labels"][: given - 1] == 0).all()
    assert (row["labels"][given - 1 : -1] == row["actions"][given:]).all()
    assert (row["floor"] == given - 1).all()
    ids = [*row["actions"], row["labels"][-1]]
    names = [vocab.decode([i]) for i in ids]
    return " ".join([*names[:given], "|", *names[given:]])


def encoded(example, stage, encoder, seed=0, clean=True):
    return encoder.encode(example, stage, np.random.default_rng(seed), clean=clean)


# ---- stages by training step

# By epoch: stages from the first one on, and the thoughts of a row with many steps.
SCHEDULES = {
    "gsm": (
        {"start_stage": 1, "epochs_per_stage": 3, "max_latent_stage": 3, "c_thought": 2},
        [1, 1, 1, 2, 2, 2, 3, 3, 3, *[4] * 13],
        {1: 2, 2: 4, 3: 6, 4: 6},
    ),
    "prosqa": (
        {"epochs_per_stage": 5, "max_latent_stage": 6},
        [s for s in range(7) for _ in range(5)] + [7] * 15,
        {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 6},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("examples", [100, 103, 7])
def test_stages_change_where_epochs_do(name, examples):
    """Also where batches do not divide the data; 7 examples are less than a batch.

    Catches: a stage that begins a step early or late, rounding that adds up over stages.
    """
    changes, stages, thoughts = SCHEDULES[name]
    c = curriculum(examples, **changes)
    for step in range(len(stages) * examples // 10):
        assert c.epoch(step) == step * 10 // examples
        assert c.stage_at(step) == stages[c.epoch(step)]
    assert {s: c.plan(s, MANY).slots for s in thoughts} == thoughts
    assert c.plan(c.last, MANY).final
    assert not c.plan(c.last - 1, MANY).final


def test_stages_of_given_lengths():
    c = curriculum(max_latent_stage=2, stage_steps=(3, 1, 2, 9), start_stage=0)
    assert [c.stage_at(k) for k in range(9)] == [0, 0, 0, 1, 2, 2, 3, 3, 3]
    # Fewer lengths than stages: the last one that has a length goes on.
    c = curriculum(max_latent_stage=5, stage_steps=(2, 2), start_stage=3)
    assert [c.stage_at(k) for k in (0, 1, 2, 99)] == [3, 3, 4, 4]


@pytest.mark.parametrize("mode", ["no_curriculum", "pause", "cot", "no_cot"])
def test_modes_without_stages(mode):
    c = curriculum(mode=mode, max_latent_stage=3)
    wanted = {"cot": 0, "no_cot": 0}.get(mode, 4)
    assert {c.stage_at(k) for k in (0, 1, 10_000)} == {wanted}


def test_tokens_are_removed_so_many_an_epoch():
    c = curriculum(1000, 32, mode="icot", icot_tokens_per_epoch=8.0, icot_remove_all_from=39)
    # 31.25 steps an epoch, 3.90625 a token.
    for k in range(38):
        assert c.stage_at(round((k + 1) * 3.90625) - 1) == k
        assert c.stage_at(round((k + 1) * 3.90625)) == k + 1
    assert c.stage_at(10**6) == 39


# ---- what a stage makes of a row


def test_the_plan_is_the_rule_of_training_and_of_evaluation():
    """For all stages and numbers of steps, fewer than the stage among them.

    Catches: training that keeps thoughts which evaluation leaves out, steps that are dropped twice,
    thoughts for steps that a row does not have.
    """
    for most in (1, 3, 6):
        for pad in (True, False):
            for c in (1, 2):
                for target in ("rest", "next_step"):
                    settings = {"max_latent_stage": most, "pad_latent_to_max": pad}
                    of = curriculum(**settings, c_thought=c, target=target)
                    for stage in range(most + 2):
                        for n_steps in range(9):
                            plan = of.plan(stage, n_steps)
                            # The public code's evaluation: min(stage, most, steps unless padded).
                            replaced = min(stage, most if pad else min(most, n_steps))
                            assert plan.slots == c * replaced
                            dropped = n_steps if stage > most else min(stage, n_steps)
                            assert plan.drop == dropped
                            assert plan.final == (dropped == n_steps)


def test_the_last_two_stages_are_alike_where_no_row_has_more_steps():
    c = curriculum(max_latent_stage=6)
    assert all(c.plan(6, n) == c.plan(7, n) for n in range(7))
    assert c.plan(6, 7) != c.plan(7, 7)


def test_so_many_thoughts_as_wanted():
    c = curriculum(max_latent_stage=3, c_thought=2)
    assert c.forced(2, 3) == c.plan(2, 3)
    assert c.forced(0, 3) == (0, 0, False, 0)
    assert c.forced(5, 3) == (3, 10, True, 0)
    assert curriculum(mode="icot").forced(5, 3).drop_tokens == 5


def test_a_share_of_rows_is_of_any_stage():
    """3 of 10 rows of a stage, evenly from 0 to the row's own steps.

    Catches: a draw up to the last stage, one that leaves out all steps, one for a whole batch.
    """
    c = curriculum(max_latent_stage=6, uniform_prob=0.3)
    rng, n = np.random.default_rng(0), 8000
    slots = np.array([c.drawn(7, 3, rng).slots for _ in range(n)])
    for value, p in {6: 0.7, 0: 0.075, 1: 0.075, 2: 0.075, 3: 0.075}.items():
        assert abs((slots == value).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert c.most_slots(0) == 6
    assert curriculum(max_latent_stage=6).most_slots(2) == 2


def test_removed_tokens_have_a_geometric_offset():
    """P(o) is proportional to exp(-o); all are removed by the schedule alone.

    Catches: an offset from 1 on, exp(-decay) for its complement, a row whose offset removes all.
    """
    c = curriculum(mode="icot", icot_offset_decay=1.0, icot_remove_all_from=6)
    rng, n = np.random.default_rng(0), 8000
    plans = [c.drawn(5, 3, rng) for _ in range(n)]
    offsets = np.array([p.drop_tokens for p in plans]) - 5
    for o in range(5):
        p = math.exp(-o) * (1 - math.exp(-1))
        assert abs((offsets == o).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert not any(p.final for p in plans)
    assert all(c.drawn(6, 3, rng).final for _ in range(9))


# ---- rows

ROWS = {
    ("coconut", 0): "<bos> q r ? <bot> <eot> | a ; b b ; c ; => A <eos>",
    ("coconut", 2): "<bos> q r ? <bot> <latent> <latent> <eot> | c ; => A <eos>",
    ("coconut", 3): "<bos> q r ? <bot> <latent> <latent> <latent> <eot> | => A <eos>",
    ("coconut", 4): "<bos> q r ? <bot> <latent> <latent> <latent> <eot> | => A <eos>",
    ("no_curriculum", 4): "<bos> q r ? <bot> <latent> <latent> <latent> <eot> | => A <eos>",
    ("no_thought", 1): "<bos> q r ? | b b ; c ; => A <eos>",
    ("no_thought", 4): "<bos> q r ? | => A <eos>",
    ("pause_as_thought", 1): "<bos> q r ? <bot> <latent> <eot> | b b ; c ; => A <eos>",
    ("pause", 4): "<bos> q r ? <bot> <latent> <latent> <latent> <eot> | => A <eos>",
    ("cot", 0): "<bos> q r ? | a ; b b ; c ; => A <eos>",
    ("no_cot", 0): "<bos> q r ? | => A <eos>",
    ("icot", 0): "<bos> q r ? | a ; b b ; c ; => A <eos>",
    ("icot", 3): "<bos> q r ? | b ; c ; => A <eos>",
    ("icot", 7): "<bos> q r ? | => A <eos>",
    ("icot", 30): "<bos> q r ? | => A <eos>",
    ("icot", 39): "<bos> q r ? | => A <eos>",
}


@pytest.mark.parametrize(("mode", "stage"), ROWS)
def test_the_row_of_every_mode(mode, stage):
    row = encoded(EXAMPLE, stage, staged(mode=mode, max_latent_stage=3))
    assert shown(row) == ROWS[mode, stage]
    names = ROWS[mode, stage].split()
    assert row["first"] == min(names.index(x) for x in ("<latent>", "<eot>", "|") if x in names)
    assert {mode for mode, _ in ROWS} == set(MODES)


STEPS = {
    ("coconut", 0): "<bos> q r ? | a",
    ("coconut", 1): "<bos> q r ? <latent> | b",
    ("coconut", 2): "<bos> q r ? <latent> <latent> | c",
    ("coconut", 3): "<bos> q r ? <latent> <latent> <latent> => | A",
    ("coconut", 4): "<bos> q r ? <latent> <latent> <latent> => | A",
    ("pause", 4): "<bos> q r ? <latent> <latent> <latent> => | A",
    ("no_thought", 1): "<bos> q r ? | b",
    ("no_cot", 0): "<bos> q r ? => | A",
    ("cot", 0): "<bos> q r ? | a ; b ; c ; => A <eos>",
}


@pytest.mark.parametrize(("mode", "stage"), STEPS)
def test_the_row_of_one_step(mode, stage):
    target = "rest" if mode == "cot" else "next_step"
    encoder = staged(mode=mode, max_latent_stage=3, target=target, markers=False)
    row = encoded(SINGLE, stage, encoder)
    assert shown(row) == STEPS[mode, stage]
    accepted = {0: "a b", 1: "b", 2: "a c d"}.get(stage, "A") if mode != "no_cot" else "A"
    assert VOCAB.decode(row["accept"]) == (accepted if mode != "cot" else "")


def test_a_step_is_drawn_from_the_shortest_ones_or_the_frontier():
    """Catches: a frontier drawn where shortest paths are wanted, a drawn label in evaluation."""
    for draw, wanted in (("shortest", {"c", "d"}), ("frontier", {"a", "c", "d"})):
        encoder = staged(target="next_step", draw=draw, markers=False, max_latent_stage=3)
        labels = [
            encoded(SINGLE, 2, encoder, seed, clean=False)["labels"][-1] for seed in range(40)
        ]
        assert {VOCAB.decode([i]) for i in labels} == wanted
        assert VOCAB.decode([encoded(SINGLE, 2, encoder)["labels"][-1]]) == "c"


def test_a_question_is_shuffled_in_training_only():
    encoder = dataclasses.replace(staged(mode="cot"), shuffle=lambda question, rng: question[::-1])
    assert shown(encoded(EXAMPLE, 0, encoder, clean=False)).startswith("<bos> r q ?")
    assert shown(encoded(EXAMPLE, 0, encoder)).startswith("<bos> q r ?")


def test_text_of_users_is_never_a_thought():
    """Catches: markers found by their literals."""
    question, step = "<latent><bot>?", "<eot><latent>"
    example = Example(question, (step, step), "<eos>")
    vocab = make_vocab(ByteCodec(), latent=True)
    encoder = staged({"seq_len": 99, "step_suffix": "\n", "answer_prefix": "### ",
                      "question_suffix": "\n"}, vocab)  # fmt: skip
    row = encoded(example, 1, encoder)
    specials = [i for i in [*row["actions"], row["labels"][-1]] if i >= 256]
    names = {i: name for name, i in vocab.specials.items()}
    assert [names[i] for i in specials] == ["<bos>", "<bot>", "<latent>", "<eot>", "<eos>"]


def hand_written(example, stage, most):
    """The row of a published example by the layout's definition, as bytes and names."""
    n = min(stage, most)
    kept = example["steps"][stage:] if stage <= most else []
    rest = "".join(step + "\n" for step in kept) + "### " + example["answer"]
    question = [*(example["question"] + "\n").encode()]
    return ["<bos>", *question, "<bot>", *["<latent>"] * n, "<eot>", "|", *rest.encode(), "<eos>"]


def check_published(examples):
    vocab = make_vocab(ByteCodec(), latent=True)
    names = {i: name for name, i in vocab.specials.items()}
    encoder = staged(
        {"seq_len": 4000, "question_suffix": "\n", "step_suffix": "\n", "answer_prefix": "### "},
        vocab, max_latent_stage=6,
    )  # fmt: skip
    for example in examples:
        record = Example(example["question"], tuple(example["steps"]), example["answer"])
        for stage in range(8):
            row = encoded(record, stage, encoder)
            given = int(np.argmax(row["weights"])) + 1
            ids = [names.get(int(i), int(i)) for i in [*row["actions"], row["labels"][-1]]]
            ids.insert(given, "|")
            assert ids == hand_written(example, stage, 6)


def test_rows_like_the_published_ones():
    check_published(
        [
            {
                "question": "Every impus is a rempus. Tom is a impus. Is Tom a rempus or gorpus?",
                "steps": ["Tom is a impus.", "Every impus is a rempus."],
                "answer": "Tom is a rempus.",
            }
        ]
    )


@pytest.mark.slow
def test_the_published_rows():
    """Wants the path of a published ProsQA file in the environment."""
    path = os.environ.get("PROSQA_JSON")
    if not path:
        pytest.skip("set PROSQA_JSON to the path of a prosqa_*.json")
    with open(path, encoding="utf-8") as file:
        check_published(json.load(file))


# ---- refusals


@pytest.mark.parametrize(
    ("data", "latent", "why"),
    [
        ({"seq_len": 11}, {}, r"an example needs 12 columns, data.seq_len is 11"),
        ({}, {"prompt_columns": 4}, r"a prompt of 5 columns, latent.prompt_columns is 4"),
        ({"seq_len": 16}, {"prompt_columns": 10}, r"7 columns behind its prompt.*is 6"),
    ],
)
def test_a_row_without_room_is_refused(data, latent, why):
    encoder = staged(data, max_latent_stage=3, **latent)
    with pytest.raises(ConfigError, match=why):
        encoded(EXAMPLE, 2, encoder)
    wider = {"seq_len": encoder.encoder.data.seq_len + 1}
    prompt = {"prompt_columns": 5} if latent.get("prompt_columns") == 4 else latent
    encoded(EXAMPLE, 2, staged({**data, **wider}, max_latent_stage=3, **prompt))


def test_a_step_of_several_tokens_is_refused_as_a_target_of_one():
    encoder = staged(target="next_step")
    with pytest.raises(ConfigError, match=r"'b b' is 2 tokens.*latent.target=\"rest\""):
        encoded(EXAMPLE, 1, encoder)


def test_pairs_and_thoughts_need_their_vocabulary():
    with pytest.raises(ConfigError, match=r"vocab.latent=True"):
        staged(vocab=make_vocab(CharCodec("ab")))
    staged(vocab=make_vocab(CharCodec("ab")), mode="cot")
    pairs = make_vocab(PairCodec(("a", "b", "A", ";", ":", "?")), latent=True)
    layout = {"answer_prefix": " : "}
    for target, why in (("rest", "can be read and not written"), ("next_step", "not written")):
        encoder = staged(layout, pairs, target=target)
        with pytest.raises(VocabError, match=why):
            encoded(Example("a>b", ("a>b",), "A"), 0, encoder)
    assert shown(encoded(Example("a>b", ("b",), "A"), 0, staged(layout, pairs)), pairs) == (
        "<bos> a>b ? <bot> <eot> | b ; : A <eos>"
    )


# ---- batches


def test_sizes_are_few_and_little_is_wasted():
    sizes = {rounded(n) for n in range(1, 2049)}
    assert all(n <= rounded(n) < max(n + 4, 1.25 * n + 1) for n in range(1, 2049))
    assert len(sizes) < 45
    assert rounded(0) == 0


def test_rows_are_aligned_where_their_prompts_end():
    encoder = staged(max_latent_stage=3, target="next_step", markers=False)
    longer = dataclasses.replace(SINGLE, question="q r q r q")
    rows = [encoded(e, s, encoder) for e, s in ((SINGLE, 0), (longer, 2), (SINGLE, 3))]
    for fixed in ((), (9, 7, 5)):
        batch, prefix, thoughts = aligned(rows, 4, LATENT, *fixed)
        assert (prefix, thoughts) == (9 if fixed else 8, 3)
        # Behind the longest prompt of 7: three thoughts and "=>".
        assert batch["actions"].shape == (4, prefix + (7 if fixed else 4))
        for b, row in enumerate(rows):
            real = batch["segments"][b] > 0
            assert np.argmax(real) == prefix - row["first"]
            for name in ("actions", "labels", "weights", "floor", "noised"):
                assert (batch[name][b][real] == row[name]).all()
                assert not batch[name][b][~real].any()
            accepted = batch["accept"][b]
            assert accepted[accepted >= 0].tolist() == row["accept"].tolist()
        assert not batch["segments"][3].any()
        assert batch["accept"].shape == (4, 5 if fixed else 4)
    with pytest.raises(ConfigError, match="3 right answers"):
        aligned(rows, 4, LATENT, 9, 7, 2)


def test_thoughts_alone_are_not_rounded_up():
    """What would be behind five thoughts with the answer in the last one's column."""
    encoder = staged({"answer_prefix": ""}, max_latent_stage=5, target="next_step", markers=False)
    batch, prefix, thoughts = aligned([encoded(SINGLE, 5, encoder)], 1, LATENT)
    assert (prefix, thoughts, batch["actions"].shape[1]) == (4, 5, 9)


class Listed:
    """Examples of different lengths, whose questions tell which they are."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        words = [WORDS[3 + int(digit)] for digit in f"{i:02o}"] + ["q"] * (i % 4)
        return dataclasses.replace(SINGLE, question=" ".join(words), index=i)


def source(rows=8, process=0, processes=1, measure=None, **changes):
    settings = {
        "max_latent_stage": 3, "target": "next_step", "markers": False, "stage_steps": (2, 2, 2),
        "uniform_prob": 0.4, "prompt_columns": 12, **changes,
    }  # fmt: skip
    encoder = staged({"seq_len": 24}, examples=20, rows=rows, **settings)
    return CurriculumSource(
        Listed(20), encoder, seed=3, mesh=sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1]),
        measure=measure, process_index=process, process_count=processes,
    )  # fmt: skip


ARRAYS = ("actions", "labels", "weights", "segments", "floor", "noised", "accept")


def test_the_batch_is_the_same_for_1_2_and_4_processes():
    """Shapes and static numbers too, or the processes would run different programs.

    Catches: a stage drawn by process, thoughts counted among a process's own rows.
    """
    whole = source()
    parts = {n: [source(process=i, processes=n) for i in range(n)] for n in (2, 4)}
    for _ in range(6):
        want = whole.next(None)
        for sources in parts.values():
            batches = [s.next(None) for s in sources]
            assert {s.stage for s in sources} == {whole.stage}
            assert {(b.prefix, b.thoughts) for b in batches} == {(want.prefix, want.thoughts)}
            for name in ARRAYS:
                joined = np.concatenate([getattr(b, name) for b in batches])
                np.testing.assert_array_equal(joined, getattr(want, name), err_msg=name)
    with pytest.raises(ConfigError, match="prompt_columns=0"):
        source(processes=2, prompt_columns=0)
    with pytest.raises(ValueError, match="8 rows do not divide among 3"):
        source(processes=3)


def test_fixed_columns_change_no_row():
    fitted, fixed = source(prompt_columns=0), source()
    for _ in range(6):
        a, b = (jax.device_get(s.next(None)) for s in (fitted, fixed))
        assert a.thoughts <= b.thoughts
        for name in ARRAYS[:-1]:
            x, y = getattr(a, name), getattr(b, name)
            for row in range(8):
                mine, other = a.segments[row] > 0, b.segments[row] > 0
                np.testing.assert_array_equal(x[row][mine], y[row][other])
        begins = [np.argmax(s.segments > 0, axis=1) for s in (a, b)]
        np.testing.assert_array_equal(a.prefix - begins[0], b.prefix - begins[1])


def test_an_optimizer_is_due_at_stages_or_epochs():
    """20 examples are two and a half batches: epochs begin with batches 3, 5, 8, counted from 0."""
    for when, wanted in (("stage", {2, 4}), ("epoch", {3, 5, 8}), ("never", set())):
        s = source(reset_optimizer=when)
        due = set()
        for k in range(10):
            s.next(None)
            if s.fresh_optimizer:
                due.add(k)
        assert due == wanted


def test_mastery_ends_a_stage_early_and_never_late():
    """Looked at every second step of a stage; stage 1 is never mastered.

    Catches: a stage that waits for mastery beyond its schedule, a measure asked of the new stage,
    two stages at once.
    """
    asked = []

    def measure(state, stage):
        asked.append((state, stage))
        return 0.0 if stage == 1 else 0.8

    settings = {
        "advance": "mastery", "mastery": 0.8, "mastery_every_steps": 2, "stage_steps": (9, 5, 9, 9)
    }  # fmt: skip
    s = source(measure=measure, **settings)
    stages = []
    for k in range(13):
        s.next(k)
        stages.append(s.stage)
    assert stages == [0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert asked == [(2, 0), (4, 1), (6, 1), (9, 2)]


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_restored_source_goes_on_as_if_it_had_never_stopped(stop):
    """Across stages and epochs; the place is JSON."""

    def run(s, steps):
        found = []
        for _ in range(steps):
            batch = jax.device_get(s.next(None))
            arrays = {name: getattr(batch, name).tobytes() for name in ARRAYS}
            found.append((arrays, batch.prefix, batch.thoughts, s.stage, s.fresh_optimizer))
        return found

    want = run(source(), 9)
    first = source()
    assert run(first, stop) == want[:stop]
    again = source()
    again.restore(json.loads(json.dumps(first.save())))
    assert again.meta() == {"stage": want[stop - 1][3]}
    assert run(again, 9 - stop) == want[stop:]


def test_validation_rows_are_all_examples_once_and_clean():
    encoder = staged(
        {"seq_len": 24}, target="next_step", markers=False, max_latent_stage=3, uniform_prob=1.0
    )
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    examples = [Listed(20)[i] for i in range(5)]
    batches = jax.device_get(staged_batches(examples, encoder, 2, 4, mesh))
    assert [int(b.weights.sum()) for b in batches] == [4, 1]
    assert {b.thoughts for b in batches} == {2}
    rows = np.concatenate([b.segments.sum(1) for b in batches])
    assert rows.tolist() == [len(encoded(e, 2, encoder)["actions"]) for e in examples] + [0] * 3
