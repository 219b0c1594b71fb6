"""Every decision about hardware, made once, before anything is allocated: the mesh, where tables lie, what a device must hold."""

import dataclasses
from collections.abc import Iterable

import jax
from flax import nnx
from jax.sharding import Mesh

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Schema
from gem_jax.embedding.placement import Placement
from gem_jax.embedding.planner import TableLoad, TablesPlan, plan_tables
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import RowStore
from gem_jax.models.outputs import table_width
from gem_jax.parallel.mesh import make_mesh, num_mesh_devices
from gem_jax.run.memory import COMPILER_SHARE, Memory, device_batch, device_memory, saved_activations
from gem_jax.training.buckets import Buckets
from gem_jax.training.optimizer import table_optimizer

FLOAT_BYTES = 4
NUM_MOMENTS = 2
"""Of Adam."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Where everything of a run lies.

    Attributes:
      mesh: the devices.
      tables: schemes and owners of the embedding tables.
      placement: the place of every row.
      memory: bytes of a device by kind.
      store: in which form shards keep the tables' rows.
    """

    mesh: Mesh
    tables: TablesPlan
    placement: Placement
    memory: Memory
    store: RowStore

    @classmethod
    def of(
        cls,
        config: Config,
        schema: Schema,
        devices: Iterable[jax.Device] | None = None,
        store: RowStore | None = None,
    ) -> "RunPlan":
        """The plan of a run on some devices, all of the job's unless given; they need not exist (see `scale`).

        Args:
          config: everything about the run.
          schema: of its data.
          devices: the mesh takes all of them, or as many as it is configured for.
          store: in which form shards keep the tables' rows; None: in device memory, as the config says.

        Raises:
          UserError: the mesh does not fit the devices, a table's scheme not the mesh, or the whole not the devices' memory.
        """
        devices = jax.devices() if devices is None else list(devices)
        store = store or DeviceStore(config.tables.dtype)
        num_parameters = _buckets(config, schema).num_parameters
        num_slots = NUM_MOMENTS + (config.optimizer.average > 0)
        batch = device_batch(config, schema)
        limit = device_memory(config.tables.memory_gib, devices)
        activations = saved_activations(config, schema, batch)
        transient = {
            "gathered parameters": num_parameters * config.precision.compute_dtype.itemsize,
            "activations": activations,
            "compiler's temporaries": int(COMPILER_SHARE * activations),
            "batch": 2 * sum(x.nbytes for x in jax.tree.leaves(batch)),  # one at work, one on its way
        }
        tables = plan_tables(
            table_loads(schema, config.batch),
            dim=table_width(config.model, schema),
            num_devices=num_mesh_devices(config.mesh, len(devices)),
            replica=config.mesh.replica,
            shard=config.mesh.shard,
            overrides=config.tables.schemes,
            optimizer=table_optimizer(config.optimizer),
            store=store,
            fully_sharded=config.tables.fully_sharded,
            dense_bytes=(2 + num_slots) * FLOAT_BYTES * num_parameters,
            memory_bytes_per_device=limit,
            reserved_bytes=sum(transient.values()),
        )
        multiple = tables.replica if config.tables.fully_sharded else 1
        share = tables.dense_bytes // (2 + num_slots)
        return cls(
            store=store,
            mesh=make_mesh(tables.replica, tables.shard, devices),
            tables=tables,
            placement=Placement.of(tables, multiple=multiple),
            memory=Memory(
                kinds={
                    "parameters": share,
                    "gradients": share,
                    "optimizer": num_slots * share,
                    "tables": max(tables.memory_bytes),
                    "gathered tables": tables.transient_bytes,
                    **transient,
                },
                limit=limit,
            ),
        )


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


def _buckets(config: Config, schema: Schema) -> Buckets:
    """The model's buckets, without making it."""
    abstract = nnx.eval_shape(lambda: config.model.build(schema, policy=config.precision, rngs=nnx.Rngs(0)))
    return Buckets.of(nnx.state(abstract))
