"""SequenceMatch against a case computed by hand, against its identities, and at its edges.

The numbers of the hand-made case were derived apart from this code. Trees that are small enough to
be enumerated are in `test_tabular.py`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.config import SequenceMatchConfig
from reasoning_jax.data.batch import Batch
from reasoning_jax.model.readout import ActionScores
from reasoning_jax.objectives import sequencematch as sm
from reasoning_jax.train import losses

L = math.log(2)
A, B, EOS, BK = range(4)
# exp(logits) of the states, the actions. ^ -a-> a -eos-> ; ^ -b-> b -backspace-> ^ -eos->
DATA = [[4, 2, 1, 1], [2, 1, 4, 1], [1, 1, 1, 1]], [A, EOS]
MODEL = [[4, 2, 1, 1], [1, 2, 1, 4], [4, 2, 1, 1], [2, 2, 2, 2]], [B, BK, EOS]
MIXTURE = sm.Settings("chi2_mixture", alpha=1.0, gamma=0.5)


def hand_made(member, dtype, shift=0.0):
    """Logits, labels and lengths [4, ...], of which the last three are no trajectories at all."""
    exponentials, actions = member
    logits, labels = np.zeros((4, 9, 4)), np.zeros((4, 9), int)
    logits[0, : len(exponentials)] = np.log(exponentials) + shift
    labels[0, : len(actions)] = actions
    return logits.astype(dtype), labels, np.array([len(actions), -1, -1, -1])


def hand_made_rows(dtype, shift=0.0):
    return [rows_of(hand_made(m, dtype, shift)) for m in (DATA, MODEL)]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_terms_of_the_hand_made_case(x64):
    data, model = hand_made_rows(np.float64)
    np.testing.assert_allclose(data.value[0, :3], [3 * L, 3 * L, 2 * L], rtol=1e-12)
    np.testing.assert_allclose(model.value[0, :4], [3 * L] * 4, rtol=1e-12)

    def split(rows, side, settings):
        """Of the objective: the part of the actions, and that of the terminal state."""
        # Without its actions nothing of a trajectory counts but the endless stay at its end.
        still = rows.replace(acts=jnp.zeros_like(rows.acts))
        whole, tail = side(rows, settings), side(still, settings)
        ends = float(tail.value_sum)
        return (
            float(whole.objective - tail.objective),
            float(tail.objective),
            float(whole.value_sum) - ends,
            ends,
        )

    # With the value term on the other side alone, what is left is reward or regulariser.
    reward, reward_tail, value, value_tail = split(
        data,
        sm.data_side,
        dataclasses.replace(MIXTURE, value_weight_data=0.0, value_weight_model=1.0),
    )
    assert reward == pytest.approx(0.603062240450, abs=1e-9)
    assert reward == pytest.approx(L - 3 / 16 * L**2, abs=1e-12)
    assert reward_tail == pytest.approx(0.286516963540, abs=1e-9)
    assert reward_tail == pytest.approx(L / 2 - L**2 / 8, abs=1e-12)
    assert value == pytest.approx(1.732867951400, abs=1e-9)
    assert value_tail == pytest.approx(0.346573590280, abs=1e-9)

    squares, squares_tail, value, value_tail = split(
        model,
        sm.model_side,
        dataclasses.replace(MIXTURE, kappa_m=1.0, value_weight_data=1.0, value_weight_model=0.0),
    )
    assert squares == pytest.approx(-0.450424700548, abs=1e-9)
    assert squares_tail == pytest.approx(-0.270254820329, abs=1e-9)
    assert value == pytest.approx(1.819511348970, abs=1e-9)
    assert value_tail == pytest.approx(0.259930192710, abs=1e-9)

    sides = sm.data_side(data, MIXTURE), sm.model_side(model, MIXTURE)
    assert [float(s.reward) for s in sides] == pytest.approx([1.5 * L, -1.5 * L], abs=1e-12)
    assert [float(s.actions) for s in sides] == [2, 3]
    assert [float(s.end_value) for s in sides] == pytest.approx([2 * L, 3 * L], abs=1e-12)
    for settings, beyond in ((MIXTURE, 0), (dataclasses.replace(MIXTURE, alpha=3.0), 1)):
        # 2 / 3 lies between the rewards L / 2 and L.
        assert float(sm.data_side(data, settings).beyond) == beyond


J_CASES = {
    "chi2": (dict(divergence="chi2"), -1.189862337689),
    "chi2_mixture": ({}, -1.370032217909),
    "chi2_mixture, alpha .01": (dict(alpha=0.01), -1.043023885311),
    "chi2 with its kappa_m given": (dict(divergence="chi2", kappa_m=0.25), -1.370032217909),
    "identity": (dict(divergence="identity"), -1.039720770840),
    "forward_kl": (dict(divergence="forward_kl"), -1.255289222753),
    "reverse_kl": (dict(divergence="reverse_kl"), -1.286548322866),
    "js": (dict(divergence="js"), -1.417093921250),
    "hellinger": (dict(divergence="hellinger"), -1.412683235661),
    "repeat": (dict(terminal="repeat"), -2.003122771729),
    "none": (dict(terminal="none"), -1.355018061224),
    "shifted": ({}, -1.644158163656),
}


@pytest.mark.parametrize("value_form", ["explicit", "collapsed"])
@pytest.mark.parametrize("case", J_CASES)
def test_objective_of_the_hand_made_case(case, value_form, x64):
    changes, wanted = J_CASES[case]
    shift = 0.7 if case == "shifted" else 0.0
    settings = dataclasses.replace(MIXTURE, value_form=value_form, **changes)
    for dtype, atol in ((np.float64, 1e-9), (np.float32, 1e-6)):
        loss, data, model = sm.sequencematch(*hand_made_rows(dtype, shift), settings)
        assert float(data.objective + model.objective) == pytest.approx(wanted, abs=atol)
        assert float(loss) == pytest.approx(-0.5 * wanted, abs=atol)


@pytest.mark.parametrize("value_form", ["explicit", "collapsed"])
def test_gradient_of_the_hand_made_case(value_form, x64):
    settings = dataclasses.replace(MIXTURE, value_form=value_form)

    for dtype, atol in ((np.float64, 1e-9), (np.float32, 1e-6)):
        (data, model), _ = evaluated(hand_made(DATA, dtype), hand_made(MODEL, dtype), settings)
        wanted_data = [
            [0.5767132049, -0.1250000000, -0.0625000000, -0.0625000000],
            [-0.1033391506, -0.0516695753, 0.1200349036, -0.0516695753],
            [0, 0, 0, 0],
        ]
        wanted_model = [
            [-0.2500000000, 0.0482867951, -0.0625000000, -0.0625000000],
            [-0.0108304247, -0.0216608494, -0.0108304247, -0.1299650964],
            [0.0216608494, 0.0108304247, 0.1353803087, 0.0054152123],
            [-0.0324912741, -0.0324912741, -0.0324912741, -0.0324912741],
        ]
        np.testing.assert_allclose(-2 * data[0, :3], wanted_data, atol=atol)
        np.testing.assert_allclose(-2 * model[0, :4], wanted_model, atol=atol)


def some(seed, lengths, scale=1.0, dtype=np.float32):
    """Random logits, labels and lengths of four trajectories with `lengths` actions each.

    Of one shape everywhere, so that each operation is compiled once for all tests.
    """
    assert len(lengths) == 4
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((4, 9, 4))
    return logits.astype(dtype), rng.integers(0, 4, (4, 9)), np.array(lengths)


def rows_of(case, **more):
    return sm.rows_of_logits(*map(jnp.asarray, case), eos_id=EOS, **more)


def evaluated(data, model, settings, horizon=0):
    """Gradients of the loss with respect to the logits of both sides; the loss, and the sides."""

    def loss(z, y):
        rows = rows_of((z, *data[1:])), rows_of((y, *model[1:]))
        total, *both = sm.sequencematch(*rows, settings, horizon)
        return total, (total, *both)

    grads, values = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        *map(jnp.asarray, (data[0], model[0]))
    )
    return jax.tree.map(np.asarray, grads), values


def objective_gradient(side, case, settings):
    return np.asarray(
        jax.grad(lambda z: side(rows_of((z, *case[1:])), settings).objective)(jnp.asarray(case[0]))
    )


def close(a, b, rtol=1e-5, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_raised_before_anything_is_summed(dtype):
    logits, *rest = some(0, [3, 5, 0, 8], scale=3.0)
    rounded = jnp.asarray(logits).astype(dtype)
    for side in (sm.data_side, sm.model_side):
        got = side(rows_of((rounded, *rest)), MIXTURE)
        wanted = side(rows_of((rounded.astype(jnp.float32), *rest)), MIXTURE)
        assert jax.tree.map(float, got) == jax.tree.map(float, wanted)
        assert got.objective.dtype == jnp.float32


def test_values_are_over_the_actions_that_a_state_has():
    logits, labels, length = some(14, [4, 2, 6, 8])
    allowed = np.random.default_rng(0).random(logits.shape) < 0.6
    allowed[..., EOS] = np.arange(9) <= length[:, None]
    # Beyond the end no action is left at all.
    allowed &= allowed[..., EOS : EOS + 1]
    shorter = logits, labels[:, :-1], length
    rows = rows_of(shorter, allowed=jnp.asarray(allowed))
    used = np.arange(9) <= length[:, None]
    wanted = np.log(np.where(allowed, np.exp(logits), 0).sum(-1)[used])
    np.testing.assert_allclose(np.asarray(rows.value)[used], wanted, atol=1e-6)
    # The logit is that of the label, and of <eos> in a terminal state.
    chosen = np.where(np.arange(9) < length[:, None], labels, EOS)
    picked = np.take_along_axis(logits, chosen[..., None], -1)[..., 0]
    np.testing.assert_array_equal(np.asarray(rows.logit)[used], picked[used])
    slope = jax.grad(
        lambda z: jnp.where(
            used, rows_of((z, *shorter[1:]), allowed=jnp.asarray(allowed)).value, 0
        ).sum()
    )(jnp.asarray(logits))
    assert np.isfinite(slope).all()
    assert not np.asarray(slope)[~allowed].any()


@pytest.mark.parametrize("terminal", sm.TERMINALS)
def test_value_sums_telescope(terminal, x64):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        gamma = float(rng.uniform(0.05, 0.999))
        settings = sm.Settings(gamma=gamma, terminal=terminal, alpha=0.3)
        lengths = [*rng.integers(1, 9, 3), 0]
        rows = rows_of(some(seed, lengths, scale=3.0, dtype=np.float64))
        for side in (sm.data_side, sm.model_side):
            both = [
                side(rows, dataclasses.replace(settings, value_form=form))
                for form in ("explicit", "collapsed")
            ]
            close(*both, rtol=1e-11, atol=1e-11)
            assert both[0].gap < 1e-12
            starts = np.asarray(rows.value)[:, 0]
            starts = starts[:-1].sum() if terminal == "none" else starts.sum()
            assert float(both[0].value_sum) == pytest.approx(starts, abs=1e-11)
    # Time that does not count from 0 breaks it, and the gap says so.
    late = rows.replace(time=rows.time + 1)
    assert float(sm.data_side(late, settings).gap) > 1e-3


@pytest.mark.parametrize("gamma", [0.3, 0.998, 1.0])
def test_identity_is_discounted_log_likelihood(gamma, x64):
    logits, labels, length = case = some(1, [4, 7, 1, 8], scale=2.0, dtype=np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logp, labels[..., None], -1)[..., 0]
    row = np.arange(9)
    wanted = np.where(row < length[:, None], gamma**row * picked, 0).sum() / 4
    # The model's trajectories start in the same states.
    model = some(2, [2, 5, 6, 1], dtype=np.float64)
    model[0][:, 0] = logits[:, 0]
    for w in (0.5, 1.0, 0.0):
        settings = sm.Settings(
            "identity", gamma=gamma, value_weight_data=w, value_weight_model=1 - w
        )
        loss, *_ = sm.sequencematch(rows_of(case), rows_of(model), settings, horizon=1)
        assert float(-loss) == pytest.approx(wanted, abs=1e-10)


PRIME = {
    "identity": (lambda x: np.ones_like(x), None),
    "chi2": (lambda x: 1 - x / 2, None),
    "reverse_kl": (lambda x: np.exp(-x), None),
    "forward_kl": (lambda x: 1 / (1 + x), -1.0),
    "js": (lambda x: np.exp(-x) / (2 - np.exp(-x)), -math.log(2)),
    "hellinger": (lambda x: 1 / (1 + x) ** 2, -1.0),
}


def lawful_gradient(case, settings, slope, start):
    """d(objective)/d(logits): gamma^i (c_i onehot - c_{i-1} p), c = slope(r), c_{-1} = start."""
    logits, labels, length = case
    gamma, terminal = settings.gamma, settings.terminal
    top = logits.max(-1)
    V = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    p = np.exp(logits - V[..., None])
    out = np.zeros_like(logits)
    for b, N in enumerate(length):
        before = start
        values = V[b].copy()
        if terminal == "none":
            values[N] = 0
        for i in range(N):
            c = slope(logits[b, i, labels[b, i]] - gamma * values[i + 1])
            out[b, i] = gamma**i * (c * np.eye(4)[labels[b, i]] - before * p[b, i])
            before = c
        if terminal == "noop":
            c = slope((1 - gamma) * values[N])
            out[b, N] = gamma**N * (c - before) * p[b, N]
        elif terminal == "repeat":
            c = slope(logits[b, N, EOS] - gamma * values[N])
            endless = c * (np.eye(4)[EOS] - gamma * p[b, N]) / (1 - gamma)
            out[b, N] = gamma**N * (endless - before * p[b, N])
    return out


@pytest.mark.parametrize("divergence", sm.DIVERGENCES)
def test_gradient_law(divergence, x64):
    prime, low = PRIME["chi2" if divergence == "chi2_mixture" else divergence]
    for seed, (terminal, alpha) in enumerate(
        [("noop", 0.01), ("noop", 1.0), ("repeat", 0.4), ("none", 1.0), ("noop", 0.2)]
    ):
        gamma = float(np.random.default_rng(seed).uniform(0.3, 0.99))
        w = (0.5, 1.0, 0.0, 0.3, 0.5)[seed]
        form = ("explicit", "collapsed")[seed % 2]
        settings = sm.Settings(
            divergence, alpha, gamma, terminal=terminal, value_form=form,
            value_weight_data=w, value_weight_model=1 - w,
        )  # fmt: skip
        case = some(seed, [3, 8, 1, 0], scale=2.0, dtype=np.float64)

        def slope(r, alpha=alpha):
            x = alpha * r
            return prime(x if low is None else max(x, low + sm.DOMAIN_MARGIN))

        got = objective_gradient(sm.data_side, case, settings)
        wanted = lawful_gradient(case, settings, slope, w)
        np.testing.assert_allclose(got, wanted, atol=1e-9, rtol=1e-9)

        kappa = alpha / 4 if divergence == "chi2_mixture" else 0.0
        if seed == 4:
            kappa = 0.7
            settings = dataclasses.replace(settings, kappa_m=kappa)
        got = objective_gradient(sm.model_side, case, settings)
        wanted = lawful_gradient(case, settings, lambda r, k=kappa: -2 * k * r, 1 - w)
        np.testing.assert_allclose(got, wanted, atol=1e-9, rtol=1e-9)


def test_the_regulariser_falls_on_own_actions_and_on_the_end(x64):
    logits, labels, length = case = some(13, [4, 2, 6, 8], dtype=np.float64)
    given = np.array([0, 1, 3, 8])
    value = np.log(np.exp(logits).sum(-1))
    for kappa in (0.3, 2.0):
        settings = sm.Settings("chi2", gamma=0.9, kappa_m=kappa)
        penalty = 0.0
        for k, n in enumerate(length):
            for i in range(given[k], n):
                penalty += 0.9**i * (logits[k, i, labels[k, i]] - 0.9 * value[k, i + 1]) ** 2
            penalty += 0.9**n * 0.1 * value[k, n] ** 2
        side = sm.model_side(rows_of(case, given=jnp.asarray(given)), settings)
        wanted = -0.5 * value[:, 0].sum() - kappa * penalty
        assert float(side.objective) == pytest.approx(wanted, abs=1e-11)


@pytest.mark.parametrize("terminal", sm.TERMINALS)
@pytest.mark.parametrize("value_form", ["explicit", "collapsed"])
def test_without_the_regulariser_only_the_start_of_model_samples_has_a_gradient(
    value_form, terminal
):
    case = some(3, [4, 7, 2, 8])
    for divergence in ("chi2", "js", "chi2_mixture"):
        settings = sm.Settings(
            divergence, gamma=0.9, kappa_m=0.0, terminal=terminal, value_form=value_form
        )
        got = objective_gradient(sm.model_side, case, settings)
        start = np.exp(case[0][:, 0])
        start /= start.sum(-1, keepdims=True)
        np.testing.assert_allclose(got[:, 0], -0.5 * start, atol=1e-6)
        np.testing.assert_allclose(got[:, 1:], 0.0, atol=1e-6)
        if value_form == "collapsed":
            assert not got[:, 1:].any()


def test_a_shift_of_logits_changes_rewards_as_predicted(x64):
    logits, labels, length = case = some(4, [5, 3, 8, 1], dtype=np.float64)
    shift = np.random.default_rng(0).standard_normal(logits.shape[:2])
    moved = rows_of((logits + shift[..., None], labels, length))
    rows = rows_of(case)
    likelihood = sm.Settings("identity", gamma=0.8, value_weight_data=0.0, value_weight_model=1.0)
    for settings in (likelihood, dataclasses.replace(likelihood, divergence="chi2", alpha=0.5)):
        inner = rows.replace(
            logit=rows.logit + jnp.where(rows.acts, shift, 0), value=rows.value + shift
        )
        a, b, c = (sm.data_side(x, settings) for x in (moved, inner, rows))
        close(a, b, rtol=1e-12, atol=1e-12)
        # r changes by b(s) - gamma b(s'); with phi the identity the sum telescopes to b(s_0).
        if settings.divergence == "identity":
            change = float(a.objective - c.objective)
            assert change == pytest.approx(shift[:, 0].sum(), abs=1e-11)
            change = sum(
                shift[k, i] - 0.8 * shift[k, i + 1] for k in range(4) for i in range(length[k])
            )
            assert float(a.reward - c.reward) == pytest.approx(change, abs=1e-11)
        else:
            assert abs(float(a.objective - c.objective - shift[:, 0].sum())) > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        sm.Settings("chi2_mixture", alpha=0.5, gamma=0.9),
        sm.Settings("js", alpha=1.0, gamma=0.9, terminal="repeat", kappa_m=0.1),
        sm.Settings("forward_kl", alpha=1.0, gamma=1.0, kappa_m=0.1, value_form="explicit"),
    ],
)
def test_padding_does_nothing_whatever_it_holds(settings):
    data, model = some(5, [4, 2, 6, 0]), some(6, [3, 5, 1, 7])

    def poisoned(case):
        logits, labels, length = case
        beyond = np.arange(9) > length[:, None]
        bad = np.where(beyond[..., None], np.float32(np.nan), logits)
        return bad, np.where(beyond, 10**6, labels), length

    def widened(case):
        logits, labels, length = case
        wide = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=np.nan)
        return wide, np.pad(labels, ((0, 0), (0, 3)), constant_values=-5), length

    plain, values = evaluated(data, model, settings, horizon=3)
    for change in (poisoned, widened):
        bad, bad_values = evaluated(change(data), change(model), settings, horizon=3)
        close(values, bad_values)
        for case, good, got in zip((data, model), plain, bad):
            inside = np.arange(9) <= case[2][:, None]
            close(good[inside], got[:, :9][inside])
            assert not got[:, 9:].any()
            assert not got[:, :9][~inside].any()
            assert good[inside].any()

    # Whatever stands in unused rows of Rows itself is ignored too.
    rows = rows_of(data)
    unused = ~(rows.acts | rows.terminal)
    for side in (sm.data_side, sm.model_side):
        for time in (0, -(10**6)):
            bad = rows.replace(
                logit=jnp.where(unused, jnp.nan, rows.logit),
                value=jnp.where(unused, jnp.nan, rows.value),
                time=jnp.where(unused, time, rows.time),
                own=rows.own | unused,
            )
            close(side(rows, settings), side(bad, settings))
            grads = jax.grad(lambda r, f=side: f(r, settings).objective, allow_int=True)(bad)
            assert np.isfinite(grads.logit).all()
            assert np.isfinite(grads.value).all()


def test_order_and_number_of_trajectories():
    settings = sm.Settings(alpha=0.5, gamma=0.9)
    data, model = some(7, [4, 2, 6, 1]), some(8, [3, 5, 0, 8])
    (data_grad, model_grad), values = evaluated(data, model, settings)
    order, other = np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2])
    grads, again = evaluated([x[order] for x in data], [x[other] for x in model], settings)
    close(values, again)
    close((data_grad[order], model_grad[other]), grads)
    # A mean over each side's own trajectories: twice the model's samples are the same loss.
    twice = [np.concatenate([x, x]) for x in model]
    grads, (loss, _, side) = evaluated(data, twice, settings)
    close(loss, values[0])
    assert float(side.trajectories) == 8
    close(grads[0], data_grad)
    close(grads[1][:4], model_grad / 2)
    # And a side is the sum over single ones.
    for side, case in ((sm.data_side, data), (sm.model_side, model)):
        rows = rows_of(case)
        lines = [jax.tree.map(lambda x, k=k: x[k : k + 1], rows) for k in range(4)]
        parts = [side(line, settings).objective for line in lines]
        close(sum(parts), side(rows, settings).objective)


def test_a_side_without_trajectories_adds_nothing():
    settings = sm.Settings(alpha=0.5, gamma=0.9)
    data, none = some(7, [4, 2, 6, 1]), some(8, [-1] * 4)
    (data_grad, none_grad), (loss, side, empty) = evaluated(data, none, settings)
    assert float(empty.trajectories) == float(empty.objective) == 0
    assert not none_grad.any()
    assert data_grad.any()
    close(loss, -0.1 * side.objective / 4)


def packed(rows, lengths, plan):
    """Rows of single trajectories put behind one another, and which stands where (-1: none)."""
    which, at = np.full((2, 16), -1), np.zeros((2, 16), np.int32)
    segments = np.zeros((2, 16), np.int32)
    for line, members in enumerate(plan):
        full = np.concatenate([np.full(lengths[k] + 1, k) for k in members])
        which[line, : len(full)] = full
        at[line, : len(full)] = np.concatenate([np.arange(lengths[k] + 1) for k in members])
        numbers = [np.full(lengths[k] + 1, n) for n, k in enumerate(members, start=1)]
        segments[line, : len(full)] = np.concatenate(numbers)

    def join(x):
        nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros((), x.dtype)
        return jnp.where(which < 0, nothing, x[which, at])

    return jax.tree.map(join, rows), which, segments


@pytest.mark.parametrize("terminal", sm.TERMINALS)
@pytest.mark.parametrize("value_form", ["explicit", "collapsed"])
def test_packing_changes_nothing(value_form, terminal):
    case = some(9, [4, 2, 6, 0])
    settings = sm.Settings(alpha=0.5, gamma=0.9, terminal=terminal, value_form=value_form)
    for side in (sm.data_side, sm.model_side):

        def objective(z, plan=None, side=side):
            rows = rows_of((z, *case[1:]))
            out = side(rows if plan is None else packed(rows, case[2], plan)[0], settings)
            return out.objective, out.replace(gap=0.0)

        gradient = jax.grad(objective, has_aux=True)
        close(gradient(jnp.asarray(case[0])), gradient(jnp.asarray(case[0]), [[2, 3, 0], [1]]))


@pytest.mark.parametrize("start", ["bos", "prompt"])
@pytest.mark.parametrize("kappa_on_prompt", [False, True])
def test_segments_of_a_batch_are_trajectories(start, kappa_on_prompt):
    logits, labels, length = case = some(10, [5, 3, 6, 4])
    prompt = np.array([2, 0, 4, 1])
    flat, which, segments = packed(rows_of(case), length, [[2, 0], [1, 3]])
    floor = np.where(segments > 0, prompt[which], 0)
    time = np.asarray(flat.time)
    weights = np.where((segments > 0) & (time >= floor) & ~np.asarray(flat.terminal), 1.0, 0.0)
    scores = ActionScores(flat.logit, flat.logit > 0, flat.logit, flat.value, flat.logit)
    zeros = jnp.zeros_like(segments)
    batch = Batch(zeros, zeros, jnp.asarray(weights), jnp.asarray(segments), floor, zeros)
    match = SequenceMatchConfig(start=start, kappa_on_prompt=kappa_on_prompt)
    got = losses.trajectory_rows(scores, batch, match)
    settings = sm.Settings(alpha=0.5, gamma=0.9)
    if start == "bos":
        given = None if kappa_on_prompt else jnp.asarray(prompt)
        wanted = rows_of(case, given=given)
    else:
        # Every trajectory begins where its prompt ends.
        index = np.minimum(prompt[:, None] + np.arange(9), 8)
        cut = [np.take_along_axis(labels, index, 1), length - prompt]
        wanted = rows_of((np.take_along_axis(logits, index[..., None], 1), *cut))
    for side in (sm.data_side, sm.model_side):
        a, b = side(got, settings), side(wanted, settings)
        close(a.replace(gap=0.0), b.replace(gap=0.0))
        assert float(a.gap) < 1e-5


# f of D(model || data) = sum of data f(model / data), with f(1) = f'(1) = 0: what the name says, up
# to a multiple of t - 1, whose sum is 0 between distributions.
F = {
    "chi2": lambda t: (t - 1) ** 2,
    "reverse_kl": lambda t: t * np.log(t) - t + 1,
    "forward_kl": lambda t: -np.log(t) + t - 1,
    "js": lambda t: t * np.log(2 * t / (1 + t)) + np.log(2 / (1 + t)),
    "hellinger": lambda t: (np.sqrt(t) - 1) ** 2,
}


def minimised(name, model, data):
    def kl(p, q):
        return (p * np.log(p / q)).sum()

    mean = (model + data) / 2
    return {
        "chi2": ((model - data) ** 2 / data).sum(),
        "reverse_kl": kl(model, data),
        "forward_kl": kl(data, model),
        "js": kl(model, mean) + kl(data, mean),
        "hellinger": ((np.sqrt(model) - np.sqrt(data)) ** 2).sum(),
    }[name]


@pytest.mark.parametrize("name", F)
def test_phi_is_the_conjugate_of_what_is_minimised(name, x64):
    model, data = np.random.default_rng(0).dirichlet(np.ones(7), 2)
    assert (data * F[name](model / data)).sum() == pytest.approx(minimised(name, model, data))
    # inf_t x t + f(t), on a grid that is fine enough for 1e-7.
    t = np.exp(np.linspace(-14, 8, 200_001))
    low = PRIME[name][1]
    for x in (-1.5, -0.9, -0.6, -0.3, 0.0, 0.5, 1.3, 1.99, 3.0):
        if low is not None and x <= low:
            continue
        settings = sm.Settings(name, alpha=1.0, clamp=name == "chi2")
        got = float(sm.phi_alpha(jnp.float64(x), settings))
        assert got == pytest.approx((x * t + F[name](t)).min(), abs=3e-6), x


@pytest.mark.parametrize("name", sm.PHIS)
def test_phi_begins_at_0_with_slope_1_and_is_concave(name, x64):
    phi = sm.PHIS[name]
    prime, low = PRIME[name]
    assert phi.low == low
    assert float(phi.value(jnp.float64(0))) == 0
    assert phi.derivative(0.0) == 1
    lowest = -3.0 if low is None else low + 1e-2
    x = np.linspace(lowest, 1.9, 200)
    slopes = jax.vmap(jax.grad(phi.value))(jnp.asarray(x))
    np.testing.assert_allclose(slopes, prime(x), rtol=1e-9)
    np.testing.assert_allclose([phi.derivative(float(v)) for v in x], slopes, rtol=1e-9)
    assert (np.diff(slopes) <= 1e-12).all()
    assert (np.asarray(slopes) > 0).all()
    for alpha in (0.05, 0.7):
        settings = sm.Settings(name, alpha=alpha)
        got = sm.phi_alpha(jnp.asarray(x / alpha), settings)
        scaled = x / alpha if name == "identity" else phi.value(jnp.asarray(x)) / alpha
        np.testing.assert_allclose(got, scaled, rtol=1e-12, atol=1e-12)
    tiny = sm.phi_alpha(jnp.asarray(x), sm.Settings(name, alpha=1e-7))
    np.testing.assert_allclose(tiny, x, atol=1e-5)


GUARDED = [
    (name, guard, clamp)
    for name in sm.PHIS
    for guard in ("linear", "clamp")
    for clamp in ((False, True) if name == "chi2" else (False,))
]


@pytest.mark.parametrize(("name", "guard", "clamp"), GUARDED)
def test_phi_is_finite_everywhere(name, guard, clamp):
    big = np.concatenate([np.logspace(-3, 6, 200), [79.0, 81.0, 0.0]])
    r = jnp.asarray(np.concatenate([-big, big]), jnp.float32)
    for alpha in (0.01, 1.0):
        settings = sm.Settings(name, alpha=alpha, domain_guard=guard, clamp=clamp)
        value, slope = jax.vmap(jax.value_and_grad(lambda x, s=settings: sm.phi_alpha(x, s)))(r)
        assert np.isfinite(value).all()
        assert np.isfinite(slope).all()
        # The square of a slope goes into the norm of the gradient.
        assert np.isfinite(np.square(slope)).all()
        if name != "chi2":
            assert (np.asarray(slope) >= -1e-6).all()


@pytest.mark.parametrize("guard", ["linear", "clamp"])
@pytest.mark.parametrize("name", ["forward_kl", "js", "hellinger", "reverse_kl"])
def test_the_edge_of_the_domain(name, guard, x64):
    phi, alpha = sm.PHIS[name], 0.5
    settings = sm.Settings(name, alpha=alpha, domain_guard=guard)

    def f(x):
        return float(sm.phi_alpha(jnp.float64(x / alpha), settings)) * alpha

    def slope(x):
        return float(jax.grad(lambda y: sm.phi_alpha(y, settings))(jnp.float64(x / alpha)))

    edge = phi.overflow if phi.low is None else phi.low + sm.DOMAIN_MARGIN
    steep = phi.derivative(edge)
    assert f(edge - 1e-9) == pytest.approx(f(edge + 1e-9), rel=1e-5)
    # Inside nothing is changed; outside the slope is held, or 0.
    for inside in (edge + 1e-7, edge + 0.3):
        assert f(inside) == pytest.approx(float(phi.value(jnp.float64(inside))), rel=1e-12)
    held = steep if guard == "linear" or phi.low is None else 0.0
    assert slope(edge + 1e-9) == pytest.approx(steep, rel=1e-4)
    for below in (1e-6, 0.5, 40.0):
        assert slope(edge - below) == pytest.approx(held, rel=1e-9)
        assert f(edge - below) == pytest.approx(f(edge) - held * below, rel=1e-9)


def test_clamp_holds_the_maximum_of_chi2(x64):
    for alpha in (0.1, 1.0):
        clamped = sm.Settings("chi2", alpha=alpha, clamp=True)
        free = sm.Settings("chi2", alpha=alpha)
        x = jnp.asarray([-9.0, -1.0, 0.3, 1.999]) / alpha
        np.testing.assert_array_equal(sm.phi_alpha(x, clamped), sm.phi_alpha(x, free))
        beyond = jnp.asarray([2.0, 2.5, 100.0]) / alpha
        np.testing.assert_allclose(sm.phi_alpha(beyond, clamped), 1 / alpha)
        slopes = jax.vmap(jax.grad(lambda y, s=clamped: sm.phi_alpha(y, s)))(beyond)
        np.testing.assert_allclose(slopes, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(gamma=0.0), "gamma"),
        (dict(gamma=1.0001), "gamma"),
        (dict(gamma=math.nan), "gamma"),
        (dict(alpha=0.0), "alpha"),
        (dict(alpha=-1.0), "alpha"),
        (dict(alpha=math.nan), "alpha"),
        (dict(alpha=math.inf), "alpha"),
        (dict(alpha=-1.0, divergence="identity"), "alpha"),
        (dict(divergence="kl"), "divergence"),
        (dict(kappa_m=-0.1), "kappa_m"),
        (dict(kappa_m=math.inf), "kappa_m"),
        (dict(kappa_m=math.nan), "kappa_m"),
        (dict(terminal="done"), "terminal"),
        (dict(terminal="repeat", gamma=1.0), "terminal"),
        (dict(value_weight_data=0.6), "value_weight"),
        (dict(value_weight_data=math.nan), "value_weight"),
        (dict(value_weight_data=math.inf, value_weight_model=-math.inf), "value_weight"),
        (dict(value_form="short"), "value_form"),
        (dict(clamp=True, divergence="forward_kl"), "clamp"),
        (dict(domain_guard="none"), "domain_guard"),
    ],
)
def test_settings_refuse(changes, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        sm.Settings(**changes)


def test_settings_accept():
    assert sm.Settings("identity", alpha=0.0, gamma=1.0).mixture == 0
    assert sm.Settings().mixture == 0.0025
    assert sm.Settings(kappa_m=0.0).mixture == 0
    assert sm.Settings("chi2").mixture == 0
    assert sm.Settings("js", kappa_m=2.0).mixture == 2
    assert sm.Settings("chi2_mixture", clamp=True).phi is sm.PHIS["chi2"]


def test_loss_scale():
    assert sm.loss_scale(0.75) == 0.25
    assert sm.loss_scale(0.5, horizon=3) == pytest.approx(1 / 1.75)
    assert sm.loss_scale(1.0, horizon=4) == 0.25
    with pytest.raises(ValueError, match="horizon"):
        sm.loss_scale(1.0)
    # The same objective, another constant.
    data, model = hand_made_rows(np.float32)
    a, b = (sm.sequencematch(data, model, MIXTURE, horizon=h)[0] for h in (0, 3))
    close(b, a * 2 / 1.75)


@pytest.mark.parametrize("divergence", sm.DIVERGENCES)
def test_the_discount_may_go_to_1(divergence, x64):
    data, model = (some(s, [4, 2, 5, 0], dtype=np.float64) for s in (11, 12))
    settings = sm.Settings(divergence, alpha=0.2, gamma=1.0, kappa_m=0.1)
    at_one = evaluated(data, model, settings, horizon=1)
    near = evaluated(data, model, dataclasses.replace(settings, gamma=1 - 1e-6), horizon=1)
    (at_grads, (at_loss, *at_sides)), (near_grads, (near_loss, *near_sides)) = at_one, near
    close(at_sides, near_sides, rtol=1e-4, atol=1e-4)
    close(at_loss, near_loss, rtol=1e-4)
    close(at_grads, near_grads, rtol=1e-4, atol=1e-4)


def test_the_share_of_cloning_falls_on_schedule():
    match = SequenceMatchConfig(bc_steps=1000, anneal_steps=2000, beta_end=0.2)
    steps = (0, 999, 1000, 2000, 3000, 5000)
    got = [float(losses.beta_at(match, step)) for step in steps]
    assert got == pytest.approx([1, 1, 1, 0.6, 0.2, 0.2], abs=1e-6)
    sudden = SequenceMatchConfig(bc_steps=10, anneal_steps=0, beta_end=0.2)
    assert [float(losses.beta_at(sudden, s)) for s in (9, 10)] == pytest.approx([1, 0.2])
