"""The ruler for HSTU at the size of NVIDIA's recsys-examples: 8 layers, width 1,024, sequences of 4,099. Do not change it.

python -m gem_jax.bench step configs/bench/hstu_8x1024.py

Frozen: 4 heads of 256, 32 sequences of 4,098 events and the candidate, no relative bias, tables of 50 million items and 50 million
users of width 128, 8 tasks, bfloat16. NVIDIA's figure on an H100 is of a model like this one, not of this one.
"""

from gem_jax.bench.data import BenchDataConfig
from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Categorical, Schema, Sequence, Table, Task
from gem_jax.models.hstu import HSTUConfig
from gem_jax.precision.policy import Policy
from gem_jax.training.optimizer import OptimizerConfig

EVENTS = 4_098
SEQUENCES = 32
ROWS = 50_000_000

SCHEMA = Schema(
    tables=(Table(name="item", rows=ROWS), Table(name="user", rows=ROWS)),
    categoricals=(
        Categorical(name="user", table="user", role="user"),
        Categorical(name="item", table="item", role="ad"),
    ),
    sequences=(
        Sequence(name="items", attributes=(Categorical(name="item", table="item", role="event"),), max_len=EVENTS),
    ),
    tasks=tuple(Task(name=f"task{i}") for i in range(8)),
    domains=("all",),
)


def get_config() -> Config:
    return Config(
        name="bench_hstu_8x1024",
        data=BenchDataConfig(columns=SCHEMA, lengths={"items": (EVENTS,)}, examples=100_000),
        model=HSTUConfig(embedding_dim=128, width=1_024, num_layers=8, num_heads=4, head_dim=256, relative_bias=False),
        batch=BatchConfig(examples=SEQUENCES),
        optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.05),
        train=TrainConfig(shuffle=False),
        precision=Policy(compute="bfloat16"),
    )
