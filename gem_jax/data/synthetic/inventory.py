"""The ads: which runs in which slot at what time, and what each is.

Shape letters: A ads, n impressions.
"""

import numpy as np

from gem_jax.data.synthetic import hashing, laws
from gem_jax.data.synthetic.laws import DAY_S

LIFE_DAYS = (7.0, 1.0, 1.5, 60.0)
"""An ad's life is log-normal: median, deviation of the logarithm, least, most."""
SIGNAL_SHARE = np.array([0.12, 0.30, 0.26, 0.20, 0.12])
GOAL_SHARE = np.array([0.2, 0.3, 0.2, 0.3])


def slots(seed: int, active: int) -> tuple[np.ndarray, np.ndarray]:
    """Life of the ads of each slot and when its second ad is launched, int64 [active] each, in seconds."""
    median, deviation, least, most = LIFE_DAYS
    slot = np.arange(active)
    days = median * np.exp(deviation * hashing.normal(hashing.stream(seed, "ad life"), slot))
    life = (np.clip(days, least, most) * DAY_S).astype(np.int64)
    phase = (hashing.uniform(hashing.stream(seed, "ad phase"), slot) * life).astype(np.int64)
    return life, phase


def num_ads(seed: int, active: int, end_s: int) -> int:
    """Ads that run at some time before `end_s` in the `active` slots."""
    life, phase = slots(seed, active)
    return int(active + ((end_s - 1 - phase) // life + 1).sum())


class Inventory:
    """Attributes of all ads, [A] each, numbered in the order of their launch, and which ad holds a slot at a time.

    Slot k runs ads of category k % 24, one after the other; its place among those of the category is its popularity.
    """

    def __init__(self, seed: int, active: int, end_s: int, world: laws.Laws):
        self.ranks = active // laws.CATEGORIES
        self._life, self._phase = slots(seed, active)
        later = (end_s - 1 - self._phase) // self._life + 1
        self._first = np.cumsum(later + 1) - (later + 1)
        slot = np.repeat(np.arange(active), later + 1)
        turn = np.arange(len(slot)) - self._first[slot]
        launched = self._phase[slot] + (turn - 1) * self._life[slot]
        order = np.lexsort((slot, np.maximum(launched, -1)))  # those that run when time begins come first
        self._id = np.empty(len(slot), np.int64)
        self._id[order] = np.arange(len(slot))
        self.launched_s = launched[order]
        self.category = slot[order] % laws.CATEGORIES
        self._draw(seed, np.arange(len(slot)))
        self.creative = (self.goal * len(laws.FORMATS) + self.format) * len(laws.PRICES) + self.price
        self.direction = self.image @ world.drift_directions

    def _draw(self, seed: int, ad: np.ndarray) -> None:
        def drawn(what: str, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return hashing.drawing_table(weights)[hashing.bits(hashing.stream(seed, what), ids) & np.uint64(255)]

        place = drawn("advertiser", ad, 1.0 / np.arange(1, laws.ADVERTISERS_PER_CATEGORY + 1))
        self.advertiser = self.category * laws.ADVERTISERS_PER_CATEGORY + place
        self.signal = drawn("signal", self.advertiser, SIGNAL_SHARE)
        self.goal = drawn("goal", ad, GOAL_SHARE)
        self.format = drawn("format", ad, np.ones(len(laws.FORMATS)))
        self.style = drawn("style", ad, 1.0 / np.arange(1, laws.STYLES + 1) ** 0.25)
        self.price = drawn("price", ad, np.exp(-0.5 * laws.PRICES**2))
        counter = ad[:, None] * laws.IMAGE_DIM + np.arange(laws.IMAGE_DIM)
        self.image = hashing.normal(hashing.stream(seed, "image"), counter).astype(np.float32)

    def running(self, slot: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Id of the ad in each slot at each time, int64 [n]."""
        turn = (time_s - self._phase[slot]) // self._life[slot] + 1
        return self._id[self._first[slot] + turn]
