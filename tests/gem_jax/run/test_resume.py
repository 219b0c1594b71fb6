"""Runs that go on, on another mesh or with another schema: right by name, or refused by name. Each was silently wrong once.

The data are Parquet files of a rule that a logistic regression and a small GEM learn; what a run is worth is seen by its AUC, which
falls to chance where rows or columns are taken for others.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from rich.console import Console

from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.history import history
from gem_jax.config import Config, TrainConfig
from gem_jax.data.batch import Examples, Histories
from gem_jax.data.columns import MemorySource
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig, write_parquet
from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, Vector
from gem_jax.embedding.config import TablesConfig
from gem_jax.models import DLRMConfig, GemConfig, LogisticRegressionConfig
from gem_jax.models.gem import Level
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.train import Options, Result, train
from gem_jax.training.optimizer import OptimizerConfig

SCHEMA = Schema(
    tables=(Table(name="ad", rows=64), Table(name="user", rows=32)),
    categoricals=(
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="user", table="user", role="user"),
    ),
    dense=(Dense(name="price", role="ad"), Dense(name="age", role="user")),
    vectors=(Vector(name="image", dim=2, role="ad"),),
    sequences=(
        Sequence(name="seen", attributes=(Categorical(name="ad", table="ad", role="event"),), max_len=8),
        Sequence(name="bought", attributes=(Categorical(name="ad", table="ad", role="event"),), max_len=8),
    ),
    tasks=(Task(name="click"), Task(name="buy")),
    domains=("feed", "stories"),
)
"""Of a quarter of all ways to confuse it nothing but the names tells: sizes are powers of two, and equal in pairs."""

GEM = GemConfig(
    embedding_dim=8,
    num_layers=1,
    fmb_tokens=4,
    lcb_tokens=4,
    rank=4,
    fmb_hidden=(8,),
    levels=(Level(),),
    num_summary=2,
    num_seeds=1,
    num_recent=1,
    head_hidden=8,
    dense_hidden=(8,),
)
DLRM = DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,))


def examples_of(n: int, seed: int) -> Examples:
    """Labels that follow from the ad, the user, the price and the age, each task in its own way."""
    rng = np.random.default_rng(seed)
    worth = np.random.default_rng(7).normal(size=64)
    taste = np.random.default_rng(8).normal(size=32)
    ad, user = rng.integers(0, 64, n), rng.integers(0, 32, n)
    dense = rng.normal(size=(n, 2))
    logits = np.stack([2 * worth[ad] + 2 * dense[:, 0], 2 * taste[user] - 2 * dense[:, 1]], axis=1)
    lengths = rng.integers(0, 6, n).astype(np.int32)
    total = int(lengths.sum())
    history = lambda: Histories(  # noqa: E731
        ids={"ad": rng.integers(0, 64, total).astype(np.int32)},
        age_s=np.concatenate([np.arange(k, 0, -1) for k in lengths] or [[]]).astype(np.int32),
        lengths=lengths,
    )
    return Examples(
        ids={"ad": ad[:, None].astype(np.int32), "user": user[:, None].astype(np.int32)},
        dense=dense.astype(np.float32),
        vectors={"image": rng.normal(size=(n, 2)).astype(np.float32)},
        sequences={"seen": history(), "bought": history()},
        labels=(rng.random((n, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32),
        domain=rng.integers(0, 2, n).astype(np.int32),
        weight=np.ones(n, np.float32),
        user=user.astype(np.int64),
        true_probability=(1 / (1 + np.exp(-logits))).astype(np.float32),
        example_id=seed * 100_000 + np.arange(n),
        time_s=np.arange(n, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    for part, n, seed in (("train", 1600, 1), ("test", 400, 2)):
        write_parquet(folder / f"{part}.parquet", MemorySource(schema=SCHEMA, examples=examples_of(n, seed)))
    return folder


def config_of(
    data, runs, *, model=DLRM, schema=SCHEMA, replica=1, shard=1, scheme="rows", fully_sharded=False
) -> Config:
    devices = replica * shard
    schemes = dict.fromkeys((table.name for table in schema.tables), scheme)
    return Config(
        name="m",
        data=ParquetConfig(path=str(data), columns=schema),
        model=model,
        batch=BatchConfig(examples=64 // devices),
        optimizer=OptimizerConfig(learning_rate=0.02, table_learning_rate=0.3, warmup=0.0),
        train=TrainConfig(epochs=8, eval_examples=400),
        mesh=MeshConfig(replica=replica, shard=shard),
        tables=TablesConfig(schemes=schemes, fully_sharded=fully_sharded),
        runs_dir=str(runs),
    )


def run(config: Config, **options) -> Result:
    return train(config, Options(**options), console=Console(quiet=True))


def auc(result: Result) -> dict[str, float]:
    return {task: measures["auc"] for task, measures in result.summary["eval"].items()}


def longer(config: Config, epochs: float) -> Config:
    return config.replace(train=dataclasses.replace(config.train, epochs=epochs))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Finished runs by model, each in its own folder of runs, which a test copies."""
    results = {}
    for name, model in (("dlrm", DLRM), ("gem", GEM), ("lr", LogisticRegressionConfig())):
        results[name] = run(config_of(data, tmp_path_factory.mktemp(name), model=model))
        assert min(auc(results[name]).values()) > 0.75, (name, auc(results[name]))
    return results


