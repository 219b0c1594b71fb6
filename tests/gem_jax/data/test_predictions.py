"""Predictions to a file: whole or not at all, row groups as they come, unknown values as nulls."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from gem_jax.data import predictions
from gem_jax.data.predictions import Predictions, open_predictions
from gem_jax.data.source import DataError

TASKS, DOMAINS = ("click", "buy"), ("feed", "reels")


def part(n: int, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    return Predictions(
        probabilities=rng.random((n, 2), np.float32),
        example_id=rng.integers(0, 2**62, n),
        time_s=rng.integers(-1, 3, n),
        user=rng.integers(-(2**63), 2**63 - 1, n),
        domain=rng.integers(0, 2, n).astype(np.int32),
    )


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "ROWS_PER_GROUP", 10)
    parts = [part(n, seed) for seed, n in enumerate((4, 7, 1, 10, 25, 3))]
    file = tmp_path / "p.parquet"
    with open_predictions(file, TASKS, DOMAINS) as writer:
        for some in parts:
            writer.write(some)
            assert not file.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    opened = pq.ParquetFile(file)
    sizes = [opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups)]
    assert sizes == [11, 11, 25, 3]
    table = pq.read_table(file, page_checksum_verification=True)
    for n, task in enumerate(TASKS):
        np.testing.assert_array_equal(table[f"p.{task}"], np.concatenate([p.probabilities[:, n] for p in parts]))
    for name in ("example_id", "user", "time_s"):
        values = np.concatenate([getattr(p, name) for p in parts]).tolist()
        assert table[name].to_pylist() == [None if value == -1 else value for value in values]
    assert table["domain"].to_pylist() == [DOMAINS[d] for p in parts for d in p.domain]


def test_a_row_that_was_left_out_is_null_throughout(tmp_path):
    some = part(3, 0)
    some.example_id[1], some.time_s[1], some.user[1], some.domain[1] = -1, -1, -1, 0
    some.probabilities[1] = np.nan
    with open_predictions(tmp_path / "p.parquet", TASKS, DOMAINS) as writer:
        writer.write(some)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert set(rows[1].values()) == {None} and None not in rows[0].values()


def test_no_rows_make_a_file_with_columns(tmp_path):
    with open_predictions(tmp_path / "p.parquet", TASKS, DOMAINS):
        pass
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 0 and table.column_names == ["example_id", "time_s", "user", "domain", "p.click", "p.buy"]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "p.parquet").write_text("old")
    with pytest.raises(KeyError), open_predictions(tmp_path / "p.parquet", TASKS, DOMAINS) as writer:
        writer.write(part(5, 0))
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    assert (tmp_path / "p.parquet").read_text() == "old"


def test_a_disk_that_fails_is_one_sentence(tmp_path, monkeypatch):
    with (
        pytest.raises(DataError, match="none/p.parquet' cannot be written"),
        open_predictions(tmp_path / "none" / "p.parquet", TASKS, DOMAINS),
    ):
        raise AssertionError("not reached")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with (
        pytest.raises(DataError, match=r"p.parquet' cannot be written \(No space left on device\); name a place"),
        open_predictions(tmp_path / "p.parquet", TASKS, DOMAINS) as writer,
    ):
        for seed in range(9):
            writer.write(part(5, seed))
    assert list(tmp_path.iterdir()) == []
