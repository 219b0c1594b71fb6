"""Users and ads of the synthetic stream, what users do organically, and which ad each impression shows.

Shape letters: n impressions, E organic events, K events looked back on, U users, A ads, C categories.
"""

import dataclasses

import numpy as np

from gem_jax.data.synthetic import hashing
from gem_jax.data.synthetic.schedule import DAY_S, ROUND_S, Schedule

NUM_CATEGORIES = 16
NUM_AGES = 6
NUM_COUNTRIES = 8
NUM_INTERESTS = 3
SURFACES = ("feed", "stories", "messaging")
DEVICES = ("android", "ios", "desktop")
GOALS = ("awareness", "traffic", "leads", "purchases")
FORMATS = ("image", "video", "carousel")
SIGNALS = ("none", "pixel", "api", "app_sdk")
ORGANIC_ACTIONS = ("view", "like", "search")
IMAGE_DIM = 8

ADVERTISERS_PER_CATEGORY = 8
AD_LIFETIME_DAYS = 25.0
EPISODE_DAYS = 8.0
ORGANIC_PER_DAY = np.array([0.0, 0.4, 1.2, 4.0])
ORGANIC_SHARE = np.array([0.08, 0.27, 0.33, 0.32])
TASTE_WEIGHTS = np.array([0.6, 0.25, 0.15])

_AGE_SHARE = np.array([0.15, 0.25, 0.22, 0.17, 0.12, 0.09])
_COUNTRY_SHARE = 1.0 / np.arange(1, NUM_COUNTRIES + 1)
_DEVICE_SHARE = np.array([0.45, 0.33, 0.22])
_SURFACE_SHARE_BY_AGE = np.array(
    [
        [0.35, 0.45, 0.20],
        [0.42, 0.38, 0.20],
        [0.50, 0.30, 0.20],
        [0.58, 0.22, 0.20],
        [0.66, 0.16, 0.18],
        [0.72, 0.12, 0.16],
    ]
)
_GOAL_SHARE = np.array([0.2, 0.3, 0.2, 0.3])
_FORMAT_SHARE = np.array([0.45, 0.35, 0.2])
_SIGNAL_SHARE = np.array([0.2, 0.35, 0.25, 0.2])
_ACTION_SHARE = np.array([0.7, 0.2, 0.1])

# Thresholds on a 16-bit draw that decides what a topic, or an ad's category, follows: the user's episode, then the
# user's taste, else what is popular that day.
_TOPIC_EPISODE, _TOPIC_TASTE = int(0.60 * 65536), int(0.85 * 65536)
_AD_EPISODE, _AD_TASTE = int(0.25 * 65536), int(0.45 * 65536)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Organic:
    """Organic events in arrays of one shape, whichever it is.

    Attributes:
      topic: int64, category that the event is about.
      action: int64, place among `ORGANIC_ACTIONS`.
      time_s: int64, seconds since index 0.
    """

    topic: np.ndarray
    action: np.ndarray
    time_s: np.ndarray


class Users:
    """Attributes of all users, [U] each; `taste` is int [U, 3], topics in order of liking (they may repeat).

    Their declared interests are a noisy, incomplete statement of that taste: int32 [U, 3], -1 where absent.
    """

    def __init__(self, seed: int, schedule: Schedule):
        ids = np.arange(schedule.num_users)

        def draw(what: str, weights: np.ndarray) -> np.ndarray:
            return _draw(seed, f"user {what}", ids, weights)

        self.age = draw("age", _AGE_SHARE)
        self.country = draw("country", _COUNTRY_SHARE)
        self.device = draw("device", _DEVICE_SHARE)
        self.joined_s = schedule.joined_s(ids)
        self.organic_gap_s = _gaps(ORGANIC_PER_DAY)[draw("organic", ORGANIC_SHARE)]
        liking = 1.0 / (3.0 + np.arange(NUM_CATEGORIES))
        self.taste = np.stack([draw(f"taste {k}", liking) for k in range(3)], axis=1)
        stated = np.stack([hashing.uniform(hashing.stream(seed, f"user states {k}"), ids) for k in range(3)], axis=1)
        self.interests = np.where(stated < (0.5, 0.4, 0.3), self.taste, -1).astype(np.int32)
        self.episode_phase_s = (hashing.uniform(hashing.stream(seed, "episode"), ids) * EPISODE_DAYS * DAY_S).astype(
            int
        )


