"""DLRM (arXiv 1906.00091): embeddings and a bottom MLP, dot products of all pairs, a top MLP.

Histories enter as DLRM's multi-hot features do: the mean embedding of each attribute is one more token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import pairwise_dots
from gem_jax.nn.jagged import Layout, history_mean
from gem_jax.nn.tokens import FeatureTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class DLRMConfig:
    """DLRM with histories as mean-pooled bags."""

    embedding_dim: int = 32
    """Width of all embedding tables and of the bottom MLP's output."""
    bottom_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the dense features."""
    top_hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the MLP on the dot products."""
    dropout: float = 0.0
    """Dropout rate of the MLPs' hidden layers."""

    def build(self, schema: Schema, rngs: nnx.Rngs, dtype=jnp.float32) -> "DLRMModel":
        """The model with random weights."""
        return DLRMModel(self, schema, rngs=rngs, dtype=dtype)


class DLRMModel(nnx.Module):
    """top([bottom(dense), dots of all pairs of tokens]). Domains are not used."""

    def __init__(self, config: DLRMConfig, schema: Schema, *, rngs: nnx.Rngs, dtype=jnp.float32):
        width = config.embedding_dim
        self.has_dense = bool(schema.dense)
        self.dtype = dtype
        self.sequences = {s.name: (s.max_len, tuple(a.name for a in s.attributes)) for s in schema.sequences}
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.bottom_hidden, dropout_rate=config.dropout, dtype=dtype, rngs=rngs
        )
        num_tokens = self.tokens.num_tokens + sum(len(attributes) for _, attributes in self.sequences.values())
        self.head = PlainHead(
            num_tokens * (num_tokens - 1) // 2 + width * self.has_dense,
            len(schema.tasks),
            hidden=config.top_hidden,
            dropout_rate=config.dropout,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B N"]:
        """Logits, float32."""
        token_key, head_key = split_key(key, 2)
        x = self.tokens(batch, embedded, token_key)
        bags = []
        for name, (max_len, attributes) in self.sequences.items():
            layout = Layout.of(batch.sequences[name], max_len)
            bags += [history_mean(embedded.events[name][a].astype(self.dtype), layout) for a in attributes]
        inputs = [pairwise_dots(jnp.concatenate([x, *(bag[:, None] for bag in bags)], axis=1))]
        if self.has_dense:
            inputs.append(x[:, self.tokens.dense_index])
        return self.head(jnp.concatenate(inputs, axis=1), head_key)
