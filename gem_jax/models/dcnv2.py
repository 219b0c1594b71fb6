"""DCN-V2 (arXiv 2008.13535): a cross network beside or below an MLP. No histories."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import CrossNetwork, flatten
from gem_jax.nn.tokens import FeatureTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCNv2Config:
    """DCN-V2 as a complete model of the non-sequence features."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    num_cross_layers: int = 3
    """Layers of the cross network."""
    rank: int | None = None
    """Inner size of low-rank cross weights; None for full matrices."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Deep network beside the cross network, or on its output (the paper's figure 1)."""
    hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the deep network."""
    dropout: float = 0.0
    """Dropout rate of the deep network's hidden layers."""

    def build(self, schema: Schema, rngs: nnx.Rngs, dtype=jnp.float32) -> "DCNv2Model":
        """The model with random weights."""
        return DCNv2Model(self, schema, rngs=rngs, dtype=dtype)


class DCNv2Model(nnx.Module):
    """parallel: Linear([cross(x), deep(x)]); stacked: deep(cross(x)). Domains and histories are not used."""

    def __init__(self, config: DCNv2Config, schema: Schema, *, rngs: nnx.Rngs, dtype=jnp.float32):
        num_tasks = len(schema.tasks)
        self.tokens = FeatureTokens(schema, config.embedding_dim, dtype=dtype, rngs=rngs)
        size = self.tokens.num_tokens * config.embedding_dim
        self.cross = CrossNetwork(size, config.num_cross_layers, rank=config.rank, dtype=dtype, rngs=rngs)
        self.head = PlainHead(
            size, num_tasks, hidden=config.hidden, dropout_rate=config.dropout, dtype=dtype, rngs=rngs
        )
        # Linear on a concatenation is the sum of a Linear on each part; the deep part's is its MLP's last layer.
        is_parallel = config.structure == "parallel"
        self.cross_head = nnx.Linear(size, num_tasks, dtype=dtype, rngs=rngs) if is_parallel else None

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B N"]:
        """Logits, float32."""
        token_key, head_key = split_key(key, 2)
        x = flatten(self.tokens(batch, embedded, token_key))
        crossed = self.cross(x)
        if self.cross_head is None:
            return self.head(crossed, head_key)
        return self.head(x, head_key) + self.cross_head(crossed).astype(jnp.float32)
