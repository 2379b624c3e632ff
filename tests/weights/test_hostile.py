"""Broken and hostile weight files: a typed error or a sound model, quickly and in little memory.

Seeded mutations of every kind of file. 300 each here; ten times as many are marked slow, or as many
as FUZZ_WEIGHTS says.
"""

import json
import os
import random
import struct
import time
import tracemalloc
from copy import deepcopy

import numpy as np
import pytest

from reasoning_jax import weights
from reasoning_jax.weights import WeightsError
from tests.weights.support import GOLDEN, NAMES, TOKENIZER, copy_model

# What a read may take beyond twice the file: a thousand-layer tree of Python objects is not free.
SLACK_BYTES = 2 << 20

HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3, 7, 31, 2**31 - 1, 2**31, 2**63, -(2**63), 10**40, 0.0, -0.5,
    1e-320, 1e308, float("nan"), float("inf"), "", "x", "x" * 5000, "\0", "../x", "/etc/passwd",
    "model.safetensors", [], {}, [[]], [None], {"": None}, "F64", "BF16", [0, 1], [2**62, 2**62],
)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few flips, inserted or removed bytes, a copied piece, or a cut; mostly near the start."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        reach = rng.choice((16, 256, 4096, len(data)))
        at = rng.randrange(min(reach, len(data)) or 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**62, 2**64 - 1)))
        elif kind == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            piece = data[at : at + rng.randrange(64)]
            to = rng.randrange(len(data) + 1)
            data[to : to + len(piece)] = piece
        else:
            del data[at:]
    return bytes(data)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A value replaced by a hostile one, a key lost, renamed or nested deeply; else bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    values = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        node = values
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.8:
                node = node[key]
                continue
            kind = rng.randrange(8)
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, dict):
                node[rng.choice(("", "x" * 300, "__metadata__"))] = node.pop(key)
            elif kind == 2:
                node[key] = nested = []
                for _ in range(rng.choice((3, 100))):
                    nested.append([])
                    nested = nested[0]
            elif kind == 3:
                node[key] = deepcopy(
                    rng.choice(list(node.values() if isinstance(node, dict) else node))
                )
            else:
                node[key] = deepcopy(rng.choice(HOSTILE))
            break
    return json.dumps(values).encode()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header's JSON with its length made right again, or bytes anywhere."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


MUTATIONS = {
    "config.json": mutate_json,
    "tokenizer.json": mutate_json,
    "tokenizer_config.json": mutate_json,
    "special_tokens_map.json": mutate_json,
    "added_tokens.json": mutate_json,
    "generation_config.json": mutate_json,
    "model.safetensors.index.json": mutate_json,
    "model.safetensors": mutate_safetensors,
    "m.gguf": mutate_bytes,
}


