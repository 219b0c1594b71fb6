"""Logistic regression: the sum of one weight per id, a linear map of dense features and vectors, and a bias."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.outputs import Outputs
from gem_jax.nn.dense import Dense
from gem_jax.nn.initializers import ONES, ZEROS
from gem_jax.nn.interactions import flatten
from gem_jax.nn.parameters import flattened, parameter
from gem_jax.precision.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticRegressionConfig:
    """Logistic regression on single features; it sees no histories and no interactions."""

    embedding_dim: None = None
    """Weights per id: always one for each task of the schema."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "LogisticRegressionModel":
        """The model with random weights."""
        return LogisticRegressionModel(self, schema, policy=policy, rngs=rngs)


class LogisticRegressionModel(nnx.Module):
    """logit_n = sum_f scale_{f, n} w_f[id_f]_n + dense . u_n + vectors . v_n + bias_n.

    Features that share a table share its weights w up to the scale, which starts at 1. Where each feature has a table
    of its own this is logistic regression on one-hot ids.
    """

    def __init__(self, config: LogisticRegressionConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        del config
        tasks = tuple(task.name for task in schema.tasks)
        self.features = tuple(f.name for f in schema.categoricals)
        self.vectors = tuple(v.name for v in schema.vectors)
        self.policy = policy
        shape = (len(self.features), len(tasks))
        self.scale = parameter(ONES, shape, rngs, decay=False, axes=(self.features, tasks))
        inputs = tuple(f"dense/{f.name}" for f in schema.dense)
        for vector in schema.vectors:
            inputs += flattened((f"vector/{vector.name}",), vector.dim)
        # Zero: there is no symmetry to break in a linear model.
        self.linear = Dense(inputs, tasks, kernel_init=ZEROS, policy=policy, rngs=rngs) if inputs else None

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the ids' scaled weights, then dense features and vectors."""
        del key
        weights = jnp.stack([embedded.features[name] for name in self.features], axis=1)
        weights = self.policy.to_reduce(weights) * self.scale[...]
        logits, last = weights.sum(axis=1), flatten(weights)
        if self.linear is None:
            return Outputs(logits=logits, representations={"last": last})
        inputs = jnp.concatenate([batch.dense, *(batch.vectors[name] for name in self.vectors)], axis=1)
        logits = logits + self.policy.to_reduce(self.linear(inputs))
        return Outputs(logits=logits, representations={"last": jnp.concatenate([last, inputs], axis=1)})
