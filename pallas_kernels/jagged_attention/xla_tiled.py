"""Attention over long sequences in tiles of rows, each against the rows that it can see.

Forward: one pass over query tiles. Backward: one pass over query tiles (dq) and one over key tiles
(dk, dv), each recomputing its scores; every pass only gathers, so nothing is summed in an order that
changes from run to run, and no array is larger than a few copies of q beside the scores of the tiles
at hand.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.jagged_attention.activations import ELEMENTWISE
from pallas_kernels.jagged_attention.mask import Mask, visible
from pallas_kernels.jagged_attention.packing import sequence_of_rows

TILE = 128  # rows
SCORE_BYTES = 64 * 2**20  # scores alive at a time


def jagged_attention(
    q, k, v, starts, lengths, num_targets, *, max_len: int, kind: str, mask: Mask, scale: float
) -> Array:
    """See `api.jagged_attention`; starts and lengths are int32 [B], num_targets too or None."""
    static = (max_len, kind, mask, scale)
    return _attention(q, k, v, (starts, lengths, num_targets), static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, layout, static):
    return _forward(q, k, v, layout, static)[0]


def _forward(q, k, v, layout, static):
    kind, heads = static[1], q.shape[1]

    def tile(start, row, length, history):
        def rows(x, first, count):
            return _rows(x, start, first, count, length)

        first, count = _span(static, layout, row, is_key_tile=False)
        own_q, own_k, own_v = rows(q, row, TILE), rows(k, first, count), rows(v, first, count)
        scores, seen = _scores(own_q, own_k, row, first, length, history, static)
        log_sum = jnp.zeros((heads, TILE), scores.dtype)
        if kind == "softmax":
            log_sum = jax.nn.logsumexp(scores, axis=-1, where=seen)
            log_sum = jnp.where(jnp.isfinite(log_sum), log_sum, 0)
        weights = _weights(scores, seen, log_sum, static).astype(v.dtype)
        out = _heads_out(weights, own_v)
        return out.astype(q.dtype), log_sum.T

    out, log_sum = _over_tiles(tile, q, layout, static)
    return out, (q, k, v, layout, out, log_sum)


def _backward(static, saved, grad):
    q, k, v, layout, out, log_sum = saved
    kind = static[1]
    valid = sequence_of_rows(layout[0], layout[1], q.shape[0])[2]
    acc = jnp.promote_types(q.dtype, jnp.float32)
    grad = jnp.where(valid[:, None, None], grad, 0)
    delta = jnp.zeros(q.shape[:2], acc)
    if kind == "softmax":
        delta = jnp.sum(grad.astype(acc) * out.astype(acc), axis=-1)

    def objective(own_q, own_k, own_v, own_grad, own_log, own_delta, row, col, length, history):
        """A scalar whose gradients in q, k and v are the attention's, with log_sum held fixed:
        d/ds of p (do.v - delta) is softmax's ds, and for the other kinds delta is 0."""
        scores, seen = _scores(own_q, own_k, row, col, length, history, static)
        weights = _weights(scores, seen, own_log.T, static)
        product = jnp.sum(_heads_out(weights, own_v) * own_grad.astype(acc))
        return product - jnp.sum(weights.sum(-1) * own_delta.T)

    def query_tile(start, row, length, history):
        def rows(x, first, count):
            return _rows(x, start, first, count, length)

        first, count = _span(static, layout, row, is_key_tile=False)
        own = [rows(x, row, TILE) for x in (grad, log_sum, delta)]
        keys = [rows(x, first, count) for x in (k, v)]
        return jax.grad(objective)(rows(q, row, TILE), *keys, *own, row, first, length, history), None

    def key_tile(start, row, length, history):
        def rows(x, first, count):
            return _rows(x, start, first, count, length)

        first, count = _span(static, layout, row, is_key_tile=True)
        queries = [rows(x, first, count) for x in (q, grad, log_sum, delta)]
        return jax.grad(objective, argnums=(1, 2))(
            queries[0], rows(k, row, TILE), rows(v, row, TILE), *queries[1:],
            first, row, length, history,
        )  # fmt: skip

    dq, _ = _over_tiles(query_tile, q, layout, static)
    dk, dv = _over_tiles(key_tile, q, layout, static)
    no_gradient = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), layout)
    return dq, dk, dv, no_gradient


