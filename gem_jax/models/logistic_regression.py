"""Logistic regression: the sum of one weight per id, a linear map of dense features and vectors, and a bias."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import Embedded


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticRegressionConfig:
    """Logistic regression on single features; it sees no histories and no interactions."""

    embedding_dim: None = None
    """Weights per id: always one for each task of the schema."""

    def build(self, schema: Schema, rngs: nnx.Rngs, dtype=jnp.float32) -> "LogisticRegressionModel":
        """The model with random weights."""
        return LogisticRegressionModel(self, schema, rngs=rngs, dtype=dtype)


class LogisticRegressionModel(nnx.Module):
    """logit_n = sum_f scale_{f, n} w_f[id_f]_n + dense . u_n + vectors . v_n + bias_n.

    Features that share a table share its weights w up to the scale, which starts at 1. Where each feature has a table
    of its own this is logistic regression on one-hot ids.
    """

    def __init__(self, config: LogisticRegressionConfig, schema: Schema, *, rngs: nnx.Rngs, dtype=jnp.float32):
        num_tasks = len(schema.tasks)
        del config
        self.features = tuple(f.name for f in schema.categoricals)
        self.vectors = tuple(v.name for v in schema.vectors)
        self.scale = nnx.Param(jnp.ones((len(self.features), num_tasks), jnp.float32))
        num_inputs = len(schema.dense) + sum(v.dim for v in schema.vectors)
        # Zero: there is no symmetry to break in a linear model.
        zeros = nnx.initializers.zeros
        self.linear = (
            nnx.Linear(num_inputs, num_tasks, kernel_init=zeros, dtype=dtype, rngs=rngs) if num_inputs else None
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B N"]:
        """Logits, float32."""
        del key
        weights = jnp.stack([embedded.features[name] for name in self.features], axis=1)
        logits = (weights.astype(jnp.float32) * self.scale[...]).sum(axis=1)
        if self.linear is None:
            return logits
        inputs = jnp.concatenate([batch.dense, *(batch.vectors[name] for name in self.vectors)], axis=1)
        return logits + self.linear(inputs).astype(jnp.float32)
