"""SASRec (arXiv 1808.09781): a causal softmax transformer over the history, as a ranking baseline.

Shape letters: B examples, T packed rows, D width.
"""

import dataclasses
from typing import Any

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
from gem_jax.nn.dense import cast_weight
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
    """SASRec as a ranking model: all sources as one history in order of time, whose last state meets the candidate."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    width: int = 64
    """Width of the rows between the blocks."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Heads of each block."""
    likeness: bool = False
    """Events carry how like the candidate they are (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    head_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the history's last state, its product with the candidate, and the features."""
    dropout: float = 0.0
    """Dropout rate of the input, the blocks and the last MLP."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "SASRecModel":
        """The model with random weights."""
        return SASRecModel(self, schema, policy=policy, rngs=rngs)


class SASRecModel(nnx.Module):
    """y = MLP([F, F * M, tokens]): F the history's last state, M the candidate encoded by what encodes the events.

    The paper scores an item by F . M (Eq 6), the sum of F * M, with M from the embedding that the history's items have; that one
    embedding for both is what lets it match a candidate to the history from the first step on. The tokens are the non-sequence
    features, which the paper's data do not have. Positions are learned, counted from the newest event backwards (the paper pads on
    the left, which is the same). Domains are not used.
    """

    def __init__(self, config: SASRecConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.width
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.dropout_rate = config.dropout
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, **make)
        self.history = MergedHistory(schema, config.embedding_dim, width, likeness=config.likeness, **make)
        shape = (self.history.max_len, width)
        self.places = parameter(normal(0.02), shape, rngs, decay=False, axes=(numbered("before", shape[0]), None))
        self.blocks = nnx.List(
            [
                SASRecBlock(width, config.num_heads, dropout_rate=config.dropout, **make)
                for _ in range(config.num_layers)
            ]
        )
        self.norm = LayerNorm(width)
        self.head = PlainHead(
            (*flattened(("state", "match"), width), *flattened(self.tokens.names, config.embedding_dim)),
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            **make,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": what the head reads."""
        head_key, *keys = split_key(key, 2 + len(self.blocks))
        features = flatten(self.tokens(batch, embedded))
        state = self._state(batch, embedded, keys)
        match = state * self.history.candidate(embedded, len(features))
        last = jnp.concatenate([state, match, features], axis=1)
        return Outputs(logits=self.head(last, head_key), representations={"last": last})

    def _state(self, batch: Batch, embedded: Embedded, keys: list[jax.Array | None]) -> Float[Array, "B D"]:
        """F: the last block's newest row, normed; that of no events is the norm of 0, its bias."""
        if not self.history.max_lens:
            return self.norm(jnp.zeros((len(batch.domain), self.history.width), self.policy.compute_dtype))
        input_key, *block_keys = keys
        x, layout, _ = self.history(batch, embedded)
        place = jnp.maximum(layout.distance_to_end(), 0)
        x = dropout(x + cast_weight(self.places, self.policy)[place], self.dropout_rate, input_key)
        for i, (block, block_key) in enumerate(zip(self.blocks, block_keys, strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = remat.checkpointed(block, self.policy)(x, layout, block_key)
        newest, _ = recent(x, layout, 1)
        return self.norm(newest[:, 0])
