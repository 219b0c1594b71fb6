"""A teacher of a second: examples of many users and times, and a DLRM that learns from them."""

import dataclasses
import pathlib

import numpy as np
from rich.console import Console

from gem_jax.config import Config, TrainConfig
from gem_jax.data.columns import MemorySource
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Schema
from gem_jax.data.source import PARTS, Splits
from gem_jax.models import DLRMConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.train import Options, Result, train
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.transfer.scoring import ProgressiveLabels
from tests.gem_jax.data.random_examples import SCHEMA, random_examples

BATCH = 16
NUM_TRAIN, NUM_TEST = 150, 40
"""The last batch of an epoch is not full, or belongs to two."""
NUM_USERS = 9


@dataclasses.dataclass(frozen=True)
class Data:
    """Random examples in memory; another seed has the same ids, and other examples."""

    seed: int = 0

    def schema(self) -> Schema:
        return SCHEMA

    def build(self) -> Splits:
        sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
        return Splits(**{part: self._source(part, size) for part, size in sizes.items()})

    def _source(self, part: str, size: int) -> MemorySource:
        examples = random_examples(size, seed=PARTS.index(part) + 10 * self.seed)
        rng = np.random.default_rng(PARTS.index(part) + 100 * self.seed)
        examples.example_id = np.random.default_rng(PARTS.index(part)).permutation(size) + PARTS.index(part) * 10**6
        examples.user = rng.integers(0, NUM_USERS, size)
        examples.time_s = 10**9 + rng.permutation(size * 100)[:size] * 60
        return MemorySource(schema=SCHEMA, examples=examples)


def config_of(runs: pathlib.Path, **train_fields) -> Config:
    """Large steps, so that parameters before and after one tell apart."""
    return Config(
        name="teacher",
        data=Data(),
        model=DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,)),
        batch=BatchConfig(examples=BATCH),
        optimizer=OptimizerConfig(learning_rate=0.05, table_learning_rate=0.5),
        train=TrainConfig(**train_fields),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(runs),
    )


def teach(config: Config, labels: ProgressiveLabels, *, resume: bool = False) -> Result:
    return train(config, Options(resume=resume), console=Console(quiet=True), observer=labels)
