"""GEM on MovieLens-1M: is a rating 4 or more, given the user's earlier ratings? The last tenth of each history is the test.

python -m gem_jax.train configs/ml1m.py data.path=<folder of MovieLens-1M>
"""

from gem_jax.config import Config
from gem_jax.data.movielens import MovieLensConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="ml1m",
        data=MovieLensConfig(path="", max_len=64),
        model=GemConfig(embedding_dim=32, levels=(Level(), Level(recent=16)), domain_gates=False, dropout=0.1),
        batch=BatchConfig(examples=512, tokens={"past": 512 * 56}),
        optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.05, weight_decay=1e-2),
    )
