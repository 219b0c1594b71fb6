"""SASRec as a ranker on the stream of gem_debug, the same examples in the same order.

python -m gem_jax.train configs/baselines/sasrec.py
"""

import pathlib

from gem_jax.config import Config, load
from gem_jax.models import SASRecConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "gem_debug.py")
    return config.replace(name="sasrec", model=SASRecConfig(embedding_dim=16))
