"""(9): when a conversion follows a click, and when and whether the advertiser's signal reports it.

Shape letters: n clicks, G goals, M signals.
"""

import numpy as np

from gem_jax.data.synthetic.laws import DAY_S, GOALS, SIGNALS

MEAN_DAYS = np.array([1 / 6, 2.0, 10.0])
"""A conversion follows the click at once, in days or in weeks: a mixture of exponentials, by goal."""
MIXTURE = np.array([[0.80, 0.15, 0.05], [0.65, 0.25, 0.10], [0.45, 0.40, 0.15], [0.35, 0.40, 0.25]])
WINDOW_DAYS = 30.0
"""A later conversion does not count."""
REPORTS = np.array([0.0, 0.65, 0.95, 0.80, 0.60])
"""Share of conversions that a signal reports: none, pixel, api, app, offline."""
LAG_MEAN_DAYS = np.array([0.0, 0.0, 0.25, 0.0, 0.0])
LAG_FROM_DAYS = np.array([0.0, 0.0, 0.0, 1.0, 3.0])
LAG_TO_DAYS = np.array([0.0, 0.0, 0.0, 3.0, 14.0])
"""Time from a conversion to its report: exponential plus uniform, by signal."""
FALSE_REPORTS = np.array([0.0, 0.0, 0.0, 0.03, 0.0])
"""Share of the other clicks for which a signal reports a conversion all the same, as late as if it followed at once."""


def draw_reports(rng: np.random.Generator, convert: np.ndarray, goal: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Seconds from clicks to the reports of their conversions, int32 [n]; -1 where none is ever reported.

    Args:
      rng: what is drawn from.
      convert: [n], the probability that a conversion follows, in the window or after it.
      goal, signal: int [n].
    """
    kind, converts, reports, lies, when, lag, wait = rng.random((7, len(convert)))
    phase = (kind[:, None] >= np.cumsum(MIXTURE, axis=1)[goal, :-1]).sum(axis=1)
    delay = -np.log1p(-when) * MEAN_DAYS[phase]
    true = (converts < convert) & (delay <= WINDOW_DAYS)
    reported = np.where(true, reports < REPORTS[signal], lies < FALSE_REPORTS[signal])
    days = np.where(true, delay, 0.0) - np.log1p(-lag) * LAG_MEAN_DAYS[signal]
    days += LAG_FROM_DAYS[signal] + wait * (LAG_TO_DAYS - LAG_FROM_DAYS)[signal]
    return np.where(reported, np.ceil(days * DAY_S), -1).astype(np.int32)


class Reports:
    """Shares of clicks that are reported as conversions within `read_days`.

    Attributes:
      true: float32 [G, M], of the clicks that a conversion follows.
      false: float32 [G, M], of the others and of those whose conversion counts no more.
    """

    def __init__(self, read_days: float):
        shape = (len(GOALS), len(SIGNALS))
        self.true, self.false = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for m in range(len(SIGNALS)):
            lag = _lags(m)
            at_once = float((lag <= read_days).mean())
            for g in range(len(GOALS)):
                in_time = _delay_cdf(np.minimum(read_days - lag, WINDOW_DAYS), g).mean()
                late = 1.0 - _delay_cdf(np.array([WINDOW_DAYS]), g)[0]
                self.false[g, m] = FALSE_REPORTS[m] * at_once
                self.true[g, m] = REPORTS[m] * in_time + late * self.false[g, m]

    def probability(self, convert: np.ndarray, goal: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Probability that a click is reported as converted in time, float32 [n]; arguments as of `draw_reports`."""
        return convert * self.true[goal, signal] + (1 - convert) * self.false[goal, signal]


def _delay_cdf(days: np.ndarray, goal: int) -> np.ndarray:
    passed = np.maximum(days, 0.0)[:, None] / MEAN_DAYS
    return (MIXTURE[goal] * -np.expm1(-passed)).sum(axis=1)


def _lags(signal: int, points: int = 64) -> np.ndarray:
    """Quantiles of the time from a conversion to its report; exponential and uniform parts are independent."""
    at = (np.arange(points**2) + 0.5) / points**2
    exponential = -np.log1p(-at) * LAG_MEAN_DAYS[signal]
    return exponential + LAG_FROM_DAYS[signal] + at * (LAG_TO_DAYS - LAG_FROM_DAYS)[signal]
