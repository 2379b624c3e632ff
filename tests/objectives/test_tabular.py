"""SequenceMatch where all is exact: the estimator in expectation, and what it converges to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning_jax.objectives import sequencematch as sm
from tests.objectives.tabular import BK, EOS, A, B, Trajectories, Tree, kl, optimised, written

GAMMA = 0.9
# Data that never begin with b.
STRINGS = {(): 0.1, (A,): 0.2, (A, A): 0.3, (A, B): 0.4}
EVERY_STRING = {**STRINGS, (): 0.05, (A,): 0.15, (B,): 0.02, (B, A): 0.05, (B, B): 0.03}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def all_strings(tree, policy):
    """Every string of a tree without backspace, with its probability under a policy."""
    policy = np.asarray(policy)
    out = {}
    for name in tree.names:
        if name and name[-1] == EOS:
            states = [tree.at[name[:i]] for i in range(len(name))]
            out[name] = float(np.prod([policy[s, a] for s, a in zip(states, name)]))
    return Trajectories(tree, out)


@pytest.mark.parametrize("terminal", ["noop", "repeat"])
def test_the_expected_estimator_is_the_occupancy_form(terminal):
    tree, rng = Tree(2, backspace=False), np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal(tree.allowed.shape))
    data = all_strings(tree, tree.policy(rng.standard_normal(tree.allowed.shape)))
    model = all_strings(tree, tree.policy(logits))
    assert model.weight.sum() == pytest.approx(1)
    for divergence, gamma, form in (("chi2_mixture", 0.7, "explicit"), ("js", 0.95, "collapsed")):
        settings = sm.Settings(
            divergence, 0.3, gamma, kappa_m=0.2, terminal=terminal, value_form=form,
            value_weight_data=0.3, value_weight_model=0.7,
        )  # fmt: skip
        estimate = data.weight @ data.objectives(sm.data_side, logits, settings)
        estimate += model.weight @ model.objectives(sm.model_side, logits, settings)

        value = np.asarray(tree.values(logits))
        following = value[tree.next]
        reward = np.asarray(logits) - gamma * following
        if terminal == "noop":
            # One dummy action, whose logit is V itself: reward (1 - gamma) V.
            reward[tree.terminal, EOS] = (1 - gamma) * value[tree.terminal]
        of_data, of_model = (x.occupancy(gamma) for x in (data, model))
        np.testing.assert_allclose(of_model, tree.occupancy(tree.policy(logits), gamma), atol=1e-12)
        assert of_data.sum() == pytest.approx(1)
        change = value[:, None] - gamma * following
        wanted = (of_data * np.asarray(sm.phi_alpha(jnp.asarray(reward), settings))).sum()
        wanted -= 0.3 * (of_data * change).sum() + 0.7 * (of_model * change).sum()
        wanted -= 0.2 * (of_model * reward**2).sum()
        assert float(estimate) * sm.loss_scale(gamma) == pytest.approx(wanted, abs=1e-12)
        # Any valid occupancy gives the same value term.
        assert (of_data * change).sum() == pytest.approx((1 - gamma) * value[0], abs=1e-12)


def test_as_the_discount_goes_to_1_occupancies_diverge_as_strings_do():
    tree, rng = Tree(3, backspace=False), np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal(tree.allowed.shape))
    truth = tree.policy(rng.standard_normal(tree.allowed.shape))
    data = all_strings(tree, truth)
    # The likelihood of whole strings is the identity's J at gamma = 1.
    settings = sm.Settings("identity", gamma=1.0, value_weight_data=1.0, value_weight_model=0.0)
    likelihood = data.weight @ data.objectives(sm.data_side, logits, settings)
    whole = float(data.weight @ np.log(data.weight) - likelihood)
    assert whole == pytest.approx(kl(data.strings(), tree.strings(tree.policy(logits))))
    gaps = []
    for gamma in (0.99, 0.999, 0.9999):
        rho = tree.occupancy(tree.policy(logits), gamma)
        gaps.append(kl(data.occupancy(gamma), rho) - whole)
    assert abs(gaps[0]) > 1e-4
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.01)


RUNS = {
    "plain": (False, EVERY_STRING, 0.0),
    "backspace, demonstrated": (True, EVERY_STRING, 0.2),
    "backspace, clean data": (True, STRINGS, 0.0),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_mixture_converges_to_the_data(run):
    """KL(data || model) is finite whatever the data: every allowed action has probability.

    Without backspace over whole strings; with it over occupancies, which is what is matched: the
    policy that has the occupancy of noised data may write slightly other strings, because the data
    err at most once a position and a policy cannot remember.
    """
    backspace, strings, noise = RUNS[run]
    tree = Tree(2, backspace)
    data = written(tree, strings, noise)
    assert data.weight.sum() == pytest.approx(1)
    logits, gradient = optimised(data, sm.Settings("chi2_mixture", alpha=0.01, gamma=GAMMA))
    assert float(jnp.abs(gradient).max()) < 1e-6
    policy = tree.policy(logits)
    assert kl(data.strings(), tree.strings(policy)) < 1e-4
    assert kl(data.occupancy(GAMMA), tree.occupancy(policy, GAMMA)) < 1e-4


def test_the_optimum_of_the_mixture_has_the_rewards_of_its_occupancies():
    """r = (2 / alpha) (data - model) / (data + model) on every pair, visited by data or not.

    That is stationarity with samples held: the minimum of 4 KL(data || mean) - alpha H, the data
    half of Jensen-Shannon, and not of twice chi2(data || mean) - alpha H.
    """
    alpha, tree = 1.0, Tree(2, backspace=True)
    data = written(tree, STRINGS)
    logits, _ = optimised(data, sm.Settings("chi2_mixture", alpha=alpha, gamma=GAMMA))
    policy, value = tree.policy(logits), np.asarray(tree.values(logits))
    expert, model = data.occupancy(GAMMA), np.asarray(tree.occupancy(policy, GAMMA))
    reward = np.asarray(logits) - GAMMA * value[tree.next]
    reward[tree.terminal, EOS] = (1 - GAMMA) * value[tree.terminal]
    known = tree.allowed & (expert + model > 1e-7)
    wanted = (2 / alpha) * (expert - model)[known] / (expert + model)[known]
    np.testing.assert_allclose(reward[known], wanted, atol=1e-3)
    # Among them pairs that the data never visit, also in states that they never visit.
    assert (wanted == -2 / alpha).any()
    assert (known & (expert.sum(-1, keepdims=True) == 0)).any()

    def cost(logits, of_mean):
        policy = tree.policy(logits)
        model = tree.occupancy(policy, GAMMA)
        mean = (expert + model) / 2
        entropy = -jnp.where(model > 0, model * jnp.log(jnp.where(model > 0, policy, 1)), 0).sum()
        return of_mean(mean) - alpha * entropy

    def half_js(mean):
        safe = jnp.where(expert > 0, mean, 1.0)
        return (
            4 * jnp.where(expert > 0, expert * jnp.log(np.maximum(expert, 1e-99) / safe), 0).sum()
        )

    def twice_chi2(mean):
        return 2 * jnp.where(mean > 0, (expert - mean) ** 2 / jnp.where(mean > 0, mean, 1), 0).sum()

    for of_mean, same in ((half_js, True), (twice_chi2, False)):
        tx = optax.adam(optax.cosine_decay_schedule(0.05, 2000), eps=1e-200)
        slope = jax.grad(lambda z, f=of_mean: cost(z, f))

        def step(carry, _, tx=tx, slope=slope):
            updates, state = tx.update(slope(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        start = jnp.zeros(tree.allowed.shape)
        found = jax.jit(lambda z, s, step=step: jax.lax.scan(step, (z, s), length=2000)[0][0])(
            start, tx.init(start)
        )
        got = np.asarray(tree.occupancy(tree.policy(found), GAMMA))
        distance = np.abs(got - model).max()
        assert distance < 1e-4 if same else distance > 1e-3


def test_off_the_data_the_mixture_deletes_and_plain_chi2_knows_nothing():
    """Without one demonstration of backspace, as the data never leave their own prefixes."""
    tree = Tree(2, backspace=True)
    data = written(tree, STRINGS)
    lost = [tree.at[p] for p in ((B,), (B, A), (B, B))]
    assert not data.occupancy(GAMMA)[lost].any()
    plain, _ = optimised(data, sm.Settings("chi2", alpha=1.0, gamma=GAMMA), steps=200)
    assert not np.asarray(plain)[lost].any()
    assert np.asarray(plain)[0].any()
    # At 0.01 the optimum has logits of thousands, which so few steps do not reach everywhere.
    for alpha, reached in ((0.01, lost[:1]), (1.0, lost)):
        mixed, _ = optimised(data, sm.Settings("chi2_mixture", alpha=alpha, gamma=GAMMA))
        policy = np.asarray(tree.policy(mixed))
        assert (policy[reached, BK] > 0.9).all()
        # Where the data are it does so no more than the entropy's weight asks for.
        assert policy[tree.at[(A,)], BK] < (1e-3 if alpha == 0.01 else 0.2)


def test_at_the_optimum_of_chi2_the_data_expect_no_reward():
    tree = Tree(2, backspace=True)
    data = written(tree, EVERY_STRING, 0.3)
    settings = sm.Settings("chi2", alpha=0.8, gamma=GAMMA)
    logits, gradient = optimised(data, settings)
    assert float(jnp.abs(gradient).max()) < 1e-8
    # The identity's J without a value term is E[r] / (1 - gamma).
    expected = sm.Settings("identity", gamma=GAMMA, value_weight_data=0.0, value_weight_model=1.0)
    assert abs(float(data.weight @ data.objectives(sm.data_side, logits, expected))) < 1e-6
    # And the occupancies are in the ratio of phi'(alpha r) = 1 - alpha r / 2.
    expert, model = data.occupancy(GAMMA), tree.occupancy(tree.policy(logits), GAMMA)
    reward = logits - GAMMA * tree.values(logits)[tree.next]
    np.testing.assert_allclose(model, expert * (1 - 0.8 * reward / 2), atol=1e-8)
