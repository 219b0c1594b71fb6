"""Non-sequence features as tokens [B, n, D] (Wukong, arXiv 2403.02545, embedding layer; InterFormer, preprocessing)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.nn.dense import Dense
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names
from gem_jax.precision.policy import Policy


class FeatureTokens(nnx.Module):
    """A token per categorical feature (its embedding), one for all dense features (an MLP), one per vector (a linear map).

    Args:
      schema: names the features; the tokens come in its order.
      width: D, the width of the embedding tables.
      dense_hidden: hidden sizes of the dense features' MLP.
      dropout_rate: of that MLP.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      names: of the n tokens, led by what each is, since a feature may be called "dense" too.
      dense_index: which token is that of the dense features, where there are any.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        *,
        dense_hidden: Sequence[int] = (),
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.features = tuple(f.name for f in schema.categoricals)
        self.vectors = tuple(v.name for v in schema.vectors)
        self.policy = policy
        self.dense = (
            MLP(
                tuple(f.name for f in schema.dense),
                dense_hidden,
                width,
                dropout_rate=dropout_rate,
                policy=policy,
                rngs=rngs,
            )
            if schema.dense
            else None
        )
        self.vector_linears = nnx.Dict({v.name: Dense(v.dim, width, policy=policy, rngs=rngs) for v in schema.vectors})
        self.dense_index = len(self.features)
        self.names: Names = (
            *(f"categorical/{name}" for name in self.features),
            *(("dense",) if schema.dense else ()),
            *(f"vector/{name}" for name in self.vectors),
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B n D"]:
        tokens = [self.policy.cast(embedded.features[name]) for name in self.features]
        if self.dense is not None:
            tokens.append(self.dense(batch.dense, key))
        tokens += [self.vector_linears[name](batch.vectors[name]) for name in self.vectors]
        return jnp.stack(tokens, axis=1)
