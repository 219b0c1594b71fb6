"""Everything that a run must keep from step to step."""

import dataclasses

import jax
import optax
from jaxtyping import Array, Float, Int

from gem_jax.embedding.sharded import TableState
from gem_jax.training.buckets import Vectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """A model in training, as it lies on the mesh; `Program.to_logical` gives it by name, as checkpoints hold it.

    Attributes:
      step: optimizer steps taken.
      dense: the model's parameters in buckets.
      dense_opt: their optimizer's state.
      tables: the embedding tables with their optimizer's state.
      base_logits: [N], constants added to the model's logits, of the schema's tasks in order.
      key: seeds dropout.
    """

    step: Int[Array, ""]
    dense: Vectors
    dense_opt: optax.OptState
    tables: TableState
    base_logits: Float[Array, " N"]
    key: Array
