"""The kernels for short histories without a GPU: what they compute, and that they compile."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged_attention import triton_short as backend
from pallas_kernels.jagged_attention.mask import visible
from pallas_kernels.jagged_attention.triton_problem import Settings
from pallas_kernels.jagged_attention.worklist import Layout
from tests.pallas_kernels.jagged_attention.cases import MASKS, Case

HERE = pathlib.Path(__file__).parent
LENGTHS = (0, 1, 63, 30, 0, 90)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="not installed: triton")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_targets", [None, 9])
def test_tables_say_what_each_row_sees(name, num_targets):
    case = Case(LENGTHS, mask=MASKS[name], num_targets=num_targets)
    targets = np.zeros(len(LENGTHS), int) if case.targets is None else case.targets
    starts, lengths = (jnp.asarray(x, jnp.int32) for x in (case.offsets[:-1], LENGTHS))
    layout = Layout(starts, lengths, starts, lengths, lengths - jnp.asarray(targets, jnp.int32))
    settings = Settings("silu", case.mask, 1.0, 1.0, num_targets is not None)
    spans, reach = (np.asarray(f(layout, settings, *[case.num_rows] * 2)) for f in (backend.spans, backend.reach))
    row = np.arange(case.num_rows)
    seen = (row >= spans[0][:, None]) & (row < spans[1][:, None])
    if case.mask.prefix:
        seen |= (row >= spans[2][:, None]) & (row < spans[3][:, None])
    if num_targets is not None:
        seen |= np.eye(case.num_rows, dtype=bool) & (spans[1] >= 0)
    expected = np.zeros_like(seen)
    for start, length, count in zip(case.offsets, LENGTHS, targets, strict=False):
        place, own = np.arange(length), slice(start, start + length)
        expected[own, own] = np.asarray(visible(case.mask, place[:, None], place, length - count))
    np.testing.assert_array_equal(seen, expected)
    within = (row[:, None] >= reach[0]) & (row[:, None] < reach[1])
    assert np.all(within[expected]) and np.array_equal(reach[1] >= 0, case.valid())


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), *sys.path])}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_contract_in_tritons_interpreter():
    run("emulate_triton_short.py")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_kernels_compile_to_matrix_instructions_and_fit(size):
    lines = [line.split() for line in run("compile_for_triton.py", "89", str(size), "short").splitlines()]
    assert len(lines) == 11
    for name, kind, _, shared, _, matmul in lines:
        assert matmul == "mma.sync" and int(shared) <= 99 * 1024, (name, kind, matmul, shared)
