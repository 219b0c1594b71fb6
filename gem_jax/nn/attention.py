"""Multi-head self-attention inside each packed history.

Shape letters: B examples, T packed rows, D width, H heads, K head dim.
"""

from typing import Literal

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Num

from gem_jax.errors import UserError
from gem_jax.nn.dense import Dense
from gem_jax.nn.jagged import Layout
from gem_jax.nn.norms import RMSNorm
from gem_jax.nn.rope import rotate
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy
from pallas_kernels.jagged_attention import Mask, jagged_attention


def head_dim(width: int, num_heads: int) -> int:
    """`width / num_heads`.

    Raises:
      UserError: the heads do not divide the width.
    """
    if width % num_heads:
        raise UserError(f"num_heads={num_heads} does not divide the width {width}; choose a divisor")
    return width // num_heads


class JaggedSelfAttention(nnx.Module):
    """Out(attention(QK-normed, rotated Q and K; V)); no residual, no biases.

    Args:
      width: D, of input and output.
      num_heads: H; divides D, and D / H is even with rotary positions.
      kind: "softmax", or HSTU's "silu" (divided by the history's upper bound).
      mask: which events see which.
      rope: rotary positions on queries and keys.
      qk_norm: RMS norm of queries and keys per head, which bounds the scores.
      policy: of the computation.
      rngs: initialises the projections.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        kind: Literal["silu", "softmax"] = "softmax",
        mask: Mask = Mask(),  # noqa: B008 (frozen)
        rope: bool = True,
        qk_norm: bool = False,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        size = head_dim(width, num_heads)
        if rope and size % 2:
            raise UserError(f"rotary positions need an even head dim; width {width} / {num_heads} heads is {size}")
        self.num_heads = num_heads
        self.kind: Literal["silu", "softmax"] = kind
        self.mask = mask
        self.rope = rope
        self.q_norm = RMSNorm(size) if qk_norm else None
        self.k_norm = RMSNorm(size) if qk_norm else None
        self.qkv = Dense(width, 3 * width, use_bias=False, policy=policy, rngs=rngs)
        self.out = Dense(width, width, use_bias=False, policy=policy, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "T D"],
        layout: Layout,
        *,
        positions: Num[Array, " T"] | None = None,
        num_targets: Int[Array, " B"] | None = None,
    ) -> Float[Array, "T D"]:
        """Attended rows, 0 in padding rows.

        Args:
          x: packed rows.
          layout: theirs.
          positions: for rotary positions in place of 0, 1, 2, ..., e.g. log ages.
          num_targets: how many rows at the end of each history are candidates (see `Mask`).
        """
        # Zeroed first: a NaN in a padding row would otherwise reach the weights' gradient as 0 * NaN.
        qkv = self.qkv(layout.clear_padding(x)).reshape(len(x), 3, self.num_heads, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            positions = layout.position if positions is None else positions
            q, k = rotate(q, positions), rotate(k, positions)
        attended = jagged_attention(
            q,
            k,
            v,
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
            kind=self.kind,
            mask=self.mask,
            num_targets=num_targets,
        )
        attended = checkpoint_name(attended, tags.ATTENTION)
        return self.out(attended.reshape(len(x), -1))
