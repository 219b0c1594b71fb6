"""Triton kernels of jagged attention: forward, dK and dV, dQ. Needs triton; see `triton.py` beside this.

One program per row of a table `items`, int32 [FIELDS, n], one column an item: a tile of rows of one head, and up to
three runs of tiles of the other side that it visits. Masks are data: `low` and `high`, int32 [T], are the interval of
keys that a query sees, besides a prefix (a field) and, with TARGETS, itself. Nothing is summed across programs,
so results are the same from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNS = 3
FIELDS = ("q_start", "q_length", "kv_start", "kv_length", "prefix", "row", "head") + ("first", "count") * RUNS
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _field(items, n: tl.constexpr, number: tl.constexpr):
    return tl.load(items + number * n + tl.program_id(0))


@triton.jit
def _rows(x, start, rows, end, head, heads, D: tl.constexpr):
    """Rows of [T, heads, D]; zeros from `end` on."""
    at = (start + rows)[:, None].to(tl.int64) * (heads * D) + head * D + tl.arange(0, D)[None, :]
    return tl.load(x + at, mask=(rows < end)[:, None], other=0.0)


@triton.jit
def _store_rows(x, value, start, rows, end, head, heads, D: tl.constexpr):
    at = (start + rows)[:, None].to(tl.int64) * (heads * D) + head * D + tl.arange(0, D)[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=(rows < end)[:, None])


@triton.jit
def _per_row(x, at, inside):
    return tl.load(x + at, mask=inside, other=0)


@triton.jit
def _seen(queries, keys, low, high, prefix, q_length, kv_length, TARGETS: tl.constexpr):
    """bool [queries, keys]."""
    query, key = queries[:, None], keys[None, :]
    seen = ((key >= low[:, None]) & (key < high[:, None])) | (key < prefix)
    if TARGETS:
        seen = seen | (key == query)
    return seen & (query < q_length) & (key < kv_length)


@triton.jit
def _activation(x, KIND: tl.constexpr):
    """(weight, slope) of an elementwise activation."""
    if KIND == "silu":
        sigmoid = tl.sigmoid(x)
        weight = x * sigmoid
        return weight, sigmoid + weight * (1.0 - sigmoid)
    elif KIND == "relu":
        return tl.maximum(x, 0.0), tl.where(x > 0.0, 1.0, 0.0)
    else:  # gelu, tanh form
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        half = tl.sigmoid(2.0 * inner)  # (1 + tanh(inner)) / 2
        slope = half + x * 2.0 * half * (1.0 - half) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        return x * half, slope


@triton.jit
def forward(
    q, k, v, items, low, high, o, log_sum,
    n: tl.constexpr, rows_total: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, TARGETS: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """o [T, H, D] and, for softmax, log_sum float32 [H, T] (of denominators, base 2) of QUERIES queries."""
    q_start, q_length, kv_start = _field(items, n, 0), _field(items, n, 1), _field(items, n, 2)
    kv_length, prefix, row, head = _field(items, n, 3), _field(items, n, 4), _field(items, n, 5), _field(items, n, 6)
    if row < q_length:
        kv_head = head // (heads // kv_heads)
        queries = row + tl.arange(0, QUERIES)
        inside = queries < q_length
        own_low, own_high = _per_row(low, q_start + queries, inside), _per_row(high, q_start + queries, inside)
        own = _rows(q, q_start, queries, q_length, head, heads, D)
        out = tl.zeros([QUERIES, D], tl.float32)
        top = tl.full([QUERIES], LOWEST, tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        for run in tl.static_range(3):
            first = _field(items, n, 7 + 2 * run)
            for tile in range(first, first + _field(items, n, 8 + 2 * run)):
                keys = tile * KEYS + tl.arange(0, KEYS)
                key = _rows(k, kv_start, keys, kv_length, kv_head, kv_heads, D)
                score = tl.dot(own, tl.trans(key)) * scale
                seen = _seen(queries, keys, own_low, own_high, prefix, q_length, kv_length, TARGETS)
                if KIND == "softmax":
                    score = tl.where(seen, score * LOG2_E, LOWEST)
                    new_top = tl.maximum(top, tl.max(score, 1))
                    weight = tl.where(seen, tl.exp2(score - new_top[:, None]), 0.0)
                    shrink = tl.exp2(top - new_top)
                    total = total * shrink + tl.sum(weight, 1)
                    out = out * shrink[:, None]
                    top = new_top
                else:
                    weight, _ = _activation(score, KIND)
                    weight = tl.where(seen, weight, 0.0)
                value = _rows(v, kv_start, keys, kv_length, kv_head, kv_heads, D)
                out = tl.dot(weight.to(value.dtype), value, out)
        if KIND == "softmax":
            total = tl.where(total > 0.0, total, 1.0)
            out = out / total[:, None]
            tl.store(log_sum + head * rows_total + q_start + queries, top + tl.log2(total), mask=inside)
        _store_rows(o, out * factor, q_start, queries, q_length, head, heads, D)


@triton.jit
def _gradients(own_q, key, value, grad, seen, log_sum, delta, scale, KIND: tl.constexpr):
    """Weights and the gradient of the scaled scores, float32 [queries, keys]."""
    score = tl.dot(own_q, tl.trans(key)) * scale
    dp = tl.dot(grad, tl.trans(value))
    if KIND == "softmax":
        weight = tl.where(seen, tl.exp2(score * LOG2_E - log_sum[:, None]), 0.0)
        return weight, weight * (dp - delta[:, None])
    weight, slope = _activation(score, KIND)
    return tl.where(seen, weight, 0.0), tl.where(seen, dp * slope, 0.0)


@triton.jit
def backward_kv(
    q, k, v, do, log_sum, delta, items, low, high, dk, dv,
    n: tl.constexpr, rows_total: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, TARGETS: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dk, dv [Tk, Hkv, D] of KEYS keys, over the queries of every head that shares them."""
    q_start, q_length, kv_start = _field(items, n, 0), _field(items, n, 1), _field(items, n, 2)
    kv_length, prefix, row, kv_head = _field(items, n, 3), _field(items, n, 4), _field(items, n, 5), _field(items, n, 6)
    if row < kv_length:
        keys = row + tl.arange(0, KEYS)
        key = _rows(k, kv_start, keys, kv_length, kv_head, kv_heads, D)
        value = _rows(v, kv_start, keys, kv_length, kv_head, kv_heads, D)
        key_sum, value_sum = tl.zeros([KEYS, D], tl.float32), tl.zeros([KEYS, D], tl.float32)
        group = heads // kv_heads
        for head in range(kv_head * group, kv_head * group + group):
            for run in tl.static_range(3):
                first = _field(items, n, 7 + 2 * run)
                for tile in range(first, first + _field(items, n, 8 + 2 * run)):
                    queries = tile * QUERIES + tl.arange(0, QUERIES)
                    inside, at = queries < q_length, q_start + queries
                    own = _rows(q, q_start, queries, q_length, head, heads, D)
                    grad = _rows(do, q_start, queries, q_length, head, heads, D)
                    own_low, own_high = _per_row(low, at, inside), _per_row(high, at, inside)
                    seen = _seen(queries, keys, own_low, own_high, prefix, q_length, kv_length, TARGETS)
                    logs = _per_row(log_sum, head * rows_total + at, inside)
                    deltas = _per_row(delta, head * rows_total + at, inside)
                    weight, ds = _gradients(own, key, value, grad, seen, logs, deltas, scale, KIND)
                    value_sum = tl.dot(tl.trans(weight.to(own.dtype)), grad, value_sum)
                    key_sum = tl.dot(tl.trans(ds.to(own.dtype)), own, key_sum)
        _store_rows(dk, key_sum * (scale * factor), kv_start, keys, kv_length, kv_head, kv_heads, D)
        _store_rows(dv, value_sum * factor, kv_start, keys, kv_length, kv_head, kv_heads, D)


