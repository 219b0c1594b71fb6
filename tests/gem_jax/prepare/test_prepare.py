"""A log is prepared as a plain recomputation says, whatever holds its rows; and raw rows are scored with the same numbers."""

import dataclasses
import filecmp
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax.data.batch import Examples
from gem_jax.data.source import DataConfig, DataError, Source
from gem_jax.prepare import Preparation, Prepared, PreparedConfig, prepare
from gem_jax.prepare import log as log_module
from gem_jax.prepare.encoder import Encoder
from tests.gem_jax.data.random_examples import assert_same_examples, events_of
from tests.gem_jax.prepare.logs import Reference, Rows, random_log, random_views, table

QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = dict(label=("click", "buy"), time="ts", user="uid", item="ad_id", domain="channel")
SIZES: dict[str, Any] = dict(min_count=4, max_len=7, valid_share=0.15, test_share=0.2)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Many batches of few rows."""
    monkeypatch.setattr(log_module, "BATCH_ROWS", 64)
    monkeypatch.setattr("gem_jax.prepare.preparation.BATCH_ROWS", 64)


def make(log: Any, out: pathlib.Path, views: Any = None, **changes: Any) -> Prepared:
    events = {} if views is None else {"views": views}
    return prepare(log, out=out, events=events, console=QUIET, **(SETTINGS | SIZES | changes))


def everything(source: Source) -> Examples:
    return source.read(np.arange(len(source)))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return random_log()


@pytest.fixture(scope="module")
def views() -> Rows:
    return random_views()


def test_examples_are_what_a_plain_recomputation_says(tmp_path, rows, views):
    splits = make(table(rows), tmp_path / "out", table(views)).config.build()
    reference = Reference(rows, views, min_count=4, max_len=7, shares=(0.15, 0.2))
    names = [d.name for d in splits.schema.dense]
    assert names == ["price", "temperature", "price_missing"]
    assert splits.schema.domains[0] == "other" and "a_b" in splits.schema.domains
    users: dict[str, int] = {}
    seen = []
    for part in ("train", "valid", "test"):
        source = getattr(splits, part)
        examples = everything(source)
        assert (np.diff(examples.time_s) >= 0).all()
        for k in range(len(source)):
            row = rows[int(examples.example_id[k])]
            seen.append(int(examples.example_id[k]))
            assert part == reference.part(row)
            assert examples.time_s[k] == row["ts"]
            assert examples.ids["ad_id"][k, 0] == reference.id_of("ad_id", row["ad_id"])
            assert examples.ids["brand"][k, 0] == reference.id_of("brand", row["brand"])
            assert examples.domain[k] == reference.ids["channel"][row["channel"]]
            for name, value in reference.dense(row).items():
                assert examples.dense[k, names.index(name)] == pytest.approx(value, rel=1e-6, abs=1e-6)
            expected = [np.nan if row[name] is None else row[name] for name in ("click", "buy")]
            np.testing.assert_array_equal(examples.labels[k], expected)
            assert (examples.user[k] == -1) == (row["uid"] is None)
            if row["uid"] is not None:
                assert users.setdefault(row["uid"], int(examples.user[k])) == examples.user[k]
            past, viewed = (events_of(examples.sequences[name], k) for name in ("past", "views"))
            columns = [past[name].tolist() for name in ("age_s", "ad_id", "brand", "click", "buy")]
            assert list(zip(*columns, strict=True)) == reference.past(row)
            columns = [viewed[name].tolist() for name in ("age_s", "ad_id", "page")]
            assert list(zip(*columns, strict=True)) == reference.viewed(row)
    assert sorted(seen) == list(range(len(rows)))
    assert len(set(users.values())) == len(users)
    assert splits.schema.table("ad_id").rows == len(reference.ids["ad_id"]) + 1


def test_the_random_log_has_what_is_awkward(rows, views):
    """Else the test above would say less than it seems to."""
    reference = Reference(rows, views, min_count=4, max_len=7, shares=(0.15, 0.2))
    assert any(row["ad_id"] is not None and reference.id_of("ad_id", row["ad_id"]) == 0 for row in rows)
    assert max(len([r for r in rows if r["uid"] == "ann" and r["ts"] == row["ts"]]) for row in rows) > 1
    assert any(len(reference.past(row)) == 7 for row in rows) and any(not reference.past(row) for row in rows)
    assert {reference.part(row) for row in rows} == {"train", "valid", "test"}


class Stream:
    """What pandas and Polars give: nothing but an Arrow stream."""

    def __init__(self, rows: pa.Table):
        self._rows = rows

    def __arrow_c_stream__(self, requested_schema=None):
        return self._rows.__arrow_c_stream__(requested_schema)


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def assert_same_folders(a: pathlib.Path, b: pathlib.Path) -> None:
    assert _files(a) == _files(b)
    same, different, strange = filecmp.cmpfiles(a, b, _files(a), shallow=False)
    assert not different and not strange, (different, strange)


def test_whatever_holds_the_rows_the_folder_is_the_same(tmp_path, rows, views):
    whole, seen = table(rows), table(views)
    pq.write_table(whole, tmp_path / "log.parquet", row_group_size=37)
    pyarrow.csv.write_csv(whole, tmp_path / "log.csv")
    pq.write_table(seen, tmp_path / "views.parquet")
    folder = tmp_path / "parts.parquet"
    folder.mkdir()
    for k, start in enumerate(range(0, len(whole), 90)):
        pq.write_table(whole.slice(start, 90), folder / f"part-{k}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").write_text("x")
    encoded = whole.set_column(3, "brand", whole["brand"].dictionary_encode())
    encoded = encoded.set_column(1, "uid", whole["uid"].cast(pa.string_view()))
    logs: dict[str, Any] = {
        "table": whole,
        "again": whole,
        "stream": Stream(whole),
        "parquet": tmp_path / "log.parquet",
        "csv": str(tmp_path / "log.csv"),
        "folder": folder,
        "encoded": encoded,
    }
    for name, log in logs.items():
        make(log, tmp_path / name, tmp_path / "views.parquet" if name == "parquet" else seen)
    for name in logs:
        assert_same_folders(tmp_path / name, tmp_path / "table")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(tmp_path, rows, library):
    module = pytest.importorskip(library)
    frame = table(rows).to_pandas() if library == "pandas" else module.from_arrow(table(rows))
    make(table(rows), tmp_path / "a")
    make(frame, tmp_path / "b")
    assert_same_folders(tmp_path / "a" / "examples", tmp_path / "b" / "examples")


def test_it_is_a_data_config(tmp_path, rows):
    config = make(table(rows), tmp_path / "out").config
    assert isinstance(config, DataConfig)
    splits = config.build()
    assert config.schema() == splits.schema == config.preparation().schema
    assert isinstance(splits.test, Source)
    other = make(table(rows[:-1]), tmp_path / "other").config.build()
    assert splits.identity() == config.build().identity() != other.identity()
    shuffled = np.random.default_rng(0).permutation(len(splits.train))
    whole = everything(splits.train)
    np.testing.assert_array_equal(splits.train.read(shuffled).dense, whole.dense[shuffled])


def test_without_a_validation_part(tmp_path, rows):
    splits = make(table(rows), tmp_path / "out", valid_share=0.0).config.build()
    assert splits.valid is None and len(splits.train) + len(splits.test) == len(rows)


# --- scoring --------------------------------------------------------------------------------------------------------------------


def _raw(rows: Rows, ids: np.ndarray) -> Rows:
    return [rows[int(k)] | {"example_id": int(k)} for k in ids]


@pytest.mark.parametrize("kind", ["table", "csv", "parquet"])
def test_raw_rows_are_scored_with_the_numbers_of_training(tmp_path, rows, views, kind):
    make(table(rows), tmp_path / "out", table(views))
    splits = PreparedConfig(path=str(tmp_path / "out")).build()
    PreparedConfig(path=str(tmp_path / "out")).preparation().save(tmp_path / "run" / "preparation")
    preparation = Preparation.load(tmp_path / "run" / "preparation")
    assert preparation.schema == splits.schema
    for part in ("train", "valid", "test"):
        expected = everything(getattr(splits, part))
        raw: Any = table(_raw(rows, expected.example_id))
        if kind == "csv":
            pyarrow.csv.write_csv(raw, tmp_path / "raw.csv")
            raw = tmp_path / "raw.csv"
        elif kind == "parquet":
            pq.write_table(raw, tmp_path / "raw.parquet", row_group_size=50)
            raw = tmp_path / "raw.parquet"
        source = preparation.source(raw, events={"past": table(rows), "views": table(views)})
        assert isinstance(source, Source)
        assert_same_examples(everything(source), expected)
        order = np.random.default_rng(0).permutation(len(source))
        np.testing.assert_array_equal(source.read(order).example_id, expected.example_id[order])
        assert (
            source.identity() == preparation.source(raw, events={"past": table(rows), "views": table(views)}).identity()
        )


def test_rows_that_are_read_in_order_are_encoded_once(tmp_path, rows, monkeypatch):
    """However many batches there are; and a jump back finds the same rows again."""
    make(table(rows), tmp_path / "out")
    passes = []
    examples = Encoder.examples
    monkeypatch.setattr(Encoder, "examples", lambda *args, **more: passes.append(1) or examples(*args, **more))
    source = Preparation.load(tmp_path / "out").source(table(rows))
    ids = [
        source.read(np.arange(start, min(start + 50, len(source)))).example_id for start in range(0, len(source), 50)
    ]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(len(rows)))
    assert len(passes) == 1 and len(rows) > 6 * 64
    np.testing.assert_array_equal(source.read(np.array([399, 0])).example_id, [399, 0])
    assert len(passes) == 2


def test_a_log_whose_users_are_unknown_has_no_histories(tmp_path, rows):
    """And one without any feature but the item trains all the same."""
    bare = [{"ts": row["ts"], "uid": None, "ad_id": row["ad_id"], "click": row["click"]} for row in rows]
    log = pa.Table.from_pylist(
        bare, pa.schema({"ts": pa.int64(), "uid": pa.string(), "ad_id": pa.int64(), "click": pa.int8()})
    )
    config = make(log, tmp_path / "out", label="click", domain=None).config
    examples = everything(config.build().test)
    assert not examples.sequences["past"].lengths.any() and (examples.user == -1).all() and examples.dense.shape[1] == 0
    assert_same_examples(
        dataclasses.replace(everything(config.preparation().source(log)), example_id=np.arange(len(rows))),
        everything(config.preparation().source(log, events={"past": log})),
    )


def test_the_test_part_is_scored_from_the_kept_events_alone(tmp_path, rows, views, caplog):
    """And rows before it may lack events, which is said once."""
    splits = make(table(rows), tmp_path / "out", table(views), max_len=3).config.build()
    preparation = Preparation.load(tmp_path / "out")
    expected = everything(splits.test)
    source = preparation.source(table(_raw(rows, expected.example_id)))
    assert_same_examples(everything(source), expected)
    assert not caplog.text
    early = everything(splits.train)
    source = preparation.source(table(_raw(rows, early.example_id)))
    assert (everything(source).sequences["past"].lengths <= early.sequences["past"].lengths).all()
    everything(source)
    assert caplog.text.count("may lack events of 'past' that training saw; give source() the whole log as events") == 1
    everything(
        preparation.source(table(_raw(rows, early.example_id)), events={"past": table(rows), "views": table(views)})
    )
    assert len(caplog.records) == 1


def test_rows_after_the_log_find_the_last_events(tmp_path, rows, views):
    """The next day: with nothing given the kept events are the history, and what is given comes on top."""
    make(table(rows), tmp_path / "out", table(views))
    preparation = Preparation.load(tmp_path / "out")
    end = max(row["ts"] for row in rows)
    later = [row | {"ts": end + 100 + k} for k, row in enumerate(rows[:40])]
    new = [row | {"ts": end + 50 + k} for k, row in enumerate(rows[40:90])]
    for given in ([], new):
        reference = Reference(rows, views, min_count=4, max_len=7, shares=(0.15, 0.2))
        reference.rows = [*rows, *given]
        unlabelled = table(later).drop_columns(["click", "buy"])
        source = preparation.source(unlabelled, events={"past": table(given)} if given else None)
        examples = everything(source)
        assert np.isnan(examples.labels).all()
        np.testing.assert_array_equal(examples.example_id, np.arange(40))
        for k, row in enumerate(later):
            past, viewed = (events_of(examples.sequences[name], k) for name in ("past", "views"))
            columns = [past[name].tolist() for name in ("age_s", "ad_id", "brand", "click", "buy")]
            assert list(zip(*columns, strict=True)) == reference.past(row)
            columns = [viewed[name].tolist() for name in ("age_s", "ad_id", "page")]
            assert list(zip(*columns, strict=True)) == reference.viewed(row)


def test_events_given_twice_count_once(tmp_path, rows):
    make(table(rows), tmp_path / "out")
    preparation = Preparation.load(tmp_path / "out")
    later = table([row | {"ts": row["ts"] + 10**6} for row in rows[:20]])
    kept, given = preparation.source(later), preparation.source(later, events={"past": table(rows)})
    assert_same_examples(everything(given), everything(kept))


def test_ids_that_look_like_numbers_stay_text(tmp_path, rows):
    """A CSV file to score whose cells all look like numbers, of a column that was text."""
    rows = [row | {"brand": f"0{k % 3}" if k % 5 else "x"} for k, row in enumerate(rows)]
    make(table(rows), tmp_path / "out")
    some = table([row for row in rows if row["brand"] != "x"][:30])
    pyarrow.csv.write_csv(some, tmp_path / "raw.csv", pyarrow.csv.WriteOptions(quoting_style="none"))
    preparation = Preparation.load(tmp_path / "out")
    assert_same_examples(everything(preparation.source(tmp_path / "raw.csv")), everything(preparation.source(some)))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop_columns(["price"]), "the table has no column 'price'"),
        (lambda t: t.drop_columns(["uid"]), "has no column 'uid'"),
        (lambda t: t.rename_columns({"brand": "brandd"}), "no column 'brand'; did you mean 'brandd'"),
        (lambda t: t.set_column(4, "price", [["7"] * len(t)]), "column 'price' is string; it must be numbers"),
        (
            lambda t: t.set_column(3, "brand", [range(len(t))]),
            "column 'brand' is int64; its values were of the kind 'string'",
        ),
        (lambda t: t.set_column(0, "ts", [["2026-01-01"] * len(t)]), "times were integers \\(seconds\\) when the log"),
        (lambda t: t.set_column(7, "click", [[3] * len(t)]), "row 0: 'click' is 3; a label must be 0, 1 or null"),
        (lambda t: t.slice(0, 0), "holds no rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows, change, message):
    make(table(rows), tmp_path / "out")
    with pytest.raises(DataError, match=message) as error:
        everything(Preparation.load(tmp_path / "out").source(change(table(rows))))
    assert "\n" not in str(error.value)


def test_an_unknown_source_of_events_is_refused(tmp_path, rows):
    make(table(rows), tmp_path / "out")
    with pytest.raises(DataError, match="no source of events 'pasts'; did you mean 'past'"):
        Preparation.load(tmp_path / "out").source(table(rows), events={"pasts": table(rows)})
