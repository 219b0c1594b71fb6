"""jnp attention for any platform: memory linear in T, no scatter in the backward pass.

Sequences of up to `DENSE_LEN` tokens are unpacked to [B, max_len, ...] and attended as one batch.
Longer ones are walked in tiles of `TILE` rows (`xla_tiled.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.jagged_attention import bias as bias_lib
from pallas_kernels.jagged_attention import xla_tiled
from pallas_kernels.jagged_attention.activations import attention_weights
from pallas_kernels.jagged_attention.mask import Mask, visible
from pallas_kernels.jagged_attention.packing import pack, unpack

DENSE_LEN = 512  # above this, tiles beat padding on a CPU (16k tokens, log-normal lengths)
SCORE_BYTES = 64 * 2**20  # scores alive at a time; more sequences than fit are mapped over


def accumulate(dtype):
    """The dtype that sums are kept in."""
    return jnp.promote_types(dtype, jnp.float32)


def _map_examples(function, examples, score_size: int):
    """`function` over the leading axis of every leaf, as many at a time as SCORE_BYTES allows."""
    count = jax.tree.leaves(examples)[0].shape[0]
    at_once = max(1, SCORE_BYTES // (4 * score_size))
    if count <= at_once:
        return jax.vmap(function)(examples)
    return jax.lax.map(jax.checkpoint(function), examples, batch_size=at_once)


def _attend(q, k, v, seen, *, kind, scale, divide_by, bias=None):
    """One example: q [n, H, K] on k, v [m, Hkv, K]; seen bool, broadcastable to [n, m]."""
    acc = accumulate(q.dtype)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[2])
    scores = scale * jnp.einsum("nhgk,mhk->hgnm", grouped, k, preferred_element_type=acc)
    if bias is not None:
        scores += bias.astype(acc)
    weights = (attention_weights(scores, seen, kind) / divide_by).astype(v.dtype)
    out = jnp.einsum("hgnm,mhk->nhgk", weights, v, preferred_element_type=acc)
    return out.reshape(q.shape).astype(q.dtype)


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
    if max_len > DENSE_LEN and bias is None:
        return xla_tiled.jagged_attention(
            q, k, v, starts, lengths, num_targets, max_len=max_len, kind=kind, mask=mask, scale=scale
        )
    place = jnp.arange(max_len)
    history = lengths if num_targets is None else lengths - num_targets

    def one(example):
        q, k, v, length, history, times = example
        seen = visible(mask, place[:, None], place, history) & (place < length)
        own_bias = None
        if bias is not None:
            next_time = times[jnp.minimum(place + 1, jnp.maximum(length - 1, 0))]
            own_bias = bias_lib.position_bias(bias, place[:, None], place, max_len)
            own_bias += bias_lib.time_bias(bias, next_time[:, None], times)
        divide_by = 1 if kind == "softmax" else max_len
        return _attend(q, k, v, seen, kind=kind, scale=scale, divide_by=divide_by, bias=own_bias)

    times = None if bias is None else unpack(bias.timestamps, starts, lengths, max_len)
    blocks = [unpack(x, starts, lengths, max_len) for x in (q, k, v)]
    out = _map_examples(one, (*blocks, lengths, history, times), q.shape[1] * max_len**2)
    return pack(out, starts, lengths, q.shape[0])


def gdpa(q, k, v, starts, lengths, *, max_len: int, activation: str, scale: float) -> Array:
    """See `api.gdpa`."""

    def one(example):
        q, k, v = example
        return _attend(q, k, v, True, kind=activation, scale=scale, divide_by=1)

    blocks = unpack(q, starts, lengths, max_len)
    out = _map_examples(one, (blocks, k, v), q.shape[1] * max_len * k.shape[1])
    return pack(out, starts, lengths, q.shape[0])


def seed_attention(q, k, v, starts, lengths, *, max_len: int, kind: str, scale: float) -> Array:
    """See `api.seed_attention`; q is [B, n, H, K]."""
    divide_by = 1 if kind == "softmax" else max_len

    def one(example):
        q, k, v, length = example
        seen = jnp.arange(max_len) < length
        return _attend(q, k, v, seen, kind=kind, scale=scale, divide_by=divide_by)

    blocks = [unpack(x, starts, lengths, max_len) for x in (k, v)]
    return _map_examples(one, (q, *blocks, lengths), q.shape[2] * q.shape[1] * max_len)
