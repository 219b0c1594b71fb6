"""Triton kernels of attention over short histories: forward, and one backward pass; see `triton_short.py` beside this.

A tile is ROWS packed rows, whatever histories they belong to, and walks STEP rows of the other side at a time, from the first
to the last row that any of its own meets. Masks are data, int32 tables of one entry a row:

  spans [2 or 4, Tq], of queries: low and high, the interval of key rows that a query sees; with PREFIX also the first row and the
    end of its history's prefix, which it sees too. With TARGETS (queries and keys are the same rows) a query also sees itself.
    Padding rows have high = -1, and a low that no minimum heeds.
  reach [2, Tk], of keys: the first query row that may see a key, and the end. Padding rows have the end -1.

With OWN, queries and keys are the same rows: then a tile meets itself, whose rows are there without a look at the tables, and walks
only what lies before and (unless CAUSAL) after it. Nothing is summed across programs, so results are the same from run to run.

Several of q, k and v may lie side by side in one array: an array of ALL heads a row holds them from its head BASE on (Q_ALL,
Q_BASE; K_ALL, K_BASE, V_BASE), and their gradients lie the same way. With ACTIVE, what lies there are numbers before SiLU: a row is
activated when it is loaded, and gradients are those of the numbers before.

Padding rows hold anything. A NaN in a row's scores stays in that row, or is masked; so rows are cleaned only where weights, or
gradients of scores, multiply them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _rows(x, first, keep, head, heads: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr):
    """COUNT rows of x [T, heads, D] from `first`, WIDE columns; zeros where `keep` says no and from D on."""
    column = tl.arange(0, WIDE)[None, :]
    at = tl.arange(0, COUNT)[:, None] * (heads * D) + column
    keep = keep[:, None]
    if WIDE != D:
        keep = keep & (column < D)
    return tl.load(x + (tl.cast(first, tl.int64) * (heads * D) + head * D) + at, mask=keep, other=0.0)


@triton.jit
def _activated(rows, ACTIVE: tl.constexpr, EXACT: tl.constexpr):
    """SiLU of loaded rows, or the rows as they are."""
    if ACTIVE:
        rows = _activation(rows.to(tl.float32), 1.0, "silu", EXACT)[0].to(rows.dtype)
    return rows


@triton.jit
def _before(
    gradient, x, first, keep, head, heads: tl.constexpr, ACTIVE: tl.constexpr, EXACT: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The gradient of rows before their activation from that after it; rows to keep are read again, others are 0."""
    if ACTIVE:
        _, slope = _activation(_rows(x, first, keep, head, heads, D, WIDE, COUNT).to(tl.float32), 1.0, "silu", EXACT)
        gradient = tl.where(keep[:, None], gradient * (0.5 * slope + 0.5), 0.0)
    return gradient


@triton.jit
def _cleaned(rows, real):
    return tl.where(real[:, None], rows, 0.0).to(rows.dtype)


@triton.jit
def _store(x, value, first, end, head, heads: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr):
    """The counterpart of `_rows`; rows from `end` on are left alone."""
    column = tl.arange(0, WIDE)[None, :]
    place = tl.arange(0, COUNT)[:, None]
    keep = first + place < end
    if WIDE != D:
        keep = keep & (column < D)
    at = x + (tl.cast(first, tl.int64) * (heads * D) + head * D) + place * (heads * D) + column
    tl.store(at, value.to(x.dtype.element_ty), mask=keep)


@triton.jit
def _span(spans, row, inside, q_rows: tl.constexpr, kv_rows: tl.constexpr, PREFIX: tl.constexpr):
    """low, high, and the prefix's start and end (else low and high again) of queries."""
    low = tl.load(spans + row, mask=inside, other=kv_rows)
    high = tl.load(spans + q_rows + row, mask=inside, other=-1)
    start, end = low, high
    if PREFIX:
        start = tl.load(spans + 2 * q_rows + row, mask=inside, other=kv_rows)
        end = tl.load(spans + 3 * q_rows + row, mask=inside, other=-1)
    return low, high, start, end


@triton.jit
def _seen(key, query, low, high, start, end, TARGETS: tl.constexpr, PREFIX: tl.constexpr):
    """bool, of keys and queries in the shapes that they come in."""
    seen = (key >= low) & (key < high)
    if PREFIX:
        seen = seen | ((key >= start) & (key < end))
    if TARGETS:
        seen = seen | ((key == query) & (high >= 0))
    return seen


@triton.jit
def _seen_elsewhere(
    key, low, high, start, end, OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr, PREFIX: tl.constexpr
):
    """`_seen`, where the key is of another tile than the query; a key of -1 is none."""
    if OWN and CAUSAL and not TARGETS:
        return key >= low  # it lies before the query: one comparison a score
    return _seen(key, key, low, high, start, end, False, PREFIX)


