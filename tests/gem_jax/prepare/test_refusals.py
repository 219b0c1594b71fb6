"""What is wrong with a log or with what is asked of it: one sentence with the file, the row, the column."""

import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from rich.console import Console

from gem_jax.data.source import DataError
from gem_jax.prepare import Preparation, PreparedConfig, pipeline, prepare
from gem_jax.prepare.__main__ import main
from tests.gem_jax.prepare.logs import random_log, table

LOG = table(random_log(60))


def make(tmp_path: pathlib.Path, log: Any = LOG, **changes: Any):
    settings: dict[str, Any] = dict(label="click", time="ts", user="uid", out=tmp_path / "out", min_count=1)
    return prepare(log, console=Console(quiet=True), **(settings | changes))


def with_column(name: str, values: Any) -> pa.Table:
    return LOG.set_column(LOG.schema.get_field_index(name), name, [values])


def with_value(name: str, row: int, value: Any) -> pa.Table:
    values = LOG[name].to_pylist()
    return with_column(name, [*values[:row], value, *values[row + 1 :]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label": "clik"}, "the table has no column 'clik'; did you mean 'click'"),
        ({"time": "time"}, "the table has no column 'time'; there are ts, uid"),
        ({"user": "user"}, "the table has no column 'user'"),
        ({"item": "ad"}, "the table has no column 'ad'"),
        ({"domain": "chanel"}, "no column 'chanel'; did you mean 'channel'"),
        (
            {"log": with_column("ad_id", [[1]] * 60), "item": "ad_id"},
            "column 'ad_id' is list<item: int64>; an item or a domain",
        ),
        (
            {"log": with_column("ad_id", pa.nulls(60)), "domain": "ad_id"},
            "column 'ad_id' is null; an item or a domain must be",
        ),
        ({"label": ()}, "name at least one label"),
        ({"label": ("click", "click")}, "column 'click' is named twice among label, time and user"),
        ({"label": ("ts",)}, "column 'ts' is named twice"),
        ({"test_share": 0.0}, "must leave rows to train on"),
        ({"test_share": 0.5, "valid_share": 0.5}, "must leave rows to train on"),
        ({"test_share": float("nan")}, "must leave rows to train on"),
        ({"min_count": 0}, "min_count 0 and max_len 100 must be 1 or more"),
        ({"events": {"past": LOG}}, "events cannot be called 'past'"),
        ({"events": {"a.b": LOG}}, "events cannot be called 'a.b'"),
        (
            {"events": {"views": LOG.drop_columns(["uid"])}},
            "has no column 'uid'; events need the time and user columns",
        ),
        ({"events": {"views": LOG.slice(0, 0)}}, "the table holds no rows: leave this source out"),
        ({"events": {"views": LOG.select(["ts", "uid", "price"])}}, "events 'views' has no categorical column"),
        (
            {"events": {"views": with_column("ts", [10**12 + k for k in range(60)])}},
            "'ts' counts milliseconds, and the log's seconds",
        ),
        ({"log": LOG.slice(0, 0)}, "the table holds no rows"),
        ({"log": with_value("click", 7, 2)}, "the table, row 7: 'click' is 2; a label must be 0, 1 or null"),
        ({"log": with_column("click", ["yes"] * 60)}, "column 'click' is string; a label must be 0, 1 or null"),
        ({"log": with_column("click", [0] * 60)}, "every 'click' label of the training part is 0"),
        ({"log": with_column("click", pa.nulls(60))}, "no training row has a label 'click'"),
        ({"log": with_value("ts", 3, None)}, "the table, row 3: 'ts' is None; every row needs a time"),
        ({"log": with_value("ts", 3, -5)}, "the table, row 3: 'ts' is -5; times must be 0 or more"),
        ({"log": with_value("ts", 3, 10**10)}, "times of 'ts' lie 263 years apart"),
        (
            {"log": with_column("ts", [True] * 60)},
            "column 'ts' is bool; times must be timestamps, dates, integers or seconds",
        ),
        ({"log": with_column("ts", ["noon"] * 60)}, "column 'ts' has text that is no time"),
        ({"log": with_column("ts", [5] * 60)}, "the valid part would be empty, since 60 rows have only 1 times"),
        (
            {"log": with_column("uid", [[1]] * 60)},
            "column 'uid' is list<item: int64>; users must be integers or strings",
        ),
        ({"log": with_value("price", 9, float("inf"))}, "the table, row 9: 'price' is inf; it must be finite"),
        (
            {"log": LOG.append_column("example_id", [[0] * 60])},
            "row 1: 'example_id' is 0 again; ids of examples must be unique",
        ),
        (
            {"log": LOG.append_column("example_id", [[-1] * 60])},
            "row 0: 'example_id' is -1; ids of examples must be 0 or more",
        ),
    ],
)
def test_wrong_logs_and_options(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "preparation.json").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="out holds other files; name a new folder with --out"):
        make(tmp_path)
    with pytest.raises(DataError, match="thesis.txt is a file; name a folder"):
        make(tmp_path, out=tmp_path / "out" / "thesis.txt")


