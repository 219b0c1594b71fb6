"""The probabilities behind the labels, in closed form.

Each is the logistic function of a sum of terms. What an impression's history adds (match, fatigue) is a function of the
events that the example shows; the two latent terms, a user's taste and a part of an ad's quality, can be learned only
from behaviour. No term depends on a label, so the truth of one impression never needs that of an earlier one.

Shape letters: n impressions.
"""

import dataclasses

import numpy as np

from gem_jax.data.synthetic import hashing
from gem_jax.data.synthetic import population as pop
from gem_jax.data.synthetic.schedule import DAY_S

MATCH_EVENTS = 8
"""Interest match looks at this many of the newest organic events."""
FATIGUE_IMPRESSIONS = 8
"""Fatigue looks at this many of the newest impressions."""
ATTRIBUTION_DAYS = 7.0
"""A conversion counts if it happens within this time of the click."""

_MATCH_DECAY = 0.85
_ACTION_WEIGHT = np.array([1.0, 2.0, 4.0])

# click, by surface: feed, stories, messaging
_BASE = np.array([-4.3, -5.0, -5.2])
_MATCH = np.array([2.3, 2.0, 3.0])
_FATIGUE = np.array([2.2, 3.0, 1.4])
_FORMAT_ON_SURFACE = np.array([[0.4, -0.3, 0.0], [-0.6, 0.9, -0.2], [0.5, -0.9, 0.4]])  # surface x format
_GOAL_ON_DEVICE = np.array([[-0.2, -0.2, -0.7], [0.3, 0.0, 0.1], [-0.3, 0.1, 0.6], [0.1, 0.5, -0.3]])  # goal x device
_DEVICE = np.array([0.0, 0.3, -0.4])
_AGE = np.array([0.35, 0.2, 0.0, -0.1, -0.2, -0.3])
_COUNTRY = np.array([0.0, 0.3, -0.3, 0.4, -0.3, 0.2, -0.5, 0.3])
_STATED = 0.5
_TASTE = 0.4
_AGE_CATEGORY_STD = 0.35
_CATEGORY_STD = 0.3
_IMAGE_STD = 0.5
_QUALITY_REST_STD = 0.2
_PRICE = -0.3
_NOVELTY = 0.4
_NEWCOMER = -0.3
_HOUR = 0.3
_SEASON = 0.15
_SEASON_DAYS = 60.0

