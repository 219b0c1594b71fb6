"""GEM on one Colab GPU: the step after gem_debug, with float32 throughout because a T4 has no bfloat16.

python -m gem_jax.train configs/gem_small.py
On an L4 or better add precision.compute=bfloat16.

Dense parameters: 6.15e6
Table parameters: 1.97e7 (0.3 million users, 8 thousand ads, width 64)
Forward FLOPs per example: 4.22e7
Histories: the newest 32 organic events and 32 impressions, 6 modules (2 sources at 3 levels)
Meant for: one GPU of 16 GB (T4, L4)
Memory, an estimate: 0.2 GB of parameters, moments and tables, 5 GiB of activations at 1024 examples

Measured: one H100, jax 0.11.2, commit 689e6a6, train.seed=0, 1, 2, data.train_examples=300000 data.test_examples=20000
NE of clicks, float32: 0.822, 0.837, 0.842; bfloat16: 0.828, 0.840, 0.826 (the true probabilities': 0.775)
NE of conversions, float32: 0.834, 0.847, 0.847; bfloat16: 0.842, 0.865, 0.851 (0.779); 55 conversions, so mostly noise
62,000 examples/s at the end of seed 0 in float32, alone on the card; 78,000 on two H100s with mesh.shard=2 and
precision.compute=bfloat16

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
        optimizer=OptimizerConfig(learning_rate=1.5e-3, table_learning_rate=0.2),
        train=TrainConfig(shuffle=False),
    )
