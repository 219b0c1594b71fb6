"""Logistic regression on the examples of configs/ml1m.py, in the same order.

python -m gem_jax.train configs/baselines/ml1m_logistic_regression.py data.path=<folder of MovieLens-1M>
"""

import pathlib

from gem_jax.config import Config, load
from gem_jax.models import LogisticRegressionConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "ml1m.py")
    return config.replace(name="ml1m_logistic_regression", model=LogisticRegressionConfig())
