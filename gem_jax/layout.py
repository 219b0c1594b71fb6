"""From a run's config and data to its mesh and the places of its tables: the planner, asked with this run's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Schema
from gem_jax.embedding.placement import Scheme
from gem_jax.embedding.planner import Plan, TableLoad, plan_tables, table_of
from gem_jax.models import table_width
from gem_jax.run import processes
from gem_jax.run.mesh import make_mesh, num_mesh_devices
from gem_jax.training.flat import FlatLayout

GIB = 2**30
ACTIVATION_SHARE = 0.5
"""Of a device's memory that the planner leaves to activations, gathered parameters and the batch."""
STATE_BYTES = 16
"""Of a dense parameter: float32 value, gradient and Adam's two moments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLayout:
    """The mesh of a run, and where its tables lie on it."""

    mesh: Mesh
    plan: Plan

    @property
    def schemes(self) -> dict[str, Scheme]:
        """Table -> scheme."""
        return {table.name: table.scheme for table in self.plan.tables}

    @property
    def owners(self) -> dict[str, int]:
        """Table -> shard, of the tables placed whole."""
        return {table.name: table.owner for table in self.plan.tables if table.owner is not None}


def plan_run(config: Config, schema: Schema, console: Console) -> RunLayout:
    """Chooses mesh and places; shows the plan where there is more than one device.

    Raises:
      ValueError: the mesh does not fit the devices, a table's scheme not the mesh, or the whole not the devices' memory.
    """
    num_devices = num_mesh_devices(config.mesh, jax.device_count())
    plan = plan_tables(
        table_loads(schema, config.batch),
        dim=table_width(config.model, schema),
        num_devices=num_devices,
        replica=config.mesh.replica,
        shard=config.mesh.shard,
        overrides=config.tables.schemes,
        optimizer=config.optimizer.table_optimizer,
        fully_sharded=config.tables.fully_sharded,
        dense_bytes=STATE_BYTES * num_dense_parameters(config, schema),
        **memory_options(config.tables.memory_gib),
    )
    if num_devices > 1 and processes.is_first():
        console.print(table_of(plan))
    return RunLayout(mesh=make_mesh(plan.replica, plan.shard), plan=plan)


def table_loads(schema: Schema, batch: BatchConfig) -> list[TableLoad]:
    """Ids that one device looks up in each table in a step, all places of its batch taken."""
    tokens = batch.budgets(schema)
    ids = {table.name: 0 for table in schema.tables}
    for feature in schema.categoricals:
        ids[feature.table] += batch.examples * feature.max_ids
    for sequence in schema.sequences:
        for attribute in sequence.attributes:
            ids[attribute.table] += tokens[sequence.name]
    return [TableLoad(name=table.name, rows=table.rows, ids=ids[table.name]) for table in schema.tables]


def num_dense_parameters(config: Config, schema: Schema) -> int:
    """Of the model, without making it."""
    dtype = jnp.dtype(config.train.compute_dtype)
    abstract = nnx.eval_shape(lambda: config.model.build(schema, rngs=nnx.Rngs(0), dtype=dtype))
    return FlatLayout.of(nnx.state(abstract)).num_parameters


def memory_options(memory_gib: float | None) -> dict[str, int]:
    """What the planner may use of a device: of the given memory, else of what the device reports; no bound on a CPU."""
    if memory_gib is not None:
        total = int(memory_gib * GIB)
    else:
        stats = jax.local_devices()[0].memory_stats() or {}
        total = int(stats.get("bytes_limit", 0))
    if not total:
        return {}
    return {"memory_bytes_per_device": total, "reserved_bytes": int(ACTIVATION_SHARE * total)}
