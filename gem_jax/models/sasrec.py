"""SASRec (arXiv 1808.09781): a causal softmax transformer over the history, as a ranking baseline.

Shape letters: B examples, T packed rows, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.attention import JaggedSelfAttention
from gem_jax.nn.dense import Dense, cast_weight
from gem_jax.nn.dropout import dropout, split_key
from gem_jax.nn.events import MergedHistory
from gem_jax.nn.initializers import normal
from gem_jax.nn.interactions import flatten
from gem_jax.nn.jagged import Layout, recent
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import flattened, numbered, parameter
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import remat
from gem_jax.precision.policy import Policy


class SASRecBlock(nnx.Module):
    """x + Dropout(g(LN(x))) for g = causal self-attention, then for g = relu(x W_1 + b_1) W_2 + b_2 of the same width.

    Args:
      width: D.
      num_heads: of the attention.
      dropout_rate: of both sublayers' outputs.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, width: int, num_heads: int, *, dropout_rate: float = 0.0, policy: Policy, rngs: nnx.Rngs):
        self.dropout_rate = dropout_rate
        self.attention_norm = LayerNorm(width)
        self.attention = JaggedSelfAttention(width, num_heads, kind="softmax", rope=False, policy=policy, rngs=rngs)
        self.mlp_norm = LayerNorm(width)
        self.mlp = MLP(width, (width,), width, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"], layout: Layout, key: jax.Array | None = None) -> Float[Array, "T D"]:
        """Next rows, 0 in padding rows."""
        attention_key, mlp_key = split_key(key, 2)
        x = layout.clear_padding(x)
        x = x + dropout(self.attention(self.attention_norm(x), layout), self.dropout_rate, attention_key)
        return layout.clear_padding(x + dropout(self.mlp(self.mlp_norm(x)), self.dropout_rate, mlp_key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """SASRec as a ranking model: all sources as one history in order of time, the candidate at its end."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    width: int = 64
    """Width of the rows between the blocks."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Heads of each block."""
    head_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the candidate's last row."""
    dropout: float = 0.0
    """Dropout rate of the input, the blocks and the last MLP."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "SASRecModel":
        """The model with random weights."""
        return SASRecModel(self, schema, policy=policy, rngs=rngs)


class SASRecModel(nnx.Module):
    """Histories merged by time, the candidate (all non-sequence features) as the last token, whose last state is read.

    The paper scores an item by the dot product of its embedding with the history's last state; a candidate with many
    features is a token of its own here and sees the history instead. Positions are learned, counted from the candidate
    backwards (the paper pads on the left, which is the same). Domains are not used.
    """

    def __init__(self, config: SASRecConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        self.dropout_rate = config.dropout
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, policy=policy, rngs=rngs)
        self.candidate = Dense(
            flattened(self.tokens.names, config.embedding_dim), config.width, policy=policy, rngs=rngs
        )
        self.history = MergedHistory(schema, config.embedding_dim, config.width, policy=policy, rngs=rngs)
        shape = (self.history.max_len, config.width)
        self.places = parameter(normal(0.02), shape, rngs, decay=False, axes=(numbered("before", shape[0]), None))
        self.blocks = nnx.List(
            [
                SASRecBlock(config.width, config.num_heads, dropout_rate=config.dropout, policy=policy, rngs=rngs)
                for _ in range(config.num_layers)
            ]
        )
        self.norm = LayerNorm(config.width)
        self.head = PlainHead(
            config.width,
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            policy=policy,
            rngs=rngs,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the candidate's last row, normed."""
        head_key, input_key, *keys = split_key(key, 2 + len(self.blocks))
        candidate = self.candidate(flatten(self.tokens(batch, embedded)))
        x, layout, _ = self.history(batch, embedded, candidate)
        place = jnp.maximum(layout.distance_to_end(), 0)
        x = dropout(x + cast_weight(self.places, self.policy)[place], self.dropout_rate, input_key)
        for i, (block, block_key) in enumerate(zip(self.blocks, keys, strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = remat.checkpointed(block, self.policy)(x, layout, block_key)
        newest, _ = recent(x, layout, 1)
        last = self.norm(newest[:, 0])
        return Outputs(logits=self.head(last, head_key), representations={"last": last})
