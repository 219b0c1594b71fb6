"""The elementwise activations of attention scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# "gelu" is the tanh form, as in Meta's GDPA kernels: one special-function instruction a score.
ELEMENTWISE = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
KINDS = (*ELEMENTWISE, "softmax")


def attention_weights(scores, seen, kind: str):
    """Weights from scores over the last axis; 0 where `seen` is False, also in rows that see nothing.

    Args:
      scores: float [..., keys]; must be finite, also where masked.
      seen: bool, broadcastable to scores.
      kind: a member of KINDS.
    """
    if kind != "softmax":
        return jnp.where(seen, ELEMENTWISE[kind](scores), 0)
    lowest = jnp.finfo(scores.dtype).min / 2  # not -inf: a row that sees nothing must not be NaN
    masked = jnp.where(seen, scores, lowest)
    top = jax.lax.stop_gradient(masked.max(-1, keepdims=True))
    unnormalised = jnp.where(seen, jnp.exp(masked - top), 0)
    total = unnormalised.sum(-1, keepdims=True)
    return unnormalised / jnp.where(total == 0, 1, total)
