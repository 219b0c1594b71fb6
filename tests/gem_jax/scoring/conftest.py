"""Runs to score with, trained once."""

import pathlib

import pytest
from rich.console import Console

from gem_jax.config import Config, TrainConfig
from gem_jax.data.columns import MemorySource
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig, write_parquet
from gem_jax.models import DLRMConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.train import Result, train
from tests.gem_jax.data.random_examples import SCHEMA, random_examples

EXAMPLES = 150
"""Of the test part: a last batch that is not full."""


def scored_examples():
    """Examples of which every fifth has weight 0, and one in two an unknown user."""
    examples = random_examples(EXAMPLES, seed=1)
    examples.weight[::5] = 0
    examples.user[::2] = -1
    return examples


def config_of(data: pathlib.Path, runs: pathlib.Path) -> Config:
    """A small DLRM; the token budget closes most batches before their slots are full."""
    return Config(
        name="mine",
        data=ParquetConfig(path=str(data), columns=SCHEMA),
        model=DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,)),
        batch=BatchConfig(examples=16, tokens={"clicks": 200, "views": 128}),
        train=TrainConfig(epochs=1),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(runs),
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with training and test examples."""
    folder = tmp_path_factory.mktemp("scoring_data")
    write_parquet(folder / "train.parquet", MemorySource(schema=SCHEMA, examples=random_examples(100)))
    source = MemorySource(schema=SCHEMA, examples=scored_examples())
    write_parquet(folder / "test.parquet", source, rows_per_group=40)
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> Result:
    """A finished run on them, on one device."""
    return train(config_of(data, tmp_path_factory.mktemp("scoring_runs")), console=Console(quiet=True))


@pytest.fixture(scope="session")
def unlabelled(data, tmp_path_factory) -> pathlib.Path:
    """The test examples as a file without labels, ids and weights."""
    import pyarrow.parquet as pq

    table = pq.read_table(data / "test.parquet")
    kept = [n for n in table.column_names if not n.startswith(("label.", "true_probability.", "weight", "example_id"))]
    file = tmp_path_factory.mktemp("new") / "new.parquet"
    pq.write_table(table.select(kept), file, row_group_size=64)
    return file
