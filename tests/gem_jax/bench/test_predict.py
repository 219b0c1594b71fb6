"""The measurement of predict: it runs, and says what it measured."""

import pyarrow.parquet as pq

from gem_jax.bench import predict


def test_it_measures_the_same_rows_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 512)
    monkeypatch.setattr(predict, "TRAINED_ON", 1000)
    row = predict.measure(tmp_path, 5000, 1)
    assert row["rows"] == pq.read_metadata(tmp_path / "out.parquet").num_rows == 5000
    assert {name: len(times) for name, times in row["seconds"].items()} == {
        "predict": 1,
        "evaluate": 1,
        "evaluate's pass": 1,
    }
    assert list(row["resident_mib"]) == ["10%", "50%", "100%"]
    shown = predict.markdown(row)
    assert "| 5,000 rows | rows/s | of evaluate's pass |" in shown and "| evaluate | " in shown and "| 100% | " in shown
