"""HSTU (arXiv 2402.17152): attention without softmax, gated by the token itself, as a ranking baseline.

Shape letters: B examples, T packed rows, D width, H heads, K head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.dense import Dense
from gem_jax.nn.dropout import dropout, split_key
from gem_jax.nn.events import MergedHistory
from gem_jax.nn.initializers import normal, xavier_uniform
from gem_jax.nn.interactions import flatten
from gem_jax.nn.jagged import Layout, recent
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import flattened, parameter
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import remat, tags
from gem_jax.precision.policy import Policy
from pallas_kernels.jagged_attention import Mask, RelativeBias, jagged_attention

NUM_TIME_BUCKETS = 128
INIT_STD = 0.02


class RelativeAttentionBias(nnx.Module):
    """rab^{p,t}: one bias per distance of positions and one per bucket of elapsed time, shared by the heads.

    Args:
      max_len: upper bound of the histories.
      rngs: initialises the biases.
    """

    def __init__(self, max_len: int, *, rngs: nnx.Rngs):
        # Named by how far a key lies after its query, since max_len follows from the schema's sources.
        distances = tuple(f"{distance:+d}" for distance in range(1 - max_len, max_len))
        self.position = parameter(normal(INIT_STD), (2 * max_len - 1,), rngs, decay=False, axes=(distances,))
        self.time = parameter(normal(INIT_STD), (NUM_TIME_BUCKETS + 1,), rngs, decay=False)

    def __call__(self, timestamps: Int[Array, " T"]) -> RelativeBias:
        return RelativeBias(self.position[...], self.time[...], timestamps)


class HSTUBlock(nnx.Module):
    """One layer, with the details of the authors' research code (meta-recsys/generative-recommenders):

      U, V, Q, K = split(silu(LN(X) W_uvqk))           no bias; the order is u, v, q, k
      A = silu(Q K^T + rab) / n                        causal; n = upper bound of the history's length
      X' = W(dropout(U * LN(A V))) + X            with bias; both norms without affine parameters, eps 1e-6

    Args:
      width: D.
      num_heads: H.
      head_dim: K, of queries, keys, values and gates.
      max_len: upper bound of the histories; sizes the position bias.
      mask: which events see which; causal unless given.
      relative_bias: whether rab is used.
      dropout_rate: before the last linear map.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        max_len: int,
        *,
        mask: Mask = Mask(),  # noqa: B008 (frozen)
        relative_bias: bool = True,
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.mask = mask
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.policy = policy
        inner = num_heads * head_dim
        self.norm_in = LayerNorm(width, affine=False, eps=1e-6)
        self.norm_out = LayerNorm(inner, affine=False, eps=1e-6)
        self.uvqk = Dense(width, 4 * inner, use_bias=False, kernel_init=normal(INIT_STD), policy=policy, rngs=rngs)
        self.out = Dense(inner, width, kernel_init=xavier_uniform(inner, width), policy=policy, rngs=rngs)
        self.relative_bias = RelativeAttentionBias(max_len, rngs=rngs) if relative_bias else None

    def __call__(
        self, x: Float[Array, "T D"], layout: Layout, timestamps: Int[Array, " T"], key: jax.Array | None = None
    ) -> Float[Array, "T D"]:
        """Next rows, 0 in padding rows.

        Args:
          x: packed rows.
          layout: theirs; its max_len is the block's.
          timestamps: int32 seconds, from any origin.
          key: for dropout.
        """
        x = self.policy.cast(layout.clear_padding(x))
        uvqk = checkpoint_name(jax.nn.silu(self.uvqk(self.norm_in(x))), tags.ACTIVATION)
        u, v, q, k = jnp.split(uvqk, 4, axis=-1)
        heads = (len(x), self.num_heads, -1)
        attended = jagged_attention(
            q.reshape(heads),
            k.reshape(heads),
            v.reshape(heads),
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
            kind="silu",
            mask=self.mask,
            scale=1.0,
            bias=None if self.relative_bias is None else self.relative_bias(timestamps),
        )
        attended = checkpoint_name(attended, tags.ATTENTION)
        gated = u * self.norm_out(attended.reshape(len(x), -1))
        return layout.clear_padding(self.out(dropout(gated, self.dropout_rate, key)) + x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HSTUConfig:
    """HSTU as a ranking model: all sources as one history in order of time, the candidate at its end."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    width: int = 64
    """Width of the rows between the blocks."""
    num_layers: int = 2
    """HSTU blocks."""
    num_heads: int = 2
    """Heads of each block."""
    head_dim: int = 32
    """Size of queries, keys, values and gates of each head."""
    relative_bias: bool = True
    """The bias by relative position and elapsed time; the GPU kernels run without it only."""
    head_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the candidate's last row."""
    dropout: float = 0.0
    """Dropout rate in the blocks and the last MLP."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "HSTUModel":
        """The model with random weights."""
        return HSTUModel(self, schema, policy=policy, rngs=rngs)


class HSTUModel(nnx.Module):
    """Histories merged by time, the candidate (all non-sequence features) as the last token, whose last state is read.

    Domains are not used. The rows carry their age, and rab the order, so there is no position embedding.
    """

    def __init__(self, config: HSTUConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, policy=policy, rngs=rngs)
        self.candidate = Dense(
            flattened(self.tokens.names, config.embedding_dim), config.width, policy=policy, rngs=rngs
        )
        self.history = MergedHistory(schema, config.embedding_dim, config.width, policy=policy, rngs=rngs)
        self.blocks = nnx.List(
            [
                HSTUBlock(
                    config.width,
                    config.num_heads,
                    config.head_dim,
                    self.history.max_len,
                    relative_bias=config.relative_bias,
                    dropout_rate=config.dropout,
                    policy=policy,
                    rngs=rngs,
                )
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
        head_key, *keys = split_key(key, 1 + len(self.blocks))
        candidate = self.candidate(flatten(self.tokens(batch, embedded)))
        x, layout, age = self.history(batch, embedded, candidate)
        for i, (block, block_key) in enumerate(zip(self.blocks, keys, strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = remat.checkpointed(block, self.policy)(x, layout, -age, block_key)
        newest, _ = recent(x, layout, 1)
        last = self.norm(newest[:, 0])
        return Outputs(logits=self.head(last, head_key), representations={"last": last})
