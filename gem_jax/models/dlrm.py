"""DLRM (arXiv 1906.00091): embeddings and a bottom MLP, dot products of all pairs, a top MLP.

Histories enter as DLRM's multi-hot features do: the mean embedding of each attribute is one more token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.bags import HistoryBags
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import pairwise_dots
from gem_jax.nn.parameters import flattened, pairs
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class DLRMConfig:
    """DLRM with histories as mean-pooled bags."""

    embedding_dim: int = 32
    """Width of all embedding tables and of the bottom MLP's output."""
    bottom_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the dense features."""
    top_hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the MLP on the dot products."""
    likeness: bool = False
    """The mean likeness of each history to the candidate is an input too (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    dropout: float = 0.0
    """Dropout rate of the MLPs' hidden layers."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "DLRMModel":
        """The model with random weights."""
        return DLRMModel(self, schema, policy=policy, rngs=rngs)


class DLRMModel(nnx.Module):
    """top([dots of all pairs of tokens, bottom(dense)]). Domains are not used."""

    def __init__(self, config: DLRMConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        self.has_dense = bool(schema.dense)
        self.policy = policy
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.bottom_hidden, dropout_rate=config.dropout, policy=policy, rngs=rngs
        )
        self.bags = HistoryBags(schema, width, likeness=config.likeness, policy=policy)
        inputs = pairs(self.tokens.names + self.bags.names)
        if self.has_dense:
            inputs += flattened(("dense",), width)
        inputs += self.bags.likeness_names
        self.head = PlainHead(
            inputs,
            tuple(task.name for task in schema.tasks),
            hidden=config.top_hidden,
            dropout_rate=config.dropout,
            policy=policy,
            rngs=rngs,
        )
        self.hidden_axis = self.head.hidden_axis

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the top MLP's input; "hidden": its last hidden layer."""
        token_key, head_key = split_key(key, 2)
        x = self.tokens(batch, embedded, token_key)
        bags, likeness = self.bags(batch, embedded)
        with jax.named_scope("interaction"):
            inputs = [pairwise_dots(jnp.concatenate([x, bags], axis=1))]
        if self.has_dense:
            inputs.append(x[:, self.tokens.dense_index])
        inputs.append(likeness)
        last = jnp.concatenate(inputs, axis=1)
        logits, hidden = self.head.with_hidden(last, head_key)
        return Outputs(logits=logits, representations={"last": last, "hidden": hidden})
