"""The default: a small GEM on the synthetic ads stream, for a laptop. `make train` runs it.

python -m gem_jax.train configs/gem_debug.py
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="gem_debug",
        data=SyntheticConfig(train_examples=250_000, test_examples=20_000, organic_max_len=16, impressions_max_len=16),
        model=GemConfig(embedding_dim=16, levels=(Level(), Level(recent=8)), fmb_hidden=(64,)),
        batch=BatchConfig(examples=256, tokens={"organic": 256 * 12, "impressions": 256 * 13}),
        optimizer=OptimizerConfig(learning_rate=3e-3, table_learning_rate=0.2),
        train=TrainConfig(shuffle=False),
    )
