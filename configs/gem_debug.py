"""The default: a small GEM on the synthetic ads stream, for a laptop. `make train` runs it.

python -m gem_jax.train configs/gem_debug.py

Dense parameters: 2.04e5
Table parameters: 3.49e5 (19 thousand users, 2.4 thousand ads, width 16)
Forward FLOPs per example: 1.50e6
Histories: the newest 16 organic events and 16 impressions, 4 modules (2 sources at 2 levels)

Clicks: NE .8078, 78 % of the way from 1 to the Bayes NE, AUC .8269; conversions: NE .8123, 75 %. Means of seeds 0, 1, 2 on one
H200, jax 0.11.2, commit 9f1b338: python -m gem_jax.compare configs/gem_debug.py configs/ablations/no_*.py
configs/baselines/logistic_regression.py --seeds 0,1,2 (configs/results/synthetic.json)

The first three numbers are recounted, without making an array, by pytest tests/gem_jax/training/test_ladder.py; FLOPs count the
packed batch with the XLA attention.
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
