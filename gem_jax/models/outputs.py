"""What every model is and what it returns: the contract between models, objectives and the step.

Shape letters: B examples, N tasks, R size of a representation.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

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
      parents: for each task the place of the task whose event it presupposes, or None; its logit is conditional on that event
        (ESMM). Empty where all logits are for the whole space.
      more_logits: names of the representations that are logits of the tasks too, [B, N] for the whole space.
    """

    logits: Any  # of arrays, tracers or abstract shapes, as JAX rebuilds it with each
    representations: dict[str, Any] = dataclasses.field(default_factory=dict)
    parents: tuple[int | None, ...] = dataclasses.field(default=(), metadata={"static": True})
    more_logits: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def with_base(self, base_logits: Float[Array, " N"]) -> "Outputs":
        """The outputs for the whole space, the tasks' base logits added: a model of zeros predicts the base rates.

        A conditional logit c becomes logit(p q), p being its parent's probability and q = sigmoid(c + logit(its base rate / its
        parent's)).
        """
        representations = self.representations | {
            name: self.representations[name] + base_logits for name in self.more_logits
        }
        if not any(parent is not None for parent in self.parents):
            logits = self.logits + base_logits
            return dataclasses.replace(self, logits=logits, representations=representations, parents=())
        log_rate = jax.nn.log_sigmoid(base_logits)
        log_p: dict[int, Array] = {}

        def log_probability(task: int) -> Float[Array, " B"]:
            if task not in log_p:
                parent = self.parents[task]
                own = self.logits[:, task]
                if parent is None:
                    log_p[task] = jax.nn.log_sigmoid(own + base_logits[task])
                else:
                    base = _logit(log_rate[task] - log_rate[parent])
                    log_p[task] = log_probability(parent) + jax.nn.log_sigmoid(own + base)
            return log_p[task]

        columns = [
            self.logits[:, task] + base_logits[task] if parent is None else _logit(log_probability(task))
            for task, parent in enumerate(self.parents)
        ]
        return dataclasses.replace(self, logits=jnp.stack(columns, axis=1), representations=representations, parents=())


_LARGEST_LOG = -1e-6
"""Of a probability: above it, log(1 - p) has no digits left in float32."""


def _logit(log_p: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(p / (1 - p)) from log p."""
    log_p = jnp.minimum(log_p, _LARGEST_LOG)
    return log_p - jnp.log(-jnp.expm1(log_p))


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


TRAINING_ONLY = "training_only"
"""The attribute of a model that holds all its parts that only training needs."""


@runtime_checkable
class TaughtConfig(Protocol):
    """A model config whose model may have parts that only training needs, as its attribute `training_only`."""

    def serving(self) -> ModelConfig:
        """The model without them: all its other parameters, under the same names."""
        ...


def serving_model(model: ModelConfig) -> ModelConfig:
    """What scores where nothing is trained."""
    return serving_model(model.serving()) if isinstance(model, TaughtConfig) else model


def table_width(model: ModelConfig, schema: Schema) -> int:
    """Width of the embedding tables that the model reads."""
    return len(schema.tasks) if model.embedding_dim is None else model.embedding_dim
