"""Runs of a second for the tests of the loop: a logistic regression on examples in memory, 16 a step."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from rich.console import Console

from gem_jax.config import Config, TrainConfig
from gem_jax.data.batch import Examples
from gem_jax.data.columns import MemorySource
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Schema
from gem_jax.data.source import PARTS, DataError, Splits
from gem_jax.models import LogisticRegressionConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.train import Options, Result, train
from tests.gem_jax.data.random_examples import SCHEMA, random_examples

BATCH = 16
NUM_TRAIN = 8 * BATCH
"""Eight steps, two of them the loader's way ahead."""

BROKEN: dict[str, int] = {}
"""Part -> row that cannot be read, for a test to fill."""


class Source(MemorySource):
    """Examples in memory, of which one row may be broken."""

    def __init__(self, part: str, examples: Examples):
        super().__init__(schema=SCHEMA, examples=examples)
        object.__setattr__(self, "part", part)

    def read(self, indices: np.ndarray) -> Examples:
        bad = BROKEN.get(self.part)  # type: ignore[attr-defined]
        if bad is not None and bad in indices:
            raise DataError(f"{self.part}, row {bad}: 'ad' is 99, outside table 'ad' of 50 rows")
        return super().read(indices)


@dataclasses.dataclass(frozen=True)
class Data:
    """`set_values` as (part, column, row, value); row None is all of them."""

    set_values: tuple[tuple[str, str, int | None, float], ...] = ()
    parts: tuple[str, ...] = PARTS

    def schema(self) -> Schema:
        return SCHEMA

    def build(self) -> Splits:
        return Splits(**{part: self._source(part) for part in self.parts})

    def _source(self, part: str) -> Source:
        size = NUM_TRAIN if part == "train" else 3 * BATCH
        examples = random_examples(size, seed=PARTS.index(part))
        for of, column, row, value in self.set_values:
            if of == part:
                getattr(examples, column)[slice(None) if row is None else row] = value
        return Source(part, examples)


def config_of(runs_dir: pathlib.Path, data: Any = None, **train_fields: Any) -> Config:
    """Of a run in the order of its rows."""
    return Config(
        name="small",
        data=Data() if data is None else data,
        model=LogisticRegressionConfig(),
        batch=BatchConfig(examples=BATCH),
        train=TrainConfig(shuffle=False, **train_fields),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(runs_dir),
    )


def run(config: Config, *, resume: bool = False, **options: Any) -> tuple[Result, str]:
    """A run's result, and all that its console said."""
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115
    try:
        result = train(config, Options(resume=resume, **options), console=console)
    finally:
        console.file.close()
    return result, console.export_text()


def steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir())
