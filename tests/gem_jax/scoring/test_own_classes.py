"""A run whose config brings its own model, data and objective: scored without the data, and without the file but for the model."""

import shutil
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax.config import ConfigError, load
from gem_jax.scoring.run import load_run
from gem_jax.scoring.saved import Unloaded, classes_of
from gem_jax.train import train
from tests.gem_jax.data.random_examples import SCHEMA

CONFIG = '''
import dataclasses
import pathlib

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig
from gem_jax.models import LogisticRegressionConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.training.objective import MultiTaskConfig

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData(ParquetConfig):
    """Data of the user's own kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnObjective(MultiTaskConfig):
    """An objective of the user's own kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPart:
    """Something that a model is made of."""

    size: int = 3
    """Of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModel(LogisticRegressionConfig):
    """A model of the user's own kind."""

    parts: tuple[OwnPart, ...] = (OwnPart(), OwnPart(size=4))
    """What it is made of."""


def config_of(model) -> Config:
    from tests.gem_jax.data.random_examples import SCHEMA

    return Config(
        name="own",
        data=OwnData(path=str(HERE / "data"), columns=SCHEMA),
        model=model,
        objective=OwnObjective(),
        batch=BatchConfig(examples=32),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(HERE / "runs"),
    )


def get_config() -> Config:
    return config_of(OwnModel())


def plain() -> Config:
    return config_of(LogisticRegressionConfig()).replace(name="plain")
'''


@pytest.fixture(scope="module")
def here(data, tmp_path_factory):
    """A folder with the config file and two finished runs; the data are gone."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(data, folder / "data")
    (folder / "config.py").write_text(CONFIG)
    for variant in ("", ":plain"):
        train(load(f"{folder / 'config.py'}{variant}"), console=Console(quiet=True))
    shutil.rmtree(folder / "data")
    for name in [name for name in sys.modules if name.startswith("gem_config_")]:
        del sys.modules[name]
    return folder


def test_own_data_and_objective_are_not_needed(here, data):
    run = load_run(here / "runs" / "plain", devices=jax.devices()[:1], say=pytest.fail)
    assert isinstance(run.config.data, Unloaded) and run.config.data.schema() == SCHEMA
    assert isinstance(run.config.objective, Unloaded) and run.config.train.epochs == 1.0
    assert run.evaluate(data / "test.parquet") == run.summary["eval"]
    with pytest.raises(ConfigError, match="is a 'OwnData', which is defined in .*config.py and not in gem_jax; give"):
        run.config.data.build()


def test_an_own_model_needs_its_class(here, data):
    folder, file = here / "runs" / "own", here / "config.py"
    with pytest.raises(ConfigError) as refused:
        load_run(folder)
    assert str(refused.value) == (
        f"the run's model is a 'OwnModel', which is defined in {file} and not in gem_jax; give the class, by "
        f"load_run(folder, classes=(OwnModel,)) or predict --config {file}"
    )
    config = load(file)
    classes = classes_of(config)
    assert [kind.__name__ for kind in classes] == ["OwnData", "OwnModel", "OwnPart", "OwnObjective"]
    with pytest.raises(ConfigError, match="the run's model is a 'OwnPart'"):
        load_run(folder, classes=(type(config.model),))
    run = load_run(folder, classes=classes, devices=jax.devices()[:1], say=pytest.fail)
    assert run.config == config
    assert run.evaluate(data / "test.parquet") == run.summary["eval"]


def test_from_the_command_line(here, unlabelled, monkeypatch, capsys):
    from gem_jax.predict import main

    monkeypatch.chdir(here)
    assert main(["runs/own", str(unlabelled)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: the run's model is a 'OwnModel'") and error.count("\n") == 1
    assert main(["runs/own", str(unlabelled), "--config", "config.py"]) == 0
    written = pq.read_table("new.predictions.parquet")
    expected = load_run("runs/own", classes=classes_of(load("config.py"))).predict(unlabelled)
    np.testing.assert_array_equal(written["p.click"], expected[:, 0])
