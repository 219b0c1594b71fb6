"""The benchmark on a CPU, and the tile-size search with made-up times."""

import dataclasses
import json
import pathlib

import jax
import pytest

from pallas_kernels.common import timing
from pallas_kernels.common import tuning as common_tuning
from pallas_kernels.common.shapes import Sequences, Shapes
from pallas_kernels.jagged_attention import Mask, bench, bench_peers, bench_short, bench_step, tune, tuning

RESULTS = pathlib.Path(bench.__file__).parent / "results"
FIELDS = {
    "op", "kind", "mask", "heads", "head_dim", "max_len", "lengths", "pass", "implementation", "ms", "tflops",
    "share_of_ceiling", "cudnn_tflops", "device", "jax", "commit",
}  # fmt: skip


def quick(monkeypatch):
    for name, value in dict(SAMPLE_MS=0.0, REST_S=0.0).items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, "matmul_tflops", lambda: 1.0)


def test_rows_and_table(monkeypatch):
    cases = (
        bench.Case("silu", 16, 64, implementation="xla", width=32, batch=2),
        bench.Case("gdpa", 16, 64, implementation="xla", width=32, keys=32, batch=2, passes=("fwd",)),
        bench.Case("silu", 128, 64),  # no such GPU: left out
    )
    step = bench_step.Step(batch=2, max_len=64, layers=2, heads=2, head_dim=16, implementation="xla")
    for name, value in dict(CASES=cases, BATCH=2, STEP=step).items():
        monkeypatch.setattr(bench, name, value)
    short = bench_short.Short(4, 24, 9, heads=2, head_dim=16, calls=2)
    monkeypatch.setattr(bench_short, "CASES", (short,))
    quick(monkeypatch)
    flops = cases[0].flops()
    peer = {"fwd": flops / 2.0 / 1e9, "bwd": 2.5 * flops / 3.0 / 1e9}  # of 2 and 3 TFLOP/s
    monkeypatch.setattr(bench_peers, "cudnn_milliseconds", lambda *shape: peer)
    rows = list(bench.rows(commit="abc"))
    measured = [row for row in rows if row["op"] == "jagged_attention"]
    assert [(row["kind"], row["pass"]) for row in measured] == [("silu", "fwd"), ("silu", "bwd"), ("gdpa", "fwd")]
    assert all(set(row) == FIELDS and row["ms"] > 0 and row["commit"] == "abc" for row in measured)
    assert [row["cudnn_tflops"] for row in measured] == [2.0, 3.0, None]
    assert {row["op"] for row in rows} == {
        "matmul",
        "jagged_attention",
        "make_work_list",
        "train_step",
        "short_histories",
    }
    assert [row["work_list"] for row in rows if row["op"] == "train_step"] == ["given", "inside"]
    once = [(row["pass"], row["implementation"]) for row in rows if row["op"] == "short_histories"]
    assert once == [("fwd", "xla"), ("bwd", "xla")]  # the others need a GPU
    assert len(bench.table(rows).splitlines()) == 2 + len(measured)
    assert all(bench.line(row) for row in rows)


def test_flops_count_visible_pairs():
    full = bench.Case("silu", 128, 1024)
    assert full.flops() == 4 * 512 * bench.BATCH * 1024**2 / 2
    assert bench.Case("silu", 128, 1024, mask=Mask(block=64, causal=False)).flops() == 4 * 512 * bench.BATCH * 1024 * 64
    window = bench.Case("silu", 128, 1024, mask=Mask(window=128)).flops()
    assert window == 4 * 512 * bench.BATCH * (128**2 / 2 + 896 * 128)


def test_search_writes_a_file_that_is_read_back(monkeypatch, tmp_path):
    device = jax.devices()[0].device_kind
    before = {size: tuning.tilings("NVIDIA H200", size) for size in (64, 128, 256)}
    monkeypatch.setattr(tuning, "TABLES", dataclasses.replace(tuning.TABLES, folder=tmp_path))
    tuning.write(device, before)
    monkeypatch.setattr(
        tune, "_times", lambda size, kernel, row, candidates: [0.9 if x.q_stages == 1 else 1.0 for x in candidates]
    )
    tune.tune([128])
    common_tuning._load.cache_clear()
    after = {size: tuning.tilings(device, size) for size in before}
    assert after[64] == before[64] and after[256] == before[256]
    assert after[128].forward == dataclasses.replace(before[128].forward, q_stages=1)
    assert after[128].backward == before[128].backward  # one stage is not among its choices


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_results_are_rows_of_the_command(path):
    rows = json.loads(path.read_text())
    measured = [row for row in rows if row["op"] == "jagged_attention"]
    assert measured and all(set(row) == FIELDS for row in measured)


def test_step_is_the_same_whoever_makes_the_list():
    step = bench_step.Step(batch=2, max_len=64, layers=2, heads=2, head_dim=16, implementation="xla")
    losses = [float(function(*arguments)[0]) for function, arguments in bench_step.calls(step).values()]
    assert losses[0] == losses[1] > 0


def test_a_models_shapes_are_cases_that_fill_its_rows(monkeypatch):
    shapes = Shapes(16, 2, 16, {"past": Sequences(16 * 24, 40)})
    for case in bench.cases_of(shapes):
        lengths = case.true_lengths()
        rows = (-(-lengths // 8) * 8).sum()
        assert 0.9 * 16 * 24 < rows <= 16 * 24 and lengths.min() >= 1 and lengths.max() <= 40
        assert (case.heads, case.head_dim) == (2, 16)
    quick(monkeypatch)
    rows = list(bench.rows(shapes=shapes))
    assert [row.get("implementation") for row in rows] == [None] + ["default"] * 4
