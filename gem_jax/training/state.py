"""Everything a run must keep from step to step, and how it starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import TableCollection
from gem_jax.models import ModelConfig, table_width
from gem_jax.training.flat import FlatLayout, FlatState
from gem_jax.training.optimizer import OptimizerConfig, dense_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: optimizer steps taken; dense: the model's parameters, flat; dense_opt: their Adam state; table [V, D] and its row-wise
    accumulator [V]; base_logits [N]: constants added to the model's logits; key: seeds dropout."""

    step: Int[Array, ""]
    dense: FlatState
    dense_opt: optax.OptState
    table: Float[Array, "V D"]
    table_opt: Float[Array, " V"]
    base_logits: Float[Array, " N"]
    key: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The static parts of a run that the jitted steps close over."""

    schema: Schema
    tables: TableCollection
    graph: nnx.GraphDef
    layout: FlatLayout
    optimizer: OptimizerConfig


def init_state(
    model: ModelConfig,
    schema: Schema,
    optimizer: OptimizerConfig,
    *,
    seed: int,
    base_logits: np.ndarray | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Setup, TrainState]:
    """A new model with its tables and optimizers, a pure function of the arguments.

    Args:
      model: which model.
      schema: what it is built for.
      optimizer: how dense parameters and tables start and train.
      seed: of parameters and dropout.
      base_logits: [N], the logit of each task's base rate, so that a new model predicts it; zeros unless given.
      dtype: what the model computes in.

    Raises:
      ValueError: a parameter has no optimizer group, or the model does not fit the schema.
    """
    tables = TableCollection(schema, table_width(model, schema))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: model.build(schema, rngs=nnx.Rngs(0), dtype=dtype)))
    layout = FlatLayout.of(abstract)

    @jax.jit
    def make(key: jax.Array) -> TrainState:
        dense_key, table_key, run_key = jax.random.split(key, 3)
        dense = layout.flatten(nnx.state(model.build(schema, rngs=nnx.Rngs(dense_key), dtype=dtype)))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            dense=dense,
            dense_opt=dense_optimizer(optimizer).init(dense),
            table=tables.init(table_key, optimizer.table_init_std),
            table_opt=jnp.full((tables.num_rows,), optimizer.table_init_accumulator, jnp.float32),
            base_logits=jnp.zeros(len(schema.tasks)) if base_logits is None else jnp.asarray(base_logits, jnp.float32),
            key=run_key,
        )

    return Setup(schema=schema, tables=tables, graph=graph, layout=layout, optimizer=optimizer), make(
        jax.random.key(seed)
    )


def count_parameters(state: TrainState) -> dict[str, int]:
    """Numbers of dense and table parameters."""
    return {"dense": sum(x.size for x in jax.tree.leaves(state.dense)), "tables": state.table.size}
