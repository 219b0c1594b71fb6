"""Everything a run must keep from step to step, how it starts, and where it lies on the mesh."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import TableCollection
from gem_jax.embedding.placement import Scheme
from gem_jax.embedding.sharded import ShardedTables, TablesConfig
from gem_jax.embedding.touched_rows import TableState
from gem_jax.models import ModelConfig, table_width
from gem_jax.run.mesh import SHARD, single_device_mesh
from gem_jax.run.sharding import shardings, state_specs
from gem_jax.training.flat import FlatLayout, FlatState
from gem_jax.training.optimizer import OptimizerConfig, dense_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: optimizer steps taken; dense: the model's parameters, flat; dense_opt: their Adam state; tables: the fused embedding
    tables with their optimizer state; base_logits [N]: constants added to the model's logits; key: seeds dropout."""

    step: Int[Array, ""]
    dense: FlatState
    dense_opt: optax.OptState
    tables: dict[str, TableState]
    base_logits: Float[Array, " N"]
    key: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The static parts of a run that the jitted steps close over; specs: the state's axes on the mesh."""

    schema: Schema
    collection: TableCollection
    tables: ShardedTables
    graph: nnx.GraphDef
    layout: FlatLayout
    optimizer: OptimizerConfig
    dtype: jnp.dtype
    mesh: Mesh
    specs: TrainState


def init_state(
    model: ModelConfig,
    schema: Schema,
    optimizer: OptimizerConfig,
    *,
    seed: int,
    base_logits: np.ndarray | None = None,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    tables: TablesConfig | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    owners: Mapping[str, int] | None = None,
) -> tuple[Setup, TrainState]:
    """A new model with its tables and optimizers, a pure function of the arguments and the same on every mesh.

    Args:
      model: which model.
      schema: what it is built for.
      optimizer: how dense parameters and tables start and train.
      seed: of parameters and dropout.
      base_logits: [N], the logit of each task's base rate, so that a new model predicts it; zeros unless given.
      dtype: what the model computes in.
      mesh: the devices; the first one alone unless given.
      tables: how tables are cut over the mesh.
      schemes, owners: of the tables that `tables` leaves open, see `ShardedTables`.

    Raises:
      ValueError: a parameter has no optimizer group, the model does not fit the schema, or a table's scheme not the mesh.
    """
    mesh = mesh or single_device_mesh()
    setup, make = _prepare(model, schema, optimizer, dtype, mesh, tables or TablesConfig(), schemes, owners)
    stacked = {group: setup.tables.stacked_ids(group) for group in setup.tables.groups}
    logits = np.zeros(len(schema.tasks), np.float32) if base_logits is None else np.asarray(base_logits, np.float32)
    state = jax.jit(make, out_shardings=shardings(mesh, setup.specs))(jax.random.key(seed), logits, stacked)
    return setup, state


def abstract_state(
    model: ModelConfig,
    schema: Schema,
    optimizer: OptimizerConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    tables: TablesConfig | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    owners: Mapping[str, int] | None = None,
) -> tuple[Setup, TrainState]:
    """`init_state` without an array: the state's shapes with their shardings, for any size of model and mesh, real or not."""
    mesh = mesh or single_device_mesh()
    setup, make = _prepare(model, schema, optimizer, dtype, mesh, tables or TablesConfig(), schemes, owners)
    shapes = _shapes(setup.tables, make, len(schema.tasks))
    return setup, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(mesh, setup.specs)
    )


def _prepare(model, schema, optimizer, dtype, mesh, config, schemes, owners):
    """The setup, and the function (key, base_logits, stacked ids) -> state."""
    dim = table_width(model, schema)
    tables = ShardedTables(
        schema,
        dim,
        mesh,
        config,
        schemes=schemes,
        owners=owners,
        optimizer=optimizer.table_optimizer,
        l2=optimizer.table_l2,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        initial_accumulator=optimizer.table_init_accumulator,
    )
    graph, abstract = nnx.split(nnx.eval_shape(lambda: model.build(schema, rngs=nnx.Rngs(0), dtype=dtype)))
    layout = FlatLayout.of(abstract, mesh.shape[SHARD])

    def make(key: jax.Array, logits: Array, stacked: dict[str, Array]) -> TrainState:
        dense_key, table_key, run_key = jax.random.split(key, 3)
        dense = layout.flatten(nnx.state(model.build(schema, rngs=nnx.Rngs(dense_key), dtype=dtype)))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            dense=dense,
            dense_opt=dense_optimizer(optimizer).init(dense),
            tables=tables.init(table_key, optimizer.table_init_std, stacked),
            base_logits=logits,
            key=run_key,
        )

    shapes = _shapes(tables, make, len(schema.tasks))
    setup = Setup(
        schema=schema,
        collection=TableCollection(schema, dim),
        tables=tables,
        graph=graph,
        layout=layout,
        optimizer=optimizer,
        dtype=jnp.dtype(dtype),
        mesh=mesh,
        specs=state_specs(shapes, fully_sharded=config.fully_sharded),
    )
    return setup, make


def _shapes(tables: ShardedTables, make, num_tasks: int) -> TrainState:
    stacked = {
        "rows": jax.ShapeDtypeStruct((tables.num_shards * tables.placement.slots,), jnp.int32),
        "columns": jax.ShapeDtypeStruct((tables.placement.column_rows,), jnp.int32),
    }
    stacked = {group: stacked[group] for group in tables.groups}
    return jax.eval_shape(make, jax.random.key(0), jax.ShapeDtypeStruct((num_tasks,), jnp.float32), stacked)


def count_parameters(setup: Setup) -> dict[str, int]:
    """Numbers of dense and table parameters, without what pads them to the mesh."""
    return {"dense": setup.layout.num_parameters, "tables": setup.tables.placement.num_rows * setup.tables.dim}