@triton.jit
def _tanh(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _activation(score, scale: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr):
    """(weight, twice its slope less one) of an elementwise activation of score * scale: for SiLU, what takes least to compute."""
    if KIND == "silu":
        half = score * (0.5 * scale)
        if EXACT:
            sigmoid = tl.sigmoid(2.0 * half)
            tanh = 2.0 * sigmoid - 1.0
        else:
            tanh = _tanh(half)
        weight = half * tanh + half
        return weight, (weight - weight * tanh) + tanh
    x = score * scale
    if KIND == "relu":
        return tl.maximum(x, 0.0), tl.where(x > 0.0, 1.0, -1.0)
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # gelu, tanh form
    half = tl.sigmoid(2.0 * inner)  # (1 + tanh(inner)) / 2
    slope = half + x * 2.0 * half * (1.0 - half) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    return x * half, 2.0 * slope - 1.0


@triton.jit
def _gradients(score, dp, seen, log_sum, delta, scale: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr):
    """Weights, and the gradient of the scaled scores: twice it, but for softmax (see `SUM` in `backward`)."""
    if KIND == "softmax":
        weight = tl.where(seen, tl.exp2(score * (scale * LOG2_E) - log_sum), 0.0)
        return weight, tl.where(seen, weight * (dp - delta), 0.0)
    weight, slope = _activation(score, scale, KIND, EXACT)
    return tl.where(seen, weight, 0.0), tl.where(seen, dp * slope + dp, 0.0)


@triton.jit
def _side(
    side: tl.constexpr, low, high, start, end, first, OWN: tl.constexpr, PREFIX: tl.constexpr, ROWS: tl.constexpr
):
    """The rows to walk, from the first that the tile's intervals hold to the end of the last; with OWN, of those only what lies
    before the tile (side 0) or after it (side 1)."""
    if PREFIX:
        low, high = tl.minimum(low, start), tl.maximum(high, end)
    if OWN and side == 0:
        return tl.min(low, 0), first
    if OWN:
        return first + ROWS, tl.max(high, 0)
    return tl.min(low, 0), tl.max(high, 0)


@triton.jit
def _statistics(
    log_sum, o, grad, row, inside, first, head,
    q_rows: tl.constexpr, heads: tl.constexpr, KIND: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Of COUNT queries, what softmax's gradient needs: the logarithm of the denominator, and the mean gradient of the weights."""
    log, delta = tl.zeros([COUNT], tl.float32), tl.zeros([COUNT], tl.float32)
    if KIND == "softmax":
        log = tl.load(log_sum + head * q_rows + row, mask=inside, other=0.0)
        result = _rows(o, first, inside, head, heads, D, WIDE, COUNT)
        delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    return log, delta


@triton.jit
def _add_values(
    query, key, value, seen, out, top, total,
    scale: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The sums of a tile's queries so far (o, and softmax's maximum and denominator), with these keys added."""
    score = tl.dot(query, tl.trans(key), input_precision=DOT)
    if KIND == "softmax":
        score = tl.where(seen, score * (scale * LOG2_E), LOWEST)
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.where(seen, tl.exp2(score - new_top[:, None]), 0.0)
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None]
        top = new_top
    else:
        weight, _ = _activation(score, scale, KIND, EXACT)
        weight = tl.where(seen, weight, 0.0)
    return tl.dot(weight.to(value.dtype), value, out, input_precision=DOT), top, total


@triton.jit
def forward(
    q, k, v, spans, reach, o, log_sum,
    q_rows: tl.constexpr, kv_rows: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr,
    PREFIX: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, Q_ALL: tl.constexpr, Q_BASE: tl.constexpr, K_ALL: tl.constexpr, K_BASE: tl.constexpr,
    V_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """o [Tq, H, D] and, for softmax, log_sum float32 [H, Tq] (of denominators, base 2) of ROWS queries of a head."""
    head, first = tl.program_id(0), tl.program_id(1) * ROWS
    kv_head = head // (heads // kv_heads)
    row = first + tl.arange(0, ROWS)
    inside = row < q_rows
    query = _activated(_rows(q, first, inside, Q_BASE + head, Q_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
    low, high, start, end = _span(spans, row, inside, q_rows, kv_rows, PREFIX)
    out = tl.zeros([ROWS, WIDE], tl.float32)
    top, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    if OWN:
        key = _activated(_rows(k, first, inside, K_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        value = _activated(_rows(v, first, inside, V_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        value = _cleaned(value, high >= 0)
        seen = _seen(
            row[None, :], row[:, None], low[:, None], high[:, None], start[:, None], end[:, None], TARGETS, PREFIX
        )
        out, top, total = _add_values(query, key, value, seen, out, top, total, scale, KIND, EXACT, DOT)
    for side in tl.static_range(2 if OWN and not CAUSAL else 1):
        begin, until = _side(side, low, high, start, end, first, OWN, PREFIX, ROWS)
        for at in range(begin, until, STEP):
            place = at + tl.arange(0, STEP)
            near = place < until
            real = tl.load(reach + kv_rows + place, mask=near, other=-1) >= 0
            other_key = _activated(_rows(k, at, near, K_BASE + kv_head, K_ALL, D, WIDE, STEP), ACTIVE, EXACT)
            other_value = _activated(_rows(v, at, real, V_BASE + kv_head, K_ALL, D, WIDE, STEP), ACTIVE, EXACT)
            place = tl.where(near, place, -1)[None, :]
            sees = _seen_elsewhere(
                place, low[:, None], high[:, None], start[:, None], end[:, None], OWN, CAUSAL, TARGETS, PREFIX
            )
            out, top, total = _add_values(query, other_key, other_value, sees, out, top, total, scale, KIND, EXACT, DOT)
    if KIND == "softmax":
        total = tl.where(total > 0.0, total, 1.0)
        out = out / total[:, None]
        tl.store(log_sum + head * q_rows + row, top + tl.log2(total), mask=inside)
    _store(o, out * factor, first, q_rows, head, heads, D, WIDE, ROWS)


@triton.jit
def _walk_keys(
    query, grad, log, delta, low, high, start, end, query_sum, k, v, reach, first, kv_head,
    kv_rows: tl.constexpr, scale: tl.constexpr, KIND: tl.constexpr, OWN: tl.constexpr,
    CAUSAL: tl.constexpr, TARGETS: tl.constexpr, PREFIX: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, K_ALL: tl.constexpr,
    K_BASE: tl.constexpr, V_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """query_sum, with what other tiles' keys give to the gradient of a tile's queries."""
    for side in tl.static_range(2 if OWN and not CAUSAL else 1):
        begin, until = _side(side, low, high, start, end, first, OWN, PREFIX, ROWS)
        for at in range(begin, until, STEP):
            place = at + tl.arange(0, STEP)
            near = place < until
            real = tl.load(reach + kv_rows + place, mask=near, other=-1) >= 0
            value = _activated(_rows(v, at, near, V_BASE + kv_head, K_ALL, D, WIDE, STEP), ACTIVE, EXACT)
            key = _activated(_rows(k, at, real, K_BASE + kv_head, K_ALL, D, WIDE, STEP), ACTIVE, EXACT)
            place = tl.where(near, place, -1)[None, :]
            seen = _seen_elsewhere(
                place, low[:, None], high[:, None], start[:, None], end[:, None], OWN, CAUSAL, TARGETS, PREFIX
            )
            score = tl.dot(query, tl.trans(key), input_precision=DOT)
            dp = tl.dot(grad, tl.trans(value), input_precision=DOT)
            _weight, ds = _gradients(score, dp, seen, log[:, None], delta[:, None], scale, KIND, EXACT)
            query_sum = tl.dot(ds.to(key.dtype), key, query_sum, input_precision=DOT)
    return query_sum


@triton.jit
def _walk_queries(
    key, value, low, high, key_sum, value_sum, q, do, o, log_sum, spans, first, row, head,
    q_rows: tl.constexpr, kv_rows: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr, KIND: tl.constexpr,
    OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr, PREFIX: tl.constexpr, EXACT: tl.constexpr,
    DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    Q_ALL: tl.constexpr, Q_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """key_sum and value_sum, with what other tiles' queries give to the gradients of a tile's keys and values."""
    for side in tl.static_range(2 if OWN and not CAUSAL else 1):
        begin, until = _side(1 - side, low, high, low, high, first, OWN, False, ROWS)
        for at in range(begin, until, STEP):
            place = at + tl.arange(0, STEP)
            near = place < until
            q_low, q_high, q_start, q_end = _span(spans, place, near, q_rows, kv_rows, PREFIX)
            query = _activated(_rows(q, at, q_high >= 0, Q_BASE + head, Q_ALL, D, WIDE, STEP), ACTIVE, EXACT)
            grad = _rows(do, at, q_high >= 0, head, heads, D, WIDE, STEP)
            log, delta = _statistics(log_sum, o, grad, place, near, at, head, q_rows, heads, KIND, D, WIDE, STEP)
            seen = _seen_elsewhere(
                row[:, None],
                q_low[None, :],
                q_high[None, :],
                q_start[None, :],
                q_end[None, :],
                OWN,
                CAUSAL,
                TARGETS,
                PREFIX,
            )
            score = tl.dot(key, tl.trans(query), input_precision=DOT)
            dp = tl.dot(value, tl.trans(grad), input_precision=DOT)
            weight, ds = _gradients(score, dp, seen, log[None, :], delta[None, :], scale, KIND, EXACT)
            value_sum = tl.dot(weight.to(grad.dtype), grad, value_sum, input_precision=DOT)
            key_sum = tl.dot(ds.to(query.dtype), query, key_sum, input_precision=DOT)
    return key_sum, value_sum


@triton.jit
def backward(
    q, k, v, do, o, log_sum, spans, reach, dq, dk, dv,
    q_rows: tl.constexpr, kv_rows: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr,
    PREFIX: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, Q_ALL: tl.constexpr, Q_BASE: tl.constexpr, K_ALL: tl.constexpr, K_BASE: tl.constexpr,
    V_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """dq of the n-th ROWS queries, for every head that shares a head of keys, and dk and dv of its n-th ROWS keys."""
    SUM: tl.constexpr = scale * factor if KIND == "softmax" else 0.5 * scale * factor
    kv_head, first = tl.program_id(0), tl.program_id(1) * ROWS
    row = first + tl.arange(0, ROWS)
    in_q, in_kv = row < q_rows, row < kv_rows
    reach_low = tl.load(reach + row, mask=in_kv, other=q_rows)
    reach_high = tl.load(reach + kv_rows + row, mask=in_kv, other=-1)
    key_sum, value_sum = tl.zeros([ROWS, WIDE], tl.float32), tl.zeros([ROWS, WIDE], tl.float32)
    for member in tl.static_range(heads // kv_heads):
        head = kv_head * (heads // kv_heads) + member
        low, high, start, end = _span(spans, row, in_q, q_rows, kv_rows, PREFIX)
        query = _activated(_rows(q, first, high >= 0, Q_BASE + head, Q_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        grad = _rows(do, first, high >= 0, head, heads, D, WIDE, ROWS)
        log, delta = _statistics(log_sum, o, grad, row, in_q, first, head, q_rows, heads, KIND, D, WIDE, ROWS)
        query_sum = tl.zeros([ROWS, WIDE], tl.float32)
        if OWN:
            key = _activated(_rows(k, first, high >= 0, K_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
            value = _activated(_rows(v, first, in_kv, V_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
            seen = _seen(
                row[None, :], row[:, None], low[:, None], high[:, None], start[:, None], end[:, None], TARGETS, PREFIX
            )
            score = tl.dot(query, tl.trans(key), input_precision=DOT)
            dp = tl.dot(grad, tl.trans(value), input_precision=DOT)
            weight, ds = _gradients(score, dp, seen, log[:, None], delta[:, None], scale, KIND, EXACT)
            weight, ds = weight.to(grad.dtype), ds.to(key.dtype)
            query_sum = tl.dot(ds, key, query_sum, input_precision=DOT)
            key_sum = tl.dot(tl.trans(ds), query, key_sum, input_precision=DOT)
            value_sum = tl.dot(tl.trans(weight), grad, value_sum, input_precision=DOT)
        query_sum = _walk_keys(
            query, grad, log, delta, low, high, start, end, query_sum, k, v, reach, first, kv_head,
            kv_rows, scale, KIND, OWN, CAUSAL, TARGETS, PREFIX, EXACT, DOT, D, WIDE, ROWS, STEP, K_ALL, K_BASE, V_BASE, ACTIVE,
        )  # fmt: skip
        query_sum = _before(query_sum * SUM, q, first, high >= 0, Q_BASE + head, Q_ALL, ACTIVE, EXACT, D, WIDE, ROWS)
        _store(dq, query_sum, first, q_rows, Q_BASE + head, Q_ALL, D, WIDE, ROWS)
        if not OWN:
            key = _activated(_rows(k, first, in_kv, K_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
            value = _activated(_rows(v, first, in_kv, V_BASE + kv_head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        key_sum, value_sum = _walk_queries(
            key, value, reach_low, reach_high, key_sum, value_sum, q, do, o, log_sum, spans, first, row, head,
            q_rows, kv_rows, heads, scale, KIND, OWN, CAUSAL, TARGETS, PREFIX, EXACT, DOT, D, WIDE, ROWS, STEP,
            Q_ALL, Q_BASE, ACTIVE,
        )  # fmt: skip
    real = reach_high >= 0
    key_sum = _before(key_sum * SUM, k, first, real, K_BASE + kv_head, K_ALL, ACTIVE, EXACT, D, WIDE, ROWS)
    _store(dk, key_sum, first, kv_rows, K_BASE + kv_head, K_ALL, D, WIDE, ROWS)
    value_sum = _before(value_sum * factor, v, first, real, V_BASE + kv_head, K_ALL, ACTIVE, EXACT, D, WIDE, ROWS)
    _store(dv, value_sum, first, kv_rows, V_BASE + kv_head, K_ALL, D, WIDE, ROWS)