def _gaps(per_day: np.ndarray) -> np.ndarray:
    """Seconds between organic events; 0 stands for a user who has none."""
    return np.where(per_day > 0, DAY_S / np.maximum(per_day, 1e-9), 0).astype(np.int64)


def num_ads(active: int, end_s: int) -> int:
    """Ads that hold the `active` slots at some time up to `end_s`."""
    return active * (2 + int(end_s / (AD_LIFETIME_DAYS * DAY_S)))


class Ads:
    """Attributes of all ads, [A] each, and which ad holds a slot at a time.

    `active` slots run in parallel, each for one category and one rank of popularity within it; every slot's ad is
    replaced by a new one after `AD_LIFETIME_DAYS`. Advertisers work in one category and keep one signal.
    """

    def __init__(self, seed: int, active: int, end_s: int):
        self.active = active
        self.ranks = active // NUM_CATEGORIES
        phase = hashing.uniform(hashing.stream(seed, "ad phase"), np.arange(active))
        self.phase_s = (phase * AD_LIFETIME_DAYS * DAY_S).astype(np.int64)
        self.count = num_ads(active, end_s)
        ids = np.arange(self.count)
        self.category = (ids % active) % NUM_CATEGORIES
        place = log_uniform(hashing.uniform(hashing.stream(seed, "ad advertiser"), ids), ADVERTISERS_PER_CATEGORY)
        self.advertiser = self.category * ADVERTISERS_PER_CATEGORY + place
        self.signal = _draw(seed, "advertiser signal", self.advertiser, _SIGNAL_SHARE)
        own_goal = _draw(seed, "ad goal", ids, _GOAL_SHARE)
        house_goal = _draw(seed, "advertiser goal", self.advertiser, _GOAL_SHARE)
        self.goal = np.where(hashing.uniform(hashing.stream(seed, "ad deviates"), ids) < 0.3, own_goal, house_goal)
        self.format = _draw(seed, "ad format", ids, _FORMAT_SHARE)
        self.price = hashing.normal(hashing.stream(seed, "ad price"), ids)
        counter = ids[:, None] * IMAGE_DIM + np.arange(IMAGE_DIM)
        self.image = hashing.normal(hashing.stream(seed, "ad image"), counter).astype(np.float32)
        self.launched_s = ids // active * int(AD_LIFETIME_DAYS * DAY_S) - self.phase_s[ids % active]

    def holding(self, slot: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Id of the ad in each slot at each time, int64 [n]; later generations have larger ids."""
        generation = (time_s + self.phase_s[slot]) // int(AD_LIFETIME_DAYS * DAY_S)
        return generation * self.active + slot


def _draw(seed: int, what: str, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One outcome per id, with chances proportional to `weights`."""
    return hashing.drawing_table(weights)[hashing.bits(hashing.stream(seed, what), ids) & np.uint64(255)]


def log_uniform(uniform: np.ndarray, size: int) -> np.ndarray:
    """Ranks in [0, size) with P(k) = log_{size+1}((k+2)/(k+1)), which falls like 1/k: Zipf's law with exponent 1."""
    return np.minimum((size + 1.0) ** uniform, size).astype(np.int64) - 1


class Population:
    """Everybody and everything in the stream, and what happens among them apart from clicks."""

    def __init__(self, seed: int, schedule: Schedule, active_ads: int):
        end_s = schedule.num_rounds * ROUND_S
        self.users = Users(seed, schedule)
        self.ads = Ads(seed, active_ads, end_s)
        self.trend = hashing.drawing_table(_category_popularity(seed, 1 + end_s // DAY_S))
        self._pick = hashing.drawing_table(TASTE_WEIGHTS)
        self._action = hashing.drawing_table(_ACTION_SHARE)
        self._surface = hashing.drawing_table(_SURFACE_SHARE_BY_AGE)
        self._keys = {what: hashing.stream(seed, what) for what in ("focus", "organic", "serve", "rank")}

    def focus_pick(self, user: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Random 16 bits that stay the same through a user's interest episode."""
        episode = (time_s + self.users.episode_phase_s[user]) // int(EPISODE_DAYS * DAY_S)
        return hashing.fields(hashing.bits(self._keys["focus"], hashing.pair(user, episode)))[0]

    def last_organic(self, user: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Number of the newest organic event of each user before each time, counted from 0 at joining; -1: none yet."""
        gap = self.users.organic_gap_s[user]
        number = (time_s - self.users.joined_s[user]) // np.maximum(gap, 1)
        number -= self._organic_time(user, number, self._organic_bits(user, number)) >= time_s
        return np.where(gap > 0, number, -1)

    def _organic_bits(self, user: np.ndarray, number: np.ndarray) -> np.ndarray:
        return hashing.bits(self._keys["organic"], hashing.pair(user, number))

    def _organic_time(self, user: np.ndarray, number: np.ndarray, random_bits: np.ndarray) -> np.ndarray:
        jitter = hashing.fields(random_bits)[3]
        return self.users.joined_s[user] + ((number * 65536 + jitter) * self.users.organic_gap_s[user] >> 16)

    def organic(self, user: np.ndarray, number: np.ndarray) -> Organic:
        """Organic events by user and number (>= 0), integers of shapes that broadcast.

        A topic is the episode's, a draw from the user's taste, or what is popular that day.
        """
        random_bits = self._organic_bits(user, number)
        time_s = self._organic_time(user, number, random_bits)
        source, topic_bits, rest, _ = hashing.fields(random_bits)
        pick = np.where(source < _TOPIC_EPISODE, self.focus_pick(user, time_s), topic_bits) & 255
        topic = self.users.taste[user, self._pick[pick]]
        topic = np.where(source < _TOPIC_TASTE, topic, self.trend[time_s // DAY_S, topic_bits & 255])
        return Organic(topic=topic, action=self._action[rest & 255], time_s=time_s)

    def organic_surface(self, user: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Surface of organic events, arguments as of `organic`; apart from it because the truth does not need it."""
        rest = hashing.fields(self._organic_bits(user, number))[2]
        return self._surface[self.users.age[user], rest >> 8]

    def serve(
        self, index: np.ndarray, user: np.ndarray, time_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which ad each impression shows, where and on which device: the delivery system knows users roughly.

        Args:
          index, user, time_s: int64 [n].

        Returns:
          ad [n], surface [n], device [n].
        """
        random_bits = hashing.bits(self._keys["serve"], index)
        source, topic_bits, rest, _ = hashing.fields(random_bits)
        pick = np.where(source < _AD_EPISODE, self.focus_pick(user, time_s), topic_bits) & 255
        category = self.users.taste[user, self._pick[pick]]
        category = np.where(source < _AD_TASTE, category, self.trend[time_s // DAY_S, topic_bits & 255])
        rank = log_uniform(hashing.uniform(self._keys["rank"], index), self.ads.ranks)
        ad = self.ads.holding(category + NUM_CATEGORIES * rank, time_s)
        surface = self._surface[self.users.age[user], rest >> 8]
        other_device = (rest & 255) % 3
        device = np.where((rest & 255) < 64, other_device, self.users.device[user])
        return ad, surface, device


def _category_popularity(seed: int, days: int) -> np.ndarray:
    """Chances of each category on each day [days, C]: each waxes and wanes over 40 to 90 days."""
    category = np.arange(NUM_CATEGORIES)
    period = 40.0 + 50.0 * hashing.uniform(hashing.stream(seed, "trend period"), category)
    phase = hashing.uniform(hashing.stream(seed, "trend phase"), category)
    wave = np.sin(2 * np.pi * (np.arange(days)[:, None] / period + phase))
    return np.exp(0.8 * wave) / (3.0 + category)
