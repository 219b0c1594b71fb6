"""Kunlun's attention form of InterFormer's personalised feed-forward network (arXiv 2602.10016).

Shape letters: B examples, T packed rows, D width, H heads, K head dim, m summary tokens, M keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.jagged import Layout
from gem_jax.nn.norms import LayerNorm, RMSNorm
from pallas_kernels.jagged_attention import gdpa


class GDPAFeedForward(nnx.Module):
    """RMSNorm(GDPA(q, K, V) + q) with q = LN(S): events personalised by a summary of the non-sequence tokens.

    GDPA_h = silu(q K_h^T / tau) V_h, K_h = w1_h(X_sum), V_h = w2_h(X_sum), not masked and not divided. Norms and
    residual are those of Meta's published kernels (facebookresearch/ads_model_kernel_library: eps 1e-5). The paper
    leaves the maps w1 and w2 open; ours mix the summary tokens per head into M keys and values.

    Args:
      width: D.
      num_summary: m, tokens of X_sum.
      num_heads: H; divides D.
      num_keys: M, the counterpart of a feed-forward network's hidden size.
      tau: divisor of the scores; None for the paper's choice, the history's upper bound.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_summary: int,
        num_heads: int,
        *,
        num_keys: int,
        tau: float | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.head_dim = head_dim(width, num_heads)
        self.tau = tau
        self.dtype = dtype
        self.norm_in = LayerNorm(width)
        self.norm_out = RMSNorm(width)
        shape = (num_summary, num_heads, num_keys)
        std = num_summary**-0.5
        self.w1 = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))
        # The output sums over the keys too.
        self.w2 = nnx.Param(std * num_keys**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, summary: Float[Array, "B m D"], x: Float[Array, "T D"], layout: Layout) -> Float[Array, "T D"]:
        """Personalised rows, 0 in padding rows."""
        heads = summary.astype(self.dtype).reshape(*summary.shape[:2], -1, self.head_dim)
        k = jnp.einsum("bmhk,mhj->bjhk", heads, self.w1[...].astype(self.dtype))
        v = jnp.einsum("bmhk,mhj->bjhk", heads, self.w2[...].astype(self.dtype))
        q = self.norm_in(layout.clear_padding(x).astype(self.dtype))
        tau = layout.max_len if self.tau is None else self.tau
        personal = gdpa(
            q.reshape(len(x), -1, self.head_dim),
            k,
            v,
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
            activation="silu",
            scale=1.0 / tau,
        )
        return layout.clear_padding(self.norm_out(personal.reshape(q.shape) + q))
