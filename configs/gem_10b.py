"""GEM with ten billion dense parameters, for many GPUs: dense state and tables cut over them.

python -m gem_jax.train configs/gem_10b.py

Dense parameters: 9.61e9
Table parameters: 3.03e10 (7.2 million users, 22 million ads, width 1024)
Forward FLOPs per example: 1.64e11
Histories: the newest 128 organic events and 96 impressions, 8 modules (2 sources at 4 levels)
Meant for: 64 H200 or more, 32 examples a GPU
Memory, an estimate: 192 GB of parameters, gradients, moments and means and 121 GB of tables over all GPUs; on each GPU 24 GiB of
activations and 19 GB of bfloat16 weights; 6 GB of host memory a process for the stream's users

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
        name="gem_10b",
        data=SyntheticConfig(
            train_examples=800_000_000,
            test_examples=1_000_000,
            active_users=1_200_000,
            active_ads=320_016,
            organic_max_len=128,
            impressions_max_len=96,
        ),
        model=GemConfig(
            embedding_dim=1024,
            num_layers=16,
            num_heads=8,
            fmb_tokens=48,
            lcb_tokens=48,
            rank=96,
            fmb_hidden=(6144,),
            levels=(Level(), Level(pool=4), Level(pool=16), Level(recent=32)),
            num_summary=16,
            num_seeds=4,
            num_recent=4,
            head_hidden=2048,
            dense_hidden=(1024,),
        ),
        batch=BatchConfig(examples=32, tokens={"organic": 32 * 122, "impressions": 32 * 92}),
        optimizer=OptimizerConfig(learning_rate=3.5e-4, table_learning_rate=0.1, final=0.3, average=0.999),
        train=TrainConfig(shuffle=False),
        precision=Policy(compute="bfloat16"),
    )
