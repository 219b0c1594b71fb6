"""Histories of any length as a fixed number of tokens: attention by learned seeds.

Shape letters: B examples, T packed rows, D width, H heads, K head dim, n tokens.
"""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.dense import Dense, cast_weight
from gem_jax.nn.initializers import normal
from gem_jax.nn.jagged import Layout
from gem_jax.nn.parameters import parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy
from pallas_kernels.jagged_attention import seed_attention


class PMA(nnx.Module):
    """Pooling by multi-head attention, MHA(Q, K(S), V(S)) with n learned Q (InterFormer, arXiv 2411.09852, Eq 11).

    The queries are learned in the heads' space: a query projection of learned queries adds nothing.

    Args:
      width: D.
      num_tokens: n.
      num_heads: H; divides D.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, width: int, num_tokens: int, num_heads: int, *, policy: Policy, rngs: nnx.Rngs):
        size = head_dim(width, num_heads)
        self.num_heads = num_heads
        self.policy = policy
        self.seeds = parameter(normal(1.0), (num_tokens, num_heads, size), rngs, decay=False)
        self.kv = Dense(width, 2 * width, use_bias=False, policy=policy, rngs=rngs)
        self.out = Dense(width, width, use_bias=False, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B n D"]:
        """n tokens per example, 0 for an empty history."""
        k, v = jnp.split(self.kv(layout.clear_padding(x)).reshape(len(x), 2 * self.num_heads, -1), 2, axis=1)
        seeds = cast_weight(self.seeds, self.policy)
        tokens = seed_attention(seeds, k, v, layout.offsets, layout.lengths, max_len=layout.max_len)
        return self.out(checkpoint_name(tokens, tags.ATTENTION).reshape(*tokens.shape[:2], -1))
