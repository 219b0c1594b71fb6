"""Never silently wrong: order in time, scale, weights, slips in names; and rows that may be bad count nowhere."""

import dataclasses
import pathlib
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.checks import is_slip
from gem_jax.data.columns import MemorySource, empty_examples, join_examples, take_examples
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig, pack
from gem_jax.data.parquet import ParquetConfig, ParquetSource
from gem_jax.data.source import DataError, DataWarning
from gem_jax.evaluation.evaluator import Evaluator
from tests.gem_jax.data.random_examples import TAUGHT, assert_same_examples, events_of, random_examples
from tests.gem_jax.data.test_parquet import _rewrite, _set, _write

NUM = 20


def _some(path: pathlib.Path, *changes, examples: Examples | None = None) -> pathlib.Path:
    _write(path, random_examples(NUM) if examples is None else examples)
    for change in changes:
        _rewrite(path, change)
    return path


def _rename(name: str, other: str):
    return lambda table: table.rename_columns([other if column == name else column for column in table.column_names])


def _refused(path: pathlib.Path, **options) -> str:
    with pytest.raises(DataError) as error:
        source = ParquetSource((path,), TAUGHT, **options)
        source.read(np.arange(len(source)))
    assert "\n" not in str(error.value)
    return str(error.value)


def _newest_first(table: pa.Table) -> pa.Table:
    for name in ("clicks.ad", "clicks.topic", "clicks.age_s", "views.ad", "views.age_s"):
        values = [row[::-1] for row in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
    return table


def test_histories_that_are_newest_first_are_refused_or_sorted(tmp_path):
    path = _some(tmp_path / "a.parquet", _newest_first)
    lengths = random_examples(NUM).sequences["clicks"].lengths
    row = int(np.argmax(lengths > 1))
    assert re.search(
        rf"a.parquet, row {row}: 'clicks.age_s' grows from \d+ to \d+ along the list; histories are oldest first, so reverse",
        _refused(path),
    )
    found = ParquetSource((path,), TAUGHT, sort_histories=True).read(np.arange(NUM))
    assert_same_examples(found, random_examples(NUM))  # whose ages differ, so there is one order alone


def test_sorting_keeps_the_order_of_events_of_one_age(tmp_path):
    ages = [[5, 5, 9, 5, 0], [3], [], [1, 2], *[[]] * (NUM - 4)]
    ads = [[1, 2, 3, 4, 5], [6], [], [7, 8], *[[]] * (NUM - 4)]
    path = tmp_path / "a.parquet"
    _some(
        path,
        *(_column(f"views.{name}", pa.array(v, pa.list_(pa.int32()))) for name, v in (("ad", ads), ("age_s", ages))),
    )
    found = ParquetSource((path,), TAUGHT, sort_histories=True).read(np.arange(NUM)).sequences["views"]
    assert events_of(found, 0)["ad"].tolist() == [3, 1, 2, 4, 5] and events_of(found, 0)["age_s"].tolist() == [
        9,
        5,
        5,
        5,
        0,
    ]
    assert events_of(found, 1)["ad"].tolist() == [6] and events_of(found, 3)["ad"].tolist() == [8, 7]
    assert "row 0: 'views.age_s' grows from 5 to 9" in _refused(path)


def test_ages_may_stand_still_and_start_anew_with_each_row(tmp_path):
    ages = pa.array([[7, 7, 0], [9, 9], *[[]] * (NUM - 2)], pa.list_(pa.int64()))
    ads = pa.array([[1, 2, 3], [4, 5], *[[]] * (NUM - 2)], pa.list_(pa.int64()))
    path = _some(tmp_path / "a.parquet", _column("views.age_s", ages), _column("views.ad", ads))
    assert ParquetSource((path,), TAUGHT).read(np.arange(NUM)).sequences["views"].age_s.tolist() == [7, 7, 0, 9, 9]


@pytest.mark.parametrize("age", [946_684_800, 1_700_000_000, 1_700_000_000_000])
def test_unix_times_are_no_ages(tmp_path, age):
    def change(table):
        table = _column("views.ad", pa.array([[1]] * NUM))(table)
        return _column("views.age_s", pa.array([[0]] * 9 + [[age]] + [[0]] * 10))(table)

    message = f"row 9: 'views.age_s' has {age}, which looks like a Unix time; an event's age is 0 to 946080000 seconds"
    assert message in _refused(_some(tmp_path / "a.parquet", change))


def _column(name: str, values: pa.Array):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    "change, message",
    [
        (_set("price", 3, 1e38), "row 3: 'price' is 1e+38, and a number beyond 1e+18 is taken for damage; scale or correct it"),
        (_set("price", 3, -1.9e37), "row 3: 'price' is -1.9e+37, and a number beyond 1e+18"),
        (_set("image", 4, [0.0, 2e18, 0.0, 0.0]), "row 4: 'image' is 2e+18, and a number beyond 1e+18"),
        (_set("training.margin", 5, 1e30), "row 5: 'training.margin' is 1e+30, and a number beyond 1e+18"),
        (_set("training.teacher", 5, [0.0, float("-inf")]), "row 5: 'training.teacher' is infinite"),
        (_set("weight", 6, 1e38), "row 6: 'weight' is 1e+38, and a number beyond 1e+09 is taken for damage"),
        (_set("weight", 6, float("inf")), "row 6: 'weight' is inf; replace it by a number"),
        (_set("weight", 6, None), "row 6: 'weight' is nan; replace it by a number"),
        (_set("true_probability.click", 7, 2.0), "row 7: 'true_probability.click' is 2; it must be from 0 to 1"),
        (_set("label.click", 8, 1e38), "row 8: 'label.click' is 1e+38; it must be from 0 to 1"),
        (_column("price", pa.array([0.0] * 9 + [1e300] + [0.0] * 10)), "row 9: 'price' is 1e+300, and a number beyond"),
        (_column("label.click", pa.array([0.0] * 9 + [1e300] + [0.0] * 10)), "row 9: 'label.click' is inf; it must be"),
    ],
)  # fmt: skip
def test_magnitudes_that_no_data_have_are_refused(tmp_path, change, message):
    path = _some(tmp_path / "a.parquet", change)
    assert f"{path}, {message}" in _refused(path)


