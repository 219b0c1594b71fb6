"""Parquet's ids, times, user, soft labels and columns for training: what is read, what is optional, what is refused."""

import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gem_jax.data.columns import MemorySource, take_examples
from gem_jax.data.parquet import ParquetConfig, ParquetSource, write_parquet
from gem_jax.data.schema import Categorical, Dense, Table
from gem_jax.data.source import DataError
from gem_jax.data.synthetic import SyntheticConfig
from tests.gem_jax.data.random_examples import SCHEMA, TAUGHT, assert_same_examples, random_examples
from tests.gem_jax.data.test_parquet import _rewrite, _set, _write

NUM = 60


def _drop(*names: str):
    return lambda table: table.drop_columns(list(names))


def _column(name: str, values: pa.Array | list):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def test_scoring_needs_no_labels_and_no_training_columns(tmp_path):
    path = _rewrite(_write(tmp_path / "a.parquet"), _drop("label.click", "training.teacher", "training.margin"))
    with pytest.raises(DataError, match="has no column 'label.click'"):
        ParquetSource((path,), TAUGHT)
    examples = ParquetSource((path,), TAUGHT, for_training=False).read(np.arange(NUM))
    expected = random_examples(NUM)
    assert np.isnan(examples.labels[:, 0]).all()
    np.testing.assert_array_equal(examples.labels[:, 1], expected.labels[:, 1])
    for name, dim in (("teacher", 2), ("margin", 1)):
        assert examples.training[name].shape == (NUM, dim) and np.isnan(examples.training[name]).all()
    with pytest.raises(DataError, match="has no column 'training.teacher'"):
        ParquetSource((path,), TAUGHT.replace(tasks=TAUGHT.tasks[1:]))


def test_a_schema_without_training_columns_passes_over_them(tmp_path):
    assert ParquetSource((_write(tmp_path / "a.parquet"),), SCHEMA).read(np.arange(3)).training == {}


