"""A prefix tree of two symbols with exact occupancies: no sampling, no network, a logit a pair.

States are the prefixes up to a depth and, for each, the terminal state after <eos>; a terminal
state has one action that changes nothing. With `backspace` every prefix but the empty one has it.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reasoning_jax.objectives import sequencematch as sm

A, B, EOS, BK = range(4)


class Tree:
    """`names`, and [state, action] tables `allowed` and `next`; state 0 is the empty prefix."""

    def __init__(self, depth, backspace):
        self.depth = depth
        prefixes = [p for n in range(depth + 1) for p in itertools.product((A, B), repeat=n)]
        self.names = prefixes + [(*p, EOS) for p in prefixes]
        self.at = {name: i for i, name in enumerate(self.names)}
        size = len(self.names)
        self.terminal = np.arange(size) >= len(prefixes)
        self.allowed = np.zeros((size, 4), bool)
        self.next = np.tile(np.arange(size)[:, None], (1, 4))
        self.allowed[:, EOS] = True
        for p in prefixes:
            legal = [EOS, *([A, B] if len(p) < depth else []), *([BK] if backspace and p else [])]
            for a in legal:
                self.allowed[self.at[p], a] = True
                self.next[self.at[p], a] = self.at[p[:-1] if a == BK else (*p, a)]

    def policy(self, logits):
        return jax.nn.softmax(jnp.where(self.allowed, logits, -jnp.inf), -1)

    def values(self, logits):
        return jax.nn.logsumexp(jnp.where(self.allowed, logits, -jnp.inf), -1)

    def arrivals(self, policy, gamma):
        """Expected sum of gamma^t over the visits of a state; of a terminal one, its first."""
        size = len(self.names)
        moves = jnp.where(self.terminal[:, None], 0.0, policy)
        step = jnp.zeros((size, size)).at[np.arange(size)[:, None], self.next].add(moves)
        return jnp.linalg.solve((jnp.eye(size) - gamma * step).T, jnp.eye(size)[0])

    def occupancy(self, policy, gamma):
        """rho(s, a), which adds to 1; a terminal state is never left."""
        stay = jnp.where(self.terminal, 1.0, 1 - gamma)
        return (self.arrivals(policy, gamma) * stay)[:, None] * policy

    def strings(self, policy):
        """The distribution of what is left standing at the end."""
        return self.arrivals(policy, 1.0)[self.terminal]


class Trajectories:
    """A finite distribution over sequences of actions of a tree, each ending in <eos>."""

    def __init__(self, tree, weighted):
        self.tree, self.runs = tree, list(weighted)
        self.weight = np.array([weighted[run] for run in self.runs])
        self.length = np.array([len(run) for run in self.runs])
        shape = len(self.runs), max(self.length) + 1
        self.states, self.labels = np.zeros(shape, int), np.zeros(shape, int)
        for b, run in enumerate(self.runs):
            for i, a in enumerate(run):
                self.labels[b, i] = a
                self.states[b, i + 1] = tree.next[self.states[b, i], a]

    def objectives(self, side, logits, settings):
        """What each trajectory alone adds to the objective."""
        allowed = jnp.asarray(self.tree.allowed)[self.states]

        def alone(rows):
            return side(jax.tree.map(lambda x: x[None], rows), settings).objective

        @jax.jit
        def all_alone(logits):
            rows = sm.rows_of_logits(
                logits[self.states], jnp.asarray(self.labels), jnp.asarray(self.length),
                eos_id=EOS, allowed=allowed,
            )  # fmt: skip
            return jax.vmap(alone)(rows)

        return all_alone(logits)

    def occupancy(self, gamma):
        """rho(s, a) from its definition, by counting."""
        rho = np.zeros(self.tree.allowed.shape)
        for b, n in enumerate(self.length):
            for i in range(n):
                rho[self.states[b, i], self.labels[b, i]] += self.weight[b] * gamma**i
        rho *= 1 - gamma
        for b, n in enumerate(self.length):
            rho[self.states[b, n], EOS] += self.weight[b] * gamma**n
        return rho

    def strings(self):
        ends = np.zeros(len(self.tree.names))
        np.add.at(ends, self.states[np.arange(len(self.length)), self.length], self.weight)
        return ends[self.tree.terminal]


def written(tree, strings, noise=0.0):
    """Trajectories that write `strings` (a dict: probability), before each token and <eos>, with
    probability `noise`, another token and a <backspace>. Both are the data's own actions.
    """
    out = {}
    for string, q in strings.items():
        ways = []
        for i, token in enumerate((*string, EOS)):
            wrong = [z for z in (A, B) if z != token] if noise and i < tree.depth else []
            way = [((z, BK, token), noise / len(wrong)) for z in wrong]
            ways.append([*way, ((token,), 1 - noise if wrong else 1.0)])
        for parts in itertools.product(*ways):
            run = tuple(a for part, _ in parts for a in part)
            out[run] = q * math.prod(p for _, p in parts)
    return Trajectories(tree, out)


def objective(logits, data, settings):
    """J in expectation over the data and over the policy's own occupancy, which is held."""
    tree, gamma = data.tree, settings.gamma
    policy = jax.lax.stop_gradient(tree.policy(logits))
    value = tree.values(logits)
    squares = (policy * jnp.square(logits - gamma * value[tree.next])).sum(-1)
    stay = (1 - gamma) * jnp.square(value)
    squares = tree.arrivals(policy, gamma) @ jnp.where(tree.terminal, stay, squares)
    expert = data.weight @ data.objectives(sm.data_side, logits, settings)
    return expert - settings.value_weight_model * value[0] - settings.mixture * squares


def optimised(data, settings, steps=4000, rate=0.05):
    """Logits after `steps` of Adam on exact gradients, and the last gradient.

    Without an epsilon Adam's steps do not fade where the policy hardly ever comes.
    """
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99, eps=1e-200)
    gradient = jax.grad(lambda logits: -objective(logits, data, settings))

    def step(carry, _):
        logits, state = carry
        updates, state = tx.update(gradient(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    @jax.jit
    def run(logits):
        (logits, _), _ = jax.lax.scan(step, (logits, tx.init(logits)), length=steps)
        return logits, gradient(logits)

    return run(jnp.zeros(data.tree.allowed.shape))


def kl(p, q):
    p, q = np.asarray(p), np.asarray(q)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