def test_columns_far_from_order_one_are_warned_of_once(tmp_path):
    path = _some(
        tmp_path / "a.parquet", _set("price", 3, -4e7), _set("price", 15, 5e7), _set("image", 15, [0.0, 2e4, 0.0, 0.0])
    )
    source = ParquetSource((path,), TAUGHT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            source.read(np.arange(NUM))
    assert [str(w.message) for w in caught] == [
        f"{path}, row group {group}: '{name}' goes up to {size} in size, and models expect numbers of order one; scale it, "
        "e.g. by python -m gem_jax.prepare"
        for group, name, size in ((0, "price", "4e+07"), (2, "image", "20000"))
    ]
    assert all(w.category is DataWarning for w in caught)


def _parts(folder: pathlib.Path, **changes) -> ParquetConfig:
    """Training and test parts of different ids, each perhaps changed."""
    for seed, part in enumerate(("train", "test")):
        _some(folder / f"{part}.parquet", *changes.get(part, ()), examples=random_examples(NUM, seed))
    return ParquetConfig(path=str(folder), columns=TAUGHT)


@pytest.mark.parametrize("part", ["train", "test"])
def test_weights_that_are_all_zero_are_refused_before_the_run(tmp_path, part):
    config = _parts(tmp_path, **{part: [_column("weight", pa.array([0] * NUM))]})
    with pytest.raises(DataError, match=rf"{part}.parquet: every 'weight' is 0, so that nothing would count; give"):
        config.build()
    _parts(tmp_path, **{part: [_column("weight", pa.array([0] * (NUM - 1) + [1]))]}).build()
    _parts(tmp_path, **{part: [lambda table: table.drop_columns("weight")]}).build()


def test_a_bad_value_of_the_test_part_shows_before_the_run(tmp_path):
    with pytest.raises(DataError, match="test.parquet, row 3: 'ad' is 50, outside table"):
        _parts(tmp_path, test=[_set("ad", 3, 50)]).build()


def test_every_file_of_a_few_is_looked_at_before_the_run(tmp_path):
    for k in range(3):
        _some(tmp_path / f"{k}.parquet", *([_set("ad", 1, 50)] if k == 2 else []), examples=random_examples(NUM, k))
    source = ParquetSource((tmp_path,), TAUGHT)
    with pytest.raises(DataError, match="2.parquet, row 1: 'ad' is 50"):
        source.check()


@pytest.mark.parametrize(
    "name, slip",
    [("weight", "Weight"), ("weight", "wieght"), ("weight", "weights"), ("user", "USER"), ("user", "users"),
     ("example_id", "exampleId"), ("time_s", "times"), ("true_probability.click", "true_probability.clik"),
     ("label.click", "Label.click")],
)  # fmt: skip
def test_slips_in_names_are_refused(tmp_path, name, slip):
    path = _some(tmp_path / "a.parquet", _rename(name, slip))
    if name.startswith("label"):
        assert f"has no column '{name}'; rename '{slip}', or take it out of the schema" in _refused(path)
    assert f"has a column '{slip}' and no '{name}'; rename it if that is what it means" in _refused(
        path, for_training=False
    )


def test_slips_in_the_names_of_folders_are_refused(tmp_path):
    path = tmp_path / "Weight=3" / "a.parquet"
    _some(path, lambda table: table.drop_columns("weight"))
    assert "has a column 'Weight' and no 'weight'" in _refused(tmp_path)


def test_other_columns_are_ignored(tmp_path):
    others = ("height", "time", "user_id", "used", "timestamp", "uid", "domain_name", "labels", "true_probability.like")
    path = _some(
        tmp_path / "a.parquet", lambda t: t.drop_columns(["user", "weight", "time_s", "true_probability.click"])
    )
    for name in (*others, "Price"):
        _rewrite(path, lambda table, name=name: table.append_column(name, pa.array(["x"] * NUM)))
    assert (ParquetSource((path,), TAUGHT).read(np.arange(NUM)).weight == 1).all()


def test_what_is_a_slip():
    assert is_slip("Weight", "weight") and is_slip("Label.Click", "label.click") and not is_slip("weight", "weight")
    assert not is_slip("weight", "label.weight") and not is_slip("true_probability.love", "true_probability.like")


def _same_but(examples: Examples, bad: np.ndarray, schema=TAUGHT) -> Examples:
    """The examples, with the rows `bad` empty."""
    order = np.where(bad, len(examples), np.arange(len(examples)))
    return take_examples(join_examples([examples, empty_examples(schema, 1)]), order)


BAD = {
    1: _set("ad", 1, 50),
    2: _set("price", 2, float("nan")),
    3: _set("image", 3, [0.0, float("inf"), 0.0, 0.0]),
    5: _set("topics", 5, [1, 2, 3, 4]),
    6: _set("views.age_s", 6, [0] * 41),
    8: _set("label.click", 8, 3.0),
    9: _set("domain", 9, "search"),
    11: _set("weight", 11, -1.0),
    12: _set("example_id", 12, None),
    15: _set("time_s", 15, -7),
    16: _set("training.margin", 16, float("inf")),
}


def test_bad_rows_become_empty_examples_and_no_other_changes(tmp_path):
    path = _some(tmp_path / "a.parquet", *BAD.values())
    bad = np.isin(np.arange(NUM), list(BAD))
    source = ParquetSource((path,), TAUGHT, max_bad_rows=len(BAD))
    with pytest.warns(DataWarning) as caught:
        found = source.read(np.arange(NUM))
    assert len(source) == NUM and source.bad_rows == len(BAD)
    assert_same_examples(found, _same_but(random_examples(NUM), bad))
    assert [str(w.message).split(";")[0] for w in caught] == [
        f"{path}, row group {k}: {count} of {size} rows are bad and count nowhere"
        for k, count, size in ((0, 5, 7), (1, 4, 7), (2, 2, 6))
    ]
    assert f"; among them: {path}, row 2: 'price' is nan; replace it" in str(caught[0].message)
    picked = np.random.default_rng(0).integers(0, NUM, 100)
    assert_same_examples(source.read(picked), take_examples(found, picked))  # and no second warning
    source._cache.clear()
    source.read(np.arange(NUM))
    assert source.bad_rows == len(BAD)
    assert f"{path}, row 2: 'price' is nan" in _refused(path)


def test_rows_that_break_several_rules_count_once_and_all_rows_may_be_bad(tmp_path):
    path = _some(tmp_path / "a.parquet", _set("ad", 1, 50), _set("price", 1, None), _set("label.click", 1, -1.0))
    with pytest.warns(DataWarning, match="row group 0: 1 of 7 rows"):
        source = ParquetSource((path,), TAUGHT, max_bad_rows=5)
        assert source.read(np.array([1])).weight[0] == 0 and source.bad_rows == 1
    path = _some(tmp_path / "b.parquet", _column("price", pa.nulls(NUM, pa.float32())))
    with pytest.warns(DataWarning):
        found = ParquetSource((path,), TAUGHT, max_bad_rows=NUM).read(np.arange(NUM))
    assert_same_examples(found, empty_examples(TAUGHT, NUM))


def test_more_bad_rows_than_allowed_end_the_reading_each_time(tmp_path):
    path = _some(tmp_path / "a.parquet", *BAD.values())
    source = ParquetSource((path,), TAUGHT, part="test", max_bad_rows=8)
    with pytest.warns(DataWarning):
        source.read(np.arange(7))
    for _ in range(2):
        message = f"9 bad rows in the part 'test' are more than data.max_bad_rows=8; among them: {path}, row "
        with pytest.raises(DataError, match=re.escape(message)):
            source.read(np.array([8]))


def test_empty_examples_are_as_the_empty_slots_of_a_batch():
    tokens = {"clicks": 48, "views": 16}
    batch, columns = pack(empty_examples(TAUGHT, 2), TAUGHT, 2, tokens)
    expected, expected_columns = pack(empty_examples(TAUGHT), TAUGHT, 2, tokens)
    for found, wanted in ((batch, expected), (columns, expected_columns)):
        for field in dataclasses.fields(found):
            if field.name in ("num_examples", "position"):  # the stream's places are used up
                assert getattr(found, field.name) == 2
            elif field.name == "slots":  # they come out again, in their order
                np.testing.assert_array_equal(found.slots, [0, 1])
            elif field.name == "sequences":
                for name in tokens:
                    for part in ("age_s", "offsets", "lengths"):
                        np.testing.assert_array_equal(
                            getattr(found.sequences[name], part), getattr(wanted.sequences[name], part)
                        )
            else:
                np.testing.assert_equal(getattr(found, field.name), getattr(wanted, field.name))


@pytest.mark.filterwarnings("ignore::gem_jax.data.source.DataWarning")
def test_bad_rows_count_in_no_batch_and_no_metric(tmp_path):
    path = _some(tmp_path / "a.parquet", *BAD.values())
    skipping = ParquetSource((path,), TAUGHT, max_bad_rows=len(BAD))
    good = take_examples(random_examples(NUM), np.flatnonzero(~np.isin(np.arange(NUM), list(BAD))))
    results = []
    for source in (skipping, MemorySource(schema=TAUGHT, examples=good)):
        evaluator = Evaluator(TAUGHT)
        seen, ids = 0, []
        for _, host in Loader(source, BatchConfig(examples=8), seed=None, num_epochs=1):
            logits = np.stack([np.sin(host.example_id), np.cos(host.example_id)], axis=1).astype(np.float32)
            evaluator.update(logits, host)
            seen, ids = seen + host.num_examples, [*ids, *host.example_id[host.weight > 0]]
        assert seen == len(source) and sorted(ids) == sorted(good.example_id)
        results.append(evaluator.result())
    assert results[0] == results[1]


def test_config_skips_bad_rows_up_to_its_bound(tmp_path):
    config = _parts(tmp_path, train=[_set("ad", 3, 50)], test=[_set("price", 4, None), _set("price", 5, None)])
    with pytest.raises(DataError, match="row 3: 'ad' is 50"):
        config.build()
    with pytest.warns(DataWarning):
        splits = dataclasses.replace(config, on_bad_row="skip", max_bad_rows=2).build()
    assert isinstance(splits.train, ParquetSource) and isinstance(splits.test, ParquetSource)
    assert (splits.train.bad_rows, splits.test.bad_rows) == (1, 2)
    with pytest.warns(DataWarning), pytest.raises(DataError, match="2 bad rows in the part 'test' are more than"):
        dataclasses.replace(config, on_bad_row="skip", max_bad_rows=1).build()
    with pytest.raises(DataError, match="data.max_bad_rows is -1; it must be 0 or more"):
        dataclasses.replace(config, max_bad_rows=-1)


def test_config_sorts_histories(tmp_path):
    config = _parts(tmp_path, train=[_newest_first])
    with pytest.raises(DataError, match="grows from .* or set data.sort_histories=True"):
        config.build()
    train = dataclasses.replace(config, sort_histories=True).build().train
    assert_same_examples(train.read(np.arange(NUM)), random_examples(NUM))


@pytest.mark.parametrize(
    "change", [lambda t: t.drop_columns("user"), _column("user", pa.nulls(NUM)), _column("user", pa.array([-1] * NUM))]
)
def test_without_users_there_is_no_auc_by_user(tmp_path, change):
    path = _some(tmp_path / "a.parquet", change)
    evaluator = Evaluator(TAUGHT)
    for _, host in Loader(ParquetSource((path,), TAUGHT), BatchConfig(examples=8), seed=None, num_epochs=1):
        assert (host.user == -1).all()
        evaluator.update(np.arange(16, dtype=np.float32).reshape(8, 2) % 5, host)
    of_click = evaluator.result()["click"]
    assert of_click["auc"] is not None and of_click["gauc"] is None


def test_parquet_of_a_wrong_label_beyond_the_first_groups_says_so_when_read(tmp_path):
    """Labels are looked at before a run only until both classes are seen."""
    path = tmp_path / "train.parquet"
    _some(path, _set("label.click", 75, 7.0), examples=random_examples(80))
    _some(tmp_path / "test.parquet", examples=random_examples(NUM, 1))
    assert pq.read_metadata(path).num_row_groups == 12
    train = ParquetConfig(path=str(tmp_path), columns=TAUGHT).build().train
    with pytest.raises(DataError, match="train.parquet, row 75: 'label.click' is 7"):
        train.read(np.arange(80))
