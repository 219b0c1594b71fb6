"""Cross-layer attention: each token takes up its own states from all earlier layers again.

Meta names "cross-layer attention connections" in GEM's Wukong (engineering.fb.com, November 2025) without a formula. This is our
reading, in place of the residual. Each head h of token i after l layers reads

    R_i = X_l,i + sum_{j < l} (b_hj + g_h silu(q(X_l,i) . k(X_j,i) / sqrt(K))) X_j,i          (per head, on its K of the D channels)

so a block may take up features of any order of interaction again, where a residual only passes on the last sum (Wukong's layer l
holds orders 1 .. 2^l). Weights are static (b, as in DenseFormer, arXiv 2402.02622) and by attention whose activation is pointwise
beside an identity path (DeRes, arXiv 2606.07980): of either sign, unbounded, and adding to nothing. b and g start at 0, so that a
new model has the plain residual. What a softmax over the states gives instead, a mean of them, was measured and is worth less
(gem_jax/models/README.md).

Shape letters: B examples, n tokens, D width, H heads, K head dim, L states so far.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.dense import Dense
from gem_jax.nn.initializers import ZEROS
from gem_jax.nn.norms import RMSNorm
from gem_jax.nn.parameters import parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class CrossLayerAttention(nnx.Module):
    """The last of a token's states from `num_states` layers, and what it takes up of those before.

    Args:
      width: D.
      num_heads: H; divides D.
      num_states: L, the layers before this one with the input; at least 2.
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
        self.static = parameter(ZEROS, (num_heads, num_states - 1), rngs, decay=False)
        self.attended = parameter(ZEROS, (num_heads,), rngs, decay=False)

    def __call__(self, states: list[Float[Array, "B n D"]]) -> Float[Array, "B n D"]:
        """The mixed state; `states` oldest first."""
        earlier = jnp.stack(states[:-1], axis=2)  # [B, n, L - 1, D]
        q = self._heads(self.query(self.norm(states[-1])))
        k = self._heads(self.key(self.norm(earlier)))
        scores = self.policy.to_reduce(jnp.einsum("bnhk,bnlhk->bnhl", q, k)) * self.head_dim**-0.5
        weights = self.static[...] + self.attended[...][:, None] * jax.nn.silu(scores)
        taken = jnp.einsum("bnhl,bnlhk->bnhk", weights.astype(earlier.dtype), self._heads(earlier))
        return states[-1] + checkpoint_name(taken.reshape(states[-1].shape), tags.ATTENTION)

    def _heads(self, x: Float[Array, "*s D"]) -> Float[Array, "*s H K"]:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