@pytest.fixture
def copy(trained, tmp_path):
    """Copies a finished run; returns the folder of runs."""

    def copy(name: str) -> pathlib.Path:
        shutil.copytree(trained[name].run_dir, tmp_path / "runs" / "m")
        return tmp_path / "runs"

    return copy


PLACES = [
    dict(replica=1, shard=4),
    dict(replica=2, shard=4, scheme="columns"),
    dict(replica=4, shard=2, fully_sharded=True),
]


@pytest.mark.parametrize("place", PLACES, ids=["1x4", "2x4 columns", "4x2 fully sharded"])
def test_on_another_mesh_a_run_is_the_same(trained, copy, data, place):
    """A finished run that is resumed is only evaluated again: .762 became .476 here."""
    again = run(config_of(data, copy("dlrm"), **place), resume=True)
    before, after = auc(trained["dlrm"]), auc(again)
    assert after == pytest.approx(before, abs=1e-4)
    fields = {change for event in history(again.run_dir) for change in event.changes}
    assert {"mesh.shard", "batch.examples"} <= fields


def reordered(schema: Schema) -> Schema:
    return schema.replace(
        tables=schema.tables[::-1],
        categoricals=schema.categoricals[::-1],
        dense=schema.dense[::-1],
        sequences=schema.sequences[::-1],
        tasks=schema.tasks[::-1],
        domains=schema.domains[::-1],
    )


@pytest.mark.parametrize("name", ["dlrm", "gem", "lr"])
def test_everything_in_the_schema_reordered_is_the_same_run(trained, copy, data, name):
    """Tables, features, histories, tasks and domains by name: dense features swapped made .947 to .614."""
    model = {"dlrm": DLRM, "gem": GEM, "lr": LogisticRegressionConfig()}[name]
    again = run(config_of(data, copy(name), model=model, schema=reordered(SCHEMA)), resume=True)
    # The same sums in another order.
    assert auc(again) == pytest.approx(auc(trained[name]), abs=2e-3)


def with_changes(**changes) -> Schema:
    return dataclasses.replace(SCHEMA, **changes)


def test_a_grown_table_keeps_its_rows_and_training_goes_on(trained, copy, data):
    grown = with_changes(tables=(Table(name="ad", rows=100), Table(name="user", rows=32)))
    again = run(config_of(data, copy("dlrm"), schema=grown), resume=True)
    assert auc(again) == pytest.approx(auc(trained["dlrm"]), abs=1e-4)
    old, new = (r.program.to_logical(r.state)["tables/ad/weight"] for r in (trained["dlrm"], again))
    np.testing.assert_array_equal(np.asarray(new)[:64], np.asarray(old))
    assert new.shape[0] == 100 and np.abs(np.asarray(new)[64:]).max() > 0


def test_features_added_and_removed_are_by_name(trained, copy, data):
    """Without the image and the user's age: what is left keeps its weights."""
    fewer = with_changes(dense=SCHEMA.dense[:1], vectors=())
    runs = copy("gem")
    again = run(longer(config_of(data, runs, model=GEM, schema=fewer), 12), resume=True)
    assert auc(again)["click"] > 0.8
    more = run(longer(config_of(data, runs, model=GEM), 14), resume=True)
    assert auc(more)["click"] > 0.8


SMALLER = with_changes(tables=(Table(name="ad", rows=64), Table(name="user", rows=16)))
UNFIT = {
    "smaller table": (
        dict(data=dict(columns=SMALLER, on_bad_row="skip", max_bad_rows=10**6)),  # ids do not fit either
        "table 'user' has 32 rows in the checkpoint and 16 in the schema",
    ),
    "other sizes": (dict(model=dict(top_hidden=(8,))), r"model.top_hidden is \[16\] in the checkpoint and \[8\] today"),
    "other seed": (dict(train=dict(seed=1)), "train.seed is 0 in the checkpoint and 1 today"),
    "other optimizer": (
        dict(optimizer=dict(table_optimizer="adam")),
        "optimizer.table_optimizer is 'rowwise_adagrad' in the checkpoint and 'adam' today",
    ),
}


