"""The mesh's bench on forced CPU devices: its processes, its rows, what it does with failures; and the arithmetic of overlap."""

import itertools
import json

import numpy as np
import pytest

from gem_jax.bench import __main__, mesh, overlap
from gem_jax.bench.mesh_variant import Variant
from gem_jax.config import load
from gem_jax.errors import UserError

TINY = """
from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models.gem import GemConfig, Level


def get_config() -> Config:
    stream = SyntheticConfig(train_examples=5000, test_examples=100, active_users=50, active_ads=24,
                             organic_max_len=8, impressions_max_len=8)
    model = GemConfig(embedding_dim=8, num_layers=1, levels=(Level(),), fmb_tokens=2, lcb_tokens=2, rank=2,
                      fmb_hidden=(8,), head_hidden=8)
    return Config(name="tiny", data=stream, model=model, batch=BatchConfig(examples=2))
"""


@pytest.fixture
def tiny(tmp_path) -> str:
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return str(file)


@pytest.mark.slow
def test_rows_of_eight_devices(tiny, tmp_path, monkeypatch, capsys):
    """Two groups of four train as one device does on the same examples; a flag that XLA does not know fails alone."""
    some = [
        Variant(name=mesh.ONE),
        Variant(name="unknown", shard=8, flags=("--xla_no_such_flag=1",)),
        Variant(name=mesh.GLOBAL, times=8),
        Variant(name="2x4", replica=2, shard=4, scheme="rows"),
    ]
    monkeypatch.setattr(mesh, "variants", lambda count: some)
    file = tmp_path / "rows.json"
    assert __main__.main(["mesh", tiny, "--json", str(file), "--seconds", "500"]) == 0
    rows = {row["variant"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == {v.name for v in some}
    assert "error" in rows["unknown"] and "xla_no_such_flag" in rows["unknown"]["error"]
    found = rows["2x4"]
    assert len(found["losses"]) == 20 and found["examples_per_step"] == 16 and found["loss_difference"] < 1e-5
    assert found["efficiency"] == pytest.approx(rows[mesh.ONE]["ms"] / found["ms"])
    assert found["promised"]["dense_shard_bytes"] > 0 and found["cost_imbalance"] >= 1 and found["mfu"] > 0
    assert "2x4" in capsys.readouterr().out


def test_too_little_time_is_said(tiny, capsys):
    assert __main__.main(["mesh", tiny, "--seconds", "1"]) == 1
    assert capsys.readouterr().out.count("time was up") == len(mesh.variants(8))


def test_variants_fit_the_devices():
    for count in (2, 4, 8):
        found = mesh.variants(count)
        assert len({v.name for v in found}) == len(found)
        assert all(v.replica * v.shard in (1, count) for v in found)
        shapes = {(v.replica, v.shard) for v in found} - {(1, 1)}
        assert shapes == {(count // s, s) for s in range(1, count + 1) if count % s == 0}
    with pytest.raises(UserError, match="two GPUs"):
        mesh.variants(1)


def test_multicast_stays_off_whatever_a_variant_says():
    flag = "--xla_gpu_experimental_use_collective_kernels"
    variant = Variant(name="x", flags=(f"{flag}=ALL_REDUCE",), environment={"NCCL_NVLS_ENABLE": "1"})
    found = mesh.environment(variant, {"XLA_FLAGS": "--a=1", "NVSHMEM_DISABLE_NVLS": "0"})
    assert found["NCCL_NVLS_ENABLE"] == "0" and found["NVSHMEM_DISABLE_NVLS"] == "1"
    assert found["XLA_FLAGS"].split() == ["--a=1", f"{flag}=ALL_REDUCE", f"{flag}="]


def test_a_variant_changes_the_config(tiny):
    config = load(tiny)
    variant = Variant(name="x", replica=2, shard=4, scheme="columns", fully_sharded=True, times=3)
    found = variant.applied(config)
    assert (found.mesh.replica, found.mesh.shard, found.tables.fully_sharded) == (2, 4, True)
    assert set(found.tables.schemes.values()) == {"columns"}
    assert found.tables.schemes.keys() == {t.name for t in config.data.schema().tables}
    assert found.batch.examples == 6 and found.batch.tokens == {"organic": 48, "impressions": 48}


def test_spans_against_a_grid():
    """Integer spans, so that counting unit cells is exact."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        spans, others = ([(float(a), float(a + n)) for a, n in rng.integers(1, 9, (6, 2)) * [4, 1]] for _ in range(2))
        cells, covered = ({float(x) for a, b in many for x in range(int(a), int(b))} for many in (spans, others))
        assert overlap.total(overlap.union(spans)) == len(cells)
        left = overlap.without(overlap.union(spans), overlap.union(others))
        assert overlap.total(left) == len(cells - covered)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(left))


def test_what_a_step_exposes():
    one = overlap.Timeline(compute=[(0.0, 4.0)], communication={"nccl": [(3.0, 6.0)], "copy": [(5.0, 7.0)]})
    two = overlap.Timeline(compute=[(0.0, 2.0)], communication={"nccl": [(3.0, 6.0)]})
    found = overlap.summary([one, two], 2)
    assert found["compute_ms"] == 1.5 and found["communication_ms"] == 1.75 and found["exposed_ms"] == 1.5
    assert found["compute_imbalance"] == pytest.approx(4 / 3)
    assert found["by_kernel"] == {"nccl": 1.5, "copy": 0.5}
    assert overlap.summary([], 1)["exposed_ms"] is None


@pytest.mark.parametrize(
    ("name", "is_collective"),
    [
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", True),
        ("kernel all-gather-start.3", True),
        ("MemcpyP2P", True),
        ("MemcpyD2D copy.4", False),
        ("loop_add_fusion reduce.2", False),
        ("input_scatter_fusion", False),
    ],
)
def test_collectives_are_told_by_name(name, is_collective):
    assert bool(overlap.COLLECTIVE.search(name)) == is_collective
