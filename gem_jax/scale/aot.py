"""A run's training step compiled for GPUs that are not there: XLA's deviceless compiler needs no GPU, driver or CUDA.

Needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt beside jax, and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 in the environment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.config import Config
from gem_jax.data.columns import empty_examples
from gem_jax.data.packing import pack
from gem_jax.data.schema import Schema
from gem_jax.run.mesh import EVERYWHERE, REPLICA, SHARD, make_mesh
from gem_jax.scale import hlo
from gem_jax.training.state import abstract_state
from gem_jax.training.step import make_train_step

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
    """Of one device, in bytes: what lies in memory between steps, what a step needs besides, and its collectives."""

    replica: int
    shard: int
    state_bytes: int
    temporary_bytes: int
    collectives: list[hlo.Collective]


def gpu_mesh(replica: int, shard: int) -> Mesh:
    """A mesh of H200s in hosts of eight, none of which need exist."""
    num_devices = replica * shard
    hosts = max(num_devices // GPUS_PER_HOST, 1)
    topology = topologies.get_topology_desc(
        topology_name="", platform="cuda", target_config=H200, topology=f"1x{hosts}x{num_devices // hosts}"
    )
    return make_mesh(replica, shard, topology.devices)


def compile_step(config: Config, schema: Schema, mesh: Mesh) -> CompiledStep:
    """The step of a config for a schema, compiled for a mesh.

    Nothing of the model's or the tables' size is made. Compiled away from a GPU, attention is the XLA one.
    """
    setup, state = abstract_state(
        config.model,
        schema,
        config.optimizer,
        dtype=jnp.dtype(config.train.compute_dtype),
        mesh=mesh,
        tables=config.tables,
    )
    one = pack(empty_examples(schema), schema, config.batch.examples, config.batch.budgets(schema))[0]
    sharding = NamedSharding(mesh, P(EVERYWHERE))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * mesh.size, *x.shape[1:]), x.dtype, sharding=sharding), one
    )
    step = make_train_step(setup)
    traced = step.trace(state, batch, jax.ShapeDtypeStruct((), np.float32))  # type: ignore[attr-defined]
    platform = mesh.devices.flat[0].platform
    compiled = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).compile()
    memory = compiled.memory_analysis()
    return CompiledStep(
        replica=mesh.shape[REPLICA],
        shard=mesh.shape[SHARD],
        state_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        collectives=hlo.collectives(compiled.as_text(), dict(mesh.shape)),
    )