def originals(kind: str, tmp_path) -> list:
    """The folders or files that mutations of a kind start from; their config is a valid one."""
    if kind == "m.gguf":
        pytest.importorskip("gguf")
        from tests.weights.gguf_writer import write_tokenizer

        return [
            write_tokenizer(tmp_path / f"{name}.gguf", GOLDEN / name, "smollm")
            for name in ("llama", "gpt2")
        ]
    folders = []
    for name in NAMES:
        folder = copy_model(name, tmp_path / name)
        if kind == "model.safetensors.index.json":
            model = weights.load(folder)
            folder = weights.export(
                tmp_path / f"{name}-sharded", model.config, model.params, max_shard_bytes=12_500
            )
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        named = {
            "eos_token": "<eos>", "bos_token": {"content": "<eos>"}, "chat_template": "{{x}}",
            "add_bos_token": True, "add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer",
            "additional_special_tokens": ["<eos>"],
        }  # fmt: skip
        flags = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
        if kind == "tokenizer_config.json":
            named["added_tokens_decoder"] = {"4": {"content": "aa", **flags}}
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
        (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<eos>"}))
        (folder / "added_tokens.json").write_text(json.dumps({"aa": 4, "bb": 5}))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
        if kind == "config.json" and name == "qwen2":
            scaling = {
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                "beta_fast": 32, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 1.0,
                "truncate": False,
            }  # fmt: skip
            values = json.loads((folder / kind).read_text())
            values |= {"rope_theta": 1e6, "rope_scaling": scaling}
            del values["rope_parameters"]
            (folder / kind).write_text(json.dumps(values))
        folders.append(folder)
    return folders


def answer(read, path) -> tuple[bool, float, int]:
    """Whether `read(path)` refused, the seconds it took, and the bytes it held at most."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        read(path)
        refused = False
    except WeightsError as error:
        message = str(error)
        assert len(message.splitlines()) <= 6, message
        assert len(message) < 1000, message
        refused = True
    finally:
        seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return refused, seconds, peak


def run(kind: str, rounds: int, tmp_path) -> tuple[int, int, float, float]:
    """Mutate and load `rounds` times: loads, refusals, slowest in seconds, largest peak in files'
    sizes (of those files; a small one is below what Python's objects take).
    """
    loads, refusals, slowest, largest = 0, 0, 0.0, 0.0
    starts = originals(kind, tmp_path)
    for start in starts:
        path = start if start.is_file() else start / kind
        good = path.read_bytes()
        weights.load(start)
        files = [path] if start.is_file() else list(start.iterdir())
        budget = SLACK_BYTES + 2 * sum(file.stat().st_size for file in files)
        rng = random.Random(f"{kind} {start.name}")
        for i in range(rounds // len(starts)):
            path.write_bytes(MUTATIONS[kind](good, rng))
            case = f"mutation {i} of {start.name}/{kind}"
            try:
                refused, seconds, peak = answer(weights.load, start)
                if seconds >= 1.0 or peak >= budget:  # once more: the machine may be busy
                    refused, seconds, peak = answer(weights.load, start)
            except BaseException as error:
                raise AssertionError(f"{case}: {error!r}") from error
            assert seconds < 1.0, case
            assert peak < budget, f"{case}: {peak:,} bytes"
            refusals += refused
            loads += 1
            slowest = max(slowest, seconds)
            largest = max(largest, 2 * (peak - SLACK_BYTES) / (budget - SLACK_BYTES))
        path.write_bytes(good)
    return loads, refusals, slowest, largest


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_files_are_answered(kind, tmp_path):
    assert run(kind, 300, tmp_path)[1] > 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATIONS)
def test_many_mutated_files_are_answered(kind, tmp_path):
    rounds = int(os.environ.get("FUZZ_WEIGHTS", 3_000))
    loads, refusals, slowest, largest = run(kind, rounds, tmp_path)
    print(
        f"\n| {kind} | {loads:,} | {refusals:,} | {loads - refusals:,} | {slowest:.3f} s | "
        f"{max(largest, 0):.1f} x |"
    )


def gguf_with(*parts: bytes, tensors: int = 0, values: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


BIG = 2**62


def tensor(*numbers: int, form: str) -> bytes:
    """A GGUF file with one entry in its tensor table, and 99 bytes more."""
    return gguf_with(text(b"t"), struct.pack(f"<{form}", *numbers), bytes(99), tensors=1)


def value(form: str, *numbers: int, more: int = 64) -> bytes:
    """A GGUF file with one key, whose type and value are `numbers`, and `more` bytes."""
    return gguf_with(text(b"k"), struct.pack(f"<{form}", *numbers), bytes(more), values=1)


# Every number of the format, set to what a trusting reader would allocate or follow.
GGUF_ATTACKS = {
    "empty": (b"", "0 bytes is no GGUF file"),
    "magic only": (b"GGUF", "4 bytes is no GGUF file"),
    "other magic": (b"GGML" + bytes(40), "got b'GGML'"),
    "version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 2 or 3"),
    "tensor count": (gguf_with(bytes(64), tensors=BIG), "tensors do not fit"),
    "value count": (gguf_with(bytes(64), values=BIG), "keys do not fit"),
    "many keys": (
        gguf_with(*(text(b"%d" % i) + bytes(5) for i in range(70_000)), values=70_000),
        "70,000 keys do not fit: at most 65,536",
    ),
    "key length": (gguf_with(struct.pack("<Q", BIG), bytes(64), values=1), "a string of"),
    "key text": (gguf_with(text(b"\xff"), bytes(64), values=1), "is not UTF-8"),
    "string length": (value("IQ", 8, BIG), "a string of"),
    "array count": (value("IIQ", 9, 10, BIG), "elements of 'k' do not fit"),
    "array bytes": (value("IIQ", 9, 10, 60), "reach beyond the end"),
    "strings": (value("IIQ", 9, 8, 2**20 + 1, more=9 << 20), "more than 1,048,576 strings"),
    "nested": (value("IIQ", 9, 9, 1), "arrays in an array"),
    "type": (value("I", 99), "holds type 99"),
    "twice": (gguf_with(2 * (text(b"k") + struct.pack("<IB", 0, 1)), values=2), "there twice"),
    "axes": (tensor(9, form="I"), "has 9 axes; 1 to 4"),
    "axis size": (tensor(2, BIG, BIG, 0, 0, form="IQQIQ"), "reaches beyond the end"),
    "no size": (tensor(1, 0, 0, 0, form="IQIQ"), "must be positive"),
    "offset": (tensor(1, 4, 0, 2**63, form="IQIQ"), "reaches beyond the end"),
    "unaligned": (tensor(1, 4, 0, 1, form="IQIQ"), "not a multiple of 32"),
    "part block": (tensor(1, 33, 2, 0, form="IQIQ"), "the last in 32s"),
}


@pytest.mark.parametrize("attack", list(GGUF_ATTACKS))
def test_hostile_gguf_headers(attack, tmp_path):
    data, message = GGUF_ATTACKS[attack]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        weights.read_config(tmp_path / "m.gguf")
    refused, seconds, peak = answer(weights.read_config, tmp_path / "m.gguf")
    assert refused
    assert seconds < 1.0
    assert peak < SLACK_BYTES


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path):
    start = originals("m.gguf", tmp_path)[0]
    data = start.read_bytes()
    for size in [*range(0, 3000, 7), *range(3000, len(data), 9973)]:
        start.write_bytes(data[:size])
        with pytest.raises(WeightsError):
            weights.load(start)


def test_a_tensor_as_large_as_the_config_claims_is_never_allocated(tmp_path):
    """Config and tensor header agree on 2**40 values that the file does not hold."""
    folder = copy_model("llama", tmp_path / "m")
    header = {"model.embed_tokens.weight": {
        "dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42],
    }}  # fmt: skip
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(4096))
    values = json.loads((folder / "config.json").read_text())
    values |= {"vocab_size": 2**20, "hidden_size": 2**20}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load(folder)


def test_a_config_that_is_not_utf8_json_or_far_too_large(tmp_path):
    path = tmp_path / "config.json"
    for content, message in (
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"{", "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "wanted a JSON object"),
        (b" " * (2 << 20), "at most 1,048,576 are read"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            weights.read_config(tmp_path)


def test_random_bytes_are_no_weights(tmp_path):
    rng = np.random.default_rng(0)
    folder = copy_model("llama", tmp_path / "m")
    for size in (0, 1, 7, 8, 9, 100, 10_000):
        data = rng.bytes(size)
        (folder / "model.safetensors").write_bytes(data)
        (tmp_path / "x.gguf").write_bytes(data)
        for path in (folder, tmp_path / "x.gguf"):
            with pytest.raises(WeightsError):
                weights.load(path)
