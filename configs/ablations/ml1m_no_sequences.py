"""configs/ml1m.py without histories, on the same examples in the same order.

python -m gem_jax.train configs/ablations/ml1m_no_sequences.py data.path=<folder of MovieLens-1M>
"""

import dataclasses
import pathlib

from gem_jax.config import Config, load
from gem_jax.models import GemConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "ml1m.py")
    assert isinstance(config.model, GemConfig)
    model = dataclasses.replace(config.model, levels=())
    return config.replace(name="ml1m_no_sequences", model=model)
