"""The benchmark command on a CPU, and the tile-size search with made-up times."""

import json
import pathlib

import pytest

from pallas_kernels.jagged_attention import Mask, bench, bench_step, tuning

RESULTS = pathlib.Path(bench.__file__).parent / "results"
FIELDS = {
    "op", "kind", "mask", "heads", "head_dim", "max_len", "lengths", "pass", "implementation", "ms", "tflops",
    "share_of_ceiling", "cudnn_tflops", "device", "jax", "commit",
}  # fmt: skip


def test_rows_and_table(monkeypatch):
    cases = (
        bench.Case("silu", 16, 64, implementation="xla", width=32),
        bench.Case("gdpa", 16, 64, implementation="xla", width=32, keys=32, passes=("fwd",)),
        bench.Case("silu", 128, 64),  # no such GPU: left out
    )
    step = bench_step.Step(batch=2, max_len=64, layers=2, heads=2, head_dim=16, implementation="xla")
    for name, value in dict(CASES=cases, BATCH=2, SAMPLE_MS=0.0, STEP=step).items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "matmul_tflops", lambda: 1.0)
    monkeypatch.setattr(bench, "cudnn_tflops", lambda *shape: {"fwd": 2.0, "bwd": 3.0})
    rows = list(bench.rows(commit="abc"))
    measured = [row for row in rows if row["op"] == "jagged_attention"]
    assert [(row["kind"], row["pass"]) for row in measured] == [("silu", "fwd"), ("silu", "bwd"), ("gdpa", "fwd")]
    assert all(set(row) == FIELDS and row["ms"] > 0 and row["commit"] == "abc" for row in measured)
    assert [row["cudnn_tflops"] for row in measured] == [2.0, 3.0, None]
    assert {row["op"] for row in rows} == {"matmul", "jagged_attention", "make_work_list", "train_step"}
    assert [row["work_list"] for row in rows if row["op"] == "train_step"] == ["given", "inside"]
    assert len(bench.table(rows).splitlines()) == 2 + len(measured)
    assert all(bench.line(row) for row in rows)


def test_flops_count_visible_pairs():
    full = bench.Case("silu", 128, 1024)
    assert full.flops() == 4 * 512 * bench.BATCH * 1024**2 / 2
    assert bench.Case("silu", 128, 1024, mask=Mask(block=64, causal=False)).flops() == 4 * 512 * bench.BATCH * 1024 * 64
    window = bench.Case("silu", 128, 1024, mask=Mask(window=128)).flops()
    assert window == 4 * 512 * bench.BATCH * (128**2 / 2 + 896 * 128)


@pytest.mark.parametrize(("saving", "expected"), [(0.99, 4), (0.9, 3)])
def test_search_keeps_only_clear_gains(monkeypatch, saving, expected):
    row = tuning.tilings(tuning.DEFAULT, 128)._asdict()

    def times(size, kernel, row, candidates):
        return [saving if tiling.stages == 3 else 1.0 for tiling in candidates]

    monkeypatch.setattr(bench, "_try", times)
    assert bench._fastest(128, "forward", row).stages == expected


def test_a_gpu_without_a_file_runs_with_the_default_and_says_so_once():
    tuning._table.cache_clear()
    with pytest.warns(UserWarning, match="No tile sizes were tuned for nvidia_gh200_480gb; using those of nvidia_h200"):
        found = tuning.tilings("NVIDIA GH200 480GB", 64)
    assert found == tuning.tilings("NVIDIA H200", 64)
    tuning.tilings("NVIDIA GH200 480GB", 128)  # a second warning would be an error


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_results_are_rows_of_the_command(path):
    rows = json.loads(path.read_text())
    measured = [row for row in rows if row["op"] == "jagged_attention"]
    assert measured and all(set(row) == FIELDS for row in measured)


def test_step_is_the_same_whoever_makes_the_list():
    step = bench_step.Step(batch=2, max_len=64, layers=2, heads=2, head_dim=16, implementation="xla")
    losses = [float(function(*arguments)[0]) for function, arguments in bench_step.calls(step).values()]
    assert losses[0] == losses[1] > 0
