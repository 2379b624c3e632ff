"""SequenceMatch (Cundy and Ermon, arXiv 2306.05426): imitation by occupancy matching.

Raw logits play the part of Q-values: V(s) = logsumexp of the logits over the actions of s, and
r(s, a) = logit(a|s) - gamma V(s') is the reward that they imply. For one data and one model
trajectory, maximised (the paper's eq. 4; its weights and terminal terms are reconstructions):

    J =   sum_{i<N} gamma^i phi_alpha(r_i)                      reward on data
        - w_d sum_{i<N} gamma^i [V(s_i) - gamma V(s_{i+1})]     value term on data
        - w_m sum_{i<M} gamma^i [V(u_i) - gamma V(u_{i+1})]     value term on model samples
        - kappa_m sum_{i<M} gamma^i r_i^2                       mixture regulariser
        + the endless stay in the terminal states

with phi_alpha(x) = phi(alpha x) / alpha. The exponent counts actions, never length: after a
backspace it goes on growing. Mathematics only; nothing here knows a model, a packing or a config.

What is not the paper's, or not known to be: the table of phi is derived (sources confirm the value
of chi2), alpha as phi(alpha x) / alpha is our reading. From memory: that the mixture is a penalty
on r^2 of model samples (its coefficient is unknown), the weights 1/2, 1/2 and the closed terminal
forms (which of them is the paper's is unknown). Tangents and clamps outside a domain, `horizon` and
other weights are ours.

kappa_m = alpha / 4 makes the mixture's saddle point exact. Samples are held, though, so what the
gradient comes to rest at is the minimum of 4 KL(data || (data + model) / 2) - alpha H, not of
2 chi2(data || (data + model) / 2) - alpha H; the two differ visibly at alpha = 1, not at 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from reasoning_jax.objectives.masked import Sum

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Between these alpha, phi(alpha x) / alpha and 2 / alpha are numbers that float32 holds.
ALPHAS = (1e-30, 1e6)
# How far inside an open domain phi is still evaluated.
DOMAIN_MARGIN = 1e-3


class Phi(NamedTuple):
    """A concave phi with phi(0) = 0 and phi'(0) = 1, and its derivative.

    Defined for x > `low` where that is given. `overflow`: below it the tangent takes over, whose
    slope must be small enough for float32 to hold its square (the gradient's norm) and its product
    with any x that occurs. `vertex`: where phi stops growing.
    """

    value: Callable[[jax.Array], jax.Array]
    derivative: Callable[[float], float]
    low: float | None = None
    overflow: float | None = None
    vertex: float | None = None


# D(model || data) = sum of data f(model / data) and phi(x) = inf_t {x t + f(t)}. What is minimised:
#   identity    nothing but likelihood: J is the discounted log-likelihood
#   chi2        sum (model - data)^2 / data; with kappa_m = alpha / 4 on model samples the mixture
#               chi2(data || (data + model) / 2), "SequenceMatch-chi2"
#   reverse_kl  KL(model || data)          forward_kl  KL(data || model)
#   js          KL(model || m) + KL(data || m), twice Jensen-Shannon, m their mean
#   hellinger   sum (sqrt model - sqrt data)^2
PHIS: dict[str, Phi] = {
    "identity": Phi(lambda x: x, lambda x: 1.0),
    "chi2": Phi(lambda x: x - x * x / 4, lambda x: 1 - x / 2, vertex=2.0),
    "reverse_kl": Phi(lambda x: -jnp.expm1(-x), lambda x: math.exp(-x), overflow=-40.0),
    "forward_kl": Phi(jnp.log1p, lambda x: 1 / (1 + x), low=-1.0),
    "js": Phi(
        lambda x: jnp.log1p(-jnp.expm1(-x)),
        lambda x: math.exp(-x) / (2 - math.exp(-x)),
        low=-math.log(2),
    ),
    "hellinger": Phi(lambda x: x / (1 + x), lambda x: 1 / (1 + x) ** 2, low=-1.0),
}
DIVERGENCES = ("chi2_mixture", *PHIS)
TERMINALS = ("noop", "repeat", "none")


@dataclass(frozen=True)
class Settings:
    """Which member of the family is optimised.

    divergence: a key of PHIS, or "chi2_mixture": chi2 whose kappa_m is alpha / 4 by default.
    alpha: weight of the causal entropy; 0 is allowed for "identity" alone, which ignores it.
    gamma: discount per action, in (0, 1].
    kappa_m: None takes the divergence's own.
    terminal: "noop": one dummy action for ever in a terminal state, reward (1 - gamma) V;
      "repeat": <eos> for ever, reward logit(eos) - gamma V; "none": V of a terminal state is 0.
    value_weight_data, value_weight_model: w_d and w_m; they must add to 1 for J to be a bound,
      since each side estimates the same V(s_0). 1 and 0 have less variance where the two sides
      start from different prompts.
    value_form: "explicit" sums, or "collapsed" to V(s_0), equal for complete trajectories.
    clamp: hold chi2's phi at its maximum beyond its vertex (r > 2 / alpha).
    domain_guard: below a domain's edge (by DOMAIN_MARGIN) the tangent ("linear") or the edge's
      value ("clamp").

    Raises:
      ValueError: a value outside these.
    """

    divergence: str = "chi2_mixture"
    alpha: float = 0.01
    gamma: float = 0.998
    kappa_m: float | None = None
    terminal: str = "noop"
    value_weight_data: float = 0.5
    value_weight_model: float = 0.5
    value_form: str = "collapsed"
    clamp: bool = False
    domain_guard: str = "linear"

    def __post_init__(self) -> None:
        def refuse(name: str, wanted: str) -> None:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")

        if self.divergence not in DIVERGENCES:
            refuse("divergence", f"one of {', '.join(DIVERGENCES)}")
        if not 0 < self.gamma <= 1:
            refuse("gamma", "in (0, 1]")
        if np.float32(self.gamma) == 1:
            # Discounts are float32, in which it is no other number.
            object.__setattr__(self, "gamma", 1.0)
        low, high = ALPHAS
        if not (low <= self.alpha <= high or (self.alpha == 0 and self.divergence == "identity")):
            refuse("alpha", f'from {low} to {high} (0 only with "identity")')
        if self.kappa_m is not None and not 0 <= self.kappa_m <= high:
            refuse("kappa_m", f"None, or from 0 to {high}")
        if self.terminal not in TERMINALS:
            refuse("terminal", f"one of {', '.join(TERMINALS)}")
        if self.terminal == "repeat" and self.gamma == 1:
            refuse("terminal", '"noop" or "none" at gamma = 1, where repeating <eos> never ends')
        if not abs(self.value_weight_data + self.value_weight_model - 1) <= 1e-9:
            refuse("value_weight_model", f"1 - value_weight_data ({self.value_weight_data})")
        if self.value_form not in ("explicit", "collapsed"):
            refuse("value_form", "explicit or collapsed")
        if self.clamp and self.phi.vertex is None:
            refuse("clamp", f"False for {self.divergence}, whose phi has no maximum")
        if self.domain_guard not in ("linear", "clamp"):
            refuse("domain_guard", "linear or clamp")

    @property
    def phi(self) -> Phi:
        return PHIS["chi2" if self.divergence == "chi2_mixture" else self.divergence]

    @property
    def mixture(self) -> float:
        """kappa_m as it is used."""
        if self.kappa_m is not None:
            return self.kappa_m
        return self.alpha / 4 if self.divergence == "chi2_mixture" else 0.0


@struct.dataclass
class Rows:
    """The states of trajectories, one a row in order of time; several may share a row of B.

    logit: of the action chosen at this state (at a terminal state, of <eos>), never normalised.
    value: V(s), the logsumexp over the state's actions. time: actions since s_0. acts: an action
    counts here, and the next row is the state it led to. terminal: s_N. own: of `acts`, those that
    the model chose itself, on which the mixture regulariser falls. Whatever stands in rows that
    are neither acts nor terminal is ignored, NaN included.
    """

    logit: Float[Array, "B T"]
    value: Float[Array, "B T"]
    time: Int[Array, "B T"]
    acts: Bool[Array, "B T"]
    terminal: Bool[Array, "B T"]
    own: Bool[Array, "B T"]


@struct.dataclass
class Side:
    """What one side adds to J, summed over its trajectories.

    `objective` is that sum; `value_sum` the explicit value terms, `start_value` V(s_0), which they
    equal (both summed over trajectories; `gap` is their largest difference in one row of B);
    `end_value` V(s_N); `reward` the plain sum of r over its actions, `beyond` how many of them have
    r > 2 / alpha.
    """

    objective: Float[Array, ""]
    trajectories: Float[Array, ""]
    actions: Float[Array, ""]
    value_sum: Float[Array, ""]
    start_value: Float[Array, ""]
    end_value: Float[Array, ""]
    gap: Float[Array, ""]
    reward: Float[Array, ""]
    beyond: Float[Array, ""]


def phi_alpha(x: Float[Array, "..."], settings: Settings) -> Float[Array, "..."]:
    """phi(alpha x) / alpha, finite for every finite x: guarded below the domain, clamped if asked.

    As alpha goes to 0 it becomes the identity.
    """
    phi, alpha = settings.phi, settings.alpha
    if settings.divergence == "identity":
        return x
    scaled = alpha * x
    if settings.clamp:
        assert phi.vertex is not None
        scaled = jnp.minimum(scaled, phi.vertex)
    edge = phi.overflow if phi.low is None else phi.low + DOMAIN_MARGIN
    if edge is None:
        return phi.value(scaled) / alpha
    # phi never sees a value outside, so that neither value nor gradient can be NaN there.
    outside = scaled < edge
    value = phi.value(jnp.where(outside, edge, scaled))
    if phi.low is None or settings.domain_guard == "linear":
        value = value + phi.derivative(edge) * jnp.where(outside, scaled - edge, 0.0)
    return value / alpha


def data_side(rows: Rows, settings: Settings) -> Side:
    """Reward and value terms of expert trajectories."""
    parts = _Parts(rows, settings)
    gained = (parts.weight * jnp.where(rows.acts, phi_alpha(parts.reward, settings), 0.0)).sum()
    if settings.terminal != "none":
        # sum_{t>=0} gamma^t phi(r_T), and its limit V where the discount is 1.
        rest = 1 - settings.gamma
        endless = phi_alpha(parts.end_reward, settings) / rest if rest else parts.end_value
        gained = gained + (parts.weight * jnp.where(rows.terminal, endless, 0.0)).sum()
    return parts.side(gained - settings.value_weight_data * parts.value_terms())


def model_side(rows: Rows, settings: Settings) -> Side:
    """Value term and mixture regulariser of the model's own trajectories.

    They are samples: no gradient flows through how they were drawn. With kappa_m = 0 only u_0 has a
    gradient.
    """
    parts = _Parts(rows, settings)
    total = -settings.value_weight_model * parts.value_terms()
    kappa = settings.mixture
    if kappa:
        squares = jnp.where(rows.own & rows.acts, jnp.square(parts.reward), 0.0)
        if settings.terminal == "noop":
            endless = (1 - settings.gamma) * jnp.square(parts.end_value)
            squares = squares + jnp.where(rows.terminal, endless, 0.0)
        elif settings.terminal == "repeat":
            endless = jnp.square(parts.end_reward) / (1 - settings.gamma)
            squares = squares + jnp.where(rows.terminal, endless, 0.0)
        total = total - kappa * (parts.weight * squares).sum()
    return parts.side(total)


def loss_scale(gamma: float, horizon: int = 0) -> float:
    """By what -J is multiplied to be a loss: 1 - gamma, or 1 / sum_{i<horizon} gamma^i.

    The first makes the weights of an endless trajectory add to 1; the second, a constant too, those
    of one of `horizon` actions. Never each trajectory's own length: that is no proper scoring rule.

    Raises:
      ValueError: gamma = 1 without a horizon, where the scale would be 0.
    """
    if np.float32(gamma) == 1:
        if not horizon:
            raise ValueError("gamma = 1 (in float32) needs a horizon >= 1: 1 - gamma is 0")
        return 1 / horizon
    return 1 / discounted(gamma, horizon) if horizon else 1 - gamma


def discounted(gamma: float, actions: float) -> float:
    """1 + gamma + ... + gamma^(actions - 1): the weight of that many actions, not yet scaled."""
    return float(actions) if gamma == 1 else math.expm1(actions * math.log(gamma)) / (gamma - 1)


def loss_sum(side: Side, scale: float) -> Sum:
    """-scale times a side's part of J, with the number of its trajectories."""
    return Sum(-scale * side.objective, side.trajectories)


def sequencematch(
    data: Rows, model: Rows, settings: Settings, horizon: int = 0
) -> tuple[Float[Array, ""], Side, Side]:
    """The loss -scale J, averaged over the trajectories of each side, and both sides.

    `data` and `model` may differ in shape and in number of trajectories.
    """
    sides = data_side(data, settings), model_side(model, settings)
    scale = loss_scale(settings.gamma, horizon)
    loss = sum(
        (s.value / jnp.maximum(s.count, 1) for s in (loss_sum(side, scale) for side in sides)),
        jnp.zeros(()),
    )
    return loss, *sides


def rows_of_logits(
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    length: Int[Array, " B"],
    *,
    eos_id: int,
    allowed: Bool[Array, "B T V"] | None = None,
    given: Int[Array, " B"] | None = None,
) -> Rows:
    """Rows from the logits of whole trajectories, one a row of B, states 0 to N = `length[b]`.

    Half precision is raised to float32 before the logsumexp. `labels[b, i]` is the action chosen at
    state i < N; what stands from N on is ignored (labels may have T - 1 columns). `allowed`: which
    actions a state has. `given`: how many first actions were not the model's own.
    """
    B, T, V = logits.shape
    row = jnp.broadcast_to(jnp.arange(T), (B, T))
    acts, terminal = row < length[:, None], row == length[:, None]
    used = (acts | terminal)[..., None]
    z = jnp.where(used, logits, 0.0).astype(jnp.promote_types(logits.dtype, jnp.float32))
    padded = jnp.pad(labels, ((0, 0), (0, T - labels.shape[1])))
    label = jnp.clip(jnp.where(acts, padded, eos_id), 0, V - 1)
    logit = jnp.take_along_axis(z, label[..., None], axis=-1)[..., 0]
    if allowed is not None:
        z = jnp.where(allowed | ~used, z, -jnp.inf)
    own = acts if given is None else acts & (row >= given[:, None])
    return Rows(logit, jax.nn.logsumexp(z, axis=-1), row, acts, terminal, own)


def discounts(rows: Rows, settings: Settings) -> Float[Array, "B T"]:
    """gamma^i where action i is chosen, 0 elsewhere."""
    time = jnp.where(rows.acts, rows.time, 0).astype(jnp.float32)
    return jnp.where(rows.acts, jnp.power(jnp.float32(settings.gamma), time), 0.0)


class _Parts:
    """What both sides share: discounts, rewards and value terms of masked rows."""

    def __init__(self, rows: Rows, settings: Settings):
        gamma = settings.gamma
        used = rows.acts | rows.terminal
        dtype = jnp.promote_types(rows.value.dtype, jnp.float32)
        # Masked before anything is computed: what is unused may be NaN.
        value = jnp.where(used, rows.value.astype(dtype), 0.0)
        logit = jnp.where(used, rows.logit.astype(dtype), 0.0)
        if settings.terminal == "none":
            value = jnp.where(rows.terminal, 0.0, value)
        following = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
        self.rows, self.settings = rows, settings
        self.weight = jnp.power(
            jnp.asarray(gamma, dtype), jnp.where(used, rows.time, 0).astype(dtype)
        )
        self.value = value
        self.reward = jnp.where(rows.acts, logit - gamma * following, 0.0)
        self.end_value = jnp.where(rows.terminal, value, 0.0)
        repeat = settings.terminal == "repeat"
        end_reward = logit - gamma * value if repeat else (1 - gamma) * value
        self.end_reward = jnp.where(rows.terminal, end_reward, 0.0)
        change = jnp.where(rows.acts, value - gamma * following, 0.0)
        self.value_sums = (self.weight * (change + self.end_value)).sum(axis=1)
        at_start = (rows.time == 0) & used
        self.start_values = jnp.where(at_start, value, 0.0).sum(axis=1)

    def value_terms(self) -> jax.Array:
        explicit = self.settings.value_form == "explicit"
        return (self.value_sums if explicit else self.start_values).sum()

    def side(self, objective: jax.Array) -> Side:
        acts = self.rows.acts
        limit = 2 / self.settings.alpha if self.settings.alpha else math.inf
        return Side(
            objective=objective,
            trajectories=self.rows.terminal.sum().astype(jnp.float32),
            actions=acts.sum().astype(jnp.float32),
            value_sum=self.value_sums.sum(),
            start_value=self.start_values.sum(),
            end_value=self.end_value.sum(),
            gap=jnp.abs(self.value_sums - self.start_values).max(),
            reward=self.reward.sum(),
            beyond=(acts & (self.reward > limit)).sum().astype(jnp.float32),
        )
