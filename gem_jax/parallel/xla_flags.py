"""XLA flags of a GPU run, each with its reason; a flag that the environment's XLA_FLAGS already names is left as it is."""

import importlib.util
import os

GPU_FLAGS = {
    # On by default in jax 0.11.2 (the same schedule with and without it): stated, since without it nothing overlaps.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    # Default 1. The next layer's all-gather and the tables' all-to-all use different groups of links: let both be in flight.
    "xla_gpu_experimental_parallel_collective_overlap_limit": "2",
}


def set_flags() -> None:
    """Adds the flags to XLA_FLAGS where JAX has a CUDA plugin; before JAX first looks for devices."""
    if any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""))


def with_flags(given: str) -> str:
    """`given` and the flags that it does not name."""
    named = {word.lstrip("-").partition("=")[0] for word in given.split()}
    return " ".join([given, *(f"--{flag}={value}" for flag, value in GPU_FLAGS.items() if flag not in named)]).strip()
