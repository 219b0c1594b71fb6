"""The Triton backend without a GPU: its tables of work, and its kernels compiled for GPUs that are not there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged_attention import triton as backend
from pallas_kernels.jagged_attention.backends import HEAD_DIMS
from pallas_kernels.jagged_attention.mask import visible
from pallas_kernels.jagged_attention.worklist import Layout
from tests.pallas_kernels.jagged_attention.cases import MASKS, Case

HERE = pathlib.Path(__file__).parent
LENGTHS = (0, 1, 63, 130, 0, 200)


@pytest.mark.parametrize("tiled", ["q", "kv"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_targets", [None, 9])
def test_every_visible_pair_is_visited_once(name, num_targets, tiled):
    """Walk the table as the kernels do."""
    case = Case(LENGTHS, mask=MASKS[name], num_targets=num_targets)
    targets = np.zeros(len(LENGTHS), int) if case.targets is None else case.targets
    starts, lengths = (jnp.asarray(x, jnp.int32) for x in (case.offsets[:-1], LENGTHS))
    layout = Layout(starts, lengths, starts, lengths, lengths - jnp.asarray(targets, jnp.int32))
    settings = backend.Settings("silu", case.mask, 1.0, 1.0, num_targets is not None)
    rows, tile = 32, 64
    table = np.asarray(backend._items(layout, settings, tiled, case.num_rows, 2, rows, tile))
    low, high = (np.asarray(x) for x in backend._bounds(layout, settings, case.num_rows))
    visits = np.zeros((2, case.num_rows, case.num_rows), int)
    for q_start, q_length, kv_start, kv_length, prefix, row, head, *runs in table.T:
        own = np.arange(row, row + rows)
        for first, count in zip(runs[::2], runs[1::2], strict=True):
            other = np.arange(first * tile, (first + count) * tile)
            queries, keys = (own, other) if tiled == "q" else (other, own)
            queries, keys = queries[queries < q_length], keys[keys < kv_length]
            at = q_start + queries
            seen = ((keys >= low[at][:, None]) & (keys < high[at][:, None])) | (keys < prefix)
            if settings.has_targets:
                seen |= keys == queries[:, None]
            visits[head, at[:, None], kv_start + keys] += seen
    expected = np.zeros_like(visits)
    for start, length, count in zip(case.offsets, LENGTHS, targets, strict=False):
        place = np.arange(length)
        seen = visible(case.mask, place[:, None], place, length - count)
        expected[:, start : start + length, start : start + length] = np.asarray(seen)
    np.testing.assert_array_equal(visits, expected)


# compute capability: bytes of shared memory that a program may have (A100, L4, H100 and H200)
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="not installed: triton")
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("size", HEAD_DIMS)
def test_kernels_compile_to_matrix_instructions_and_fit(capability, size):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), *sys.path])}
    command = [sys.executable, str(HERE / "compile_for_triton.py"), str(capability), str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for name, kind, _, shared, _, matmul in lines:
        assert matmul in ("mma.sync", "wgmma"), (name, kind, matmul)
        assert int(shared) <= SHARED[capability], (name, kind, shared)
