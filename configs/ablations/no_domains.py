"""gem_debug with one head that knows no domains, on the same examples in the same order.

python -m gem_jax.train configs/ablations/no_domains.py
"""

import dataclasses
import pathlib

from gem_jax.config import Config, load
from gem_jax.models import GemConfig


def get_config() -> Config:
    config = load(pathlib.Path(__file__).parents[1] / "gem_debug.py")
    assert isinstance(config.model, GemConfig)
    model = dataclasses.replace(config.model, domain_gates=False)
    return config.replace(name="no_domains", model=model)
