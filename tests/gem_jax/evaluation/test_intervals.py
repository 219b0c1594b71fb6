"""Intervals against the equations that define them."""

import pytest

from gem_jax.evaluation.intervals import wilson


def test_wilson_interval():
    # It contains the rate, stays in [0, 1], and its bounds q solve (rate - q)^2 = z^2 q (1 - q) / n.
    for rate, n in ((0.0, 10), (0.3, 50), (1.0, 4)):
        low, high = wilson(rate, n)
        assert 0 <= low <= rate + 1e-15 and rate - 1e-15 <= high <= 1
        for q in (low, high):
            if 0 < q < 1:
                assert (rate - q) ** 2 == pytest.approx(1.959963984540054**2 * q * (1 - q) / n, rel=1e-9)
