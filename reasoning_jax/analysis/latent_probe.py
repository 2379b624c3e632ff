"""Readings of a model's thoughts on ProsQA questions (Coconut, arXiv 2412.06769, section 5).

What is read, of problems given as `Case`s:
  * `answers`: what the model writes after a forced number of thoughts, and what that is on the
    graph (`graphs.process_category`);
  * `step_values`: the probability of each node as the next concept after k thoughts, and
    `answer_values`: as the answer after them;
  * `read_thoughts`: the thoughts themselves, the states that they are made of, and the attention of
    their columns.
"k thoughts" are thoughts for k steps, so k * c_thought columns.

Deviations from the paper: values are of the nodes of our own forms too, where a node is one token
and the step after k thoughts is a node k + 1 edges from the root; and all are conditional on what
every candidate begins with ("Every"). What the numbers mean together is in `summary.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasoning_jax import sharding
from reasoning_jax.analysis.graphs import Dag, process_category, read_steps
from reasoning_jax.config import ModelConfig, SamplingConfig
from reasoning_jax.data.curriculum import StagedEncoder, rounded
from reasoning_jax.data.examples import Example, extract_answer
from reasoning_jax.decoding.sampler import Thinking
from reasoning_jax.evaluate.completions import Prompt, complete, next_token_log_probs
from reasoning_jax.model import latent, readout, transformer
from reasoning_jax.model.attention import Causal
from reasoning_jax.model.latent import Thoughts
from reasoning_jax.tasks.prosqa import read_question
from reasoning_jax.tasks.prosqa_text import Question, parse_question
from reasoning_jax.vocab import Vocab

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Rows whose attention weights are held at once, and texts of which the vocabulary's
# log-probabilities are.
_TRACED_ROWS = 32
_SCORED_ROWS = 512


@dataclass(frozen=True)
class Case:
    """A question with the graph that it states and the answer that follows from it."""

    example: Example
    question: Question
    dag: Dag
    answer: str


@dataclass(frozen=True)
class Subject:
    """A model and the rows that it was trained on."""

    params: Any
    lora: Any
    config: ModelConfig
    staged: StagedEncoder
    thoughts: Thoughts
    mesh: jax.sharding.Mesh
    batch_rows: int

    @property
    def vocab(self) -> Vocab:
        return self.staged.encoder.vocab

    @property
    def c_thought(self) -> int:
        return self.staged.curriculum.config.c_thought

    @property
    def most(self) -> int:
        """The steps that the last stage's thoughts stand for."""
        return self.staged.curriculum.config.max_latent_stage


class Outcome(NamedTuple):
    """What was written after some thoughts: its judgement and `graphs.CATEGORIES`."""

    text: str
    right: bool
    category: str


class Traced(NamedTuple):
    """The n = k * c_thought thoughts of each of N cases.

    inputs: what was fed. states: what they were made of, after the final norm. attention[i]: the
    weights of case i in the layers of `traced_layers`, of its last column before the thoughts and
    of their n columns, over its own columns.
    """

    inputs: Float[np.ndarray, "N n D"]
    states: Float[np.ndarray, "N n D"]
    attention: list[Float[np.ndarray, "n+1 L H T"]]


def read_case(example: Example) -> Case:
    """An example as a case. Raises TaskError where its question is not one of ProsQA."""
    problem = read_question(example.question)
    return Case(example, parse_question(example.question), Dag.of(problem), problem.answer)


def candidate_depth(case: Case, k: int) -> int:
    """Edges from the root to the candidates for the next concept after k thoughts.

    As text the next sentence begins with the concept that the thoughts have reached ("Every X is
    ...", X k edges away), but the first one with the root, so that its own end is looked at. In the
    other forms the next step is the node that is reached next, k + 1 edges away.
    """
    return max(k, 1) if case.dag.is_text else k + 1


def context(subject: Subject, case: Case, k: int, answering: bool) -> list[int]:
    """The ids up to behind k thoughts; where the target is one token, also what announces an answer
    if that is wanted.
    """
    curriculum = subject.staged.curriculum
    plan = curriculum.forced(k, len(case.example.steps))
    if curriculum.alone:
        plan = plan._replace(final=answering)
    return subject.staged.context(case.example, plan)[0]


def answers(
    subject: Subject, cases: Sequence[Case], k: int, sampling: SamplingConfig, key: jax.Array
) -> list[Outcome]:
    """What the most probable continuation after k thoughts does, step by step or at once."""
    prompts = [context(subject, case, k, answering=True) for case in cases]
    completions = complete(
        subject.params, subject.lora, subject.config, subject.vocab,
        replace(sampling, temperature=0.0), [Prompt(tuple(ids), len(ids) - 1) for ids in prompts],
        key, subject.batch_rows, subject.mesh, thinking=Thinking(subject.thoughts),
    )  # fmt: skip
    prefix = subject.staged.encoder.data.answer_prefix
    alone = subject.staged.alone
    given = prefix if alone else ""
    outcomes = []
    for case, completion in zip(cases, completions):
        text = given + completion.text
        right = extract_answer(text, prefix).strip() == case.answer
        steps = [] if alone else read_steps(case.dag, text, prefix)
        outcomes.append(Outcome(text, right, process_category(case.dag, steps, right, k)))
    return outcomes


