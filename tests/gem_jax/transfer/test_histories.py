"""Pooled embeddings of a user's past against a plain loop: never the example itself, never the future, never beyond the limits."""

import numpy as np
import pytest

from gem_jax.errors import UserError
from gem_jax.transfer.histories import DAY_S, Reach, UserEmbeddings

DIM = 3


def slow(user, time_s, values, of_user, at, reach):
    """The mean of what one example may see, in float64, and of how many."""
    if of_user < 0 or at < 0:
        return np.zeros(DIM), 0
    own = [i for i in range(len(user)) if user[i] == of_user and 0 <= time_s[i] < at]
    own = [i for i in own if time_s[i] >= at - reach.max_age_days * DAY_S]
    own = sorted(own, key=lambda i: time_s[i])[-reach.max_events :]
    return (values[own].astype(np.float64).mean(axis=0) if own else np.zeros(DIM)), len(own)


def random_log(n, seed, days=60):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 12, n) * 10**15  # ids are hashes
    time_s = (
        10**9 + rng.permutation(days * 24 * 30)[:n] * 120
    )  # all different: of equal times it is unknown which are newest
    user[rng.random(n) < 0.1] = -1
    time_s[rng.random(n) < 0.1] = -1
    return user.astype(np.int64), time_s.astype(np.int64), rng.normal(size=(n, DIM)).astype(np.float32)


@pytest.mark.parametrize("reach", [Reach(), Reach(max_events=3), Reach(max_age_days=0.5), Reach(max_events=1)])
def test_against_a_loop(reach):
    user, time_s, values = random_log(500, seed=3)
    of_user = UserEmbeddings(user, time_s, lambda rows: values[rows], DIM)
    rng = np.random.default_rng(4)
    asked = np.concatenate([user[:100], rng.integers(-1, 14, 60) * 10**15, [5, -1]])
    at = np.concatenate([time_s[:100], 10**9 + rng.integers(-(10**6), 10**7, 60), [10**9, 10**9]])
    pooled, count = of_user.pooled(asked, at, reach)
    for i in range(len(asked)):
        mean, number = slow(user, time_s, values, asked[i], at[i], reach)
        assert count[i] == number
        np.testing.assert_allclose(pooled[i], mean, rtol=1e-6, atol=1e-7)


def test_an_example_is_never_in_its_own_history():
    user, time_s, values = random_log(200, seed=5)
    known = np.flatnonzero((user >= 0) & (time_s >= 0))
    for row in known[:20]:
        poisoned = values.copy()
        poisoned[row] = np.nan  # whoever reads it shows it
        reach = Reach(max_age_days=1000.0)
        before = UserEmbeddings(user, time_s, lambda rows: values[rows], DIM).pooled(user, time_s, reach)[0]
        one = np.flatnonzero((user == user[row]) & (time_s <= time_s[row]) & (time_s >= 0))
        log = (user[one], time_s[one], lambda rows, one=one, poisoned=poisoned: poisoned[one][rows], DIM)
        found = UserEmbeddings(*log).pooled(user[[row]], time_s[[row]], reach)[0]
        np.testing.assert_allclose(found[0], before[row], rtol=1e-6, atol=1e-7)


def test_what_happened_in_the_same_second_is_left_out():
    user, time_s = np.zeros(3, np.int64), np.array([50, 50, 40])
    values = np.array([[1, 1, 1], [2, 2, 2], [4, 4, 4]], np.float32)
    pooled, count = UserEmbeddings(user, time_s, lambda rows: values[rows], DIM).pooled(user, time_s, Reach())
    assert count.tolist() == [1, 1, 0] and pooled[:, 0].tolist() == [4, 4, 0]


def test_the_age_limit_counts_to_the_second():
    day = np.array([0, 0], np.int64), np.array([100, 100 + DAY_S])
    log = UserEmbeddings(*day, lambda rows: np.ones((len(rows), DIM), np.float32), DIM)
    at = np.array([100 + DAY_S, 101 + DAY_S])
    assert log.pooled(np.zeros(2, np.int64), at, Reach(max_age_days=1.0))[1].tolist() == [1, 1]
    assert log.pooled(np.zeros(1, np.int64), at[:1] + 2 * DAY_S, Reach(max_age_days=1.0))[1].tolist() == [0]


def test_a_store_without_users_gives_empty_histories():
    nobody = np.full(4, -1, np.int64)
    log = UserEmbeddings(nobody, np.arange(4), lambda rows: np.zeros((len(rows), DIM), np.float32), DIM)
    pooled, count = log.pooled(np.array([-1, 7]), np.array([10, 10]), Reach())
    assert not pooled.any() and not count.any() and pooled.shape == (2, DIM)


def test_more_rows_than_a_block(monkeypatch):
    monkeypatch.setattr("gem_jax.transfer.histories._BLOCK", 7)
    user, time_s, values = random_log(100, seed=6)
    asked = user[user >= 0]
    whole = UserEmbeddings(user, time_s, lambda rows: values[rows], DIM).pooled(asked, time_s[user >= 0], Reach())[0]
    for i, (u, t) in enumerate(zip(asked, time_s[user >= 0], strict=True)):
        np.testing.assert_allclose(whole[i], slow(user, time_s, values, u, t, Reach())[0], rtol=1e-6, atol=1e-7)


def test_a_reach_of_nothing_is_refused():
    with pytest.raises(UserError, match="history_len must be at least 1 and max_age_days above 0"):
        Reach(max_events=0)
