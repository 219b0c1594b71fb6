"""What each kind of knowledge is worth on the synthetic stream, and that its filter knows all that can be known.

`pytest -m slow -s tests/gem_jax/data/test_synthetic_learning.py` prints the figures.
"""

import numpy as np
import pytest

from gem_jax.data.synthetic.calibration import calibration
from gem_jax.data.synthetic.ladder import ladder


@pytest.mark.slow
def test_each_kind_of_knowledge_is_worth_three_points():
    """Single fits of boosted trees: the same examples at each rung, true probabilities as targets, so little noise."""
    rows = ladder(examples=60_000, seed=0)
    closed = {row["rung"]: row["closed"] for row in rows}
    for rung, share in closed.items():
        print(f"{rung:<64} {share:.3f}")
    values = list(closed.values())
    climb = values[:10]
    assert (np.diff(climb) > 0.03).all()
    assert climb[-1] - max(values[10:12]) > 0.03  # depth and domains, each left out
    assert climb[-1] < 1.0 < closed["oracle: knows the intent"] - 0.1


@pytest.mark.slow
def test_the_filter_is_calibrated_on_millions_of_impressions():
    sums, made, _ = calibration(impressions=2_000_000, seed=1)
    print(np.array2string(sums, precision=2, suppress_small=True))
    assert made >= 2_000_000 and (sums[:, 0] > 50_000).all()
    assert (np.abs(sums[:, 4:]) < 4).all()
