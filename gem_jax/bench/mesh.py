"""Does the mesh of GPUs at hand hold what the compiler promised: arrangements and overlap flags beside each other.

Each variant runs in a process of its own. All compile at once and share the compile cache; then they measure one after another,
those that tell most first, until the time is up. One that fails is a row that says why.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from gem_jax.bench.mesh_variant import GO, READY, Variant
from gem_jax.errors import UserError
from gem_jax.files import commit

COMPILE_SHARE = 0.65
"""Of the time: what is not compiled by then is left out."""
CORES_PER_PROCESS = 4
MIN_MEASURE_S = 8.0
"""With less time left no further variant is measured."""
MAX_MEASURE_S = 45.0
"""Of one variant: one that hangs must not take the others' time."""

ONE, GLOBAL = "one GPU", "one GPU, batch of all"
"""The variants that the others are compared with: in speed, and in loss."""

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "NVSHMEM_DISABLE_NVLS": "1"}
NO_MULTICAST_FLAG = "--xla_gpu_experimental_use_collective_kernels="
"""NVLink multicast stays off whatever a variant says, since it can take a host's GPUs out of service: NCCL and NVSHMEM have
variables for it; of XLA's own collectives only these kernels may ask for it."""

FLAGS = {
    "symmetric, copy engines": Variant(
        name="",
        flags=("--xla_gpu_experimental_enable_nccl_symmetric_buffers=true",),
        environment={"NCCL_CTA_POLICY": "2"},
    ),
    "no latency hiding": Variant(name="", flags=("--xla_gpu_enable_latency_hiding_scheduler=false",)),
    "pipelined": Variant(
        name="",
        flags=("--xla_gpu_enable_pipelined_all_gather=true", "--xla_gpu_enable_pipelined_reduce_scatter=true"),
    ),
    "symmetric buffers": Variant(name="", flags=("--xla_gpu_experimental_enable_nccl_symmetric_buffers=true",)),
    "8 channels": Variant(
        name="", flags=("--xla_gpu_nccl_collective_max_nchannels=8", "--xla_gpu_nccl_p2p_max_nchannels=8")
    ),
}
"""Flags laid over the run's own, on the mesh with one group."""


