"""What may change between a checkpoint and a run that goes on, and what may not; the run's history."""

import copy
import json

import pytest

from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.history import history, record
from gem_jax.checkpoint.manifest import Manifest
from gem_jax.checkpoint.resume import MAY_CHANGE, Change, compare, may_change

CONFIG = {
    "kind": "Config",
    "name": "mine",
    "runs_dir": "runs",
    "data": {"kind": "ParquetConfig", "path": "log.parquet", "seed": 0, "history": 50},
    "model": {"kind": "GemConfig", "num_heads": 2, "width": 64},
    "objective": {"kind": "BinaryConfig", "task_weights": {"click": 1.0}},
    "optimizer": {"kind": "OptimizerConfig", "learning_rate": 0.001, "group_rates": {}, "table_optimizer": "adam"},
    "train": {
        "kind": "TrainConfig",
        "epochs": 1.0,
        "eval_every": None,
        "eval_examples": 10,
        "seed": 0,
        "shuffle": True,
    },
    "checkpoint": {"kind": "CheckpointConfig", "minutes": 10.0, "keep": 2},
    "mesh": {"kind": "MeshConfig", "shard": 4},
    "tables": {"kind": "TablesConfig", "schemes": {"ad": "rows"}, "fully_sharded": False},
    "batch": {"kind": "BatchConfig", "examples": 256, "tokens": {"clicks": 64}},
    "precision": {"kind": "Policy", "compute": "float32"},
}
DATA = {"train": {"examples": 100, "digest": "ab"}, "test": {"examples": 10, "digest": "cd"}}


def manifest(config=CONFIG, data=DATA) -> Manifest:
    return Manifest(
        step=7, arrays={}, config=config, schema={}, mesh={}, placement={}, data=data, position={}, versions={}
    )


def changed(field: str, value) -> dict:
    config = copy.deepcopy(CONFIG)
    *way, last = field.split(".")
    node = config
    for part in way:
        node = node[part]
    node[last] = value
    return config


def test_the_same_is_no_change():
    assert compare(manifest(), CONFIG, DATA) == ()


MAY = {
    "name": "other",
    "runs_dir": "elsewhere",
    "train.epochs": 3.0,
    "train.eval_every": 5,
    "train.eval_examples": None,
    "checkpoint.minutes": 1.0,
    "checkpoint.keep": 3,
    "mesh.shard": 1,
    "tables.schemes.ad": "columns",
    "tables.fully_sharded": True,
    "batch.examples": 128,
    "batch.tokens.clicks": 32,
    "precision.compute": "bfloat16",
    "optimizer.learning_rate": 0.3,
    "optimizer.group_rates": {"heads": 0.1},
    "data.path": "moved.parquet",
    "data.on_bad_row": "skip",
    "data.max_bad_rows": 5,
}
MAY_NOT = {
    "data.seed": 1,
    "data.history": 20,
    "data.kind": "CriteoConfig",
    "model.num_heads": 1,
    "model.kind": "DLRMConfig",
    "objective.task_weights.click": 2.0,
    "objective.task_weights.buy": 1.0,
    "optimizer.table_optimizer": "rowwise_adagrad",
    "train.seed": 1,
    "train.shuffle": False,
    "something.new": 1,
}


@pytest.mark.parametrize("field", MAY)
def test_what_may_change_is_shown(field):
    changes = compare(manifest(), changed(field, MAY[field]), DATA)
    assert len(changes) == 1 and changes[0].new in (MAY[field], 0.1) and changes[0].field.startswith(field)
    assert str(changes[0]).startswith(f"{field}")


@pytest.mark.parametrize("field", MAY_NOT)
def test_what_may_not_is_refused_by_name_with_both_values(field):
    config = CONFIG | {"something": {}} if field.startswith("something") else CONFIG
    with pytest.raises(CheckpointError) as error:
        today = changed(field, MAY_NOT[field]) if config is CONFIG else config | {"something": {"new": 1}}
        compare(manifest(config), today, DATA)
    text = str(error.value)
    assert (
        text.startswith(f"{field} is ")
        and f"{MAY_NOT[field]!r} today; resume with {field}=" in text
        and "\n" not in text
    )


def test_every_pattern_has_a_reason_and_matches_something():
    assert all(reason for reason in MAY_CHANGE.values())
    assert not [field for field in MAY_NOT if may_change(field)]
    assert not may_change("data.path_of_another") and not may_change("data")


@pytest.mark.parametrize(("field", "value"), [("examples", 101), ("digest", "xy")])
def test_other_training_data_are_refused(field, value):
    other = DATA | {"train": DATA["train"] | {field: value}}
    with pytest.raises(
        CheckpointError, match=f"the training data are others .*: {field} is .* today; resume with the same"
    ):
        compare(manifest(), changed("data.path", "other.parquet"), other)


def test_other_test_data_are_shown():
    other = DATA | {"test": {"examples": 11, "digest": "xy"}}
    assert [c.field for c in compare(manifest(), CONFIG, other)] == ["data identity of test"]


def test_history_is_written_line_by_line(tmp_path):
    assert history(tmp_path) == []
    record(tmp_path, 0, (), {"shard": 8}, {"jax": "1"})
    record(tmp_path, 7, [Change(field="train.epochs", old=1.0, new=2.0)], {"shard": 4}, {"jax": "2"})
    start, on = history(tmp_path)
    assert (start.step, start.changes, start.mesh) == (0, {}, {"shard": 8})
    assert (on.step, on.changes, on.versions) == (7, {"train.epochs": [1.0, 2.0]}, {"jax": "2"})
    assert on.time >= start.time
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [0, 7]
