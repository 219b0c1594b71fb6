"""Timing calls on a device.

Everything is compiled first. Each number is then the median of 20 samples, in bursts of 5 after a rest of 0.2 s, each of at
least 10 calls and 10 ms: enough calls that the host's share stays hidden (starting and ending a sample takes 0.1 ms), and
rests since a GPU at its power limit lowers its clock.
"""

from __future__ import annotations

import concurrent.futures
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

BURSTS, SAMPLES, CALLS, SAMPLE_MS, REST_S = 4, 5, 10, 10.0, 0.2


def milliseconds(function: Callable, *arguments: Any) -> float:
    """Median time of a call; many are queued at a time, so that the host's share stays hidden."""

    def sample(calls):
        start = time.perf_counter()
        for _ in range(calls):
            out = function(*arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / calls * 1e3

    return median(sample)


def median(sample: Callable[[int], float]) -> float:
    """Of samples, each the milliseconds a call that sample(calls) measures."""
    calls = max(CALLS, math.ceil(SAMPLE_MS / sample(CALLS)))
    times = []
    for _ in range(BURSTS):
        time.sleep(REST_S)
        sample(2)
        times += [sample(calls) for _ in range(SAMPLES)]
    return statistics.median(times)


def warm(function: Callable, *arguments: Any) -> tuple:
    """(function, *arguments) after one call, which compiles it: what `milliseconds` takes."""
    jax.block_until_ready(function(*arguments))
    return function, *arguments


def compiled_together(prepare: Callable, items: Iterable[tuple], refused: type[Exception]) -> list:
    """prepare(*item) of each, in threads since compiling takes most of the time; None where it raises `refused`."""

    def prepared(item):
        try:
            return prepare(*item)
        except refused as error:
            print(f"skipped {item}: {type(error).__name__}: {error}"[:300], flush=True)
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(prepared, items))


def matmul_tflops(n: int = 8192) -> float:
    """The bfloat16 matmul rate of XLA on this device: the ceiling that shares refer to."""
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    return 2 * n**3 / milliseconds(jax.jit(jnp.dot), a, a) / 1e9


def machine(commit: str) -> dict[str, str]:
    """What every measured row says of where it was measured."""
    return dict(device=jax.devices()[0].device_kind, jax=jax.__version__, commit=commit)
