"""The table kernels without a GPU: what they compute, and that they compile."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="not installed: triton")


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), *sys.path])}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_contract_in_tritons_interpreter():
    run("emulate.py")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("size", [20, 128])
def test_kernels_compile(size):
    lines = run("compile_for_triton.py", "90", str(size)).splitlines()
    assert len(lines) == 15
    for line in lines:
        assert int(line.split()[-1]) <= 64 * 1024, line