def test_preparing_again_takes_away_only_its_own_files(tmp_path):
    make(tmp_path, events={"views": LOG.select(["ts", "uid", "brand"])})
    (tmp_path / "out" / "events" / "raw.parquet").write_text("mine")
    (tmp_path / "out" / "features.json").unlink()
    make(tmp_path, valid_share=0.0)
    left = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.*")}
    assert "events/raw.parquet" in left
    assert not {"events/views.npy", "last_events/views.npy", "examples/valid.npy"} & left


@pytest.mark.parametrize("rows", [50, 70])
def test_a_log_that_changes_while_it_is_read(tmp_path, monkeypatch, rows):
    pyarrow.csv.write_csv(LOG, tmp_path / "log.csv")

    def begin(folder: pathlib.Path) -> None:
        pyarrow.csv.write_csv(pa.concat_tables([LOG, LOG]).slice(0, rows), tmp_path / "log.csv")
        begin_as_ever(folder)

    begin_as_ever = pipeline._begin
    monkeypatch.setattr(pipeline, "_begin", begin)
    with pytest.raises(DataError, match="log.csv changed while it was being read"):
        make(tmp_path, str(tmp_path / "log.csv"))
    with pytest.raises(DataError, match="is no prepared folder"):
        PreparedConfig(path=str(tmp_path / "out")).build()


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda folder: (folder / "preparation.json").unlink(),
            "is no prepared folder: preparation.json cannot be read",
        ),
        (lambda folder: (folder / "preparation.json").write_text("{"), "preparation.json is damaged"),
        (lambda folder: (folder / "preparation.json").write_text("{}"), "has format None; this version reads 1"),
        (
            lambda folder: (folder / "preparation.json").write_text('{"format": 2}'),
            "has format 2; this version reads 1",
        ),
        (lambda folder: (folder / "preparation.json").write_text('{"format": 1}'), "preparation.json is damaged"),
        (lambda folder: (folder / "examples" / "test.npy").unlink(), "test.npy cannot be read"),
        (lambda folder: (folder / "examples" / "test.npy").write_bytes(b"x"), "test.npy cannot be read"),
        (lambda folder: _shorten(folder / "events" / "past.npy"), "past.npy cannot be read"),
        (lambda folder: _exchange(folder / "examples" / "test.npy", folder / "events" / "past.npy"), "other columns"),
        (lambda folder: _exchange(folder / "examples" / "test.npy", folder / "examples" / "train.npy"), "rows, not"),
        (lambda folder: (folder / "parts.json").write_text("{"), "parts.json cannot be read"),
        (lambda folder: (folder / "vocabularies" / "0.parquet").write_bytes(b"PAR1"), "cannot be read as a vocabulary"),
        (
            lambda folder: _exchange(folder / "vocabularies" / "0.parquet", folder / "vocabularies" / "1.parquet"),
            "0.parquet has .* ids, not",
        ),
        (lambda folder: (folder / "last_events" / "past.npy").unlink(), "past.npy cannot be read"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    config = make(tmp_path).config
    damage(tmp_path / "out")
    with pytest.raises(DataError, match=message) as error:
        config.preparation()
        config.build()
    assert "\n" not in str(error.value) and str(tmp_path / "out") in str(error.value)


def _shorten(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def _exchange(a: pathlib.Path, b: pathlib.Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def test_a_preparation_may_be_saved_where_it_lies(tmp_path):
    config = make(tmp_path).config
    before = {f.name: f.read_bytes() for f in (tmp_path / "out" / "last_events").iterdir()}
    Preparation.load(tmp_path / "out").save(tmp_path / "out")
    assert {f.name: f.read_bytes() for f in (tmp_path / "out" / "last_events").iterdir()} == before
    assert len(config.build().train)


def test_no_path_is_said_as_everywhere():
    with pytest.raises(DataError, match="data.path is not set"):
        PreparedConfig(path="").schema()


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_the_command_makes_the_folder_and_says_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyarrow.csv.write_csv(LOG, "log.csv")
    pyarrow.csv.write_csv(table(random_log(30, seed=3)).select(["ts", "uid", "brand"]), "views.csv")
    line = "log.csv --label click --label buy --time ts --user uid --item ad_id --domain channel"
    assert main([*line.split(), "--events", "views=views.csv", "--min-count", "2", "--max-len", "5"]) == 0
    shown = capsys.readouterr().out
    assert "ad_id" in shown and "distinct integers in 57 rows, the item" in " ".join(shown.split())
    assert "train 48, valid 6, test 6" in shown and "times in seconds" in shown
    assert "rows of past have no user" in shown and "data.path=prepared/log" in shown
    schema = PreparedConfig(path="prepared/log").schema()
    assert [s.name for s in schema.sequences] == ["past", "views"] and schema.sequence("past").max_len == 5
    assert [t.name for t in schema.tasks] == ["click", "buy"]
    assert PreparedConfig(path="prepared/log", max_len=3).schema().sequence("past").max_len == 3


@pytest.mark.parametrize(
    "line, message",
    [
        ("log.csv --label clik --time ts --user uid", "error: log.csv has no column 'clik'; did you mean 'click'"),
        ("nothing.csv --label click --time ts --user uid", "error: nothing.csv does not exist"),
        ("log.csv --label click --time ts --user uid --events views", "error: --events views must be name=path"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    pyarrow.csv.write_csv(LOG, "log.csv")
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
