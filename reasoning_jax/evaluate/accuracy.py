"""Accuracy of sampled completions: exact match, pass@k, recovery from corrupted prefixes.

Also how much probability the model gives to `<backspace>` where the last token is wrong and where
nothing is. Works on prompts and a judge; knows neither tasks nor files.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.decoding.rows import padded_batches, partnered
from reasoning_jax.decoding.sampler import Thinking
from reasoning_jax.evaluate.completions import (
    Completion,
    Prompt,
    batch_slots,
    complete,
    next_token_log_probs,
    thoughts_in,
)
from reasoning_jax.model import latent, readout, transformer
from reasoning_jax.model.latent import Slots
from reasoning_jax.vocab import Vocab


@dataclass
class Measure:
    """A mean with its standard error over n independent units."""

    values: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        n = len(self.values)
        if not n:
            return {"value": 0.0, "stderr": None, "n": 0}
        mean = sum(self.values) / n
        variance = sum((v - mean) ** 2 for v in self.values) / (n - 1) if n > 1 else math.nan
        stderr = math.sqrt(variance / n) if n > 1 else None
        return {"value": mean, "stderr": stderr, "n": n}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(some of k samples is correct) from `samples` with `correct` right.

    1 - C(samples - correct, k) / C(samples, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples and correct <= samples ({samples})")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def corrupt(
    prompt: Sequence[int],
    response: Sequence[int],
    wrong_tokens: int,
    candidates: Sequence[int],
    rng: np.random.Generator,
) -> Prompt | None:
    """The prompt with a random correct prefix of the response and then wrong tokens.

    The first wrong token differs from the right one at its place. None if `candidates` has no such
    token. The wrong tokens and the correct prefix can be deleted, the prompt cannot.
    """
    cut = int(rng.integers(0, len(response)))
    wrong = [c for c in candidates if c != response[cut]]
    if not wrong:
        return None
    noise = [wrong[int(rng.integers(len(wrong)))]]
    noise += [candidates[int(rng.integers(len(candidates)))] for _ in range(wrong_tokens - 1)]
    return Prompt((*prompt, *response[:cut], *noise), len(prompt) - 1)


def backspace_probability(
    params: Any,
    lora: Any,
    config: ModelConfig,
    vocab: Vocab,
    sequences: Sequence[Sequence[int]],
    states: Sequence[Sequence[int]],
    batch_rows: int,
    mesh: jax.sharding.Mesh,
    thinking: Thinking | None = None,
) -> list[float]:
    """Per sequence, the mean probability of `<backspace>` after the token indices `states`.

    Plain softmax at temperature 1 over the whole vocabulary. The states must not be thoughts.
    """
    assert vocab.backspace_id is not None
    means: list[float] = []
    for batch in padded_batches(sequences, batch_rows, mesh):
        slots = batch_slots(batch, thinking, mesh) if thinking is not None else None
        log_probs = jax.device_get(
            _label_log_prob(
                params, lora, batch.ids, slots, label=vocab.backspace_id, config=config,
                thinking=thinking if slots is not None else None,
            )
        )  # fmt: skip
        means += [
            float(np.exp(log_probs[i, list(at)]).mean())
            for i, at in enumerate(states[batch.begin : batch.begin + batch.count])
        ]
    return means


def _label_log_prob_impl(
    params: Any,
    lora: Any,
    tokens: jax.Array,
    slots: Slots | None = None,
    *,
    label: int,
    config: ModelConfig,
    thinking: Thinking | None = None,
) -> jax.Array:
    """log p(label) [B, T] in every state; with `slots`, in every one that is no thought."""
    T = tokens.shape[1]
    if slots is not None:
        assert thinking is not None
        room = T + slots.room
        hidden = latent.think(params, config, thinking.thoughts, tokens, slots, room, lora)[-1]
    else:
        positions = jnp.zeros_like(tokens) + jnp.arange(T)[None, :]
        hidden = transformer.apply(params, config, tokens, positions=positions, lora=lora).hidden
    return readout.score_labels(params, config, hidden, jnp.full_like(tokens, label)).log_prob


_label_log_prob = jax.jit(_label_log_prob_impl, static_argnames=("label", "config", "thinking"))


def visited_backspace(
    completion: Completion, reference: Sequence[int], vocab: Vocab
) -> list[tuple[float, bool]]:
    """The probability of <backspace> at each state that a completion visited above its floor, and
    whether what stood there was a beginning of the reference response.
    """
    standing: list[int] = []
    found: list[tuple[float, bool]] = []
    for action, probability in zip(completion.actions, completion.backspace):
        if standing:
            found.append((probability, list(reference[: len(standing)]) == standing))
        if action != vocab.backspace_id:
            standing.append(action)
        elif standing:
            standing.pop()
    return found


@dataclass(frozen=True)
class EvaluationItem:
    """A prompt with its reference response (ids, <eos> last), a group label and a judge.

    `options`: where the answer is one token of several, the right one first. `before_answer`: what
    stands between a completion's steps and its answer, if the completion writes steps.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    difficulty: str
    is_correct: Callable[[str], bool]
    options: tuple[int, ...] = ()
    before_answer: tuple[int, ...] = ()


