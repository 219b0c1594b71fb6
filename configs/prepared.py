"""A small GEM on any log that `python -m gem_jax.prepare` prepared, for a laptop.

python -m gem_jax.prepare log.csv --label click --time ts --user uid --item ad_id --out prepared
python -m gem_jax.train configs/prepared.py data.path=prepared
python -m gem_jax.train configs/prepared.py:no_sequences data.path=prepared     without histories
"""

import dataclasses

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.models import LogisticRegressionConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.prepare.config import PreparedConfig
from gem_jax.training.optimizer import OptimizerConfig

MODEL = GemConfig(embedding_dim=16, levels=(Level(), Level(recent=16)), fmb_hidden=(64,), dropout=0.1)


def get_config() -> Config:
    return Config(
        name="prepared",
        data=PreparedConfig(path="", max_len=32),
        model=MODEL,
        batch=BatchConfig(examples=256),
        optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.05, weight_decay=1e-2),
    )


def no_sequences() -> Config:
    """No histories."""
    return get_config().replace(name="prepared_no_sequences", model=dataclasses.replace(MODEL, levels=()))


def logistic_regression() -> Config:
    """Logistic regression on single features."""
    return get_config().replace(name="prepared_logistic_regression", model=LogisticRegressionConfig())
