"""The ruler for the speed of a step: `gem_base` as of commit df18280, on batches of its own. Do not change it.

python -m gem_jax.train configs/bench/gem_base.py

Frozen: the stream's features and tables of that day (3 million users, 80 thousand ads, width 256), 2,048 examples, two sources of
histories up to 64 events, 55,296 packed rows each, 4 layers of width 256 in bfloat16. The stream and the ladder may change; figures
on this file stay comparable.

Lengths are 20 equally likely ones, the quantiles .025, .075, ... of 40,000 examples of that day's stream from the two-millionth on:
  organic      mean 22.7 events (the stream's 23.0), 25.6 packed rows (26.0), 15 % of 64 events (15.9 %)
  impressions  mean 23.6 events (the stream's 23.7), 26.8 packed rows (26.7), 15 % of 64 events (14.6 %)
so a batch is as full as the stream's. Ids are log-uniform: 16,000 different ads in the histories of a batch, the stream's 12,500.

At df18280, on the stream's own batches: 79.3 ms a step, peak 20.1 GiB, 119 s to the first step (one H200, jax 0.11.2, medians).
"""

from gem_jax.bench.data import BenchDataConfig
from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Categorical, Dense, Role, Schema, Sequence, Table, Task, Vector
from gem_jax.models.gem import GemConfig, Level
from gem_jax.precision.policy import Policy
from gem_jax.training.optimizer import OptimizerConfig

ROWS = {
    "user": 3_000_000,
    "ad": 80_000,
    "category": 16,
    "advertiser": 128,
    "age": 6,
    "country": 8,
    "device": 3,
    "hour": 24,
    "goal": 4,
    "format": 3,
    "signal": 4,
    "surface": 3,
    "action": 3,
    "organic_action": 3,
}


def _one(name: str, role: Role, table: str | None = None) -> Categorical:
    return Categorical(name=name, table=table or name, role=role)


SCHEMA = Schema(
    tables=tuple(Table(name=name, rows=rows) for name, rows in ROWS.items()),
    categoricals=(
        _one("user", "user"),
        _one("age", "user"),
        _one("country", "user"),
        Categorical(name="interests", table="category", role="user", max_ids=3),
        _one("hour", "context"),
        _one("device", "context"),
        _one("ad", "ad"),
        _one("category", "ad"),
        _one("advertiser", "ad"),
        _one("goal", "goal"),
        _one("format", "format"),
        _one("signal", "measurement"),
        _one("surface", "surface"),
    ),
    dense=(
        Dense(name="log_account_age", role="user"),
        Dense(name="log_ad_age", role="ad"),
        Dense(name="price", role="ad"),
    ),
    vectors=(Vector(name="image", dim=8, role="ad"),),
    sequences=(
        Sequence(
            name="organic",
            attributes=(
                _one("topic", "event", "category"),
                _one("action", "event", "organic_action"),
                _one("surface", "event"),
            ),
            max_len=64,
        ),
        Sequence(
            name="impressions",
            attributes=tuple(
                _one(name, "event") for name in ("ad", "category", "advertiser", "format", "surface", "action")
            ),
            max_len=64,
        ),
    ),
    tasks=(Task(name="click"), Task(name="conversion")),
    domains=("feed", "stories", "messaging"),
)


def get_config() -> Config:
    return Config(
        name="bench_gem_base",
        data=BenchDataConfig(
            columns=SCHEMA,
            lengths={
                "organic": (0, 0, 3, 3, 4, 7, 9, 9, 11, 12, 15, 21, 22, 28, 32, 34, 52, 64, 64, 64),
                "impressions": (0, 1, 2, 3, 5, 6, 7, 9, 11, 13, 18, 22, 24, 27, 37, 41, 54, 64, 64, 64),
            },
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
        batch=BatchConfig(examples=2048, tokens={"organic": 55_296, "impressions": 55_296}),
        optimizer=OptimizerConfig(learning_rate=7.5e-4, table_learning_rate=0.1),
        train=TrainConfig(shuffle=False),
        precision=Policy(compute="bfloat16"),
    )