@dataclass
class Evaluation:
    """Measures over all items and by difficulty, and the completions behind them."""

    metrics: dict[str, Measure]
    by_difficulty: dict[str, dict[str, Measure]]
    samples: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        groups = sorted(self.by_difficulty.items())
        return {
            "metrics": {name: m.to_dict() for name, m in self.metrics.items()},
            "by_difficulty": {g: {n: m.to_dict() for n, m in ms.items()} for g, ms in groups},
        }


def evaluate_items(
    params: Any,
    lora: Any,
    config: ModelConfig,
    vocab: Vocab,
    sampling: SamplingConfig,
    items: Sequence[EvaluationItem],
    *,
    samples_per_problem: int,
    ks: Sequence[int],
    corrupt_tokens: int,
    corrupt_ids: Sequence[int],
    batch_rows: int,
    saved_samples: int,
    key: jax.Array,
    seed: int,
    mesh: jax.sharding.Mesh,
    floor_masked: bool = True,
    corrupt_also: Sequence[int] = (),
    thinking: Thinking | None = None,
    controls: Sequence[str] = (),
    latent_id: int | None = None,
) -> Evaluation:
    """Everything this module measures, over the same items.

    exact_match and corrupted_exact_match are means over problems, so their standard errors are
    those of independent problems whatever `samples_per_problem` is. For each N of `corrupt_also`
    there is a corrupted_N_exact_match, after N wrong tokens. `choice` is how often the right option
    is the most probable one where the answer begins, behind the steps that were written. For each
    of `controls` there are exact_match_CONTROL and choice_CONTROL, with that in place of the
    thoughts; "other_row" takes those of the item before that has as many, and leaves out an item
    that is alone with its number. With `latent_id`, `tokens` counts what is written without <eos>,
    and the thoughts (or pauses) in the prompt.
    """
    result = Evaluation({}, {}, [])

    def record(name: str, item: EvaluationItem, value: float) -> None:
        result.metrics.setdefault(name, Measure()).values.append(value)
        if item.difficulty:
            group = result.by_difficulty.setdefault(item.difficulty, {})
            group.setdefault(name, Measure()).values.append(value)

    def run(
        prompts: list[Prompt], purpose: int, thinking: Thinking | None = thinking, samples: int = 1
    ) -> list[Completion]:
        return complete(
            params, lora, config, vocab, sampling, prompts, jax.random.fold_in(key, purpose),
            batch_rows, mesh, floor_masked, thinking, samples,
        )  # fmt: skip

    def choose(
        thinking: Thinking | None,
        name: str,
        items: Sequence[EvaluationItem],
        written: Sequence[Completion],
    ) -> None:
        """Which option is the most probable one where the answer begins, behind written steps."""
        asked = []
        for item, c in zip(items, written):
            steps = steps_before(c.actions, item.before_answer)
            if item.options and steps is not None:
                asked.append((item, (*item.prompt, *steps)))
            elif item.options:
                record(name, item, 0.0)
        asked = [asked[i] for i in _with_others([ids for _, ids in asked], thinking)]
        if not asked:
            return
        log_probs = next_token_log_probs(
            params, lora, config, [ids for _, ids in asked], key, batch_rows, mesh, thinking
        )
        for (item, _), of_row in zip(asked, log_probs):
            right, *wrong = of_row[list(item.options)]
            record(name, item, float(right > max(wrong)) if wrong else 1.0)

    n = samples_per_problem
    clean = [Prompt(item.prompt, len(item.prompt) - 1) for item in items]
    completions = run(clean, 0, samples=n)
    for i, item in enumerate(items):
        mine = completions[i * n : (i + 1) * n]
        right = [item.is_correct(c.text) for c in mine]
        record("exact_match", item, sum(right) / n)
        for k in ks:
            record(f"pass@{k}", item, pass_at_k(n, sum(right), k))
        erased = sum(a == vocab.backspace_id for c in mine for a in c.actions)
        record("backspaces_per_completion", item, erased / n)
        record("truncated", item, sum(c.truncated for c in mine) / n)
        if latent_id is not None:
            written = sum(a != vocab.eos_id for c in mine for a in c.actions)
            record("tokens", item, item.prompt.count(latent_id) + written / n)
        if vocab.backspace_id is not None and sampling.method == "sample":
            visited = [p for c in mine for p in visited_backspace(c, item.response, vocab)]
            off_track = [p for p, on_track in visited if not on_track]
            if visited:
                record("backspace_model", item, sum(p for p, _ in visited) / len(visited))
            if off_track:
                record("backspace_model_wrong", item, sum(off_track) / len(off_track))
        if i < saved_samples:
            result.samples.append(sample_record(mine[0], right[0], item, "clean", vocab))

    choose(thinking, "choice", items, completions[::n])
    for purpose, control in enumerate(controls, start=100):
        assert thinking is not None
        controlled = dataclasses.replace(thinking, control=control)
        taken = _with_others([item.prompt for item in items], controlled)
        # A measure of nothing has n=0, which says so.
        result.metrics.setdefault(f"exact_match_{control}", Measure())
        written = run([clean[i] for i in taken], purpose, controlled)
        compared = [items[i] for i in taken]
        for item, c in zip(compared, written):
            record(f"exact_match_{control}", item, float(item.is_correct(c.text)))
        choose(controlled, f"choice_{control}", compared, written)

    def corrupted(
        wrong_tokens: int, draw: int, purpose: int
    ) -> list[tuple[EvaluationItem, Prompt, Completion, bool]]:
        """What comes of each item after so many wrong tokens; items without one are left out."""
        rng = np.random.default_rng([seed, draw])
        drawn = [
            (item, corrupt(item.prompt, item.response, wrong_tokens, corrupt_ids, rng))
            for item in items
        ]
        pairs = [(item, p) for item, p in drawn if p is not None]
        completions = run([p for _, p in pairs], purpose)
        return [(item, p, c, item.is_correct(c.text)) for (item, p), c in zip(pairs, completions)]

    if corrupt_tokens:
        outcomes = corrupted(corrupt_tokens, 1, 1)
        for i, (item, _, c, right) in enumerate(outcomes):
            record("corrupted_exact_match", item, float(right))
            if i < saved_samples:
                result.samples.append(sample_record(c, right, item, "corrupted", vocab))
        if vocab.backspace_id is not None:
            prompts = [p.ids for _, p, _, _ in outcomes]
            wrong = backspace_probability(
                params, lora, config, vocab,
                prompts, [[len(ids) - 1] for ids in prompts], batch_rows, mesh, thinking,
            )  # fmt: skip
            for (item, *_), probability in zip(outcomes, wrong):
                record("backspace_corrupted", item, probability)

    for purpose, wrong_tokens in enumerate(corrupt_also, start=2):
        for item, _, _, right in corrupted(wrong_tokens, wrong_tokens, purpose):
            record(f"corrupted_{wrong_tokens}_exact_match", item, float(right))

    if vocab.backspace_id is not None:
        # States after a correct response token: the first, at the floor, has no backspace.
        long = [item for item in items if len(item.response) > 1]
        right_states = [
            range(len(item.prompt), len(item.prompt) + len(item.response) - 1) for item in long
        ]
        probabilities = backspace_probability(
            params, lora, config, vocab,
            [item.prompt + item.response for item in long], right_states, batch_rows, mesh,
            thinking,
        )  # fmt: skip
        for item, probability in zip(long, probabilities):
            record("backspace_clean", item, probability)
    return result


