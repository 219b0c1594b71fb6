"""The calibration curve against bins by hand."""

import math

import numpy as np
import pytest

from gem_jax.evaluation.calibration import calibration_curve


def test_calibration_curve_bins():
    rng = np.random.default_rng(14)
    z, w = rng.normal(-2, 1, 6000), rng.choice([1.0, 2.0], 6000)
    y = (rng.random(6000) < 1 / (1 + np.exp(-z))).astype(float)
    curve = calibration_curve(z, y, w)
    assert len(curve) == 12 and sum(point["num_examples"] for point in curve) == 6000
    predictions = [point["prediction"] for point in curve]
    assert predictions == sorted(predictions)
    # The lowest twelfth of the weight, by hand; an example on the border may fall to either side.
    order = np.argsort(z)
    lowest = order[np.cumsum(w[order]) <= w.sum() / 12]
    assert curve[0]["num_examples"] == pytest.approx(len(lowest), abs=1)
    assert curve[0]["observed"] == pytest.approx(np.average(y[lowest], weights=w[lowest]), abs=3 / len(lowest))
    for point in curve:  # the model is the truth: five standard errors, widened for the uneven weights
        p = point["prediction"]
        assert abs(point["observed"] - p) < 6 * math.sqrt(p * (1 - p) / point["num_examples"])


def test_constant_model_has_one_calibration_bin():
    y = np.array([0.0, 1.0, 0.0, 0.0])
    (point,) = calibration_curve(np.full(4, -1.0), y, np.ones(4))
    assert point == {"prediction": pytest.approx(1 / (1 + math.e)), "observed": 0.25, "num_examples": 4}
