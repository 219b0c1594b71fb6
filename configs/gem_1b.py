"""GEM with a billion dense parameters, for many GPUs: dense state and tables cut over them.

python -m gem_jax.train configs/gem_1b.py

Dense parameters: 9.94e8
Table parameters: 9.67e9 (3.2 million users, 16 million ads, width 512)
Forward FLOPs per example: 1.74e10
Histories: the newest 128 organic events and 96 impressions, 8 modules (2 sources at 4 levels)
Meant for: one host of 8 H200 or more, 128 examples a GPU
Memory, an estimate: 20 GB of parameters, gradients, moments and means and 39 GB of tables over all GPUs; on each GPU 21 GiB of
activations and 2 GB of bfloat16 weights; 2 GB of host memory a process for the stream's users

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
        name="gem_1b",
        data=SyntheticConfig(
            train_examples=400_000_000,
            test_examples=500_000,
            active_users=400_000,
            active_ads=160_008,
            organic_max_len=128,
            impressions_max_len=96,
        ),
        model=GemConfig(
            embedding_dim=512,
            num_layers=8,
            num_heads=4,
            fmb_tokens=32,
            lcb_tokens=32,
            rank=64,
            fmb_hidden=(3072,),
            levels=(Level(), Level(pool=4), Level(pool=16), Level(recent=16)),
            num_summary=8,
            num_seeds=4,
            num_recent=4,
            head_hidden=1024,
            dense_hidden=(512,),
        ),
        batch=BatchConfig(examples=128, tokens={"organic": 128 * 116, "impressions": 128 * 88}),
        optimizer=OptimizerConfig(learning_rate=5e-4, table_learning_rate=0.1, final=0.3, average=0.999),
        train=TrainConfig(shuffle=False),
        precision=Policy(compute="bfloat16"),
    )