def _with_others(prompts: Sequence[Sequence[int]], thinking: Thinking | None) -> list[int]:
    """The places of the prompts that a control can take: for "other_row" those with a partner."""
    if thinking is None or thinking.control != "other_row":
        return list(range(len(prompts)))
    return partnered([thoughts_in(ids, thinking) for ids in prompts])


def steps_before(actions: Sequence[int], mark: Sequence[int]) -> Sequence[int] | None:
    """The actions up to the end of the first `mark` among them; None if it is not there."""
    for end in range(len(mark), len(actions) + 1):
        if list(actions[end - len(mark) : end]) == list(mark):
            return actions[:end]
    return None


def sample_record(
    c: Completion, right: bool, item: EvaluationItem, kind_of_prompt: str, vocab: Vocab
) -> dict[str, Any]:
    """A completion as the report's trace viewer reads it; pieces join to `text`."""
    floor = c.prompt.floor
    kinds = {vocab.eos_id: "eos", vocab.backspace_id: "backspace"}

    def without_bos(ids: Sequence[int]) -> Sequence[int]:
        return ids[1:] if ids[0] == vocab.bos_id else ids

    standing = list(c.prompt.ids[floor + 1 :])
    deletable = [{"text": text} for text in _pieces(vocab, standing)]
    actions, shown = [], list(deletable)
    for action, log_prob, forced in zip(c.actions, c.log_probs, c.forced):
        kind = kinds.get(action, "token")
        text = vocab.piece(standing, action) if kind == "token" else vocab.decode([action])
        entry = {"text": text, "kind": kind, "logprob": round(log_prob, 6), "forced": forced}
        actions.append(entry)
        if kind == "token":
            standing.append(action)
            shown.append(entry)
        elif kind == "backspace" and standing:
            standing.pop()
            shown.pop()
    if "".join(entry["text"] for entry in shown) != c.text:
        # A character written in parts: what stands in the end decides how its parts are shown.
        for entry, text in zip(shown, _pieces(vocab, standing)):
            entry["text"] = text
    return {
        "kind": kind_of_prompt,
        "prompt": vocab.decode(without_bos(c.prompt.ids)),
        "deletable": [entry["text"] for entry in deletable],
        "question": vocab.decode(without_bos(item.prompt)),
        "answer": vocab.decode(item.response[:-1]),
        "text": c.text,
        "correct": right,
        "difficulty": item.difficulty,
        "actions": actions,
    }


def _pieces(vocab: Vocab, ids: Sequence[int]) -> list[str]:
    """The text of each id; joined, that of all. A character in parts stands at its last part."""
    whole = vocab.decode(ids)

    def agree(part: str) -> int:
        return sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(part, whole)))

    known = (agree(vocab.decode(ids[:i])) for i in range(1, len(ids)))
    cuts = [0, *itertools.accumulate(known, max), len(whole)]
    return [whole[begin:end] for begin, end in itertools.pairwise(cuts)][: len(ids)]