@pytest.mark.filterwarnings("ignore::gem_jax.data.source.DataWarning")
@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_what_does_not_fit_is_refused_by_name(copy, data, changes, message, tmp_path):
    config = config_of(data, copy("dlrm"))
    config = config.replace(**{k: dataclasses.replace(getattr(config, k), **v) for k, v in changes.items()})
    before = sorted(str(p) for p in (tmp_path / "runs").rglob("*"))
    with pytest.raises(CheckpointError, match=message) as error:
        run(config, resume=True)
    assert "\n" not in str(error.value)
    assert sorted(str(p) for p in (tmp_path / "runs").rglob("*")) == before


def test_the_number_of_heads_is_compared_though_no_shape_tells(copy, data):
    model = dataclasses.replace(GEM, num_heads=1)
    with pytest.raises(CheckpointError, match="model.num_heads is 2 in the checkpoint and 1 today"):
        run(config_of(data, copy("gem"), model=model), resume=True)


def test_other_data_with_as_many_rows_are_refused(copy, tmp_path):
    folder = tmp_path / "tomorrow"
    folder.mkdir()
    for part, n, seed in (("train", 1600, 3), ("test", 400, 4)):
        write_parquet(folder / f"{part}.parquet", MemorySource(schema=SCHEMA, examples=examples_of(n, seed)))
    with pytest.raises(CheckpointError, match="the training data are others than the checkpoint's"):
        run(config_of(folder, copy("dlrm")), resume=True)


def test_what_may_change_is_recorded(copy, data):
    runs = copy("dlrm")
    config = longer(config_of(data, runs), 9)
    config = config.replace(optimizer=dataclasses.replace(config.optimizer, learning_rate=0.01))
    again = run(config, resume=True)
    assert again.run_dir == runs / "m" and again.summary["examples"] == 9 * 1600
    (_, event) = history(again.run_dir)
    assert event.step == 200 and event.changes["train.epochs"] == [8, 9]
    assert event.changes["optimizer.learning_rate"] == [0.02, 0.01]
    assert json.loads((again.run_dir / "config.json").read_text())["optimizer"]["learning_rate"] == 0.01


def test_a_new_run_from_another_ones_parameters(trained, data, tmp_path):
    start = dict(init_from=str(trained["dlrm"].run_dir))
    config = longer(config_of(data, tmp_path), 1 / 1600)
    config = config.replace(optimizer=dataclasses.replace(config.optimizer, table_learning_rate=1e-6))
    whole = run(config, **start)
    assert whole.summary["examples"] == 64 and int(whole.state.step) == 1
    assert auc(whole)["click"] == pytest.approx(auc(trained["dlrm"])["click"], abs=0.03)
    tables = run(config, **start, init_only=("tables/ad",))
    old, new = (r.program.to_logical(r.state) for r in (trained["dlrm"], tables))
    np.testing.assert_allclose(new["tables/ad/weight"], old["tables/ad/weight"], atol=1e-5)  # the one step's
    assert not np.allclose(new["tables/user/weight"], old["tables/user/weight"], atol=0.1)
    with pytest.raises(CheckpointError, match="takes nothing"):
        run(config_of(data, tmp_path), **start, init_only=("tables/film",))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copy, data, trained):
    runs = copy("dlrm")
    config = config_of(data, runs).replace(
        checkpoint=dataclasses.replace(config_of(data, runs).checkpoint, examples=3200)
    )
    run(longer(config, 12), resume=True)
    folder = runs / "m" / "checkpoints"
    newest, older = sorted((int(p.name) for p in folder.iterdir()), reverse=True)[:2]
    largest = max((p for p in (folder / str(newest)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115
    again = train(longer(config, 12), Options(resume=True), console=console)
    said = console.export_text()
    assert f"checkpoints/{newest} is damaged" in said and f"damaged-{newest}" in said
    assert again.summary["examples"] == 12 * 1600 and (folder / f"damaged-{newest}").is_dir()
    assert older < newest == int(again.state.step)


def test_a_checkpoint_of_an_older_format_is_refused_by_name(copy, data):
    runs = copy("dlrm")
    folder = runs / "m" / "checkpoints"
    for path in folder.iterdir():
        shutil.rmtree(path)
    (folder / "100" / "state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="checkpoint .*/100 is of format 0"):
        run(config_of(data, runs), resume=True)
