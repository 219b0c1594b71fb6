"""HSTU's pointwise aggregation in one operation: activation, attention, norm and gate of one packed array."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.common import dispatch
from pallas_kernels.jagged_attention import api, backends
from pallas_kernels.jagged_attention.backends import Request
from pallas_kernels.jagged_attention.mask import Mask
from pallas_kernels.jagged_attention.packing import sequence_of_rows

TRITON_GATE = ("mosaic_gpu", "triton")
"""Backends that the gate's Triton kernels go around, where Triton is installed."""


def gated_attention(
    uvqk: Array,
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    max_len: int,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    scale: float | None = None,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Array:
    """silu(u) * LN(o), o the SiLU attention of silu(q), silu(k) and silu(v) (HSTU, arXiv 2402.17152, Eq 2 and 3).

    LN is over all heads together, without scale and bias. What the backward pass keeps is the argument and o, which carries the
    name "attention" (`jax.ad_checkpoint.checkpoint_name`).

    Args:
      uvqk: [T, 4, H, K], u, v, q and k of each row before their activation: what one product with the weights gives.
      offsets, lengths, max_len, mask, scale, implementation: as in `jagged_attention`.
      eps: added to the variance.

    Returns:
      [T, H * K], dtype of uvqk; 0 in padding rows, as is the gradient.

    Raises:
      ValueError, NotImplementedError: as in `jagged_attention`.
    """
    if uvqk.ndim != 4 or uvqk.shape[1] != 4 or not jnp.issubdtype(uvqk.dtype, jnp.floating):
        raise ValueError(f"uvqk must be floating [T, 4, H, K], got {uvqk.dtype}{list(uvqk.shape)}.")
    rows, _, heads, size = uvqk.shape
    scale = size**-0.5 if scale is None else float(scale)
    starts, checked = api.layout(offsets, lengths, rows, max_len)
    if rows == 0 or starts.shape[0] == 0:
        return jnp.zeros((rows, heads * size), uvqk.dtype)
    request = Request(uvqk.dtype, size, scale, max_len)
    chosen = dispatch.choose("gated_attention", backends.BACKENDS, request, implementation)
    if chosen.name == "triton_short":
        from pallas_kernels.jagged_attention import triton_gated

        return triton_gated.gated_attention(uvqk, starts, checked, max_len=max_len, mask=mask, scale=scale, eps=eps)
    attend = functools.partial(
        api.jagged_attention, max_len=max_len, mask=mask, scale=scale, implementation=chosen.name
    )
    if chosen.name in TRITON_GATE and dispatch.package_missing("triton", "jax_triton") is None:
        from pallas_kernels.jagged_attention import triton_gated

        ends = jnp.append(starts, rows)  # lengths say where a sequence ends
        return triton_gated.gated_around(attend, uvqk, ends, checked, eps=eps)
    # Cleared first: a NaN before SiLU would be its own gradient. Of a row of zeros the results are zeros.
    real = sequence_of_rows(starts, checked, rows)[2]
    clear = jnp.where(real[:, None, None, None], uvqk, 0)
    u, v, q, k = (jax.nn.silu(clear[:, i]) for i in range(4))
    attended = attend(q, k, v, offsets, lengths)
    attended = checkpoint_name(attended, "attention")
    return u.reshape(rows, -1) * _layer_norm(attended.reshape(rows, -1), eps)


def _layer_norm(x: Array, eps: float) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)
