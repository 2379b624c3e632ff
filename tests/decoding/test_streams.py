"""Streams of actions that nobody would choose, through the sampler: what stands is the oracle's.

SAMPLER_STREAMS=1000000 is the long form. A stream is a row of a table of ids, from which the place
of each action is taken instead of being drawn; rows go through a queue with few places.
"""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.config import SamplingConfig
from reasoning_jax.decoding import queue as queues
from reasoning_jax.decoding.actions import ActionIds, action_log_probs
from reasoning_jax.decoding.sampler import make_step, read_prompts
from reasoning_jax.model import readout, transformer
from tests import oracle
from tests.small import LLAMA, init

STREAMS = int(os.environ.get("SAMPLER_STREAMS", "6000"))
# So many go through one program at a time; of the first ones every state is also recomputed.
ROWS = min(STREAMS, 50_000)
PLACES = min(ROWS // 8, 512)
RECOMPUTED = ROWS if STREAMS >= 100_000 else ROWS // 3
# Compiling is most of the short form.
pytestmark = pytest.mark.usefixtures("unoptimised") if STREAMS < 100_000 else []
P, A, NEW, GROUP = 5, 16, 7, 4
V, EOS, BKID, NEVER = LLAMA.vocab_size, 9, 10, 11
IDS = ActionIds(EOS, BKID, (NEVER,))
ORDINARY = 9
SAMPLING = SamplingConfig(max_actions=A, max_new_tokens=NEW)
KINDS = (
    "any id", "no end", "all backspace", "prompt edge", "alternating", "out and back",
    "behind eos", "max length", "at the limits", "eos at once",
)  # fmt: skip


def streams_of(seed):
    """(prompts [N, P], lengths, floors, budgets [Q], table [Q, A], kinds [Q]); N = Q / GROUP.

    Random ids stand behind each prompt and behind the end of each stream.
    """
    rng = np.random.default_rng(seed)
    N, Q = ROWS // GROUP, ROWS
    prompts = rng.integers(0, V, (N, P)).astype(np.int32)
    length = rng.integers(1, P + 1, N).astype(np.int32)
    # Mostly inside the prompt, often its end; sometimes behind it, so that new tokens must stay.
    inside = np.where(rng.random(N) < 0.5, length - 1, rng.integers(0, P, N) % length)
    floor = np.where(rng.random(N) < 0.06, length + 1, inside).astype(np.int32)
    budget = rng.integers(1, A + 1, Q).astype(np.int32)
    budget[rng.random(Q) < 0.5] = A
    budget[rng.random(Q) < 0.01] = 0
    kinds = rng.integers(0, len(KINDS), Q)
    t = np.arange(A)[None, :]
    token = rng.integers(0, ORDINARY, (Q, A))
    any_id = rng.integers(0, V, (Q, A))
    own = np.repeat(length - 1 - floor, GROUP)[:, None]
    period = rng.integers(1, NEW + 1, (Q, 1))
    end = rng.integers(0, A, (Q, 1))
    # Of the limits: the last action of the budget, the last token there is room for, and beside.
    edge = np.where(rng.random((Q, 1)) < 0.5, budget[:, None] - 1, NEW)
    edge = edge + rng.integers(-1, 2, (Q, 1))
    made = {
        "any id": any_id,
        "no end": np.where(rng.random((Q, A)) < 0.5, BKID, np.where(any_id == EOS, 0, any_id)),
        "all backspace": np.full((Q, A), BKID),
        # Down to the floor and two beyond it, then a token for every two backspaces.
        "prompt edge": np.where((t < own + 2) | (t % 3 > 0), BKID, token),
        "alternating": np.where((t + period) % 2 == 0, token, BKID),
        "out and back": np.where(t // period % 2 == 0, token, BKID),
        "behind eos": np.where(t == end, EOS, any_id),
        "max length": token,
        "at the limits": np.where(t == edge, EOS, token),
        "eos at once": np.where(t == 0, EOS, any_id),
    }
    table = np.select([(kinds == i)[:, None] for i in range(len(KINDS))], list(made.values()))
    assert tuple(made) == KINDS
    return prompts, length, floor, budget, table.astype(np.int32), kinds


def standing_still(params, s, log_probs, cache):
    """How far a step's log-probabilities and cache [B] are from those of what stands, in one pass.

    What stands are the first depth + 1 tokens of a row; the rest of it is cut off by the mask.
    """
    depth = s["depth"]
    room = s["tokens"].shape[1]
    anew, out = transformer.prefill(params, LLAMA, s["tokens"], room)
    tops = jnp.take_along_axis(out.hidden, depth[:, None, None], 1)[:, 0]
    allowed = np.ones((len(depth), V), bool)
    allowed[:, NEVER] = False
    is_backspace = jnp.arange(V)[None, :] == BKID
    allowed = allowed & ~(is_backspace & (depth <= s["floor"])[:, None])
    want = action_log_probs(readout.logits(params, LLAMA, tops), allowed, SAMPLING)
    error = jnp.abs(log_probs - want).max(-1)
    live = (jnp.arange(room)[None, :] <= depth[:, None])[:, None, :, None]
    for old, new in zip((*cache.keys, *cache.values), (*anew.keys, *anew.values)):
        error = jnp.maximum(error, jnp.where(live, jnp.abs(old - new), 0).max((1, 2, 3)))
    return error


def make_run(recompute):
    """A compiled (params, prompts, length, floor, budget, table) -> Completions.

    With `recompute`, `backspace` holds the error of each state that an action was taken in.
    """

    @jax.jit
    def run(params, prompts, length, floor, budget, table):
        seen = {}

        def draw(s, keys, log_probs):
            seen["log_probs"] = log_probs
            return table[s["row"], jnp.minimum(s["length"], A - 1)]

        step = make_step(params, LLAMA, SAMPLING, IDS, jax.random.key(0), draw=draw)

        def checked(s):
            after = step(s)
            error = standing_still(params, s, seen["log_probs"], after["cache"])
            line = s["step"] % A
            old = after["log"]["backspace"]
            new = old.at[line].set(jnp.where(s["live"], error, old[line]))
            return after | {"log": after["log"] | {"backspace": new}}

        def read(part, room):
            return read_prompts(params, LLAMA, part.ids, room, None, None, None, jnp.zeros(0))

        rows = jnp.arange(len(budget), dtype=jnp.int32)
        queue = queues.Queue.of(prompts, length, floor, rows, budget, None)
        room = P + NEW + 1
        return queues.run(queue, read, checked if recompute else step, A, room, P, PLACES)

    return run


def texts(tokens, count):
    return [row[:n] for row, n in zip(tokens.tolist(), count.tolist())]


def check(streams, out):
    """Everything that is written down of each stream, against plain lists."""
    prompts, length, floor, budget, table, kinds = streams
    chosen = np.where(table == BKID, oracle.BK, table).tolist()
    executed = np.where(out.actions == BKID, oracle.BK, out.actions)
    given = texts(prompts, length)
    found = zip(
        texts(executed, out.length), texts(out.forced, out.length),
        texts(out.tokens, out.token_count), texts(out.chosen, out.length),
    )  # fmt: skip
    for q, ((actions, forced, standing, drawn), limit) in enumerate(zip(found, budget.tolist())):
        if not limit:
            assert not actions
            continue
        prompt, at = given[q // GROUP], int(floor[q // GROUP])
        want = oracle.executed(prompt, at, chosen[q], limit, NEW, EOS)
        assert (actions, forced, standing) == want, (KINDS[kinds[q]], prompt, at, chosen[q], limit)
        assert drawn == table[q, : len(actions)].tolist()
        assert len(actions) <= limit
        assert actions[-1] == EOS
        assert len(standing) <= len(prompt) + NEW + 1
        assert standing[: len(prompt)][: at + 1] == prompt[: at + 1]
        if q % 50 == 0:
            states = oracle.states(prompt[0], [*prompt[1:], *actions], at)
            assert states[-1] == standing


def run_streams(run, seed, rows=None):
    streams = streams_of(seed)
    if rows is not None:
        streams = tuple(x[: rows // GROUP] for x in streams[:3]) + tuple(
            x[:rows] for x in streams[3:]
        )
    return streams, jax.device_get(run(init(LLAMA), *map(jnp.asarray, streams[:-1])))


def test_what_stands_is_the_oracles():
    run = make_run(recompute=False)
    began, checked, length = time.time(), 0, np.zeros(0)
    of_kind = np.zeros(len(KINDS), int)
    for seed in range(-(-STREAMS // ROWS)):
        streams, out = run_streams(run, seed)
        check(streams, out)
        checked += ROWS
        of_kind += np.bincount(streams[-1], minlength=len(KINDS))
        length = np.append(length, out.length)
    assert run._cache_size() == 1
    assert of_kind.min() > checked / len(KINDS) / 2
    print(
        f"{checked} streams ({of_kind.min()} or more of each kind) of {length.mean():.1f} actions "
        f"in {time.time() - began:.0f} s"
    )


def test_each_state_is_that_of_what_stands():
    streams, out = run_streams(make_run(recompute=True), 0, RECOMPUTED)
    check(streams, out)
    print(f"largest error in {out.length.sum()} states: {out.backspace.max():.1e}")
    assert 0 < out.backspace.max() <= 1e-5
