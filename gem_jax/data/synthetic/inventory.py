"""The ads: which runs in which slot at what time, and what each is.

Shape letters: A ads, n impressions.
"""

import numpy as np

from gem_jax.data.synthetic import hashing
from gem_jax.data.synthetic.laws import DAY_S

LIFE_DAYS = (7.0, 1.0, 1.5, 60.0)
"""An ad's life is log-normal: median, deviation of the logarithm, least, most."""


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