def step_values(
    subject: Subject, cases: Sequence[Case], k: int, key: jax.Array
) -> list[Float[np.ndarray, " n"]]:
    """Per case, each node's probability as the next concept after k thoughts; NaN for the names of
    the text form, which nothing leads to. Not normalised over the candidates.
    """

    def texts(case: Case) -> dict[int, str]:
        symbols = case.dag.symbols
        if not case.dag.is_text:
            return dict(enumerate(symbols))
        root = symbols[case.dag.root]
        head, end = (f"{root} is a ", ".") if k == 0 else ("Every ", "")
        return {v: f"{head}{x}{end}" for v, x in enumerate(symbols) if case.dag.parents[v]}

    prompts = [context(subject, case, k, answering=False) for case in cases]
    return _node_probabilities(subject, cases, prompts, [texts(case) for case in cases], key)


def answer_values(
    subject: Subject, cases: Sequence[Case], k: int, key: jax.Array
) -> list[Float[np.ndarray, " n"]]:
    """Per case, each node's probability as the answer right after k thoughts, given that an answer
    is what follows.
    """
    alone = subject.staged.alone
    prefix = "" if alone else subject.staged.encoder.data.answer_prefix

    def texts(case: Case) -> dict[int, str]:
        symbols = case.dag.symbols
        if not case.dag.is_text:
            return {v: f"{prefix}{x}" for v, x in enumerate(symbols)}
        head = f"{prefix}{symbols[case.dag.root]} is a "
        return {v: f"{head}{x}." for v, x in enumerate(symbols) if case.dag.parents[v]}

    prompts = [context(subject, case, k, answering=True) for case in cases]
    return _node_probabilities(subject, cases, prompts, [texts(case) for case in cases], key)


def _node_probabilities(
    subject: Subject,
    cases: Sequence[Case],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[dict[int, str]],
    key: jax.Array,
) -> list[np.ndarray]:
    encode = subject.vocab.encode
    ids = [[encode(text) for text in of_case.values()] for of_case in texts]
    found = continuation_log_probs(subject, prompts, ids, key)
    values = []
    for case, of_case, log_probs in zip(cases, texts, found):
        value = np.full(len(case.dag.symbols), math.nan)
        value[list(of_case)] = np.exp(log_probs)
        values.append(value)
    return values


def continuation_log_probs(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    key: jax.Array,
) -> list[Float[np.ndarray, " C"]]:
    """log p of each of a prompt's candidates: of all its tokens behind those with which every
    candidate begins, given these.
    """
    # Each text behind which a token is asked for, once.
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    asked: list[tuple[int, int, int, int]] = []  # (row, candidate, place, token)
    shared: list[int] = []
    for row, options in enumerate(candidates):
        same = min((len(option) - 1 for option in options), default=0)
        while any(list(o[:same]) != list(options[0][:same]) for o in options):
            same -= 1
        shared.append(same)
        for c, option in enumerate(options):
            for at in range(same, len(option)):
                place = places.setdefault((row, tuple(option[:at])), len(places))
                asked.append((row, c, place, option[at]))
    texts = [[*prompts[row], *before] for row, before in places]
    found = [np.zeros(len(options)) for options in candidates]
    count = min(_SCORED_ROWS, len(texts))
    # Filled up, so that one shape is compiled.
    texts += texts[-1:] * (-len(texts) % max(count, 1))
    for begin in range(0, len(texts), max(count, 1)):
        log_probs = next_token_log_probs(
            subject.params, subject.lora, subject.config, texts[begin : begin + count], key,
            subject.batch_rows, subject.mesh, Thinking(subject.thoughts),
        )  # fmt: skip
        for row, c, place, token in asked:
            if begin <= place < begin + count:
                found[row][c] += log_probs[place - begin, token]
    return found


