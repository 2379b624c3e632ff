"""Losses: a forward pass of the model bound to the mathematics of an objective. Pure.

A loss is `loss(params, lora, batch, step) -> (Sum or Mixture, metrics)`; every metric is a `Sum`.
What differs between objectives is which packing turns actions into states, and what is computed
there; `step` counts finished steps, for schedules.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from reasoning_jax import backspace, sharding
from reasoning_jax.config import ConfigError, ModelConfig, ObjectiveConfig, SequenceMatchConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.model import attention, latent, readout, transformer
from reasoning_jax.objectives import sequencematch
from reasoning_jax.objectives.likelihood import cross_entropy
from reasoning_jax.objectives.masked import Mixture, Sum, masked_sum
from reasoning_jax.objectives.unlikelihood import candidate_mask, unlikelihood

Metrics = dict[str, Sum]
Loss = Callable[..., tuple[Sum | Mixture, Metrics]]


@dataclass(frozen=True)
class States:
    """The states of a batch: `hidden` [B, T, D], `depth` [B, T] and `weights` [B, T], which are
    those of the batch, but 0 where P2 had no row left ("p2_lost" is their share).
    """

    hidden: jax.Array
    weights: jax.Array
    depth: jax.Array
    metrics: Metrics


def causal_positions(segments: jax.Array) -> jax.Array:
    """Position of each token within its segment, [B, T], for rows without backspaces."""
    row = jnp.arange(segments.shape[1])[None, :]
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    starts = jnp.where(segments != previous, row, 0)
    return row - jax.lax.cummax(starts, axis=1)


def visit_states(
    params: Any,
    lora: Any,
    config: ModelConfig,
    batch: Batch,
    *,
    layout: str,
    backspace_id: int | None,
    rows: int,
) -> States:
    """Every state of the batch, through the chosen packing, in one forward pass.

    layout "causal" is for rows without backspaces; "p1" and "p2" as in `backspace.py`.
    """
    if layout == "causal":
        positions = causal_positions(batch.segments)
        out = transformer.apply(
            params, config, batch.actions,
            positions=positions, attention=attention.Causal(batch.segments), lora=lora,
        )  # fmt: skip
        return States(out.hidden, batch.weights, positions, {})
    assert backspace_id is not None
    arguments = (batch.actions, batch.segments, batch.floor, backspace_id)
    if layout == "p1":
        packed = backspace.pack(*arguments)
        out = transformer.apply(
            params, config, packed.tokens,
            positions=packed.positions, attention=packed.live, lora=lora,
        )  # fmt: skip
        return States(out.hidden, batch.weights, packed.depth, {})
    dedup = backspace.deduplicate(*arguments, rows)
    out = transformer.apply(
        params, config, dedup.tokens,
        positions=dedup.positions, attention=dedup.live, lora=lora,
    )  # fmt: skip
    pointer = jnp.minimum(dedup.pointer, rows - 1)
    hidden = jnp.take_along_axis(out.hidden, pointer[..., None], axis=1)
    # The position of a token is the depth of the states that it is on top of.
    depth = jnp.take_along_axis(dedup.positions, pointer, axis=1)
    # A state whose row did not fit has no logits: it must not be scored with another's.
    lost = dedup.pointer >= rows
    metrics = {"p2_lost": masked_sum(lost.astype(jnp.float32), batch.weights)}
    return States(hidden, jnp.where(lost, 0.0, batch.weights), depth, metrics)


def make_loss(
    config: ModelConfig,
    objective: ObjectiveConfig,
    ids: ActionIds,
    match: SequenceMatchConfig | None = None,
    thoughts: latent.Thoughts | None = None,
) -> Loss:
    """The loss of an objective. `thoughts`: what the thoughts of a batch are, for mle.

    mle: cross-entropy of clean data. bc: the same on backspace-augmented data, whose labels include
    `<backspace>` (behavioural cloning, the first phase of SequenceMatch). Metrics also split bc's
    accuracy into states with and without a wrong last token. sequencematch: see `mixed_loss`;
    unlikelihood: `unlikelihood_loss`.

    Raises:
      ConfigError: bc with a vocabulary that has no backspace.
    """
    if objective.name == "bc" and ids.backspace is None:
        raise ConfigError('objective.name="bc" needs a vocabulary with <backspace>')
    if objective.name == "unlikelihood":
        return unlikelihood_loss(config, objective, ids)
    if objective.name == "sequencematch":
        return mixed_loss(config, objective, ids, match or SequenceMatchConfig())
    causal = objective.name != "bc"

    def loss(params: Any, lora: Any, batch: Batch, step: Any = None) -> tuple[Sum, Metrics]:
        del step
        if batch.prefix:
            return staged_loss(params, lora, config, batch, thoughts)
        layout, rows = ("causal", 0) if causal else layout_of(objective, batch)
        states = visit_states(
            params, lora, config, batch, layout=layout, backspace_id=ids.backspace, rows=rows
        )
        value, scores = readout.label_loss(
            params, config, states.hidden, batch.labels, states.weights
        )
        total = Sum(value, states.weights.sum())
        correct = scores.correct.astype(jnp.float32)
        metrics = {**states.metrics, "accuracy": masked_sum(correct, states.weights)}
        if objective.name == "bc":
            metrics["accuracy_noised"] = masked_sum(correct, states.weights * batch.noised)
        return total, metrics

    return loss


def staged_loss(
    params: Any,
    lora: Any,
    config: ModelConfig,
    batch: Batch,
    thoughts: latent.Thoughts | None,
) -> tuple[Sum, Metrics]:
    """Cross-entropy of what stands behind the thoughts (Coconut, arXiv 2412.06769, section 3), with
    logits only from the last column of the prompts on.

    "accuracy_rows" is the share of rows of which every label is the most probable one.
    "frontier_mass" is the probability of all that a search in breadth would take up next, where the
    label is one of these.
    "thought_norm" is the mean norm of what is fed back over that of the token embeddings.
    """
    begin = batch.prefix - 1
    out = latent.forward(
        params, config, thoughts or latent.Thoughts(-1), batch.actions,
        causal_positions(batch.segments), batch.segments > 0,
        prefix=batch.prefix, n=batch.thoughts, lora=lora,
    )  # fmt: skip
    labels, weights = batch.labels[:, begin:], batch.weights[:, begin:]
    value, scores = readout.label_loss(params, config, out.hidden, labels, weights)
    correct = scores.correct.astype(jnp.float32)
    rows_right = ((correct > 0) | (weights == 0)).all(axis=1)
    has_labels = (weights > 0).any(axis=1).astype(jnp.float32)
    metrics = {
        "accuracy": masked_sum(correct, weights),
        "accuracy_rows": masked_sum(rows_right.astype(jnp.float32), has_labels),
    }
    if batch.accept is not None:
        # One label a row: its state.
        rows = weights.sum(axis=1)
        state = (out.hidden * weights[..., None].astype(out.hidden.dtype)).sum(axis=1)
        log_probs = jax.nn.log_softmax(readout.logits(params, config, state))
        right = (batch.accept[..., None] == jnp.arange(log_probs.shape[-1])).any(axis=1)
        mass = jnp.where(right, jnp.exp(log_probs), 0.0).sum(axis=-1)
        metrics["frontier_mass"] = masked_sum(mass, rows)
    if batch.thoughts:
        assert thoughts is not None
        columns = batch.actions[:, batch.prefix : batch.prefix + batch.thoughts]
        is_thought = (columns == thoughts.latent_id).astype(jnp.float32)
        norms = jnp.linalg.norm(out.inputs.astype(jnp.float32), axis=-1)
        table = jax.lax.stop_gradient(params["embedding"]["tokens"]).astype(jnp.float32)
        mean_norm = jnp.sqrt(jnp.square(table).sum(-1)).mean()
        metrics["thought_norm"] = masked_sum(norms / mean_norm, is_thought)
    return Sum(value, weights.sum()), metrics


def unlikelihood_loss(config: ModelConfig, objective: ObjectiveConfig, ids: ActionIds) -> Loss:
    """mle, and `unlikelihood_weight` times the token-level unlikelihood of each position, summed
    over its candidates (Welleck et al. 2019). What is no text (<bos>, ...) is no candidate.
    """
    weight = jnp.float32(objective.unlikelihood_weight)

    def loss(params: Any, lora: Any, batch: Batch, step: Any = None) -> tuple[Mixture, Metrics]:
        del step
        states = visit_states(
            params, lora, config, batch, layout="causal", backspace_id=None, rows=0
        )
        tokens, segments = batch.actions, batch.segments

        def score(hidden: jax.Array, labels: jax.Array, row: jax.Array) -> Any:
            z = readout.logits(params, config, hidden)
            # All rows begin at one place; a slice of one row would need a gather over devices.
            candidates = candidate_mask(
                tokens, segments, labels, start=row[:, 0].max(), excluded=(*ids.never, ids.eos)
            )
            return (
                readout.label_scores(z, labels),
                unlikelihood(z, tokens, candidates),
            )

        row = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        row = sharding.reshard(row, sharding.P(sharding.axis_of(tokens, 0), None))
        scores, unlikely = readout.in_chunks(score, config, states.hidden, batch.labels, row)
        likelihood = cross_entropy(scores.log_prob, states.weights)
        repeats = masked_sum(unlikely, states.weights)
        correct = scores.correct.astype(jnp.float32)
        metrics = {
            "accuracy": masked_sum(correct, states.weights),
            "loss_mle": likelihood,
            "loss_unlikelihood": repeats,
        }
        return Mixture((jnp.float32(1), weight), (likelihood, repeats)), metrics

    return loss


def layout_of(objective: ObjectiveConfig, batch: Batch) -> tuple[str, int]:
    """The packing of a batch, and its rows under P2 (see `ObjectiveConfig.layout`)."""
    T = batch.actions.shape[1]
    if objective.layout == "p2":
        return "p2", objective.p2_rows or batch.token_rows or T
    if objective.layout == "auto" and 0 < batch.token_rows < T:
        return "p2", batch.token_rows
    return "p1", T


def beta_at(match: SequenceMatchConfig, step: Any) -> jax.Array:
    """The share of behavioural cloning after `step` finished steps: 1, then linear to beta_end."""
    passed = (jnp.asarray(step, jnp.float32) - match.bc_steps) / max(match.anneal_steps, 1)
    # With nothing to anneal over, the first step after the bc steps is at the end already.
    share = jnp.where(passed < 0, 0.0, jnp.minimum(passed, 1.0) if match.anneal_steps else 1.0)
    return 1.0 + share * (match.beta_end - 1.0)


def settings_of(match: SequenceMatchConfig) -> sequencematch.Settings:
    """The objective's settings of a config section."""
    return sequencematch.Settings(
        divergence=match.divergence,
        alpha=match.alpha,
        gamma=match.gamma,
        kappa_m=None if match.kappa_m < 0 else match.kappa_m,
        terminal=match.terminal,
        value_weight_data=match.value_weight_data,
        value_weight_model=1 - match.value_weight_data,
        value_form=match.value_form,
        clamp=match.clamp,
        domain_guard=match.domain_guard,
    )


