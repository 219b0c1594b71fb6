"""Dense numbers of order one: the mean and the spread of the training rows, kept and applied again when scoring."""

import dataclasses

import numpy as np

_ROUNDING = 1e-12
"""A spread of less than this share of the mean is rounding: the values are all the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """`(f(x) - mean) / std`, with f the signed logarithm `sign(x) log(1 + |x|)` where `log` is set; 0 where x is unknown.

    Attributes:
      log: whether the logarithm is taken first.
      mean: of f(x) over the training rows.
      std: of f(x) over the training rows; 1 where all are the same.
      has_missing: whether x is unknown in some training row; then a 0/1 feature `<name>_missing` says so.
    """

    log: bool
    mean: float
    std: float
    has_missing: bool

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Scaled values, float32 [n], of float64 [n] with NaN where unknown."""
        scaled = (_logged(values, self.log) - self.mean) / self.std
        return np.where(np.isnan(values), 0.0, scaled).astype(np.float32)


class Moments:
    """Mean and variance of numbers that come in batches (Chan, Golub and LeVeque 1983), NaN left out and counted."""

    def __init__(self, log: bool):
        self._log = log
        self._count = 0
        self._missing = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean

    def add(self, values: np.ndarray) -> None:
        """Adds float64 [n]."""
        known = _logged(values[~np.isnan(values)], self._log)
        self._missing += len(values) - len(known)
        if not len(known):
            return
        mean, total = float(known.mean()), self._count + len(known)
        distance = mean - self._mean
        self._squares += float(((known - mean) ** 2).sum()) + distance**2 * self._count * len(known) / total
        self._mean += distance * len(known) / total
        self._count = total

    def scaling(self) -> Scaling:
        """The scaling by what was added."""
        std = float(np.sqrt(self._squares / self._count)) if self._count else 0.0
        is_constant = std <= _ROUNDING * abs(self._mean)
        return Scaling(log=self._log, mean=self._mean, std=1.0 if is_constant else std, has_missing=self._missing > 0)


def _logged(values: np.ndarray, log: bool) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values)) if log else values