def variants(count: int) -> list[Variant]:
    """What is measured on so many GPUs, what tells most first.

    Raises:
      UserError: there are fewer than two.
    """
    if count < 2:
        raise UserError(
            f"the mesh needs two GPUs or more and there is {count}; python -m gem_jax.bench step measures one"
        )
    group = Variant(name=f"1x{count}", shard=count)
    between = [
        Variant(name=f"{count // shard}x{shard}", replica=count // shard, shard=shard)
        for shard in range(2, count)
        if count % shard == 0
    ]
    return [
        Variant(name=ONE),
        group,
        Variant(name=GLOBAL, times=count),
        Variant(name=f"{count}x1", replica=count),
        *between,
        *(dataclasses.replace(v, name=f"1x{count} {name}", shard=count) for name, v in list(FLAGS.items())[:2]),
        Variant(name=f"1x{count} columns", shard=count, scheme="columns"),
        Variant(name=f"{count}x1 fully sharded", replica=count, fully_sharded=True),
        *(dataclasses.replace(v, name=f"1x{count} {name}", shard=count) for name, v in list(FLAGS.items())[2:]),
        Variant(name=f"1x{count} rows", shard=count, scheme="rows"),
    ]


def environment(variant: Variant, given: dict[str, str]) -> dict[str, str]:
    """A variant's process's: its flags come after those given, so that they win; multicast is off in the end."""
    flags = [given.get("XLA_FLAGS", ""), *variant.flags, NO_MULTICAST_FLAG]
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # many processes share the GPUs
    return given | variant.environment | memory | NO_MULTICAST | {"XLA_FLAGS": " ".join(flags).strip()}


class _Process:
    """A variant's process; what it says is read with a deadline."""

    def __init__(self, variant: Variant, words: list[str], folder: pathlib.Path, trace: str | None):
        self.variant = variant
        self._errors = folder / f"{abs(hash(variant.name))}.txt"
        text = json.dumps(dataclasses.asdict(variant))
        command = [sys.executable, "-m", "gem_jax.bench", "mesh-variant", *words, "--variant", text]
        if trace is not None:
            command += ["--trace", str(pathlib.Path(trace) / variant.name.replace(" ", "_"))]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=environment(variant, dict(os.environ)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        self._reader = concurrent.futures.ThreadPoolExecutor(1)

    def says(self, seconds: float) -> str | None:
        """Its next line; None where it ends, or says none in time."""
        assert self._process.stdout is not None
        line = self._reader.submit(self._process.stdout.readline)
        try:
            return line.result(max(seconds, 0)).strip() or None
        except concurrent.futures.TimeoutError:
            return None

    def go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(GO, file=self._process.stdin, flush=True)

    def why(self) -> str:
        """What went wrong: its last words, or that its time was up."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        words = [line for line in self._errors.read_text(errors="replace").splitlines() if line.strip()]
        return "time was up" if self._process.poll() is None else f"{words[-1] if words else 'ended in silence'}"[:300]

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.shutdown()


def measure(
    words: list[str], overrides: list[str], name: str, seconds: float, trace: str | None
) -> list[dict[str, Any]]:
    """The rows of all variants, those without a measurement with "error".

    Args:
      words: config and overrides, as on a command line.
      overrides: to be named in the rows.
      name: of the config.
      seconds: for everything.
      trace: folder where the profiler's traces are kept; None keeps none.
    """
    end = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        waiting = variants(_count())
        at_once = max((os.cpu_count() or 1) // CORES_PER_PROCESS, 1)
        while waiting and time.monotonic() < end - MIN_MEASURE_S:
            started = []
            for variant in waiting[:at_once]:
                started.append(_Process(variant, words, pathlib.Path(folder), trace))
                stack.callback(started[-1].end)
            waiting = waiting[at_once:]
            compile_end = time.monotonic() + COMPILE_SHARE * (end - time.monotonic())
            running = [_ready(process, compile_end, rows, name, overrides) for process in started]
            for process in filter(None, running):
                rows.append(_row(process, end, name, overrides))
                process.end()
        rows += [_base(variant, name, overrides) | {"error": "time was up"} for variant in waiting]
    return compared(rows)


def _count() -> int:
    """Devices of this machine, asked in a process of its own, which leaves them free."""
    done = subprocess.run(
        [sys.executable, "-c", "import jax; print(len(jax.devices()))"], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"JAX finds no devices: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return int(done.stdout.split()[-1])


def _base(variant: Variant, name: str, overrides: list[str]) -> dict[str, Any]:
    return {"bench": "mesh", "config": name, "overrides": overrides, "variant": variant.name,
            "replica": variant.replica, "shard": variant.shard, "flags": list(variant.flags),
            "environment": variant.environment, "commit": commit()}  # fmt: skip


def _ready(
    process: _Process, end: float, rows: list[dict[str, Any]], name: str, overrides: list[str]
) -> _Process | None:
    """The process once it has compiled; None, with a row that says why, where it has not in time."""
    if process.says(end - time.monotonic()) == READY:
        return process
    rows.append(_base(process.variant, name, overrides) | {"error": f"not compiled: {process.why()}"})
    process.end()
    return None


def _row(process: _Process, end: float, name: str, overrides: list[str]) -> dict[str, Any]:
    row = _base(process.variant, name, overrides)
    left = end - time.monotonic()
    if left < MIN_MEASURE_S:
        return row | {"error": "compiled; time was up"}
    process.go()
    said = process.says(min(left, MAX_MEASURE_S))
    row |= {"error": process.why()} if said is None else json.loads(said)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with "efficiency" (weak scaling) and "loss_difference" (largest relative one), None where nothing compares."""
    measured = {row["variant"]: row for row in rows if "error" not in row}
    one, whole = measured.get(ONE), measured.get(GLOBAL)
    for row in measured.values():
        is_mesh = row["replica"] * row["shard"] > 1
        row["efficiency"] = one["ms"] / row["ms"] if one and is_mesh else None
        row["loss_difference"] = None
        if whole and is_mesh and whole["examples_per_step"] == row["examples_per_step"]:
            pairs = zip(row["losses"], whole["losses"], strict=True)
            row["loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Prints the rows as a table; what the compiled step promised stands behind a slash."""
    heads = ("variant", "ms", "tokens/s", "MFU", "weak scaling", "loss, off by", "exposed", "comm. ms", "MiB received (promised)",
             "imbalance, time/cost", "GiB, peak/promised")  # fmt: skip
    measured = [row for row in rows if "error" not in row]
    device = f" on {measured[0]['device']}, jax {measured[0]['jax']}" if measured else ""
    table = Table(*heads, title=f"{rows[0]['config']} {' '.join(rows[0]['overrides'])}{device}")
    for row in measured:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['variant']}: {row['error']}", markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    promised = row["promised"]
    received = sum(promised[k] for k in promised if k.endswith(("shard_bytes", "replica_bytes")))
    planned = (promised["state_bytes"] + promised["temporary_bytes"]) / 2**30
    exposed = None if row["exposed_ms"] is None else row["exposed_ms"] / row["ms"]
    peak = None if row["peak_bytes"] is None else max(row["peak_bytes"]) / 2**30
    return [
        row["variant"],
        _text(row["ms"], ".2f"),
        _text(row["tokens_per_s"], ",.0f"),
        _text(row["mfu"], ".1%"),
        _text(row["efficiency"], ".1%"),
        _text(row["loss_difference"], ".1e"),
        _text(exposed, ".1%"),
        _text(row["communication_ms"], ".2f"),
        f"{received / 2**20:,.1f}",
        f"{_text(row['compute_imbalance'], '.3f')}/{row['cost_imbalance']:.3f}",
        f"{_text(peak, '.2f')}/{planned:.2f}",
    ]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
