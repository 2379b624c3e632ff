"""The buffer against a deque, and its batches against lists."""

from collections import Counter, deque

import numpy as np
import pytest
from scipy import stats

from reasoning_jax.rl.replay import ReplayBuffer, as_batch

NAMES = ("length", "given", "floor", "step", "position")
T = 6


def trajectories(first, n, rng):
    """`n` trajectories that can be told apart, numbered from `first` by their position."""
    length = rng.integers(2, T + 1, n)
    given = np.array([rng.integers(1, m) for m in length])
    values = {
        "actions": rng.integers(0, 9, (n, T)), "labels": rng.integers(0, 9, (n, T)),
        "length": length, "given": given, "floor": given - 1 - rng.integers(0, given),
        "step": rng.integers(0, 50, n), "position": np.arange(first, first + n),
    }  # fmt: skip
    return {name: np.asarray(v, np.int32) for name, v in values.items()}


def rows_of(arrays):
    """One bytes object a trajectory."""
    names = ("actions", "labels", *NAMES)
    return [b"".join(arrays[n][i].tobytes() for n in names) for i in range(len(arrays["length"]))]


@pytest.mark.parametrize("capacity", [1, 2, 5, 8])
def test_it_holds_the_newest_whatever_the_sizes_of_pushes(capacity):
    """Catches: the newest overwritten first, a push that does not wrap, a field pushed to another
    place, one missed in `sample`, a length that counts beyond the capacity.
    """
    rng = np.random.default_rng(capacity)
    buffer, want, first = ReplayBuffer(capacity, T), deque(maxlen=capacity), 0
    for _ in range(60):
        n = int(rng.integers(0, capacity + 1))
        new = trajectories(first, n, rng)
        first += n
        buffer.push(**new)
        want.extend(rows_of(new))
        assert len(buffer) == len(want)
        got = buffer.sample(rng, len(buffer))
        assert Counter(rows_of(got)) == Counter(want)
        # The count stays small for ever: it is modulo the capacity once the buffer is full.
        assert 0 <= int(buffer.arrays()["pushed"]) < 2 * capacity


def test_the_count_of_pushes_never_overflows():
    # Catches: a plain int32 counter, which goes negative after 2^31 trajectories.
    buffer = ReplayBuffer(3, T)
    buffer.push(**trajectories(0, 3, np.random.default_rng(0)))
    for _ in range(1000):
        buffer.push(**trajectories(0, 3, np.random.default_rng(0)))
    assert len(buffer) == 3
    assert int(buffer.arrays()["pushed"]) < 6


def full(capacity=6):
    buffer = ReplayBuffer(capacity, T)
    buffer.push(**trajectories(0, capacity, np.random.default_rng(0)))
    return buffer


def test_samples_are_different_and_uniform():
    """Every subset of 2 of 6 equally often. Catches: replacement, a stretch of neighbours, the last
    place never drawn.
    """
    buffer, rng, pairs = full(), np.random.default_rng(1), Counter()
    for _ in range(3000):
        positions = buffer.sample(rng, 2)["position"].tolist()
        assert len(set(positions)) == 2
        pairs[tuple(positions)] += 1
    assert len(pairs) == 30
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3


def test_a_sample_is_the_generators_and_a_copy():
    # Catches: a global generator; a view that the next push overwrites.
    buffer = full()
    a, b = (buffer.sample(np.random.default_rng(3), 4) for _ in range(2))
    assert rows_of(a) == rows_of(b)
    buffer.push(**trajectories(9, 6, np.random.default_rng(5)))
    assert rows_of(a) == rows_of(b)


@pytest.mark.parametrize("pushed", [0, 2, 4, 9])
def test_a_restored_buffer_goes_on_as_the_saved_one(pushed):
    """Catches: the place of the next push forgotten, arrays shared between the two."""
    rng = np.random.default_rng(pushed)
    first, second = ReplayBuffer(4, T), ReplayBuffer(4, T)
    second.push(**trajectories(100, 3, rng))
    for i in range(pushed):
        first.push(**trajectories(i, 1, rng))
    second.restore({name: values.copy() for name, values in first.arrays().items()})
    for i in range(3):
        for name, values in first.arrays().items():
            np.testing.assert_array_equal(values, second.arrays()[name], err_msg=name)
        new = trajectories(50 + 3 * i, 3, rng)
        first.push(**new)
        second.push(**new)


def test_what_does_not_fit_is_refused():
    buffer, rng = full(4), np.random.default_rng(0)
    before = {name: values.copy() for name, values in buffer.arrays().items()}
    new = trajectories(0, 2, rng)
    for wrong in (
        trajectories(0, 5, rng),
        {**new, "actions": new["actions"][:, :-1]},
        {name: v for name, v in new.items() if name != "step"},
        {**new, "reward": new["step"]},
    ):
        with pytest.raises(ValueError, match="the buffer holds 4 of 6"):
            buffer.push(**wrong)
    with pytest.raises(ValueError, match="5 trajectories wanted, the buffer holds 4"):
        buffer.sample(rng, 5)
    for capacity, rows in ((0, T), (3, 1)):
        with pytest.raises(ValueError, match="capacity >= 1 and rows >= 2"):
            ReplayBuffer(capacity, rows)
    for name in before:
        missing = {n: v for n, v in before.items() if n != name}
        with pytest.raises(ValueError, match=f"replay buffer: {name}"):
            buffer.restore(missing)
        with pytest.raises(ValueError, match=f"replay buffer: {name} has shape"):
            buffer.restore({**before, name: np.zeros((7, 7))})
    for name, values in before.items():
        np.testing.assert_array_equal(values, buffer.arrays()[name], err_msg=name)


def test_a_batch_of_trajectories_row_by_row():
    """Catches: a weight on a given action or on the terminal state, one position late or early; a
    segment or floor on padding; what stood in a place before showing through; age the wrong way.
    """
    rng = np.random.default_rng(4)
    sampled = trajectories(0, 40, rng)
    batch = as_batch(sampled, step=60)
    assert {name: v.dtype for name, v in batch.items()} == {
        name: np.float32 if name == "weights" else np.int32
        for name in ("actions", "labels", "weights", "segments", "floor", "noised", "age")
    }
    for b in range(40):
        n, given = int(sampled["length"][b]), int(sampled["given"][b])
        pad = [0] * (T - n)
        assert batch["actions"][b].tolist() == [*sampled["actions"][b, :n], *pad]
        assert batch["labels"][b].tolist() == [*sampled["labels"][b, :n], *pad]
        # The state of the last given token is where the model chose first; in the last, nobody.
        own = [float(given - 1 <= i < n - 1) for i in range(n)]
        assert batch["weights"][b].tolist() == [*own, *pad]
        assert batch["segments"][b].tolist() == [1] * n + pad
        assert batch["floor"][b].tolist() == [sampled["floor"][b]] * n + pad
        assert batch["age"][b] == 60 - sampled["step"][b]
    assert not batch["noised"].any()