def mixed_loss(
    config: ModelConfig, objective: ObjectiveConfig, ids: ActionIds, match: SequenceMatchConfig
) -> Loss:
    """beta L_BC + (1 - beta) L_SM (Algorithm 1 of the SequenceMatch paper, as reported).

    L_BC is the `bc` loss of the data, a mean over labels; L_SM the negative objective of
    `objectives.sequencematch`, a mean over trajectories of data and of `batch.model`. Without
    `batch.model` (the first bc_steps) the loss is L_BC. In V(s) the actions are those that the
    sampler has; L_BC is over the whole vocabulary.

    "weight_sm" is the weight of a data trajectory's actions in (1 - beta) L_SM, as beta is in
    beta L_BC. "share_sm" is weight_sm / (beta + weight_sm).
    """
    settings = settings_of(match)
    if not isinstance(match.horizon, int):
        raise ConfigError(
            f'sequencematch.horizon="{match.horizon}" is measured on training data; give a number '
            "where there are none"
        )
    scale = sequencematch.loss_scale(match.gamma, match.horizon)

    def score(params: Any, lora: Any, batch: Batch) -> tuple[readout.ActionScores, jax.Array]:
        """The scores of every row, and which rows are above their floor."""
        layout, rows = layout_of(objective, batch) if ids.backspace is not None else ("causal", 0)
        states = visit_states(
            params, lora, config, batch, layout=layout, backspace_id=ids.backspace, rows=rows
        )
        at_floor = states.depth <= batch.floor
        scores = readout.score_actions(
            params, config, states.hidden, batch.labels, at_floor & ids.floor_masked,
            never=ids.never, backspace_id=ids.backspace,
        )  # fmt: skip
        return scores, (~at_floor).astype(jnp.float32)

    def loss(params: Any, lora: Any, batch: Batch, step: Any) -> tuple[Sum | Mixture, Metrics]:
        model = batch.model
        if model is None:
            of_data, above_data = score(params, lora, batch)
        elif in_turn(match):
            # Recomputed in the backward pass, so that the two halves share one set of buffers.
            side = jax.checkpoint(functools.partial(score, params, lora))
            both = jax.lax.map(side, jax.tree.map(lambda *x: jnp.stack(x), *alone(batch, model)))
            (of_data, above_data), (of_model, above_model) = (
                jax.tree.map(lambda x, k=k: x[k], both) for k in (0, 1)
            )
        else:
            scores, above = score(params, lora, interleave(batch, model))
            (of_data, of_model), (above_data, above_model) = halves(scores), halves(above)
        behaviour = cross_entropy(of_data.log_prob, batch.weights)
        correct = of_data.correct.astype(jnp.float32)
        noised = batch.noised.astype(jnp.float32)
        metrics = {
            "accuracy": masked_sum(correct, batch.weights),
            "accuracy_noised": masked_sum(correct, batch.weights * noised),
            "loss_bc": behaviour,
        }
        if ids.backspace is not None:
            clean = batch.weights * (1 - noised) * above_data
            metrics["backspace_noised"] = masked_sum(of_data.backspace, batch.weights * noised)
            metrics["backspace_clean"] = masked_sum(of_data.backspace, clean)
        if model is None:
            return behaviour, metrics

        data_rows = trajectory_rows(of_data, batch, match)
        model_rows = trajectory_rows(of_model, model, match)
        expert = sequencematch.data_side(data_rows, settings)
        own = sequencematch.model_side(model_rows, settings)
        beta = beta_at(match, step)
        # What stands at the end of a segment is taken for terminal; it is so after <eos> alone.
        pairs = ((data_rows, batch), (model_rows, model))
        cut = [(r.terminal & (b.actions != ids.eos)).sum().astype(jnp.float32) for r, b in pairs]
        parts = (
            behaviour,
            sequencematch.loss_sum(expert, scale),
            sequencematch.loss_sum(own, scale),
        )
        one = jnp.float32(1)
        weighs = (1 - beta) * scale * sequencematch.discounts(data_rows, settings).sum()
        metrics |= {
            "beta": Sum(beta, one),
            "weight_sm": Sum(weighs, expert.trajectories),
            # A ratio of two sums, so that parts of a batch add up to the share of the whole.
            "share_sm": Sum(weighs, beta * expert.trajectories + weighs),
            "loss_sm_data": parts[1],
            "loss_sm_model": parts[2],
            "reward_data": Sum(expert.reward, expert.actions),
            "reward_model": Sum(own.reward, own.actions),
            "reward_beyond": Sum(expert.beyond + own.beyond, expert.actions + own.actions),
            "value_start_data": Sum(expert.start_value, expert.trajectories),
            "value_start_model": Sum(own.start_value, own.trajectories),
            "value_sum_data": Sum(expert.value_sum, expert.trajectories),
            "value_sum_model": Sum(own.value_sum, own.trajectories),
            "value_end_data": Sum(expert.end_value, expert.trajectories),
            "value_end_model": Sum(own.end_value, own.trajectories),
            "telescoping_gap": Sum(jnp.maximum(expert.gap, own.gap), one),
            "trajectories_cut": Sum(cut[0] + cut[1], expert.trajectories + own.trajectories),
        }
        if ids.backspace is not None:
            chosen = (model.labels == ids.backspace) * model.weights
            metrics["backspace_model"] = masked_sum(of_model.backspace, model.weights * above_model)
            metrics["backspaces_per_rollout"] = Sum(chosen.sum(), own.trajectories)
        if model.age is not None:
            count = jnp.float32(model.age.shape[0])
            metrics["rollout_age_steps"] = Sum(model.age.sum().astype(jnp.float32), count)
        return Mixture((beta, 1 - beta, 1 - beta), parts), metrics

    return loss


