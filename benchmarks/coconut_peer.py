"""Times the public Coconut reference, one request a line on stdin, one answer a line on stdout.

    PEER_PYTHON benchmarks/coconut_peer.py --reference=CHECKOUT [--threads=1]

PEER_PYTHON has torch and transformers 4.46 (the reference breaks with later caches), CHECKOUT is a
clone of facebookresearch/coconut; nothing of ours is imported. benchmarks/coconut.py starts it, so
that both sides take turns in one run. The first line written says what runs. Requests, as JSON:

    {"work": "step", "thoughts": 6, "batch": 8, "length": 128, "prefix": 90, "layers": 4,
     "width": 256, "heads": 8, "vocab": 128, "dropout": 0.0, "repeats": 1}
    {"work": "generate", "thoughts": 6, "prompt": 98, "new_tokens": 16, "layers": 4, ...}

answered by {"cpu": [seconds], "wall": [seconds], "tokens": each repeat's, ...} or {"error": text}.
A step is forward, backward and AdamW on rows of `prefix` question tokens, start marker, thoughts,
end marker and text up to `length`, as the reference trains; generating is its own loop for one
row, which no token ends. A setting's first request makes its model and has one run outside timing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import torch
import transformers

# What a request may leave out.
DEFAULTS = {
    "thoughts": 6, "batch": 8, "length": 128, "prefix": 90, "layers": 4, "width": 256, "heads": 8,
    "vocab": 128, "dropout": 0.0, "repeats": 1, "prompt": 98, "new_tokens": 16,
}  # fmt: skip
LEAST_POSITIONS = 256
NEVER = -1  # the token that ends generation
IGNORED = -100


def load_reference(checkout: Path):
    """The reference's module, under a name that our coconut.py beside this file does not have."""
    spec = importlib.util.spec_from_file_location("coconut_reference", checkout / "coconut.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(reference, *, layers, width, heads, vocab, positions, dropout, **_):
    """A GPT-2 of random weights within the reference's wrapper; markers are its last three ids."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    start, end, thought = range(vocab - 3, vocab)
    base = transformers.GPT2LMHeadModel(config)
    return reference.Coconut(base, thought, start, end, NEVER)


def make_rows(*, batch, length, prefix, thoughts, vocab, **_):
    """(ids, labels): labels are only on what follows the end marker."""
    start, end, thought = range(vocab - 3, vocab)
    text = length - prefix - thoughts - 2
    if text < 0:
        raise ValueError(f"{prefix} + {thoughts} thoughts + 2 markers exceed length {length}")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab - 3, (batch, length), generator=generator)
    ids[:, prefix : length - text] = torch.tensor([start] + [thought] * thoughts + [end])
    labels = ids.clone()
    labels[:, : length - text] = IGNORED
    return ids, labels


def training_step(reference, **work):
    """A function that does one step and returns the tokens in it."""
    model = make_model(reference, positions=max(LEAST_POSITIONS, work["length"]), **work)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    ids, labels = make_rows(**work)
    mask = torch.ones_like(ids)
    positions = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()

    def run() -> int:
        model(ids, mask, labels, positions).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    return run


def generating(reference, **work):
    """A function that completes a prompt ending in its thoughts and returns the new tokens."""
    prompt, thoughts, new = work["prompt"], work["thoughts"], work["new_tokens"]
    model = make_model(reference, positions=max(LEAST_POSITIONS, prompt + new), **work)
    model.eval()
    ids, _ = make_rows(**work | {"batch": 1, "length": prompt, "prefix": prompt - thoughts - 2})
    mask = torch.ones_like(ids)

    def run() -> int:
        with torch.no_grad():
            return model.generate(ids, mask, max_new_tokens=new).shape[1] - prompt

    return run


WORKS = {"step": training_step, "generate": generating}


def answer(request: dict, reference, made: dict) -> dict:
    """The times of request["repeats"] runs; `made` keeps what earlier requests set up."""
    work = DEFAULTS | request
    name, repeats = work.pop("work"), work.pop("repeats")
    key = (name, *sorted(work.items()))
    if key not in made:
        made[key] = WORKS[name](reference, **work)
        made[key]()
    times = {"cpu": [], "wall": [], "tokens": []}
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = made[key]()
        times["cpu"].append(time.process_time() - cpu)
        times["wall"].append(time.perf_counter() - wall)
        times["tokens"].append(tokens)
    return times | {"request": request}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    torch.set_num_threads(args.threads)
    reference = load_reference(args.reference)
    source = (args.reference / "coconut.py").read_bytes()
    hello = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
        "sha256": hashlib.sha256(source).hexdigest(),
    }
    print(json.dumps(hello), file=answers, flush=True)
    made = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), reference, made)
        except Exception as error:  # one bad request does not end the run
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
