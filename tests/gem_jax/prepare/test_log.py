"""Logs as they lie about: folders of Spark and Hive, CSV whose types show late, encodings; and what is refused."""

import decimal
import gzip
import pathlib

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from gem_jax.data.source import DataError
from gem_jax.prepare import log as log_module
from gem_jax.prepare.log import open_log


def read(log, types=None) -> pa.Table:
    opened = open_log(log, types)
    whole = pa.concat_tables(opened.batches(opened.schema.names))
    assert opened.count_rows() == len(whole)
    return whole


def test_batches_are_of_one_size(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "BATCH_ROWS", 10)
    pq.write_table(pa.table({"a": range(47)}), tmp_path / "a.parquet", row_group_size=7)
    opened = open_log(tmp_path / "a.parquet")
    for _ in range(2):
        batches = list(opened.batches(["a"]))
        assert [len(b) for b in batches] == [10, 10, 10, 10, 7]
        assert pa.concat_tables(batches)["a"].to_pylist() == list(range(47))


def test_a_folder_as_spark_leaves_it(tmp_path):
    folder = tmp_path / "log.parquet"
    for day, kind in (("2026-01-01", pa.int32()), ("2026-01-02", pa.int64())):
        (folder / f"dt={day}").mkdir(parents=True)
        pq.write_table(
            pa.table({"a": pa.array([1, 2], kind), "b": ["x", "y"]}), folder / f"dt={day}" / "part-0.parquet"
        )
    pq.write_table(
        pa.table({"a": pa.array([], pa.int64()), "b": pa.nulls(0)}), folder / "dt=2026-01-02" / "part-1.parquet"
    )
    pq.write_table(
        pa.table({"a": pa.nulls(1), "b": pa.nulls(1)}), folder / "dt=2026-01-02" / "part-2.parquet", compression="zstd"
    )
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "part-9.parquet").write_text("half")
    (folder / ".part-0.parquet.crc").write_text("x")
    found = read(folder)
    assert found["a"].to_pylist() == [1, 2, 1, 2, None]
    assert found["b"].to_pylist() == ["x", "y", "x", "y", None]
    assert found["dt"].to_pylist() == ["2026-01-01"] * 2 + ["2026-01-02"] * 3


