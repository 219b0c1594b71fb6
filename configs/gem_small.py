"""GEM on one Colab GPU: the step after gem_debug, with float32 throughout because a T4 has no bfloat16.

python -m gem_jax.train configs/gem_small.py
On an L4 or better add precision.compute=bfloat16.

Dense parameters: 6.17e6
Table parameters: 8.39e6 (40 thousand users, 91 thousand ads, width 64)
Forward FLOPs per example: 7.47e7
Histories: the newest 64 organic events and 32 impressions, 6 modules (2 sources at 3 levels)
Meant for: one GPU of 16 GB (T4, L4)
Memory, an estimate: 0.2 GB of parameters, moments and tables, 6 GiB of activations at 1024 examples

The first three numbers are recounted, without making an array, by pytest tests/gem_jax/training/test_ladder.py; FLOPs count the
packed batch with the XLA attention. The learning rate falls with the square root of the width from gem_debug's; untuned here.
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="gem_small",
        data=SyntheticConfig(
            train_examples=4_000_000,
            test_examples=100_000,
            active_users=8_000,
            active_ads=1_608,
            organic_max_len=64,
            impressions_max_len=32,
        ),
        model=GemConfig(
            embedding_dim=64,
            num_layers=3,
            num_heads=2,
            fmb_tokens=16,
            lcb_tokens=16,
            rank=24,
            fmb_hidden=(512,),
            levels=(Level(), Level(pool=4), Level(recent=8)),
            head_hidden=128,
        ),
        batch=BatchConfig(examples=1024, tokens={"organic": 1024 * 61, "impressions": 1024 * 31}),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, table_learning_rate=0.2, final=0.3, average=0.99),
        train=TrainConfig(shuffle=False),
    )
