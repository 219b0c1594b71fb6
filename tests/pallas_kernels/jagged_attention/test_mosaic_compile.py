"""Hopper kernels compile for an H200 without one, and ptxas neither serialises their matmuls nor spills in their loops.

Needs jax's CUDA 13 plugin (`pip install jax-cuda13-plugin jax-cuda13-pjrt`, no GPU or driver) and the
assembler and disassembler that Triton's wheel carries; runs in a process of its own, since the plugin
must be found before jax starts.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.pallas_kernels.jagged_attention import sass

HERE = pathlib.Path(__file__).parent
PARTS = ("jax_cuda13_plugin", "jax_plugins", "triton")
MISSING = [name for name in PARTS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# Bytes of spills that ptxas may report of a backward kernel: numbers kept for the end of an item, and the copy warpgroup's.
LIMITS = {
    ("silu", 64): 8,
    ("silu", 128): 40,
    ("silu", 256): 0,
    ("softmax", 64): 16,
    ("softmax", 128): 56,
    ("softmax", 256): 0,
}
IN_LOOPS = {("softmax", 128, 512): 1}  # numbers kept in memory while a step masks its tile, at a window's edges alone


@pytest.mark.parametrize(
    ("kind", "size", "deterministic", "gpu", "window"),
    [(*key, deterministic, "NVIDIA H200", 0) for key in LIMITS for deterministic in (False, True)]
    + [(kind, size, False, "NVIDIA H200", 512) for kind, size in LIMITS if size < 256]
    + [("silu", 128, False, "NVIDIA H100 80GB HBM3", 0)],
)
def test_no_serialised_matmuls_and_no_spills_in_loops(kind, size, deterministic, gpu, window, tmp_path):
    _compile(kind, size, deterministic, gpu, window=window, dump=tmp_path)
    reports = {path.stem: path.read_text() for path in tmp_path.glob("*.ptxas")}
    assert any("forward" in kernel for kernel in reports) and any("backward" in kernel for kernel in reports)
    for kernel, report in reports.items():
        for code in ("C7510", "C7511", "C7512", "C7513", "C7514", "C7517"):
            assert code not in report, f"{kernel}: ptxas serialises wgmma ({code})"
        [spilled] = re.findall(r"stack frame, (\d+) bytes spill stores", report)
        assert int(spilled) <= (0 if "forward" in kernel else LIMITS[kind, size]), kernel
        loops = sass.loops_over_steps((tmp_path / f"{kernel}.sass_ctrl").read_text())
        assert loops, kernel
        for instructions in loops:
            places = {text.split("[")[1].split("]")[0] for text in instructions if re.search(r"\b(LDL|STL)\b", text)}
            assert len(places) <= IN_LOOPS.get((kind, size, window), 0), (kernel, places)


def test_softmax_weights_are_narrowed_two_at_a_time(tmp_path):
    """One by one (F2F) it takes as long as exp2, and nothing but the speed shows it."""
    _compile("softmax", 128, False, "NVIDIA H200", dump=tmp_path)
    [ptx] = [path.read_text() for path in tmp_path.glob("*backward*.ptx")]
    assert "cvt.rn.bf16x2.f32" in ptx and "cvt.rn.bf16.f32" not in ptx


def test_registers_are_neither_zeroed_nor_exchanged(tmp_path):
    """That was an eighth and a sixteenth of the loop's instructions, and nothing but the speed shows it."""
    _compile("silu", 128, False, "NVIDIA H200", dump=tmp_path)
    [ptx] = [path.read_text() for path in tmp_path.glob("*backward*.ptx")]
    # the scores, their gradients and dQ overwrite their registers; Pallas's own matmul, whose predicate is p, always adds
    assert "m64n64k16" in ptx and not re.search(r"m64n64k16[^;]*, p, ", ptx)
    # dQ is staged without choosing between registers; masks do
    assert ptx.count("selp") <= 96


def test_layers_share_work_list_compiled_kernels_and_memory():
    """Without `work_list=`, and without anything said: XLA merges the equal lists, jax traces a kernel once, and one layer's
    float32 dQ is zeroed when the last one's is done with."""
    one, three = (_compile("silu", 128, False, "NVIDIA H200", layers) for layers in (1, 3))
    assert three.count("Compiling entry function") == one.count("Compiling entry function") == 2
    assert (
        _number("work list fusions", three) <= _number("work list fusions", one) + 2
    )  # XLA may cut one list otherwise
    array = 16384 * 512 * 2  # bytes of q
    # two layers' queries are kept for the backward pass, and the sums of dK and dV over layers stand beside new ones
    assert _number("temporary bytes", three) - _number("temporary bytes", one) < 4.1 * array


def _number(name, output) -> int:
    return int(re.findall(name + r": (\d+)", output)[0])


def _compile(kind, size, deterministic, gpu, layers=1, window=0, dump: pathlib.Path | None = None) -> str:
    tools = pathlib.Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "CUDA_TOOLS": str(tools),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), *sys.path]),
    }
    if dump is not None:  # then ptxas reports there, not to stderr
        environment["MOSAIC_GPU_DUMP_TO"] = str(dump)
    options = [kind, str(size), str(int(deterministic)), gpu, str(layers), str(window)]
    command = [sys.executable, str(HERE / "compile_for_hopper.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    for log in dump.glob("*.log") if dump is not None else ():
        log.unlink()  # tens of megabytes of MLIR
    return output