def test_a_folder_of_csv_with_partitions_and_an_empty_part(tmp_path):
    for day in (1, 2):
        (tmp_path / "log" / f"day={day}").mkdir(parents=True)
        (tmp_path / "log" / f"day={day}" / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n1,x\n,\n"))
    (tmp_path / "log" / "day=2" / "b.csv").touch()
    found = read(tmp_path / "log")
    assert found.to_pydict() == {"a": [1, None] * 2, "b": ["x", None] * 2, "day": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    "early, late, kind",
    [
        ("1", "2.5", pa.float64()),
        ("1", "x", pa.string()),
        ("", "3", pa.int64()),
        ("", "x", pa.string()),
        ("true", "maybe", pa.string()),
        ("2026-01-01", "soon", pa.string()),
        ("1.5", "x", pa.string()),
        ("1.5", "18446744073709551615", pa.float64()),
        ("18446744073709551615", "7", pa.uint64()),
        ("18446744073709551615", "-7", pa.string()),
        ("18446744073709551615", "7.5", pa.float64()),
        ("7", "18446744073709551615", pa.uint64()),
        ("7", "-1.5", pa.float64()),
        ("7.5", "-7", pa.float64()),
    ],
)
def test_csv_types_are_those_of_all_rows(tmp_path, early, late, kind):
    """What pyarrow guesses from the first block does not hold for the last row."""
    file = tmp_path / "a.csv"
    file.write_text("a,b,c\n" + f"0,{early},0\n" * 200_000 + f"0,{late},0\n")
    found = read(file)
    assert found.schema.field("b").type == kind
    assert len(found) == 200_001 and found["b"][-1].as_py() == pa.array([late]).cast(kind)[0].as_py()
    assert found["b"][0].as_py() == (None if early == "" else pa.array([early]).cast(kind)[0].as_py())


def test_cells_may_hold_line_ends_and_separators(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a,b\n" + '1,"one\ntwo, ""three"""\n' * 100_000)
    found = read(file)
    assert len(found) == 100_000 and set(found["b"].to_pylist()) == {'one\ntwo, "three"'}


def test_encodings_come_off():
    whole = pa.table(
        {
            "dictionary": pa.array(["x", None, "y"]).dictionary_encode(),
            "view": pa.array(["x", None, "y"], pa.string_view()),
            "large": pa.array([[1], None, [2, 3]], pa.large_list(pa.int32())),
            "list view": pa.array([[1], None, [2, 3]], pa.list_view(pa.int32())),
            "decimal": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("2")]),
            "words": pa.array([["x"], [], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            "half": pa.array([1.0, None, 2.0], pa.float16()),
        }
    )
    found = read(whole)
    assert [str(t) for t in found.schema.types] == [
        "string",
        "string",
        "list<item: int32>",
        "list<item: int32>",
        "double",
        "list<item: string>",
        "double",
    ]
    assert found.to_pydict() == whole.to_pydict() | {"decimal": [1.5, None, 2.0]}
    found.validate(full=True)


def test_list_views_in_files(tmp_path):
    pq.write_table(pa.table({"a": pa.array([[1], None, [2, 3]], pa.list_(pa.int64()))}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": pa.array([[4, 5], []], pa.list_view(pa.int32()))}), tmp_path / "b.parquet")
    found = read(tmp_path)
    found.validate(full=True)
    assert found["a"].to_pylist() == [[1], None, [2, 3], [4, 5], []]


def test_text_is_read_as_it_was(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n007,1\n010,2\n")
    assert read(tmp_path / "a.csv")["a"].to_pylist() == [7, 10]
    assert read(tmp_path / "a.csv", {"a": pa.string()})["a"].to_pylist() == ["007", "010"]


def _write(path: pathlib.Path, content: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "log does not exist"),
        ({"log/_SUCCESS": ""}, "holds no files"),
        ({"log/a.csv": ""}, "log is empty"),
        ({"log/a.csv": "a\n1\n", "log/b.parquet": b"PAR1"}, "holds files of several formats"),
        ({"log/a.json": "{}"}, "a.json is neither CSV nor Parquet by its name"),
        ({"log/a.parquet": b"PAR1 is not all"}, "log cannot be read: .*a.parquet|a.parquet cannot be read"),
        ({"log/a.csv": "a,b\n1,2\n3\n"}, "a.csv, line 3: Expected 2 columns, got 1: 3; correct the line"),
        ({"log/a.csv": "a,a\n1,2\n"}, "a.csv cannot be read: .*multiple columns named a"),
        ({"log/a=1/a.csv": "a\n1\n"}, "'a' is a column of the files and a folder's name"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "log")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_files_that_do_not_fit_together_are_named(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="'a' is int64 in .*a.parquet and list<.*> in .*b.parquet; write them alike"):
        read(tmp_path)


@pytest.mark.parametrize(
    "log, message",
    [
        (7, "a log cannot be a 'int'; give a path, or a table"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "the table has 2 columns 'a'"),
    ],
)
def test_what_is_no_table_is_refused(log, message):
    with pytest.raises(DataError, match=message):
        open_log(log)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_log_on_another_file_system(tmp_path, end):
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    memory = fsspec.filesystem("memory")
    for day in (1, 2):
        write = pq.write_table if end == "parquet" else csv.write_csv
        write(table, tmp_path / f"part.{end}")
        memory.pipe(f"/logs/{end}/day={day}/part.{end}", (tmp_path / f"part.{end}").read_bytes())
    memory.pipe(f"/logs/{end}/_SUCCESS", b"")
    try:
        found = read(f"memory://logs/{end}")
        assert found["a"].to_pylist() == [1, 2, 3, 1, 2, 3] and found["day"].to_pylist() == [1] * 3 + [2] * 3
        assert read(f"memory://logs/{end}/day=1/part.{end}")["b"].to_pylist() == ["x", "y", None]
        with pytest.raises(DataError, match="^memory://logs/nothing does not exist"):
            open_log("memory://logs/nothing")
    finally:
        memory.rm("/logs", recursive=True)
    with pytest.raises(DataError, match="^nonsense://x/y.csv cannot be read: .*; see that the path is right"):
        open_log("nonsense://x/y.csv")
