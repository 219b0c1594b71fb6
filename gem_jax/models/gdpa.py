"""Kunlun's attention form of InterFormer's personalised feed-forward network (arXiv 2602.10016).

Shape letters: B examples, T packed rows, D width, H heads, K head dim, m summary tokens, J keys.
"""

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.dense import einsum
from gem_jax.nn.initializers import normal
from gem_jax.nn.jagged import Layout
from gem_jax.nn.norms import LayerNorm, RMSNorm
from gem_jax.nn.parameters import parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy
from pallas_kernels.jagged_attention import gdpa


class GDPAFeedForward(nnx.Module):
    """RMSNorm(GDPA(q, K, V) + q) with q = LN(S): events personalised by a summary of the non-sequence tokens.

    GDPA_h = silu(q K_h^T / n) V_h, K_h = w1_h(X_sum), V_h = w2_h(X_sum), n the
    history's upper bound, not masked and not divided. Norms and
    residual are those of Meta's published kernels (facebookresearch/ads_model_kernel_library: eps 1e-5). The paper
    leaves the maps w1 and w2 open; ours mix the summary tokens per head into J keys and values.

    Args:
      width: D.
      num_summary: m, tokens of X_sum.
      num_heads: H; divides D.
      num_keys: J, the counterpart of a feed-forward network's hidden size.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_summary: int,
        num_heads: int,
        *,
        num_keys: int,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.head_dim = head_dim(width, num_heads)
        self.policy = policy
        self.norm_in = LayerNorm(width)
        self.norm_out = RMSNorm(width)
        shape = (num_summary, num_heads, num_keys)
        std = num_summary**-0.5
        self.w1 = parameter(normal(std), shape, rngs, decay=True)
        # The output sums over the keys too.
        self.w2 = parameter(normal(std * num_keys**-0.5), shape, rngs, decay=True)

    def __call__(self, summary: Float[Array, "B m D"], x: Float[Array, "T D"], layout: Layout) -> Float[Array, "T D"]:
        """Personalised rows, 0 in padding rows."""
        heads = self.policy.cast(summary).reshape(*summary.shape[:2], -1, self.head_dim)
        k, v = (einsum("bmhk,mhj->bjhk", heads, w, self.policy) for w in (self.w1, self.w2))
        q = self.norm_in(self.policy.cast(layout.clear_padding(x)))
        personal = gdpa(
            q.reshape(len(x), -1, self.head_dim),
            k,
            v,
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
            activation="silu",
            scale=1.0 / layout.max_len,
        )
        personal = checkpoint_name(personal, tags.ATTENTION)
        return layout.clear_padding(self.norm_out(personal.reshape(q.shape) + q))
