"""DLRM (histories as mean-pooled bags) on the stream of gem_debug, the same examples in the same order.

python -m gem_jax.train configs/baselines/dlrm.py
"""

import pathlib

from gem_jax.config import Config, load
from gem_jax.models import DLRMConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "gem_debug.py")
    return config.replace(name="dlrm", model=DLRMConfig(embedding_dim=16))
