"""The benchmark's rows, on sizes that a CPU runs."""

from pallas_kernels.common import timing
from pallas_kernels.embedding import bench
from pallas_kernels.embedding.bench import Case


def test_rows_have_a_peer_and_print(monkeypatch):
    monkeypatch.setattr(bench, "COPIED", 1 << 10)
    monkeypatch.setattr(timing, "milliseconds", lambda function, *arguments: 2.0)
    monkeypatch.setattr(timing, "median", lambda sample: max(sample(1), 4.0))
    small = dict(num_rows=500, lookups=64, width=8)
    cases = (
        Case("lookup", bag=4, **small),
        Case("update", bag=4, **small),
        Case("update", bag=1, distinct=20, **small),
    )
    rows = list(bench.rows("abc", cases=cases))
    assert [row["op"] for row in rows] == ["copy", "table_lookup", "table_update", "table_update"]
    assert all(row["peer"] == "xla" and row["ms"] >= 2 for row in rows[1:])
    assert rows[3]["distinct"] <= 20 and all(bench.line(row) for row in rows)
    assert len(bench.table(rows).splitlines()) == 5


def test_bytes_that_must_move():
    # 3 distinct rows of 16 bytes with a number each, read and written; 2 bags' gradients; 8 ids with their sources
    assert Case("update", 9, 8, 4, width=4).num_bytes(3) == 2 * 3 * 20 + 2 * 16 + 64
