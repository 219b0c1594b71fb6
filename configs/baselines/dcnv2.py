"""DCN-V2 (no histories) on the stream of gem_debug, the same examples in the same order.

python -m gem_jax.train configs/baselines/dcnv2.py
"""

import pathlib

from gem_jax.config import Config, load
from gem_jax.models import DCNv2Config


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "gem_debug.py")
    return config.replace(name="dcnv2", model=DCNv2Config(embedding_dim=16))
