"""What every model is and what it returns: the contract between models, objectives and the step.

Shape letters: B examples, N tasks, R size of a representation.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.precision.policy import Policy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """A model's answer to a batch.

    Attributes:
      logits: float32 [B, N], one per task of the schema in its order; the run's base logits are added by the step.
      representations: name -> [B, R], vectors or further logits that objectives, transfer and serving read by name.
    """

    logits: Any  # of arrays, tracers or abstract shapes, as JAX rebuilds it with each
    representations: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Model(Protocol):
    """An `nnx.Module` that scores batches; all its trained arrays are made by `gem_jax.nn.parameters.parameter`."""

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """The outputs for one device's batch.

        Args:
          batch: packed examples; empty slots have weight 0.
          embedded: the batch's ids as vectors.
          key: for dropout; None where nothing is dropped.
        """
        ...


@runtime_checkable
class ModelConfig(Protocol):
    """A frozen dataclass that says everything about a model. A config file may bring its own; nothing is registered."""

    @property
    def embedding_dim(self) -> int | None:
        """Width of the embedding tables that the model reads; None for one number a task."""
        ...

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> Model:
        """The model with random weights."""
        ...


def table_width(model: ModelConfig, schema: Schema) -> int:
    """Width of the embedding tables that the model reads."""
    return len(schema.tasks) if model.embedding_dim is None else model.embedding_dim
