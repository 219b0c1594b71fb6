"""When things happen: slabs of four days, lives of users on their seats, sessions.

Every seat sees a fixed number of impressions and organic events in each slab, by its tier of activity, so that the slab of
impression i, and how many users a stream has, are known without making it.

Shape letters: n users of one tier, m events a slab, E events of a life.
"""

import numpy as np

from gem_jax.data.synthetic.laws import DAY_S

SLAB_S = 4 * DAY_S
LIFE_SLABS = 15
"""A user holds a seat for this many slabs, and is followed by a new one."""
FIRST_SLAB = LIFE_SLABS - 1
"""The slab of a stream's example 0: the first in which every seat is held, some by newcomers, some for 56 days."""
IMPRESSIONS = np.array([40, 16, 6, 2])
"""Impressions a slab, by tier."""
ORGANIC = np.array([60, 24, 9, 3])
"""Organic events a slab, by tier, times the stream's `organic_intensity`."""
TIERS = np.array([3, 2, 3, 1, 3, 2, 0, 3, 2, 1])
"""Tiers of ten neighbouring seats."""
SESSIONS_AN_EVENT = 0.22
"""Sessions over events where `organic_intensity` is 1; more organic events make longer sessions, not more of them."""
PAUSE_S = 60.0
"""Median time between events of a session; log-normal."""
SESSION_GAP_S = 1800
"""An event begins a session if this long after the one before it."""


def tier(seat: np.ndarray) -> np.ndarray:
    """Tier of activity of seats."""
    return TIERS[seat % len(TIERS)]


def phase(seat: np.ndarray, seats: int) -> np.ndarray:
    """The slab in which each seat's first user takes it; neighbours mostly have the same."""
    return seat * LIFE_SLABS // seats


def slab_size(seats: int) -> int:
    """Impressions of all seats in a slab."""
    whole, rest = divmod(seats, len(TIERS))
    return int(whole * IMPRESSIONS[TIERS].sum() + IMPRESSIONS[TIERS[:rest]].sum())


def num_slabs(seats: int, examples: int) -> int:
    """Slabs from the beginning of time to a stream's last example."""
    return FIRST_SLAB - (-examples // slab_size(seats))


def num_users(seats: int, slabs: int) -> int:
    """Users that hold a seat at some time in the first `slabs` slabs."""
    return seats * (1 + (slabs - 1) // LIFE_SLABS)


def life_times(rng: np.random.Generator, users: int, per_slab: int, begins: float) -> np.ndarray:
    """Times of the events of lives, int32 [E, n], seconds since each life's beginning, strictly increasing along E.

    Sessions begin at any time of a slab, evenings oftener than mornings; what would outlast the slab begins it.

    Args:
      rng: all draws are from it.
      users: n.
      per_slab: m.
      begins: share of the events that begin a session.
    """
    shape = (users, LIFE_SLABS, per_slab)
    begins_one = rng.random(shape, np.float32) < begins
    begins_one[..., 0] = True
    start = rng.random(shape) * SLAB_S
    start = np.take_along_axis(start, np.cumsum(begins_one, axis=-1) - 1, axis=-1)
    pause = np.exp(np.float32(np.log(PAUSE_S)) + rng.standard_normal(shape, np.float32))
    passed = np.cumsum(pause, axis=-1, dtype=np.float64)
    time = start + passed - np.maximum.accumulate(np.where(begins_one, passed, 0.0), axis=-1)
    time = np.sort(_evenings(time % (SLAB_S - per_slab)).astype(np.int32), axis=-1)
    time += (np.arange(LIFE_SLABS, dtype=np.int32) * SLAB_S)[:, None]
    number = np.arange(LIFE_SLABS * per_slab, dtype=np.int32)
    time = np.maximum.accumulate(time.reshape(users, -1) - number, axis=-1) + number
    return np.ascontiguousarray(time.T)


def _evenings(seconds: np.ndarray) -> np.ndarray:
    """Bends time within each day (increasing, 0 -> 0, 1 -> 1): evenings are about four times as busy as mornings."""
    return seconds + 0.1 * DAY_S * (1.0 - np.cos(2.0 * np.pi / DAY_S * seconds))


def event_kinds(rng: np.random.Generator, impressions: int, organic: int) -> np.ndarray:
    """Which events of a life are impressions, bool [E]: in each slab as many, in an order drawn anew."""
    slab = np.arange(impressions + organic) < impressions
    return rng.permuted(np.tile(slab, (LIFE_SLABS, 1)), axis=1).reshape(-1)
