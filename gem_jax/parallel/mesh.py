"""The mesh, and the only place that spells the names of its axes.

`shard`: the devices of a group, over which dense parameters and embedding tables are cut. `replica`: groups, each of which holds
everything once. The batch is cut over both. shard=1 is plain data parallelism, replica=1 is fully sharded (FSDP), and anything
between is HSDP for dense parameters and 2D sparse parallelism for tables (arXiv 2508.03854).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from gem_jax.errors import UserError

REPLICA = "replica"
SHARD = "shard"
EVERYWHERE = (REPLICA, SHARD)
"""All devices: how a batch is cut along its first axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged. With both numbers None the embedding planner takes the smallest shard that fits."""

    replica: int | None = None
    """Groups of devices that each hold all parameters and tables; None for as many as the devices allow."""
    shard: int | None = None
    """Devices of a group, which cut parameters and tables among them; None for as few as memory allows."""

    def __post_init__(self):
        for name in ("replica", "shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"mesh.{name}={value} must be at least 1")


def num_mesh_devices(config: MeshConfig, available: int) -> int:
    """How many of the `available` devices the mesh takes: all of them, unless both numbers are given.

    Raises:
      UserError: the mesh needs more devices than there are, or one number does not divide them.
    """
    if config.replica is not None and config.shard is not None:
        wanted = config.replica * config.shard
        if wanted > available or (wanted < available and jax.process_count() > 1):
            raise UserError(
                f"mesh.replica={config.replica} times mesh.shard={config.shard} needs {wanted} devices and the job has "
                f"{available}; change the mesh or the number of devices"
            )
        return wanted
    for name in ("replica", "shard"):
        value = getattr(config, name)
        if value is not None and available % value:
            raise UserError(f"mesh.{name}={value} does not divide the {available} devices of the job; choose a divisor")
    return available


def make_mesh(replica: int, shard: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the first replica * shard devices.

    Devices of a host are neighbours along `shard`: its all-gathers and all-to-alls are every layer's, those of `replica` once a
    step, so the former get the fast links.
    """
    devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    grid = np.array(devices[: replica * shard]).reshape(replica, shard)
    return Mesh(grid, EVERYWHERE, axis_types=(AxisType.Auto, AxisType.Auto))


def local_devices(mesh: Mesh) -> int:
    """Devices of the mesh in this process: device batches that it must feed."""
    return sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