def in_turn(match: SequenceMatchConfig) -> bool:
    """Whether data and model rows go through the model one after the other (see `passes`)."""
    if match.passes == "auto":
        return jax.default_backend() == "cpu"
    return match.passes == "two"


def alone(a: Batch, b: Batch) -> tuple[Batch, Batch]:
    """Two batches as trees of one structure: without rollouts, and with one count of token rows."""
    rows = max(a.token_rows, b.token_rows) if a.token_rows and b.token_rows else 0
    first, second = (dataclasses.replace(x, model=None, age=None, token_rows=rows) for x in (a, b))
    return first, second


def interleave(a: Batch, b: Batch) -> Batch:
    """The rows of two batches of one shape, taking turns, so that none leaves its device."""

    def pair(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.stack([x, y], axis=1).reshape(2 * x.shape[0], *x.shape[1:])

    return jax.tree.map(pair, *alone(a, b))


def halves(tree: Any) -> tuple[Any, Any]:
    """The inverse of `interleave` for a tree of arrays."""

    def take(k: int) -> Any:
        return jax.tree.map(lambda x: sharding.split_rows(x, 2)[:, k], tree)

    return take(0), take(1)


def trajectory_rows(
    scores: readout.ActionScores, batch: Batch, match: SequenceMatchConfig
) -> sequencematch.Rows:
    """The rows of a batch as the objective reads them. Each segment ends in its terminal state.

    Time starts at the start token or, with start="prompt", in the state after the prompt; rows
    before that are no part of the trajectory.
    """
    segments = batch.segments
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    real = segments > 0
    terminal = real & (segments != following)
    time = causal_positions(segments)
    if match.start == "prompt":
        # No prompt holds a backspace: the state after it is at the row of its own depth.
        time = time - batch.floor
    acts = real & ~terminal & (time >= 0)
    own = acts if match.kappa_on_prompt else acts & (batch.weights > 0)
    return sequencematch.Rows(scores.logit, scores.value, time, acts, terminal, own)