@triton.jit
def backward_q(
    q, k, v, do, log_sum, delta, items, low, high, dq,
    n: tl.constexpr, rows_total: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, TARGETS: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dq [T, H, D] of QUERIES queries."""
    q_start, q_length, kv_start = _field(items, n, 0), _field(items, n, 1), _field(items, n, 2)
    kv_length, prefix, row, head = _field(items, n, 3), _field(items, n, 4), _field(items, n, 5), _field(items, n, 6)
    if row < q_length:
        kv_head = head // (heads // kv_heads)
        queries = row + tl.arange(0, QUERIES)
        inside, at = queries < q_length, q_start + queries
        own = _rows(q, q_start, queries, q_length, head, heads, D)
        grad = _rows(do, q_start, queries, q_length, head, heads, D)
        own_low, own_high = _per_row(low, at, inside), _per_row(high, at, inside)
        logs = _per_row(log_sum, head * rows_total + at, inside)
        deltas = _per_row(delta, head * rows_total + at, inside)
        total = tl.zeros([QUERIES, D], tl.float32)
        for run in tl.static_range(3):
            first = _field(items, n, 7 + 2 * run)
            for tile in range(first, first + _field(items, n, 8 + 2 * run)):
                keys = tile * KEYS + tl.arange(0, KEYS)
                key = _rows(k, kv_start, keys, kv_length, kv_head, kv_heads, D)
                value = _rows(v, kv_start, keys, kv_length, kv_head, kv_heads, D)
                seen = _seen(queries, keys, own_low, own_high, prefix, q_length, kv_length, TARGETS)
                _, ds = _gradients(own, key, value, grad, seen, logs, deltas, scale, KIND)
                total = tl.dot(ds.to(key.dtype), key, total)
        _store_rows(dq, total * (scale * factor), q_start, queries, q_length, head, heads, D)
