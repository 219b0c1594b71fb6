"""Non-sequence features as tokens [B, n, D] (Wukong, arXiv 2403.02545, embedding layer; InterFormer, preprocessing)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import Embedded
from gem_jax.nn.mlp import MLP


class FeatureTokens(nnx.Module):
    """A token per categorical feature (its embedding), one for all dense features (an MLP), one per vector (a Linear).

    Args:
      schema: names the features; the tokens come in its order.
      width: D, the width of the embedding tables.
      dense_hidden: hidden sizes of the dense features' MLP.
      dropout_rate: of that MLP.
      dtype: of the tokens.
      rngs: initialises the weights.

    Attributes:
      num_tokens: n.
      dense_index: which token is that of the dense features, where there are any.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        *,
        dense_hidden: Sequence[int] = (),
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.features = tuple(f.name for f in schema.categoricals)
        self.vectors = tuple(v.name for v in schema.vectors)
        self.dtype = dtype
        self.dense = (
            MLP(len(schema.dense), dense_hidden, width, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
            if schema.dense
            else None
        )
        self.vector_linears = nnx.List([nnx.Linear(v.dim, width, dtype=dtype, rngs=rngs) for v in schema.vectors])
        self.dense_index = len(self.features)
        self.num_tokens = len(self.features) + bool(schema.dense) + len(self.vectors)

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B n D"]:
        tokens = [embedded.features[name].astype(self.dtype) for name in self.features]
        if self.dense is not None:
            tokens.append(self.dense(batch.dense, key))
        for name, linear in zip(self.vectors, self.vector_linears, strict=True):
            tokens.append(linear(batch.vectors[name]))
        return jnp.stack(tokens, axis=1)