def test_an_unknown_teacher_is_nan_in_every_spelling(tmp_path):
    path = _write(tmp_path / "a.parquet")
    values = [[1.0, 2.0], None, [None, 4.0], [float("nan"), 5.0], *[[0.0, 0.0]] * (NUM - 4)]
    change = _column("training.teacher", pa.array(values, pa.large_list(pa.float64())))
    found = ParquetSource((_rewrite(path, change),), TAUGHT).read(np.arange(4)).training["teacher"]
    nan = np.nan
    np.testing.assert_array_equal(found, np.array([[1, 2], [nan, nan], [nan, 4], [nan, 5]], np.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        (_set("example_id", 8, -3), ", row 8: 'example_id' is -3; it must be 0 or more"),
        (_set("example_id", 9, None), ", row 9: 'example_id' is null; give every example one"),
        (_set("time_s", 10, -5), ", row 10: 'time_s' is -5; it must be 0 or more, or null"),
        (_set("true_probability.click", 11, 2.0), ", row 11: 'true_probability.click' is 2; it must be from 0 to 1"),
        (_set("label.click", 12, -0.1), ", row 12: 'label.click' is -0.1; it must be from 0 to 1, or null"),
        (_set("training.margin", 13, float("inf")), ", row 13: 'training.margin' is infinite"),
        (
            _column("training.teacher", pa.array([[1.0, 2.0]] * 20 + [[1.0]] + [None] * (NUM - 21))),
            ", row 20: 'training.teacher' has 1 numbers; the schema says dim=2",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_row(tmp_path, change, message):
    path = _rewrite(_write(tmp_path / "a.parquet"), change)
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")) as error:
        source = ParquetSource((path,), TAUGHT)
        source.read(np.arange(NUM))
    assert "\n" not in str(error.value)


def test_an_id_that_stands_twice_is_named_with_its_row(tmp_path):
    ids = random_examples(NUM).example_id
    inner = [
        k for k in range(7, 14) if ids[7:14].min() < ids[k] < ids[7:14].max()
    ]  # the group's bounds stay as they are
    path = _rewrite(_write(tmp_path / "a.parquet"), _set("example_id", inner[-1], int(ids[inner[0]])))
    source = ParquetSource((path,), SCHEMA)
    with pytest.raises(DataError, match=f"row {inner[-1]}: 'example_id' is {ids[inner[0]]} again"):
        source.read(np.arange(NUM))


def test_ids_that_start_anew_are_refused_at_once(tmp_path):
    a, b = _write(tmp_path / "a.parquet"), _write(tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b.parquet, row group \d+ and .*a.parquet, row group \d+ both have 'example_id'"
    ):
        ParquetSource((a, b), SCHEMA)
    bare = _rewrite(b, _drop("example_id"))
    with pytest.raises(DataError, match="b.parquet has no column 'example_id' and .*a.parquet has one"):
        ParquetSource((a, bare), SCHEMA)
    for part in ("train", "test"):
        _write(tmp_path / f"{part}.parquet")
    with pytest.raises(DataError, match="both have 'example_id'"):
        ParquetConfig(path=str(tmp_path), columns=SCHEMA).build()


def test_more_rows_than_ids_between_the_bounds_are_refused(tmp_path):
    """Bounds 0 .. 12 and 1 .. 11 share no end, but 22 rows do not fit into 13 numbers."""
    for name, first, last in (("a", 0, 12), ("b", 1, 11)):
        examples = random_examples(11)
        examples.example_id[:] = np.concatenate([[first], np.arange(first + 2, first + 11), [last]])
        _write(tmp_path / f"{name}.parquet", examples, rows_per_group=11)
    with pytest.raises(DataError, match="shares values of 'example_id' with others: 22 rows have ids from 0 to 12"):
        ParquetSource((tmp_path / "a.parquet", tmp_path / "b.parquet"), SCHEMA)


def test_a_column_that_stands_twice_is_named(tmp_path):
    path = _rewrite(_write(tmp_path / "a.parquet"), lambda t: t.append_column("price", t["price"]))
    with pytest.raises(DataError, match="has 2 columns 'price'; keep one"):
        ParquetSource((path,), SCHEMA)


WITH_USER = SCHEMA.replace(
    tables=(*SCHEMA.tables, Table(name="user", rows=NUM)),
    categoricals=(Categorical(name="user", table="user", role="user"), *SCHEMA.categoricals),
)


def test_a_feature_user_is_the_users_id(tmp_path):
    """One column is both, and a null one is unknown in both."""
    examples = random_examples(NUM)
    examples.user[5] = -1
    examples.ids["user"] = examples.user[:, None].astype(np.int32)
    examples.training.clear()
    path = tmp_path / "a.parquet"
    source = MemorySource(schema=WITH_USER, examples=examples)
    write_parquet(path, source, rows_per_group=7)
    assert pq.read_schema(path).names.count("user") == 1
    assert_same_examples(ParquetSource((path,), WITH_USER).read(np.arange(NUM)), examples)
    nulled = ParquetSource((_rewrite(path, _set("user", 9, None)),), WITH_USER).read(np.array([9]))
    assert nulled.user[0] == nulled.ids["user"][0, 0] == -1
    with pytest.raises(DataError, match="has no column 'user'"):
        ParquetSource((_rewrite(path, _drop("user")),), WITH_USER)
    examples.user[3] += 1
    with pytest.raises(DataError, match="the schema's feature 'user' is the user's id, but its ids differ"):
        write_parquet(path, source)


def test_a_stream_is_read_back_equal(tmp_path):
    source = SyntheticConfig(train_examples=50, test_examples=1, active_users=60, active_ads=72).build().train
    write_parquet(tmp_path / "a.parquet", source, rows_per_group=13)
    expected = source.read(np.arange(50))
    assert_same_examples(ParquetSource((tmp_path / "a.parquet",), source.schema).read(np.arange(50)), expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 40), rows=st.integers(1, 40), seed=st.integers(0, 10**6), split=st.integers(0, 40))
def test_whatever_is_written_is_read_back_equal(tmp_path, n, rows, seed, split):
    examples = random_examples(n, seed)
    parts = [part for part in np.split(np.arange(n), [min(split, n)]) if len(part)]
    files = tuple(
        _write(tmp_path / f"{k}.parquet", take_examples(examples, part), rows) for k, part in enumerate(parts)
    )
    assert_same_examples(ParquetSource(files, TAUGHT).read(np.arange(n)), examples)


def test_weight_is_never_a_feature_in_silence():
    with pytest.raises(ValueError, match="feature 'weight' has the name of a column that readers keep"):
        SCHEMA.replace(dense=(Dense(name="weight", role="ad"),))


def test_nothing_to_write_is_said(tmp_path):
    source = MemorySource(schema=SCHEMA, examples=random_examples(3))
    with pytest.raises(DataError, match="there are no examples to write to .*a.parquet"):
        write_parquet(tmp_path / "a.parquet", source, np.zeros(0, np.int64))
    assert not list(tmp_path.iterdir())


def _damage(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)


def test_a_damaged_page_is_named_with_its_row_group(tmp_path):
    path = _write(tmp_path / "a.parquet")
    source = ParquetSource((path,), TAUGHT)
    _damage(path)
    with pytest.raises(
        DataError, match="a.parquet, row group 0, column 'ad' cannot be read: .*; write the file again"
    ) as error:
        source.read(np.arange(3))
    assert "\n" not in str(error.value)


def test_files_that_change_while_they_are_read_are_named(tmp_path):
    path = _write(tmp_path / "a.parquet")
    source = ParquetSource((path,), TAUGHT)
    _write(path, random_examples(20))
    with pytest.raises(DataError, match="a.parquet changed while it was being read"):
        source.read(np.array([NUM - 1]))
    path.unlink()
    with pytest.raises(DataError, match="a.parquet cannot be read: .*; see that it is there"):
        source.read(np.array([0]))
