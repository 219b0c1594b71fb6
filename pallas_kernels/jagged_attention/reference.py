"""The meaning of the operations: plain jnp on a dense [T, T] mask, float32 or float64.

Memory is quadratic in T; every other backend is tested against this one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.jagged_attention import bias as bias_lib
from pallas_kernels.jagged_attention.activations import attention_weights
from pallas_kernels.jagged_attention.mask import Mask, visible
from pallas_kernels.jagged_attention.packing import sequence_of_rows


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _clean(x, valid):
    """x with padding rows (anything, NaN included) set to zero, widened to at least float32.

    Inputs need it, and so do outputs: its transpose keeps padding rows of their gradient out.
    """
    return jnp.where(valid[:, None, None], _wide(x), 0)


def jagged_attention(
    q,
    k,
    v,
    starts,
    lengths,
    num_targets,
    bias,
    *,
    max_len: int,
    kind: str,
    mask: Mask,
    scale: float,
    deterministic: bool,
    work_list,
) -> Array:
    """See `api.jagged_attention`; starts and lengths are int32 [B], num_targets too or None. Always deterministic."""
    del deterministic, work_list
    sequence, position, valid = sequence_of_rows(starts, lengths, q.shape[0])
    groups = q.shape[1] // k.shape[1]
    q_w = _clean(q, valid)
    k_w, v_w = (jnp.repeat(_clean(x, valid), groups, axis=1) for x in (k, v))
    scores = scale * jnp.einsum("ihk,jhk->hij", q_w, k_w)
    if bias is not None:
        scores += _dense_bias(bias, sequence, position, lengths, max_len).astype(scores.dtype)
    history = lengths if num_targets is None else lengths - num_targets
    seen = visible(mask, position[:, None], position[None], history[sequence][:, None])
    seen &= valid[:, None] & valid[None] & (sequence[:, None] == sequence[None])
    weights = attention_weights(scores, seen, kind)
    if kind != "softmax":
        weights = weights / max_len
    return _clean(jnp.einsum("hij,jhk->ihk", weights, v_w), valid).astype(q.dtype)


def _dense_bias(bias, sequence, position, lengths, max_len):
    times = bias.timestamps
    rows = jnp.arange(times.shape[0])
    has_next = position + 1 < lengths[sequence]
    next_time = times[jnp.minimum(rows + has_next, times.shape[0] - 1)]
    by_place = bias_lib.position_bias(bias, position[:, None], position[None], max_len)
    return by_place + bias_lib.time_bias(bias, next_time[:, None], times[None])


def gdpa(q, k, v, starts, lengths, *, max_len: int, activation: str, scale: float) -> Array:
    """See `api.gdpa`."""
    del max_len
    sequence, _, valid = sequence_of_rows(starts, lengths, q.shape[0])
    scores = scale * jnp.einsum("ihk,imhk->him", _clean(q, valid), _wide(k)[sequence])
    weights = attention_weights(scores, valid[None, :, None], activation)
    out = jnp.einsum("him,imhk->ihk", weights, _wide(v)[sequence])
    return _clean(out, valid).astype(q.dtype)


def seed_attention(q, k, v, starts, lengths, *, max_len: int, kind: str, scale: float) -> Array:
    """See `api.seed_attention`; q is [B, n, H, K]."""
    sequence, _, valid = sequence_of_rows(starts, lengths, k.shape[0])
    groups = q.shape[2] // k.shape[1]
    k_w, v_w = (jnp.repeat(_clean(x, valid), groups, axis=1) for x in (k, v))
    scores = scale * jnp.einsum("bnhk,thk->bhnt", _wide(q), k_w)
    own = valid & (sequence == jnp.arange(q.shape[0])[:, None])
    weights = attention_weights(scores, own[:, None, None], kind)
    if kind != "softmax":
        weights = weights / max_len
    return jnp.einsum("bhnt,thk->bnhk", weights, v_w).astype(q.dtype)
