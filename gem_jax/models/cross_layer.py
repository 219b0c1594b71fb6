"""Cross-layer attention: each token attends over its own states from all earlier layers.

Meta names "cross-layer attention connections" in GEM's Wukong (engineering.fb.com, November 2025) without a formula. This is our
reading: attention along depth in place of the residual. Each head h of token i after l layers reads

    R_i = sum_{j <= l} softmax_j( q(X_l,i) . k(X_j,i) / sqrt(K) + b_j ) X_j,i          (per head, on its K of the D channels)

so a block may take up features of any order of interaction again, where a residual only passes on the last sum (Wukong's layer l
holds orders 1 .. 2^l). States are mixed, not projected: with b favouring the last state it starts close to a residual.

Shape letters: B examples, n tokens, D width, H heads, K head dim, L states so far.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.dense import Dense
from gem_jax.nn.initializers import constant
from gem_jax.nn.norms import RMSNorm
from gem_jax.nn.parameters import parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy

LAST_STATE_BIAS = 2.0
"""With four states the last one starts with weight e^2 / (e^2 + 3) = 0.7 where all scores are equal."""


class CrossLayerAttention(nnx.Module):
    """Attention of each token over its states from `num_states` layers.

    Args:
      width: D.
      num_heads: H; divides D.
      num_states: L, the layers before this one with the input.
      policy: of the computation.
      rngs: initialises the projections.
    """

    def __init__(self, width: int, num_heads: int, num_states: int, *, policy: Policy, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.head_dim = head_dim(width, num_heads)
        self.norm = RMSNorm(width)
        self.query = Dense(width, width, use_bias=False, policy=policy, rngs=rngs)
        self.key = Dense(width, width, use_bias=False, policy=policy, rngs=rngs)
        self.policy = policy
        bias = constant((0.0,) * (num_states - 1) + (LAST_STATE_BIAS,))
        self.bias = parameter(bias, (num_heads, num_states), rngs, decay=False)

    def __call__(self, states: list[Float[Array, "B n D"]]) -> Float[Array, "B n D"]:
        """The mixed state; `states` oldest first."""
        x = jnp.stack(states, axis=2)  # [B, n, L, D]
        normed = self.norm(x)
        q = self._heads(self.query(normed[:, :, -1]))
        k = self._heads(self.key(normed))
        scores = self.policy.to_reduce(jnp.einsum("bnhk,bnlhk->bnhl", q, k)) * self.head_dim**-0.5
        weights = jax.nn.softmax(scores + self.bias[...], axis=-1)
        mixed = jnp.einsum("bnhl,bnlhk->bnhk", weights.astype(x.dtype), self._heads(x))
        return checkpoint_name(mixed.reshape(states[-1].shape), tags.ATTENTION)

    def _heads(self, x: Float[Array, "*s D"]) -> Float[Array, "*s H K"]:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