_attention.defvjp(_forward, _backward)


def _rows(x, start, first, count, length):
    """Rows first .. first + count of one sequence; zeros outside the sequence."""
    position = first + jnp.arange(count)
    own = x[jnp.clip(start + position, 0, x.shape[0] - 1)]
    inside = (position >= 0) & (position < length)
    return jnp.where(inside.reshape((count,) + (1,) * (x.ndim - 1)), own, 0)


def _span(static, layout, row, *, is_key_tile: bool):
    """First position and (static) number of the rows that a tile at `row` can see or be seen by."""
    max_len, _, mask, _ = static
    whole = 0, -(-max_len // TILE) * TILE
    has_targets = layout[2] is not None
    if has_targets or mask.prefix:
        return whole
    first, count = whole
    if mask.window is not None:
        reach = mask.window - 1
        before = 0 if mask.causal and is_key_tile else reach
        after = 0 if mask.causal and not is_key_tile else reach
        first, count = row - before, TILE + before + after
    if mask.block is not None and TILE + 2 * mask.block < count:
        first, count = row // mask.block * mask.block, TILE + 2 * mask.block
    return (first, count) if count < whole[1] else whole


def _scores(own_q, own_k, row, col, length, history, static):
    """scores [H, n, m] and seen [n, m] of n queries from `row` and m keys from `col`."""
    _, _, mask, scale = static
    acc = jnp.promote_types(own_q.dtype, jnp.float32)
    n, heads, size = own_q.shape
    m, kv_heads, _ = own_k.shape
    grouped = own_q.reshape(n, kv_heads, heads // kv_heads, size)
    scores = scale * jnp.einsum("nhgk,mhk->hgnm", grouped, own_k, preferred_element_type=acc)
    query, key = row + jnp.arange(n)[:, None], col + jnp.arange(m)
    seen = visible(mask, query, key, history)
    seen &= (query >= 0) & (query < length) & (key >= 0) & (key < length)
    return scores.reshape(heads, n, m), seen


def _weights(scores, seen, log_sum, static):
    max_len, kind, _, _ = static
    if kind == "softmax":
        return jnp.where(seen, jnp.exp(jnp.where(seen, scores - log_sum[..., None], 0)), 0)
    return jnp.where(seen, ELEMENTWISE[kind](scores), 0) / max_len


def _heads_out(weights, own_v):
    """[H, n, m] weights on [m, Hkv, K] values -> [n, H, K], summed in float32 or wider."""
    heads, n, m = weights.shape
    acc = jnp.promote_types(weights.dtype, jnp.float32)
    grouped = weights.reshape(own_v.shape[1], -1, n, m)
    out = jnp.einsum("hgnm,mhk->nhgk", grouped, own_v, preferred_element_type=acc)
    return out.reshape(n, heads, own_v.shape[2])


def _over_tiles(function, q, layout, static):
    """Run `function(start, row, length, history)` for every tile; pack its rows back to [T, ...]."""
    starts, lengths, num_targets = layout
    num_rows, heads, _ = q.shape
    history = lengths if num_targets is None else lengths - num_targets
    tiles = (lengths + TILE - 1) // TILE
    ends = jnp.cumsum(tiles)
    tile = jnp.arange(-(-num_rows // TILE) + starts.shape[0])
    own = jnp.minimum(jnp.searchsorted(ends, tile, side="right", method="scan_unrolled"), starts.shape[0] - 1)
    row = (tile - (ends - tiles)[own]) * TILE
    length = jnp.where(tile < ends[-1], lengths[own], 0)
    _, count = _span(static, layout, 0, is_key_tile=True)
    at_once = max(1, SCORE_BYTES // (4 * heads * TILE * count))
    outs = jax.lax.map(lambda x: function(*x), (starts[own], row, length, history[own]), batch_size=at_once)
    sequence, position, valid = sequence_of_rows(starts, lengths, num_rows)
    source = jnp.where(valid, (ends - tiles)[sequence] * TILE + position, 0)

    def packed(x):
        x = x.reshape(-1, *x.shape[2:])[source]
        return jnp.where(valid.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)

    return jax.tree.map(packed, outs)
