"""XLA flags of a GPU run, each with its reason; a flag that the environment's XLA_FLAGS already names is left as it is.

The reasons are from schedules of `gem_base` compiled for 2 x 8 H200s with jax 0.11.2 (`gem_jax.scale.aot`), not from timings.
"""

import importlib.util
import os

GPU_FLAGS = {
    # Unset, the forward pass's all-gathers and all reduce-scatters are synchronous; set, each runs beside compute.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    # Collectives in flight. At 2 a layer's all-gather starts when the one before it is done, so that about two layers' weights are
    # whole at a time; at 8 all layers' start at once, which is FSDP's memory given away.
    "xla_gpu_experimental_parallel_collective_overlap_limit": "2",
    # Bytes up to which reduce-scatters are merged. The default of 30 MiB waits for several layers' gradients.
    "xla_gpu_reduce_scatter_combine_threshold_bytes": str(8 * 2**20),
}


def set_flags() -> None:
    """Adds the flags to XLA_FLAGS where JAX has a CUDA plugin; before JAX first looks for devices."""
    if any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""))


def with_flags(given: str) -> str:
    """`given` and the flags that it does not name."""
    named = {word.lstrip("-").partition("=")[0] for word in given.split()}
    return " ".join([given, *(f"--{flag}={value}" for flag, value in GPU_FLAGS.items() if flag not in named)]).strip()