def read_thoughts(subject: Subject, cases: Sequence[Case], k: int) -> Traced:
    """The thoughts of k steps, by the chain that makes them; attention by one plain pass over all
    columns with the thoughts in their places.
    """
    n = k * subject.c_thought
    rows = []
    for case in cases:
        plan = subject.staged.curriculum.forced(k, len(case.example.steps))
        ids, first = subject.staged.context(case.example, plan)
        rows.append((ids[: first + n], first))
    prefix = rounded(max(first for _, first in rows))
    count = min(_TRACED_ROWS, len(rows))
    count += -count % sharding.batch_parts(subject.mesh)
    inputs, states, attention = [], [], []
    for begin in range(0, len(rows), count):
        chunk = rows[begin : begin + count]
        tokens = np.zeros((count, prefix + n), np.int32)
        real = np.zeros((count, prefix + n), bool)
        for i, (ids, first) in enumerate(chunk + [chunk[-1]] * (count - len(chunk))):
            tokens[i, prefix - first :] = ids
            real[i, prefix - first :] = True
        placed = (sharding.place_rows(x, subject.mesh) for x in (tokens, real))
        out = jax.device_get(
            _trace(
                subject.params, subject.lora, *placed,
                config=subject.config, thoughts=subject.thoughts, prefix=prefix, n=n,
            )
        )  # fmt: skip
        inputs.append(out[0][: len(chunk)])
        states.append(out[1][: len(chunk)])
        for weights, (_, first) in zip(out[2], chunk):
            attention.append(np.moveaxis(weights[..., prefix - first :], 2, 0))
    return Traced(np.concatenate(inputs), np.concatenate(states), attention)


def traced_layers(config: ModelConfig) -> tuple[int, ...]:
    """The last two layers, or the only one: more would need much memory in a deep model."""
    return tuple(range(max(0, config.n_layers - 2), config.n_layers))


@functools.partial(jax.jit, static_argnames=("config", "thoughts", "prefix", "n"))
def _trace(
    params: Any,
    lora: Any,
    tokens: Int[Array, "B T"],
    real: Bool[Array, "B T"],
    *,
    config: ModelConfig,
    thoughts: Thoughts,
    prefix: int,
    n: int,
) -> tuple[Float[Array, "B n D"], Float[Array, "B n D"], Float[Array, "B L H n+1 T"]]:
    """(inputs, states, weights) as `Traced` has them, of rows that end with their thoughts."""
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    made = latent.forward(
        params, config, thoughts, tokens, positions, real, prefix=prefix, n=n, lora=lora
    )
    embedded = transformer.embed(params, config, tokens[:, :prefix]).astype(jnp.float32)
    out = transformer.apply(
        params, config, embeddings=jnp.concatenate([embedded, made.inputs], axis=1),
        positions=positions, attention=Causal(real.astype(jnp.int32)), lora=lora,
        capture_weights=traced_layers(config),
    )  # fmt: skip
    weights = jnp.stack([w[:, :, prefix - 1 :] for w in out.weights], axis=1)
    return made.inputs, made.hidden[:, :n], weights


def edge_columns(subject: Subject, case: Case) -> dict[tuple[int, int], int]:
    """Each edge's column in the prompt: the one column of a fused edge, else that of its target's
    last token.
    """
    number = {symbol: node for node, symbol in enumerate(case.dag.symbols)}
    prompt_ids = subject.staged.encoder.prompt_ids
    return {
        (number[fact.start], number[fact.end]): len(prompt_ids(case.example.question[: fact.place]))
        - 1
        for fact in case.question.facts
    }


def edge_attention(
    subject: Subject, case: Case, attention: Float[np.ndarray, "n+1 L H T"], step: int, layer: int
) -> dict[tuple[int, int], float]:
    """What the column of which thought number `step` (from 1) is made gives to each edge, summed
    over the heads of a layer (an index into `traced_layers`).
    """
    weights = attention[(step - 1) * subject.c_thought, layer].sum(axis=0)
    return {edge: float(weights[at]) for edge, at in edge_columns(subject, case).items()}


def node_products(
    subject: Subject, case: Case, inputs: Float[np.ndarray, "n D"], step: int
) -> Float[np.ndarray, " N"]:
    """The inner product of thought number `step` (from 1; of several to a step the last) with the
    embedding of each node, the mean of its tokens'.
    """
    table = np.asarray(jax.device_get(subject.params["embedding"]["tokens"]), np.float32)
    nodes = np.stack([table[subject.vocab.encode(x)].mean(axis=0) for x in case.dag.symbols])
    return nodes @ inputs[step * subject.c_thought - 1]


def decoded(
    subject: Subject, states: Float[np.ndarray, "n D"], top: int
) -> list[list[tuple[str, float]]]:
    """The most probable tokens of each thought: the softmax of the unembedding of its state."""
    logits = readout.logits(subject.params, subject.config, jnp.asarray(states))
    probabilities = np.asarray(jax.device_get(jax.nn.softmax(logits)))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    names = {id_: name for name, id_ in subject.vocab.specials.items()}
    return [
        [(names.get(int(i)) or subject.vocab.decode([int(i)]), float(p[i])) for i in best]
        for p, best in zip(probabilities, order)
    ]
