"""When things happen: slabs of four days, lives of users on their seats, sessions.

Every seat sees a fixed number of impressions and organic events in each slab, by its tier of activity, so that the slab of
impression i, and how many users a stream has, are known without making it.

Shape letters: n users, E events of a life.
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


def tier(seat: np.ndarray) -> np.ndarray:
    """Tier of activity of seats."""
    return TIERS[seat % len(TIERS)]


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
