"""Parquet: what any source writes is read back equal; shuffling stays within few row groups; bad values are named."""

import dataclasses
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.columns import MemorySource, take_examples
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig, ParquetSource, write_parquet
from gem_jax.data.parquet import source as parquet
from gem_jax.data.source import DataError
from tests.gem_jax.data.random_examples import SCHEMA, TAUGHT, assert_same_examples, random_examples

NUM = 60


def _write(path: pathlib.Path, examples: Examples | None = None, rows_per_group: int = 7) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = random_examples(NUM) if examples is None else examples
    write_parquet(path, MemorySource(schema=TAUGHT, examples=examples), rows_per_group=rows_per_group)
    return path


def _rewrite(path: pathlib.Path, change) -> pathlib.Path:
    """Replaces the file's table by `change(table)`, keeping its row groups of 7."""
    pq.write_table(change(pq.read_table(path)), path, row_group_size=7)
    return path


def _set(name: str, row: int, value):
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))

    return change


def test_round_trip_keeps_every_column(tmp_path):
    examples = random_examples(NUM)
    files = tuple(
        _write(tmp_path / f"{k}.parquet", take_examples(examples, part))
        for k, part in enumerate(np.split(np.arange(NUM), [25]))
    )
    source = ParquetSource(files, TAUGHT)
    assert len(source) == NUM
    assert_same_examples(source.read(np.arange(NUM)), examples)
    picked = np.random.default_rng(0).integers(0, NUM, 200)
    assert_same_examples(source.read(picked), take_examples(examples, picked))


def test_chosen_indices_are_written(tmp_path):
    examples = random_examples(NUM)
    chosen = np.array([50, 3, 7])
    path = tmp_path / "some.parquet"
    write_parquet(path, MemorySource(schema=TAUGHT, examples=examples), chosen)
    assert_same_examples(ParquetSource((path,), TAUGHT).read(np.arange(3)), take_examples(examples, chosen))
    assert [p.name for p in tmp_path.iterdir()] == ["some.parquet"]


