"""DCN-V2 (arXiv 2008.13535): a cross network beside or below an MLP. No histories."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.dense import Dense
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import CrossNetwork, MixtureCrossNetwork, flatten
from gem_jax.nn.parameters import Names, flattened, joined, numbered
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCNv2Config:
    """DCN-V2 as a complete model of the non-sequence features."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    num_cross_layers: int = 3
    """Layers of the cross network."""
    rank: int | None = None
    """Inner size of low-rank cross weights; None for full matrices."""
    num_experts: int = 1
    """Low-rank experts of each cross layer; more than one are mixed by gates and have a nonlinearity in their inner space."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Deep network beside the cross network, or on its output (the paper's figure 1)."""
    hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the deep network."""
    norm: bool = False
    """LayerNorm in the deep network, where the published recipe normalises over the batch."""
    dropout: float = 0.0
    """Dropout rate of the deep network's hidden layers."""

    def __post_init__(self):
        if self.num_experts < 1 or (self.num_experts > 1 and self.rank is None):
            raise UserError(
                f"num_experts={self.num_experts} must be at least 1, and experts are of low rank: set rank for more than one"
            )

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "DCNv2Model":
        """The model with random weights."""
        return DCNv2Model(self, schema, policy=policy, rngs=rngs)


class DCNv2Model(nnx.Module):
    """parallel: a linear map of [cross(x), deep(x)]; stacked: deep(cross(x)). Domains and histories are not used."""

    def __init__(self, config: DCNv2Config, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        tasks = tuple(task.name for task in schema.tasks)
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, policy=policy, rngs=rngs)
        inputs = flattened(self.tokens.names, config.embedding_dim)
        self.cross = _cross_network(config, inputs, policy=policy, rngs=rngs)
        self.head = PlainHead(
            inputs, tasks, hidden=config.hidden, norm=config.norm, dropout_rate=config.dropout, policy=policy, rngs=rngs
        )
        # A linear map of a concatenation is the sum of one of each part; the deep part's is its MLP's last layer.
        is_parallel = config.structure == "parallel"
        self.cross_head = Dense(inputs, tasks, policy=policy, rngs=rngs) if is_parallel else None
        deep = self.head.hidden_axis
        of_deep = numbered("deep", deep) if isinstance(deep, int) else joined(("deep",), deep)
        self.hidden_axis = (*of_deep, *joined(("cross",), inputs)) if is_parallel else deep

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": what the head reads; "hidden": what its last linear map does."""
        token_key, head_key = split_key(key, 2)
        x = flatten(self.tokens(batch, embedded, token_key))
        with jax.named_scope("cross_network"):
            crossed = self.cross(x)
        if self.cross_head is None:
            logits, hidden = self.head.with_hidden(crossed, head_key)
            return Outputs(logits=logits, representations={"last": crossed, "hidden": hidden})
        logits, hidden = self.head.with_hidden(x, head_key)
        logits = logits + self.policy.to_reduce(self.cross_head(crossed))
        last, hidden = (jnp.concatenate([part, crossed], axis=1) for part in (x, hidden))
        return Outputs(logits=logits, representations={"last": last, "hidden": hidden})


def _cross_network(
    config: DCNv2Config, inputs: Names, *, policy: Policy, rngs: nnx.Rngs
) -> CrossNetwork | MixtureCrossNetwork:
    make: dict[str, Any] = dict(policy=policy, rngs=rngs)
    if config.rank is None or config.num_experts == 1:
        return CrossNetwork(inputs, config.num_cross_layers, rank=config.rank, **make)
    return MixtureCrossNetwork(
        inputs, config.num_cross_layers, rank=config.rank, num_experts=config.num_experts, **make
    )
