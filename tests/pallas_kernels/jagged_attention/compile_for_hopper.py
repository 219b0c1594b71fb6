"""Compile forward and backward of some layers for an H200 without a GPU; ptxas reports on stderr; on stdout are the
temporary memory and the number of XLA's fusions that make work lists. See the test beside it."""

import os
import sys

import jax
import jax._src.lib
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.jagged_attention import Mask, mosaic_gpu, tuning
from pallas_kernels.jagged_attention.mosaic_problem import Problem
from pallas_kernels.jagged_attention.worklist import Layout

# What XLA needs to know of the chip (a GpuTargetConfigProto); the figures are the H200's, whose chip the H100 shares.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


def main(kind: str, size: int, deterministic: bool, gpu: str, layers: int, window: int | None):
    jax.config.update("jax_platforms", "cpu")
    jax._src.lib.cuda_path = os.environ["CUDA_TOOLS"]
    # Mosaic took its path from there when it was imported, above
    os.environ["MOSAIC_GPU_CUDA_ROOT"] = os.environ["CUDA_TOOLS"]
    topology = topologies.get_topology_desc(
        topology_name="", platform="cuda", target_config=TARGET.replace("NVIDIA H200", gpu), topology="1x1x1"
    )
    sharding = SingleDeviceSharding(topology.devices[0])
    problem = Problem(kind, Mask(window=window), size**-0.5, 4096.0, False)
    settings = mosaic_gpu.Settings(problem, deterministic, tuning.tilings(gpu, size), 132)

    def both_passes(q, k, v, do, starts, lengths):
        layout = Layout(starts, lengths, starts, lengths, lengths)

        def forward(q, k, v):
            for _ in range(layers):
                q = mosaic_gpu.attend(q, k, v, layout, settings, None)
            return q

        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(do)

    rows = jax.ShapeDtypeStruct((16384, 512 // size, size), jnp.bfloat16, sharding=sharding)
    batch = jax.ShapeDtypeStruct((8,), jnp.int32, sharding=sharding)
    traced = jax.jit(both_passes).trace(*[rows] * 4, batch, batch)
    compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    text = compiled.as_text()
    print("temporary bytes:", compiled.memory_analysis().temp_size_in_bytes)
    entry = text[text.index("ENTRY") :].splitlines()
    print("work list fusions:", sum("work_list_of" in line and " fusion(" in line for line in entry))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4], int(sys.argv[5]), int(sys.argv[6]) or None)