def test_hand_written_columns_mean_what_the_docstring_says(tmp_path):
    schema = SCHEMA.replace(domains=("feed",), dense=(), vectors=())
    table = pa.table(
        {
            "ad": pa.array([3, None], pa.int64()),
            "topics": pa.array([[1, 2], None], pa.large_list(pa.int8())),
            "clicks.ad": [[1, None, 2], []],
            "clicks.topic": [[0, 1, 2], None],
            "clicks.age_s": [[300, 20, 1], []],
            "views.ad": [[4], [5]],
            "views.age_s": [[0], [0]],
            "label.click": [True, None],
            "label.conversion": pa.array([0, 1], pa.int8()),
            "remark": ["ignored", "ignored"],
        }
    )
    path = tmp_path / "hand.parquet"
    pq.write_table(table, path)
    examples = ParquetSource((path,), schema).read(np.array([0, 1]))
    np.testing.assert_array_equal(examples.ids["ad"], [[3], [-1]])
    np.testing.assert_array_equal(examples.ids["topics"], [[1, 2, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(examples.sequences["clicks"].ids["ad"], [1, -1, 2])
    np.testing.assert_array_equal(examples.sequences["clicks"].lengths, [3, 0])
    np.testing.assert_array_equal(examples.labels, [[1, 0], [np.nan, 1]])
    np.testing.assert_array_equal(examples.weight, [1, 1])
    np.testing.assert_array_equal(examples.user, [-1, -1])
    np.testing.assert_array_equal(examples.example_id, [0, 1])
    np.testing.assert_array_equal(examples.time_s, [-1, -1])
    assert np.isnan(examples.true_probability).all() and (examples.domain == 0).all()


def test_domains_may_be_numbers(tmp_path):
    path = _write(tmp_path / "a.parquet")

    def to_number(table):
        places = [TAUGHT.domains.index(name) for name in table["domain"].to_pylist()]
        return table.set_column(table.column_names.index("domain"), "domain", pa.array(places))

    expected = ParquetSource((path,), TAUGHT).read(np.arange(NUM)).domain
    np.testing.assert_array_equal(
        ParquetSource((_rewrite(path, to_number),), TAUGHT).read(np.arange(NUM)).domain, expected
    )


@pytest.mark.parametrize("epoch", [0, 1])
def test_shuffle_visits_every_row_once_and_each_row_group_for_a_short_time(tmp_path, epoch):
    source = ParquetSource(
        (_write(tmp_path / "a.parquet"), _write(tmp_path / "b.parquet", random_examples(NUM, 1))), TAUGHT
    )
    order = source.shuffled_indices(range(0, 2 * NUM), 5, epoch)
    assert sorted(order) == list(range(2 * NUM)) and order.tolist() != sorted(order)
    pieces = [source.shuffled_indices(range(k, min(k + 11, 2 * NUM)), 5, epoch) for k in range(0, 2 * NUM, 11)]
    np.testing.assert_array_equal(np.concatenate(pieces), order)
    group = np.searchsorted(source._starts, order, side="right")
    spans = [np.flatnonzero(group == g) for g in np.unique(group)]
    assert max(s[-1] - s[0] for s in spans) < 7 * parquet.SHUFFLE_GROUPS
    assert min(s[-1] - s[0] for s in spans if len(s) == 7) >= 7  # mixed with the others of its window


def test_shuffled_epochs_decode_each_row_group_once(tmp_path, monkeypatch):
    source = ParquetSource((_write(tmp_path / "a.parquet", random_examples(300)),), TAUGHT)
    decoded = []
    decode = parquet.decode
    monkeypatch.setattr(parquet, "decode", lambda *args: decoded.append(int(args[2].numbers[0])) or decode(*args))
    loader = Loader(source, BatchConfig(examples=8), seed=0, num_epochs=1)
    users = np.concatenate([c.user[c.weight > 0] for _, c in loader])
    assert sorted(users) == list(range(300))
    assert sorted(decoded) == list(range(0, 300, 7))


def test_epochs_and_seeds_differ(tmp_path):
    source = ParquetSource((_write(tmp_path / "a.parquet"),), TAUGHT)
    orders = {tuple(source.shuffled_indices(range(NUM), seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_config_reads_folders_and_single_files(tmp_path):
    _write(tmp_path / "train" / "0.parquet")
    _write(tmp_path / "train" / "1.parquet", random_examples(NUM, 1))
    _write(tmp_path / "test.parquet", random_examples(NUM, 2))
    splits = ParquetConfig(path=str(tmp_path), columns=TAUGHT).build()
    assert (len(splits.train), len(splits.test), splits.valid) == (2 * NUM, NUM, None)
    _write(tmp_path / "valid.parquet", random_examples(NUM, 3))
    valid = ParquetConfig(path=str(tmp_path), columns=TAUGHT).build().valid
    assert valid is not None and len(valid) == NUM


@pytest.mark.parametrize(
    "change, message",
    [
        (_set("ad", 9, 50), "row 9: 'ad' is 50, outside table 'ad' of 50 rows"),
        (_set("ad", 9, -2), "row 9: 'ad' is -2, outside table 'ad'"),
        (_set("topics", 10, [0, 7]), "row 10: 'topics' is 7, outside table 'topic' of 7 rows"),
        (_set("topics", 10, [0, 1, 2, 3]), "row 10: 'topics' has 4 ids; raise its max_ids"),
        (_set("clicks.ad", 11, [99]), "row 11: 'clicks.ad' has 1 events and 'clicks.age_s'"),
        (_set("views.age_s", 12, [5, -1, 0]), "row 12: 'views.age_s' has -1; an event's age is 0 to"),
        (_set("views.age_s", 12, [5, None, 0]), "row 12: 'views.age_s' has None"),
        (_set("price", 13, float("nan")), "row 13: 'price' is nan; replace it"),
        (_set("price", 13, None), "row 13: 'price' is nan"),
        (_set("hour", 14, float("inf")), "row 14: 'hour' is inf"),
        (_set("image", 15, [0.0, float("nan"), 0.0, 0.0]), "row 15: 'image' is nan"),
        (_set("label.click", 16, 1.5), "row 16: 'label.click' is 1.5; it must be from 0 to 1, or null"),
        (_set("weight", 17, -1.0), "row 17: 'weight' is -1; it must be 0 or more"),
        (_set("domain", 18, "search"), "row 18: 'domain' is search; the schema has feed, reels, stories"),
    ],
)
def test_a_bad_value_is_named_with_its_row(tmp_path, change, message):
    path = _rewrite(_write(tmp_path / "a.parquet"), change)
    with pytest.raises(DataError, match=re.escape(f"{path}, {message}")) as error:
        ParquetSource((path,), TAUGHT).read(np.arange(NUM))
    assert "\n" not in str(error.value)


def test_an_event_outside_its_table_is_named_with_its_row(tmp_path):
    examples = random_examples(NUM)
    first = int(examples.sequences["clicks"].lengths[:20].sum())
    row = 20 + int(np.argmax(examples.sequences["clicks"].lengths[20:] > 0))
    examples.sequences["clicks"].ids["topic"][first] = 7
    path = _write(tmp_path / "a.parquet", examples)
    with pytest.raises(DataError, match=f"row {row}: 'clicks.topic' is 7, outside table 'topic' of 7 rows"):
        ParquetSource((path,), TAUGHT).read(np.arange(NUM))


def test_a_vector_of_another_length_is_named(tmp_path):
    def shorten(table):
        values = table["image"].to_pylist()
        values[3] = values[3][:2]
        return table.set_column(table.column_names.index("image"), "image", pa.array(values, pa.list_(pa.float32())))

    path = _rewrite(_write(tmp_path / "a.parquet"), shorten)
    with pytest.raises(DataError, match="row 3: 'image' has 2 numbers; the schema says dim=4"):
        ParquetSource((path,), TAUGHT).read(np.arange(NUM))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop_columns("clicks.age_s"), "has no column 'clicks.age_s'"),
        (lambda t: t.drop_columns("domain"), "has no column 'domain'"),
        (lambda t: t.slice(0, 0), "holds no rows"),
        (
            lambda t: t.set_column(0, "ad", pa.array(["x"] * len(t))),
            "column 'ad' is string; it must be an integer",
        ),
        (
            lambda t: t.set_column(1, "topics", pa.array([1] * len(t))),
            "column 'topics' is int64; it must be a list of integers",
        ),
    ],
)
def test_files_that_do_not_fit_the_schema_are_refused_at_once(tmp_path, change, message):
    path = _rewrite(_write(tmp_path / "a.parquet"), change)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        ParquetSource((path,), TAUGHT)


def test_files_that_are_not_there_or_not_parquet_are_refused(tmp_path):
    def build(path):
        return ParquetConfig(path=str(path), columns=TAUGHT).build()

    with pytest.raises(DataError, match="data.path is not set: pass data.path="):
        build("")
    with pytest.raises(DataError, match="nowhere does not exist: set data.path"):
        build(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has neither train.parquet nor .parquet files in train/"):
        build(tmp_path)
    (tmp_path / "train.parquet").write_text("hello")
    _write(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="train.parquet is not a Parquet file"):
        build(tmp_path)


@pytest.mark.parametrize(
    "value, message",
    [(0.0, "every 'conversion' label of the training part is 0"), (np.nan, "no training row has a label 'conversion'")],
)
def test_training_labels_of_one_class_are_refused(tmp_path, value, message):
    examples = random_examples(NUM)
    labels = examples.labels.copy()
    labels[:, 1] = value
    _write(tmp_path / "train.parquet", dataclasses.replace(examples, labels=labels))
    _write(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=message):
        ParquetConfig(path=str(tmp_path), columns=TAUGHT).build()
