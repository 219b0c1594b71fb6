"""HSTU (arXiv 2402.17152): attention without softmax, gated by the token itself, in its ranking form.

The form is that of the authors' ranking code (meta-recsys/generative-recommenders, modules/stu.py and dlrm_hstu.py): the block's
output map reads [u, a, u * LN(a)], the candidate stands at the end of the history as a target, and the head reads the product of
its last state with an embedding of the item: a head on the last state alone learns next to nothing from histories. What an event
led to is an attribute of the event (the code's action embedding, fused into the item's row; the paper interleaves items and
actions).

Shape letters: B examples, T packed rows, D width, H heads, K head dim.
"""

import dataclasses
from typing import Any

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
from gem_jax.nn.dense import Dense, cast_weight
from gem_jax.nn.dropout import dropout, split_key
from gem_jax.nn.events import MergedHistory
from gem_jax.nn.initializers import normal, uniform, xavier_uniform
from gem_jax.nn.interactions import flatten
from gem_jax.nn.jagged import Layout, recent
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import flattened, numbered, parameter
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
    """One layer, as the authors' ranking code computes it; the paper's relative bias is added, which that code leaves out:

      u, v, q, k = split(LN(X) W + b), u through silu         the order is u, v, q, k
      a = A v,  A = silu(q k^T / sqrt(K) + rab) / n           causal; n = upper bound of the history's length
      X' = X + dropout([u, a, u * LN(a)]) W_o                 both norms with eps 1e-6

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
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.norm_in = LayerNorm(width, eps=1e-6)
        self.norm_out = LayerNorm(inner, eps=1e-6)
        self.uvqk = Dense(width, 4 * inner, kernel_init=xavier_uniform(width, 4 * inner), **make)
        self.out = Dense(3 * inner, width, use_bias=False, kernel_init=xavier_uniform(3 * inner, width), **make)
        self.relative_bias = RelativeAttentionBias(max_len, rngs=rngs) if relative_bias else None

    def __call__(
        self,
        x: Float[Array, "T D"],
        layout: Layout,
        timestamps: Int[Array, " T"],
        num_targets: Int[Array, " B"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "T D"]:
        """Next rows, 0 in padding rows.

        Args:
          x: packed rows.
          layout: theirs; its max_len is the block's.
          timestamps: int32 seconds, from any origin.
          num_targets: how many rows at the end of each history are candidates: no row but itself sees one.
          key: for dropout.
        """
        x = self.policy.cast(layout.clear_padding(x))
        u, v, q, k = jnp.split(self.uvqk(self.norm_in(x)), 4, axis=-1)
        u = checkpoint_name(jax.nn.silu(u), tags.ACTIVATION)
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
            num_targets=num_targets,
            bias=None if self.relative_bias is None else self.relative_bias(timestamps),
        )
        attended = checkpoint_name(attended, tags.ATTENTION).reshape(len(x), -1)
        parts = jnp.concatenate([u, attended, u * self.norm_out(attended)], axis=1)
        return layout.clear_padding(x + self.out(dropout(parts, self.dropout_rate, key)))


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
    likeness: bool = False
    """Events carry how like the candidate they are (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    head_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP on the product of the candidate's last state and the item's embedding."""
    dropout: float = 0.0
    """Dropout rate of the input, the blocks and the last MLP."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "HSTUModel":
        """The model with random weights."""
        return HSTUModel(self, schema, policy=policy, rngs=rngs)


class HSTUModel(nnx.Module):
    """Histories merged by time, the candidate as their last row and a target; y = MLP(LN(its last state) * LN(item)).

    Items and events share tables but no map, as in the authors' code, so a match must be found: in
    tests/gem_jax/models/test_learning_from_histories.py AUC stays at .5 for 300 to 700 steps (3 seeds); with `likeness` it is .93
    or more after 100. Adding the candidate's encoding as an event to its row and to the item made no difference that shows (.72 to
    .95 after 800 steps with it, .49 to .84 without, 3 seeds each), and is left out. The candidate's row is a linear map of all
    non-sequence features, those of user and context too, for which the authors' code has rows of their own in front of the
    history. Positions are learned, counted from the candidate backwards. Domains are not used.
    """

    def __init__(self, config: HSTUConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.width
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.dropout_rate = config.dropout
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, **make)
        features = flattened(self.tokens.names, config.embedding_dim)
        self.candidate = Dense(features, width, **make)
        self.item = MLP(features, (2 * width,), width, dropout_rate=config.dropout, **make)
        self.item_norm = LayerNorm(width)
        self.history = MergedHistory(schema, config.embedding_dim, width, form="mlp", likeness=config.likeness, **make)
        max_len = self.history.max_len + 1
        axes = (numbered("before", max_len), None)
        self.places = parameter(uniform(max_len**-0.5), (max_len, width), rngs, decay=False, axes=axes)
        self.blocks = nnx.List(
            [
                HSTUBlock(
                    width,
                    config.num_heads,
                    config.head_dim,
                    max_len,
                    relative_bias=config.relative_bias,
                    dropout_rate=config.dropout,
                    **make,
                )
                for _ in range(config.num_layers)
            ]
        )
        self.norm = LayerNorm(width)
        self.head = PlainHead(
            width,
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            **make,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the product that the head reads."""
        head_key, item_key, input_key, *keys = split_key(key, 3 + len(self.blocks))
        features = flatten(self.tokens(batch, embedded))
        x, layout, age = self.history(batch, embedded, self.candidate(features))
        place = jnp.maximum(layout.distance_to_end(), 0)
        x = dropout(x + cast_weight(self.places, self.policy)[place], self.dropout_rate, input_key)
        num_targets = jnp.ones(len(features), jnp.int32)
        for i, (block, block_key) in enumerate(zip(self.blocks, keys, strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = remat.checkpointed(block, self.policy)(x, layout, -age, num_targets, block_key)
        newest, _ = recent(x, layout, 1)
        last = self.norm(newest[:, 0]) * self.item_norm(self.item(features, item_key))
        return Outputs(logits=self.head(last, head_key), representations={"last": last})
