"""Who sees the i-th impression and when, and, backwards, which impressions a user saw before: both in O(1).

Time is cut into rounds of `ROUND_DAYS`. Every seat owns a fixed number of the round's impressions (its activity),
scattered over the round by a permutation that is different in every round and cheap to invert. A seat is held by one
user for `USER_ROUNDS` rounds and then by a new one, so at any time some users are new and some have been there for a
while.

Shape letters: n impressions, K previous impressions.
"""

import bisect
from math import gcd

import numpy as np

from gem_jax.data.synthetic import hashing

ROUND_DAYS = 5
USER_ROUNDS = 6
DAY_S = 86_400
ROUND_S = ROUND_DAYS * DAY_S
ACTIVITY = np.array([1, 2, 5, 15])
"""Impressions a round, by activity tier."""
ACTIVITY_SHARE = np.array([0.45, 0.25, 0.20, 0.10])
"""Share of the seats in each tier."""


def seats_per_tier(seats: int) -> list[int]:
    """Seats of each activity tier, the least active first: seat k stands at share (k + 0.5) / seats."""
    ends = [
        bisect.bisect_right(range(seats), end, key=lambda k: (k + 0.5) / seats)
        for end in np.cumsum(ACTIVITY_SHARE)[:-1]
    ]
    return np.diff([0, *ends, seats]).tolist()


def num_rounds(seats: int, num_examples: int) -> int:
    """Rounds of a stream, those before its first example included."""
    round_size = int(np.dot(seats_per_tier(seats), ACTIVITY))
    return USER_ROUNDS + -(-num_examples // round_size)


def num_users(seats: int, rounds: int) -> int:
    """Users of all rounds: of every seat as many as the rounds begin."""
    return seats * ((rounds - 1 + USER_ROUNDS - 1) // USER_ROUNDS)


class Schedule:
    """The order of all impressions, those before the stream's first example included.

    An impression's *index* counts from `USER_ROUNDS` rounds before the stream, so the users of the first example have
    their whole past; `first_index` is the index of the stream's example 0.

    Args:
      seed: of the stream.
      seats: users active at any time.
      num_examples: length of the stream.
    """

    def __init__(self, seed: int, seats: int, num_examples: int):
        self.seats = seats
        self.activity = np.repeat(ACTIVITY, seats_per_tier(seats))
        self.first_slot = np.cumsum(self.activity) - self.activity
        self.slot_seat = np.repeat(np.arange(seats), self.activity)
        self.round_size = len(self.slot_seat)
        self.slot_order = np.random.default_rng((seed, 1)).permutation(self.round_size)
        self.order_slot = np.argsort(self.slot_order)
        self.first_index = USER_ROUNDS * self.round_size
        self.num_rounds = num_rounds(seats, num_examples)
        self.multiplier, self.inverse, self.shift = _round_permutations(seed, self.num_rounds, self.round_size)
        self.phase = hashing.bits(hashing.stream(seed, "seat"), np.arange(seats)).astype(np.int64) % USER_ROUNDS
        self.num_users = num_users(seats, self.num_rounds)

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seat, user and time of impressions.

        Args:
          index: int64 [n].

        Returns:
          seat [n], user [n], time_s [n] (seconds since index 0), all int64.
        """
        round_, position = np.divmod(index, self.round_size)
        order = (position - self.shift[round_]) * self.inverse[round_] % self.round_size
        seat = self.slot_seat[self.order_slot[order]]
        user = ((round_ + self.phase[seat]) // USER_ROUNDS - 1) * self.seats + seat
        days = (position + 0.5) / self.round_size * ROUND_DAYS
        time_s = (round_ * ROUND_DAYS + _waking_hours(days)) * DAY_S
        return seat, user, time_s.astype(np.int64)

    def joined_s(self, user: np.ndarray) -> np.ndarray:
        """Time at which users took their seat, int64, seconds since index 0."""
        generation, seat = np.divmod(user, self.seats)
        return ((generation + 1) * USER_ROUNDS - self.phase[seat]) * ROUND_S

    def previous(self, index: np.ndarray, seat: np.ndarray, count: int) -> np.ndarray:
        """The newest `count` impressions of the same user before each of `index`.

        Args:
          index, seat: int64 [n].
          count: K.

        Returns:
          int64 [n, K], oldest first, right-aligned; -1 where the user has seen fewer.
        """
        rounds = np.minimum(-(-count // ACTIVITY) + 1, USER_ROUNDS)
        candidate = np.arange(max(count, (ACTIVITY * rounds).max()))
        rounds_ago, turn = np.divmod(candidate, self.activity[seat][:, None])
        now = index // self.round_size
        since_join = (now + self.phase[seat]) % USER_ROUNDS
        exists = rounds_ago <= since_join[:, None]
        round_ = np.where(exists, now[:, None] - rounds_ago, 0)
        order = self.slot_order[self.first_slot[seat][:, None] + turn]
        position = (order * self.multiplier[round_] + self.shift[round_]) % self.round_size
        candidates = round_ * self.round_size + position
        candidates[~exists | (candidates >= index[:, None])] = -1
        candidates.sort(axis=1)
        return candidates[:, -count:]


def _round_permutations(seed: int, num_rounds: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiplier, its inverse modulo `size` and shift of each round's permutation `x -> x * multiplier + shift`."""
    rounds = np.arange(num_rounds)
    multiplier = hashing.bits(hashing.stream(seed, "multiplier"), rounds) % np.uint64(size)
    shift = hashing.bits(hashing.stream(seed, "shift"), rounds) % np.uint64(size)
    coprime = []
    for candidate in multiplier.tolist():
        while gcd(candidate, size) != 1:
            candidate += 1
        coprime.append(candidate % size)
    inverse = [pow(m, -1, size) for m in coprime]
    return np.array(coprime), np.array(inverse), shift.astype(np.int64)


def _waking_hours(days: np.ndarray) -> np.ndarray:
    """Bends time within each day (increasing, 0 -> 0, 1 -> 1): evenings are about four times as busy as mornings."""
    return days + 0.1 * (1.0 - np.cos(2.0 * np.pi * days))
