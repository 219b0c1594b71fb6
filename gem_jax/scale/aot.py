"""A run's training step compiled for GPUs that are not there: XLA's deviceless compiler needs no GPU, driver or CUDA.

Needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt beside jax, and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 in the environment.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from gem_jax.config import Config
from gem_jax.data.schema import Schema
from gem_jax.parallel.mesh import REPLICA, SHARD
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.scale import hlo

GPUS_PER_HOST = 8

H200 = """
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
"""What XLA needs to know of the chip (a GpuTargetConfigProto)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled training step, in bytes of one device.

    Attributes:
      replica: groups of the mesh.
      shard: devices of a group.
      state_bytes: what lies in memory between steps.
      temporary_bytes: what a step needs besides.
      predicted_bytes: what the plan had said of the two together.
      collectives: what crosses devices.
    """

    replica: int
    shard: int
    state_bytes: int
    temporary_bytes: int
    predicted_bytes: int
    collectives: list[hlo.Collective]


def gpu_devices(count: int) -> Sequence[jax.Device]:
    """H200s in hosts of eight, none of which need exist."""
    hosts = max(count // GPUS_PER_HOST, 1)
    topology = topologies.get_topology_desc(
        topology_name="", platform="cuda", target_config=H200, topology=f"1x{hosts}x{count // hosts}"
    )
    return topology.devices


def compile_step(config: Config, schema: Schema, devices: Sequence[jax.Device] | None = None) -> CompiledStep:
    """The step that a run of this config takes on these devices.

    Nothing of the model's or the tables' size is made. Compiled away from a GPU, attention is the XLA one.
    """
    plan = RunPlan.of(config, schema, devices)
    return compiled_step(plan, Program.of(config, schema, plan).lower().compile())


def compiled_step(plan: RunPlan, compiled: jax.stages.Compiled) -> CompiledStep:
    """What the compiler promises of a step that it compiled for this plan."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # of a compiled program on any platform
    return CompiledStep(
        replica=plan.mesh.shape[REPLICA],
        shard=plan.mesh.shape[SHARD],
        state_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        predicted_bytes=plan.memory.total,
        collectives=hlo.collectives(text, dict(plan.mesh.shape)),
    )
