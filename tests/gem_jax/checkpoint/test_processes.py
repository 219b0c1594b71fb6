"""Two processes save and restore one checkpoint, and go back to the one before together."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.restore import restore
from gem_jax.parallel.mesh import make_mesh
from tests.gem_jax.checkpoint.fake import FakeProgram, assert_same, saved

ROOT = pathlib.Path(__file__).parents[3]


def together(folder: pathlib.Path, action: str) -> list[str]:
    """Output of both processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.gem_jax.checkpoint.two_processes", str(folder), action]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, error) in zip(running, ended, strict=True):
        assert process.returncode == 0 and "Traceback" not in error, error[-3000:]
    return [output for output, _ in ended]


def test_two_processes_save_and_one_restores(tmp_path):
    together(tmp_path, "save")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [5, 7]
    program = FakeProgram(mesh=make_mesh(2, 4))
    assert_same(restore(checkpoints, program, pytest.fail).state, program.numbers(7))


def test_one_saves_and_two_processes_go_back_together(tmp_path):
    saved(tmp_path, FakeProgram(mesh=make_mesh(1, 8)), 5, 7)
    shutil.rmtree(tmp_path / "7" / "arrays" / "d")
    for output in together(tmp_path, "restore"):
        step, said = output.splitlines()[-2:]  # Gloo greets before
        assert step == "5" and f"{tmp_path}/7 is damaged: " in said
    assert {p.name for p in tmp_path.iterdir()} == {"5", "damaged-7"}
