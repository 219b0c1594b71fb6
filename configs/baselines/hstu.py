"""HSTU as a ranker on the stream of gem_debug, the same examples in the same order.

python -m gem_jax.train configs/baselines/hstu.py
"""

import pathlib

from gem_jax.config import Config, load
from gem_jax.models import HSTUConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "gem_debug.py")
    return config.replace(name="hstu", model=HSTUConfig(embedding_dim=16, width=32, head_dim=16, relative_bias=False))