# conversion after a click
_CONVERSION_GOAL = np.array([-1.2, -0.4, 0.5, 0.6])
_CONVERSION_BASE = -3.0
_CONVERSION_DEVICE = np.array([-0.2, 0.1, 0.4])
_CONVERSION_MATCH = 1.0
_CONVERSION_PRICE = -0.5
_CONVERSION_QUALITY = 0.5
REPORTED = np.array([np.nan, 0.65, 0.95, 0.8])
"""Share of conversions that each measurement signal reports; without a signal nothing is known."""
_DELAY_DAYS = np.array([3.0, 1.5, 1.0, 2.5])
"""Mean delay between click and conversion (exponential), by goal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Impressions:
    """What the truth depends on, [n] each.

    Attributes:
      user: int64, who sees it.
      ad: int64, what is shown.
      surface: where, place among `population.SURFACES`.
      device: on what, place among `population.DEVICES`.
      time_s: int64, seconds since index 0.
      match: float64 in [0, 1], see `interest_match`.
      fatigue: float64 in [0, 1), see `fatigue`.
    """

    user: np.ndarray
    ad: np.ndarray
    surface: np.ndarray
    device: np.ndarray
    time_s: np.ndarray
    match: np.ndarray
    fatigue: np.ndarray

    def at(self, rows: np.ndarray) -> "Impressions":
        """The impressions at `rows`."""
        return Impressions(**{name: column[rows] for name, column in vars(self).items()})


class Truth:
    """Click and conversion probabilities of impressions in a population."""

    def __init__(self, seed: int, population: pop.Population):
        self.users, self.ads = population.users, population.ads
        cell = np.arange(pop.NUM_AGES * pop.NUM_CATEGORIES).reshape(pop.NUM_AGES, pop.NUM_CATEGORIES)
        interaction = hashing.normal(hashing.stream(seed, "age x category"), cell)
        interaction -= interaction.mean(axis=0)
        category = _CATEGORY_STD * hashing.normal(hashing.stream(seed, "category"), np.arange(pop.NUM_CATEGORIES))
        self.age_category = _AGE[:, None] + category + _AGE_CATEGORY_STD * interaction
        direction = hashing.normal(hashing.stream(seed, "image direction"), np.arange(pop.IMAGE_DIM))
        rest = hashing.normal(hashing.stream(seed, "ad quality"), np.arange(self.ads.count))
        seen = self.ads.image @ (direction / np.linalg.norm(direction))
        self.quality = _IMAGE_STD * seen + _QUALITY_REST_STD * rest

    def click(self, x: Impressions) -> np.ndarray:
        """P(click), float64 [n]."""
        users, ads = self.users, self.ads
        category, age = ads.category[x.ad], users.age[x.user]
        logit = _BASE[x.surface] + _MATCH[x.surface] * x.match - _FATIGUE[x.surface] * x.fatigue
        logit += self.age_category[age, category] + _COUNTRY[users.country[x.user]] + _DEVICE[x.device]
        logit += _FORMAT_ON_SURFACE[x.surface, ads.format[x.ad]] + _GOAL_ON_DEVICE[ads.goal[x.ad], x.device]
        logit += _STATED * (users.interests[x.user] == category[:, None]).any(axis=1)
        logit += _TASTE * ((users.taste[x.user] == category[:, None]) @ pop.TASTE_WEIGHTS)
        logit += self.quality[x.ad] + _PRICE * ads.price[x.ad]
        logit += _NOVELTY * np.exp(-age_days(x.time_s, ads.launched_s[x.ad]) / 4.0)
        logit += _NEWCOMER * np.exp(-age_days(x.time_s, users.joined_s[x.user]) / 4.0)
        logit += _HOUR * np.sin(2 * np.pi * x.time_s / DAY_S)
        logit += _SEASON * np.sin(2 * np.pi * (x.time_s / DAY_S / _SEASON_DAYS + x.surface / 3.0))
        return _logistic(logit)

    def conversion_given_click(self, x: Impressions) -> np.ndarray:
        """P(a conversion that happens within the window and is reported | click), float64 [n]; NaN without a signal."""
        ads = self.ads
        goal, signal = ads.goal[x.ad], ads.signal[x.ad]
        logit = _CONVERSION_BASE + _CONVERSION_GOAL[goal] + _CONVERSION_DEVICE[x.device] + _CONVERSION_MATCH * x.match
        logit += _CONVERSION_PRICE * ads.price[x.ad] + _CONVERSION_QUALITY * self.quality[x.ad]
        in_window = 1.0 - np.exp(-ATTRIBUTION_DAYS / _DELAY_DAYS[goal])
        return _logistic(logit) * REPORTED[signal] * in_window

    def delay_s(self, x: Impressions, uniform: np.ndarray) -> np.ndarray:
        """Delay of conversions that count, int64 [n]: exponential, given that it is within the window."""
        mean = _DELAY_DAYS[self.ads.goal[x.ad]]
        in_window = 1.0 - np.exp(-ATTRIBUTION_DAYS / mean)
        return (-mean * np.log1p(-uniform * in_window) * DAY_S).astype(np.int64)


def age_days(time_s: np.ndarray, since_s: np.ndarray) -> np.ndarray:
    """Days between two times, float64."""
    return (time_s - since_s) / DAY_S


def interest_match(topic: np.ndarray, action: np.ndarray, exists: np.ndarray, category: np.ndarray) -> np.ndarray:
    """How much of a user's newest organic behaviour is about an ad's category.

    Args:
      topic, action: int [n, MATCH_EVENTS], newest first; exists: bool, same shape.
      category: int [n].

    Returns:
      float64 [n] in [0, 1]: the share of events on the category, each weighted by its action and by 0.85 ** (number of
      newer events); 0 without events.
    """
    weight = _ACTION_WEIGHT[action] * exists * _MATCH_DECAY ** np.arange(MATCH_EVENTS)
    return (weight * (topic == category[:, None])).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)


def fatigue(ad: np.ndarray, advertiser: np.ndarray) -> np.ndarray:
    """How tired a user is of an ad: 1 - 0.5 ** (times the ad + half of the times its advertiser was just seen).

    Args:
      ad, advertiser: int [n, FATIGUE_IMPRESSIONS + K], oldest first, -1 where there is no impression.

    Returns:
      float64 [n, K]: of each of the last K impressions, from the FATIGUE_IMPRESSIONS before it.
    """
    past = FATIGUE_IMPRESSIONS
    count = np.zeros((len(ad), ad.shape[1] - past))
    for back in range(1, past + 1):
        count += ad[:, past:] == ad[:, past - back : -back]
        count += 0.5 * (advertiser[:, past:] == advertiser[:, past - back : -back])
    return 1.0 - 0.5**count


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
