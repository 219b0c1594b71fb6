"""Histories of any length as a fixed number of tokens: attention by learned seeds.

Shape letters: B examples, T packed rows, D width, H heads, K head dim, n tokens.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.nn.attention import head_dim
from gem_jax.nn.jagged import Layout
from gem_jax.nn.norms import LayerNorm
from pallas_kernels.jagged_attention import seed_attention


class PMA(nnx.Module):
    """Pooling by multi-head attention, MHA(Q, K(S), V(S)) with n learned Q (InterFormer, arXiv 2411.09852, Eq 11).

    The queries are learned in the heads' space: a query projection of learned queries adds nothing.

    Args:
      width: D.
      num_tokens: n.
      num_heads: H; divides D.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, width: int, num_tokens: int, num_heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        size = head_dim(width, num_heads)
        self.num_heads = num_heads
        self.dtype = dtype
        self.seeds = nnx.Param(jax.random.normal(rngs.params(), (num_tokens, num_heads, size), jnp.float32))
        self.kv = nnx.Linear(width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B n D"]:
        """n tokens per example, 0 for an empty history."""
        return self.out(_attend(self.seeds[...].astype(self.dtype), self.kv, self.num_heads, x, layout))


def _attend(q: Float[Array, "n H K"], kv: nnx.Linear, num_heads: int, x, layout: Layout) -> Float[Array, "B n D"]:
    """Softmax attention of the queries on each history, heads concatenated."""
    k, v = jnp.split(kv(layout.clear_padding(x)).reshape(len(x), 2 * num_heads, -1), 2, axis=1)
    tokens = seed_attention(q, k, v, layout.offsets, layout.lengths, max_len=layout.max_len)
    return tokens.reshape(*tokens.shape[:2], -1)


class SumKronLinear(nnx.Module):
    """Y = sum_{i <= k} Z_i^T X W_i: tokens and width mixed by k Kronecker terms (Kunlun, arXiv 2602.10016).

    Against a full map of S * D to T * D numbers this needs k (S T + D^2) parameters.

    Args:
      tokens_in: S.
      tokens_out: T.
      width: D.
      num_terms: k.
      dtype: of the computation.
      rngs: initialises Z and W.
    """

    def __init__(
        self, tokens_in: int, tokens_out: int, width: int, num_terms: int, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        # The output sums num_terms * S * D products of two weights: their variances multiply to its inverse.
        z_std, w_std = (num_terms * tokens_in) ** -0.5, width**-0.5
        self.z = nnx.Param(z_std * jax.random.normal(rngs.params(), (num_terms, tokens_in, tokens_out), jnp.float32))
        self.w = nnx.Param(w_std * jax.random.normal(rngs.params(), (num_terms, width, width), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B T D"]:
        z, w = self.z[...].astype(self.dtype), self.w[...].astype(self.dtype)
        mixed = jnp.einsum("bsd,kst->btkd", x.astype(self.dtype), z)
        return jnp.einsum("btkd,kde->bte", mixed, w)


class HierarchicalSeedPooling(nnx.Module):
    """Kunlun's HSP: more seeds than tokens attend to the history, SumKronLinear condenses them (arXiv 2602.10016).

    H = MHA(Norm(E_seed), S, S), then Y = SumKronLinear(H).

    Args:
      width: D.
      num_seeds: seeds, more than num_tokens.
      num_tokens: n.
      num_heads: H; divides D.
      num_terms: k of SumKronLinear.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_seeds: int,
        num_tokens: int,
        num_heads: int,
        *,
        num_terms: int = 8,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        head_dim(width, num_heads)
        self.num_heads = num_heads
        self.dtype = dtype
        self.seeds = nnx.Param(jax.random.normal(rngs.params(), (num_seeds, width), jnp.float32))
        self.norm = LayerNorm(width)
        self.query = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.kv = nnx.Linear(width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.condense = SumKronLinear(num_seeds, num_tokens, width, num_terms, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B n D"]:
        """n tokens per example, 0 for an empty history."""
        q = self.query(self.norm(self.seeds[...])).reshape(len(self.seeds[...]), self.num_heads, -1)
        return self.condense(self.out(_attend(q, self.kv, self.num_heads, x, layout)))
