"""The stream is one, whoever reads which part of it: processes, epochs, resuming, packing."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

from reasoning_jax import backspace, sharding
from reasoning_jax.commands.assemble import assemble, evaluation_items
from reasoning_jax.config import ConfigError, DataConfig, NoiseConfig
from reasoning_jax.data.batch import Encoder, padded
from reasoning_jax.data.examples import DataError, Example
from reasoning_jax.data.jsonl import JsonlSource
from reasoning_jax.data.pipeline import Stream, SupervisedSource, fixed_batches
from reasoning_jax.data.splits import HashSplit
from reasoning_jax.tasks.base import SPLITS
from reasoning_jax.train.losses import causal_positions
from reasoning_jax.vocab import CharCodec, make_vocab
from tests.small import tiny_run

VOCAB = make_vocab(CharCodec("0123456789="))
FIELDS = ("actions", "labels", "weights", "floor", "noised")
T = 24


class Listed:
    """`n` examples of different questions and lengths."""

    def __init__(self, n):
        self._examples = [Example(f"{i:02d}=", (), "7" * (1 + i % 6), index=i) for i in range(n)]

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


def encoder(rate=0.2):
    return Encoder(VOCAB, DataConfig(seq_len=T), NoiseConfig(rate), tuple(range(10)))


def source(examples=40, rows=4, pack=False, process=0, processes=1, rate=0.2, seed=0):
    return SupervisedSource(
        Listed(examples) if isinstance(examples, int) else examples, encoder(rate),
        batch_rows=rows, seed=seed, mesh=sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1]),
        pack_examples=pack, process_index=process, process_count=processes,
    )  # fmt: skip


def take(source, batches):
    """Batches as dicts of numpy arrays."""
    names = (*FIELDS, "segments")
    return [
        {name: getattr(batch, name) for name in names}
        for batch in (jax.device_get(source.next()) for _ in range(batches))
    ]


def equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def segments_of(batches):
    """Every segment of every row, as a tuple of its bytes."""
    found = []
    for batch in batches:
        for row in range(len(batch["segments"])):
            ids = batch["segments"][row]
            for s in range(1, ids.max() + 1):
                found.append(tuple(batch[name][row][ids == s].tobytes() for name in FIELDS))
    return found


def stream_segments(stream, positions):
    return [tuple(stream[i][name].tobytes() for name in FIELDS) for i in positions]


def question(encoded):
    return int(VOCAB.decode(encoded["actions"][1:3]))


def test_the_batch_is_the_same_for_1_2_and_4_processes():
    # Catches: a shuffle or noise seeded by process; rows dealt to processes in another order.
    whole = take(source(rows=8), 5)
    for processes in (2, 4):
        parts = [take(source(rows=8, process=i, processes=processes), 5) for i in range(processes)]
        joined = [
            {name: np.concatenate([p[name] for p in batch]) for name in batch[0]}
            for batch in zip(*parts)
        ]
        equal(joined, whole)
    with pytest.raises(ValueError, match="8 rows do not divide among 3 processes"):
        source(rows=8, processes=3)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_an_epoch_is_a_permutation_and_each_is_another(n):
    # Catches: drawing with replacement, one order for ever, an order that skips the last example.
    def orders(seed):
        stream = Stream(Listed(n), encoder(), seed)
        return [[question(stream[e * n + i]) for i in range(n)] for e in range(4)]

    assert all(sorted(order) == list(range(n)) for order in orders(0))
    if n >= 10:
        assert len({tuple(order) for seed in (0, 1) for order in orders(seed)}) == 8


def test_noise_is_new_in_every_epoch_and_the_same_in_every_run():
    # Catches: noise by example (the same in each epoch), or from a generator that reading advances.
    stream, again = (Stream(Listed(40), encoder(0.5), 0) for _ in range(2))
    read = stream_segments(stream, range(120))
    assert stream_segments(again, reversed(range(120))) == read[::-1]
    seen = {}
    for i in range(120):
        seen.setdefault(question(stream[i]), set()).add(read[i])
    # The longest answers have the most places for noise: no two epochs may give them the same.
    assert [len(seen[i]) for i in range(5, 40, 6)] == [3] * 6
    assert stream_segments(Stream(Listed(40), encoder(0.5), 1), range(120)) != read


@pytest.mark.parametrize("pack", [False, True])
def test_a_saved_place_is_exact(pack):
    """Saved at every batch, in the middle of epochs, through JSON, into a source that has run.

    Catches: a place that counts what was prefetched, or epochs, or forgets a half-filled row.
    """
    first = source(17, pack=pack)
    places, batches = [json.dumps(first.save())], []
    for _ in range(9):
        batches += take(first, 1)
        places.append(json.dumps(first.save()))
    other = source(17, pack=pack)
    for done in (3, 8, 0, 5):
        other.restore(json.loads(places[done]))
        equal(take(other, 9 - done), batches[done:])
        assert json.dumps(other.save()) == places[9]


def test_packing_loses_no_example_and_no_weight():
    # Catches: rows dropped when a bin is full, examples cut at T.
    batches = take(source(rows=8, pack=True), 6)
    assert all(batch["actions"].shape == (8, T) for batch in batches)
    found = segments_of(batches)
    stream = Stream(Listed(40), encoder(), 0)
    assert Counter(found) == Counter(stream_segments(stream, range(len(found))))
    total = sum(float(stream[i]["weights"].sum()) for i in range(len(found)))
    assert sum(float(batch["weights"].sum()) for batch in batches) == total
    assert len(found) > 1.5 * 6 * 8, "hardly anything was packed"


def test_packing_on_several_processes_is_refused():
    # Their places differ, and a checkpoint holds one.
    with pytest.raises(ConfigError, match="pack_examples"):
        source(rows=8, pack=True, processes=2)


def test_segments_of_a_packed_row_are_strangers():
    """Each segment has the positions, tokens and mask that it has in a row of its own."""
    # Catches: positions or depth that run on, attention across segments, one floor for all.
    (batch,) = take(source(rows=8, pack=True), 1)
    pack = jax.jit(backspace.pack, static_argnames="backspace_id")

    def packed(batch):
        arrays = [batch[name] for name in ("actions", "segments", "floor")]
        return jax.device_get(pack(*arrays, VOCAB.backspace_id))

    together, causal = packed(batch), np.asarray(causal_positions(batch["segments"]))
    alone, spans = [], []
    for row, ids in enumerate(batch["segments"]):
        assert ids[0] == 1
        for s in range(1, ids.max() + 1):
            (at,) = np.nonzero(ids == s)
            assert at.tolist() == list(range(at[0], at[-1] + 1))
            assert batch["actions"][row, at[0]] == VOCAB.bos_id
            spans.append((row, slice(at[0], at[-1] + 1)))
            alone.append({name: batch[name][row, at] for name in FIELDS})
        padding = ids == 0
        assert not batch["weights"][row, padding].any()
    rows = -(-len(alone) // 8) * 8
    single = packed(padded(alone, rows, T))
    for i, (row, span) in enumerate(spans):
        n = span.stop - span.start
        for name in ("tokens", "positions", "depth", "push"):
            got, want = getattr(together, name), getattr(single, name)
            np.testing.assert_array_equal(got[row, span], want[i, :n])
        inside = together.mask[row, span]
        np.testing.assert_array_equal(inside[:, span], single.mask[i, :n, :n])
        assert inside.sum() == inside[:, span].sum(), "attention to another segment"
        np.testing.assert_array_equal(causal[row, span], np.arange(n))


def test_fixed_batches_hold_every_example_once_and_in_order():
    # Catches: the last, short batch left out; a shuffle.
    batches = fixed_batches([Listed(10)[i] for i in range(10)], encoder(0.0), 4, seed=0)
    counts = [batch["segments"][:, 0].tolist() for batch in batches]
    assert counts == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    seen = [
        question({"actions": row}) for batch in batches for row in batch["actions"] if row.any()
    ]
    assert seen == list(range(10))


def jsonl(path, n=60):
    lines = [{"question": f"{i:02d}=", "answer": str(i * 7)} for i in range(n)]
    # The same question twice, once with spaces around it, belongs to one split.
    lines += [{"question": f" {i:02d}= ", "answer": str(i)} for i in range(0, n, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, lines


def test_splits_of_a_file_are_disjoint_and_complete(tmp_path):
    # Catches: a hash of the index (the same question on both sides), a split that drops records.
    path, lines = jsonl(tmp_path / "sums.jsonl")
    whole = JsonlSource(path)
    splits = {split: HashSplit(whole, split) for split in SPLITS}
    read = {split: [s[i] for i in range(len(s))] for split, s in splits.items()}
    texts = [(e.question, e.answer) for examples in read.values() for e in examples]
    assert sorted(texts) == sorted((line["question"], line["answer"]) for line in lines)
    questions = [{e.question.strip() for e in examples} for examples in read.values()]
    assert sum(map(len, questions)) == 60
    for examples in read.values():
        assert [e.index for e in examples] == list(range(len(examples)))
    assert len(read["train"]) > 40
    assert splits["test"][-1] == read["test"][-1]
    with pytest.raises(IndexError):
        splits["test"][len(read["test"])]


def test_a_split_without_records_is_refused(tmp_path):
    path, _ = jsonl(tmp_path / "one.jsonl", 1)
    with pytest.raises(DataError, match="none of its 2 records falls into the validation split"):
        HashSplit(JsonlSource(path), "validation")


def test_a_users_file_from_end_to_end(tmp_path):
    """A JSONL file through config, vocabulary, split, noise and packing to batches and a judge."""
    # Catches: training on held-out records, a judge that compares another record's answer.
    path, _ = jsonl(tmp_path / "sums.jsonl")
    data = {"source": "jsonl", "path": str(path), "seq_len": T, "train_problems": 1}
    config = tiny_run(data=data, noise={"source": "random"}, vocab={"kind": "byte"})
    assembly = assemble(config)
    train = assembly.examples("train")
    for pack in (False, True):
        mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
        batches = SupervisedSource(
            train, assembly.encoder, batch_rows=4, seed=0, mesh=mesh, pack_examples=pack
        )
        stream = Stream(train, assembly.encoder, 0)
        found = segments_of(take(batches, len(train) // 4 + 1))
        assert Counter(found) == Counter(stream_segments(stream, range(len(found))))
        assert len(found) >= len(train)
    read = [stream[i]["actions"] for i in range(len(train))]
    questions = sorted(bytes(a[1 : a.tolist().index(ord("=")) + 1].astype("u1")) for a in read)
    assert questions == sorted(train[i].question.rstrip().encode() for i in range(len(train)))
    for item in evaluation_items(assembly, "validation", 3):
        answer = assembly.vocab.decode(item.response[:-1])
        assert item.is_correct(answer)
        assert not item.is_correct(answer + "0")
