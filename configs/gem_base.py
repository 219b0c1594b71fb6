"""GEM on one H200: 100 million dense parameters in bfloat16 compute.

python -m gem_jax.train configs/gem_base.py

Dense parameters: 1.19e8
Table parameters: 4.24e8 (0.35 million users, 1.3 million ads, width 256)
Forward FLOPs per example: 2.09e9
Histories: the newest 128 organic events and 64 impressions, 6 modules (2 sources at 3 levels)
Meant for: one H200 (141 GB); an 80 GB GPU too
Memory, an estimate: 4 GB of parameters, moments and tables, 39 GiB of activations at 1024 examples

The first three numbers are recounted, without making an array, by pytest tests/gem_jax/training/test_ladder.py; FLOPs count the
packed batch with the XLA attention. The learning rate falls with the square root of the width from gem_debug's; untuned here.
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.precision.policy import Policy
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="gem_base",
        data=SyntheticConfig(
            train_examples=40_000_000,
            test_examples=200_000,
            active_users=50_000,
            active_ads=16_008,
            organic_max_len=128,
            impressions_max_len=64,
        ),
        model=GemConfig(
            embedding_dim=256,
            num_layers=4,
            num_heads=4,
            fmb_tokens=24,
            lcb_tokens=24,
            rank=48,
            fmb_hidden=(1536,),
            levels=(Level(), Level(pool=4), Level(recent=16)),
            num_summary=8,
            num_seeds=4,
            num_recent=4,
            head_hidden=512,
            dense_hidden=(256,),
        ),
        batch=BatchConfig(examples=1024, tokens={"organic": 1024 * 107, "impressions": 1024 * 58}),
        optimizer=OptimizerConfig(learning_rate=7.5e-4, table_learning_rate=0.1, final=0.3, average=0.999),
        train=TrainConfig(shuffle=False),
        precision=Policy(compute="bfloat16"),
    )
