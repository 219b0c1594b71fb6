"""A training step measured: its time, what it computes in that time, where the time goes, and how fast a run is fed."""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gem_jax.bench import model_flops, profile
from gem_jax.bench.startup import Phases, Started
from gem_jax.config import Config
from gem_jax.files import commit
from gem_jax.parallel.sharding import place_batch

GROUPS, STEPS = 5, 5
"""A time is the median of GROUPS samples of STEPS steps each, queued together so that the host's share stays hidden."""

DATASHEET = {"H100": 989.0, "H200": 989.0}
"""Words of a device's name -> dense bf16 TFLOP/s of its datasheet."""

CEILING_SIZE = {"gpu": 8192, "cpu": 1024}
"""Rows and columns of the matrices whose product is the ceiling."""

NO_GRAPHS = {"xla_gpu_graph_min_graph_size": str(2**31 - 1)}
"""What XLA is told so that it launches each kernel by itself: no sequence is long enough for a graph."""

type Row = dict[str, Any]


def measure(config: Config, overrides: tuple[str, ...], cold: Phases, warm: Phases, trace: str | None) -> Row:
    """One row of results, JSON-able.

    Args:
      config: with the overrides applied.
      overrides: to be named.
      cold: of `startup.measure`.
      warm: of the same.
      trace: folder where the profiler's trace is kept; None keeps none.
    """
    run = Started(config)
    sample = lambda: [run.step(run.batch) for _ in range(STEPS)]  # noqa: E731
    seconds = median_s(sample) / STEPS
    num_examples = int((run.host_batch.weight > 0).sum())
    num_tokens = int(sum(events.lengths.sum() for events in run.host_batch.sequences.values()))
    device = jax.devices()[0]
    row = {
        "bench": "step",
        "config": config.name,
        "overrides": list(overrides),
        "dtype": config.precision.compute,
        "ms": seconds * 1e3,
        "examples_per_s": num_examples / seconds,
        "tokens_per_s": num_tokens / seconds,
        "fed_examples_per_s": fed_examples_per_s(run),
        **_flops(run, seconds),
        "peak_gib": _peak_bytes(run) / 2**30,
        "first_step_s": cold["total"],
        "warm_first_step_s": warm["total"],
        "cold_phases_s": cold,
        "warm_phases_s": warm,
        "devices": run.program.mesh.size,
        "device": device.device_kind,
        "jax": jax.__version__,
        "commit": commit(),
    }
    return row | _where_time_goes(run, sample, trace)


def _where_time_goes(run: Started, sample: Callable[[], Any], trace: str | None) -> Row:
    """Milliseconds of a step by scope and by kind, from a profile of its own: on a GPU without CUDA graphs, since a trace does not
    say which operations a graph's kernels are of. The program is compiled again for it, so this comes last."""
    if jax.devices()[0].platform == "gpu":
        run.recompile(NO_GRAPHS)
        jax.block_until_ready(sample())
    with tempfile.TemporaryDirectory() as folder:
        times = profile.traced(sample, pathlib.Path(trace or folder))
    times, hlo = {name: milliseconds / STEPS for name, milliseconds in times.items()}, run.compiled.as_text() or ""
    return {"by_scope": profile.by_scope(times, hlo), "by_kind": profile.by_kind(times, hlo)}


def median_s(run: Callable[[], Any]) -> float:
    """Median seconds of a call, after one to warm up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(GROUPS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fed_examples_per_s(run: Started) -> float:
    """Examples a second of a run that reads, packs and places its batches, the reader's first batches left out."""
    batches = iter(run.loader)
    for _ in range(STEPS):
        jax.block_until_ready(run.step(place_batch(next(batches)[0], run.program.mesh)))
    start, examples, loss = time.perf_counter(), 0, None
    for _ in range(GROUPS * STEPS):
        batch, host = next(batches)
        loss = run.step(place_batch(batch, run.program.mesh))
        examples += host.num_examples
    jax.block_until_ready(loss)
    seconds = time.perf_counter() - start
    batches.close()
    return examples / seconds


def ceiling_tflops() -> float:
    """TFLOP/s of a large product on one device: bfloat16 on a GPU, float32 on a CPU."""
    platform = jax.devices()[0].platform
    size = CEILING_SIZE.get(platform, CEILING_SIZE["gpu"])
    x = jnp.ones((size, size), jnp.float32 if platform == "cpu" else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / median_s(lambda: product(x, x)) * 1e-12


def _flops(run: Started, seconds: float) -> Row:
    """Model TFLOP/s of a device, and its shares of what a large product reaches there and of the datasheet."""
    ceiling = ceiling_tflops()
    forward = model_flops.forward_flops(run.program, run.host_batch)
    kind = jax.devices()[0].device_kind
    sheet = next((value for word, value in DATASHEET.items() if word in kind), None)
    if forward is None:
        return {"tflops": None, "mfu": None, "mfu_datasheet": None, "ceiling_tflops": ceiling}
    tflops = model_flops.TRAINING * sum(forward.values()) / seconds / run.program.mesh.size * 1e-12
    return {
        "tflops": tflops,
        "mfu": tflops / ceiling,
        "mfu_datasheet": tflops / sheet if sheet else None,
        "ceiling_tflops": ceiling,
    }


def _peak_bytes(run: Started) -> int:
    """Of one device: as its allocator counted, or as the compiler planned where none counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    plan = run.compiled.memory_analysis()
    assert plan is not None  # of a compiled program
    return plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
