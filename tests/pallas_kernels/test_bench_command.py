"""The benchmark command, generic over operations."""

import json
import pathlib

import pytest

from pallas_kernels import bench
from pallas_kernels.jagged_attention import bench as attention


def test_every_operation_with_a_benchmark_is_offered():
    assert bench.operations() == ["embedding", "jagged_attention"]


def test_rows_are_printed_and_written_as_they_come(monkeypatch, tmp_path, capsys):
    path, row = tmp_path / "rows.json", dict(op="make_work_list", max_len=8, lengths="full", ms=1.0)

    def rows(commit, shapes):
        assert (commit, shapes.examples) == ("abc", 1024)
        yield row
        assert json.loads(path.read_text()) == [row]
        yield row

    monkeypatch.setattr(attention, "rows", rows)
    bench.main(["jagged_attention", "--json", str(path), "--commit", "abc", "--shapes", "gem_base"])
    assert json.loads(path.read_text()) == [row, row]
    assert capsys.readouterr().out.splitlines() == ["make_work_list 8 full: 1.000 ms"] * 2


def test_a_table_is_made_of_recorded_results(capsys):
    path = pathlib.Path(attention.__file__).parent / "results/nvidia_h200.json"
    bench.main(["jagged_attention", "--table", str(path)])
    assert capsys.readouterr().out.startswith("| kind | mask |")


def test_unknown_shapes_are_one_line(capsys):
    with pytest.raises(SystemExit):
        bench.main(["jagged_attention", "--shapes", "huge"])
    assert "--shapes" in capsys.readouterr().err
