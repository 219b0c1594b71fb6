"""Triton kernels of attention between an example's few dense rows and its short history: GDPA (dense keys), PMA (dense queries).

A program is one warp: it holds a head's J dense rows of one example and walks the history STEP rows at a time, so that nothing is
loaded twice, no pair of two examples is ever computed, and the backward pass needs five products a step. Such warps, a dozen on a
multiprocessor, hide each other's waiting; tiles of many histories (`triton_short_kernels`) walk several steps for the same rows.
Programs after those of the B examples write zeros to padding rows. P is J rounded up to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pallas_kernels.jagged_attention.triton_short_kernels import (
    LOG2_E,
    LOWEST,
    _add_values,
    _gradients,
    _rows,
    _statistics,
    _store,
)


@triton.jit
def _zeros(
    x, real, first, head, T: tl.constexpr, heads: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, FILL: tl.constexpr
):
    """Zeros in those of FILL rows of x [T, heads, D] that are padding."""
    row, column = first + tl.arange(0, FILL), tl.arange(0, WIDE)[None, :]
    padding = tl.load(real + row, mask=row < T, other=1) == 0
    at = x + tl.cast(row, tl.int64)[:, None] * (heads * D) + head * D + column
    tl.store(at, tl.zeros([FILL, WIDE], x.dtype.element_ty), mask=padding[:, None] & (column < D))


@triton.jit
def _log_sum(score, seen, scale: tl.constexpr, KIND: tl.constexpr, COUNT: tl.constexpr):
    """Softmax's logarithm of the denominator (base 2) of each query, all of whose keys are here."""
    log = tl.zeros([COUNT], tl.float32)
    if KIND == "softmax":
        score = tl.where(seen, score * (scale * LOG2_E), LOWEST)
        top = tl.max(score, 1)
        log = top + tl.log2(tl.sum(tl.where(seen, tl.exp2(score - top[:, None]), 0.0), 1))
    return log


@triton.jit
def keys_forward(
    q, k, v, starts, lengths, real, o,
    B: tl.constexpr, T: tl.constexpr, J: tl.constexpr, P: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, FILL: tl.constexpr, ALL: tl.constexpr, V_BASE: tl.constexpr,
):  # fmt: skip
    """o [T, heads, D] of packed queries on dense keys and values [B * J, heads, D]."""
    head, example = tl.program_id(0), tl.program_id(1)
    if example >= B:
        _zeros(o, real, (example - B) * FILL, head, T, heads, D, WIDE, FILL)
    else:
        start = tl.load(starts + example)
        end = start + tl.load(lengths + example)
        dense = tl.arange(0, P) < J
        key = _rows(k, example * J, dense, head, ALL, D, WIDE, P)
        value = _rows(v, example * J, dense, V_BASE + head, ALL, D, WIDE, P)
        for at in range(start, end, STEP):
            inside = at + tl.arange(0, STEP) < end
            query = _rows(q, at, inside, head, heads, D, WIDE, STEP)
            seen = inside[:, None] & dense[None, :]
            out = tl.zeros([STEP, WIDE], tl.float32)
            top, total = tl.full([STEP], LOWEST, tl.float32), tl.zeros([STEP], tl.float32)
            out, top, total = _add_values(query, key, value, seen, out, top, total, scale, KIND, EXACT, DOT)
            if KIND == "softmax":
                out = out / tl.where(total > 0.0, total, 1.0)[:, None]
            _store(o, out * factor, at, end, head, heads, D, WIDE, STEP)


@triton.jit
def keys_backward(
    q, k, v, do, starts, lengths, real, dq, dk, dv,
    B: tl.constexpr, T: tl.constexpr, J: tl.constexpr, P: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, FILL: tl.constexpr, ALL: tl.constexpr, V_BASE: tl.constexpr,
):  # fmt: skip
    """dq of an example's queries, dk and dv of its keys."""
    SUM: tl.constexpr = scale * factor if KIND == "softmax" else 0.5 * scale * factor
    head, example = tl.program_id(0), tl.program_id(1)
    if example >= B:
        _zeros(dq, real, (example - B) * FILL, head, T, heads, D, WIDE, FILL)
    else:
        start = tl.load(starts + example)
        end = start + tl.load(lengths + example)
        dense = tl.arange(0, P) < J
        key = _rows(k, example * J, dense, head, ALL, D, WIDE, P)
        value = _rows(v, example * J, dense, V_BASE + head, ALL, D, WIDE, P)
        key_sum, value_sum = tl.zeros([P, WIDE], tl.float32), tl.zeros([P, WIDE], tl.float32)
        for at in range(start, end, STEP):
            inside = at + tl.arange(0, STEP) < end
            query = _rows(q, at, inside, head, heads, D, WIDE, STEP)
            grad = _rows(do, at, inside, head, heads, D, WIDE, STEP)
            seen = inside[:, None] & dense[None, :]
            score = tl.dot(query, tl.trans(key), input_precision=DOT)
            dp = tl.dot(grad, tl.trans(value), input_precision=DOT)
            log, delta = _log_sum(score, seen, scale, KIND, STEP), tl.zeros([STEP], tl.float32)
            if KIND == "softmax":
                weight = tl.where(seen, tl.exp2(score * (scale * LOG2_E) - log[:, None]), 0.0)
                delta = tl.sum(weight * dp, 1)
            weight, ds = _gradients(score, dp, seen, log[:, None], delta[:, None], scale, KIND, EXACT)
            weight, ds = weight.to(grad.dtype), ds.to(key.dtype)
            _store(dq, tl.dot(ds, key, input_precision=DOT) * SUM, at, end, head, heads, D, WIDE, STEP)
            key_sum = tl.dot(tl.trans(ds), query, key_sum, input_precision=DOT)
            value_sum = tl.dot(tl.trans(weight), grad, value_sum, input_precision=DOT)
        _store(dk, key_sum * SUM, example * J, example * J + J, head, ALL, D, WIDE, P)
        _store(dv, value_sum * factor, example * J, example * J + J, V_BASE + head, ALL, D, WIDE, P)


@triton.jit
def queries_forward(
    q, k, v, starts, lengths, o, log_sum,
    B: tl.constexpr, T: tl.constexpr, J: tl.constexpr, P: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, FILL: tl.constexpr, ALL: tl.constexpr, V_BASE: tl.constexpr,
):  # fmt: skip
    """o [B * J, heads, D] and, for softmax, log_sum [heads, B * J] of dense queries on packed keys and values."""
    head, example = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + example)
    end = start + tl.load(lengths + example)
    place = tl.arange(0, P)
    query = _rows(q, example * J, place < J, head, heads, D, WIDE, P)
    out = tl.zeros([P, WIDE], tl.float32)
    top, total = tl.full([P], LOWEST, tl.float32), tl.zeros([P], tl.float32)
    for at in range(start, end, STEP):
        inside = at + tl.arange(0, STEP) < end
        key = _rows(k, at, inside, head, ALL, D, WIDE, STEP)
        value = _rows(v, at, inside, V_BASE + head, ALL, D, WIDE, STEP)
        seen = inside[None, :] & (place >= 0)[:, None]
        out, top, total = _add_values(query, key, value, seen, out, top, total, scale, KIND, EXACT, DOT)
    if KIND == "softmax":
        total = tl.where(total > 0.0, total, 1.0)
        out = out / total[:, None]
        tl.store(log_sum + head * (B * J) + example * J + place, top + tl.log2(total), mask=place < J)
    _store(o, out * factor, example * J, example * J + J, head, heads, D, WIDE, P)


@triton.jit
def queries_backward(
    q, k, v, do, o, log_sum, starts, lengths, real, dq, dk, dv,
    B: tl.constexpr, T: tl.constexpr, J: tl.constexpr, P: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, FILL: tl.constexpr, ALL: tl.constexpr, V_BASE: tl.constexpr,
):  # fmt: skip
    """dq of an example's queries, dk and dv of its keys."""
    SUM: tl.constexpr = scale * factor if KIND == "softmax" else 0.5 * scale * factor
    head, example = tl.program_id(0), tl.program_id(1)
    if example >= B:
        _zeros(dk, real, (example - B) * FILL, head, T, ALL, D, WIDE, FILL)
        _zeros(dv, real, (example - B) * FILL, V_BASE + head, T, ALL, D, WIDE, FILL)
    else:
        start = tl.load(starts + example)
        end = start + tl.load(lengths + example)
        dense = tl.arange(0, P) < J
        query = _rows(q, example * J, dense, head, heads, D, WIDE, P)
        grad = _rows(do, example * J, dense, head, heads, D, WIDE, P)
        log, delta = _statistics(
            log_sum, o, grad, example * J + tl.arange(0, P), dense, example * J, head, B * J, heads, KIND, D, WIDE, P
        )
        query_sum = tl.zeros([P, WIDE], tl.float32)
        for at in range(start, end, STEP):
            inside = at + tl.arange(0, STEP) < end
            key = _rows(k, at, inside, head, ALL, D, WIDE, STEP)
            value = _rows(v, at, inside, V_BASE + head, ALL, D, WIDE, STEP)
            score = tl.dot(query, tl.trans(key), input_precision=DOT)
            dp = tl.dot(grad, tl.trans(value), input_precision=DOT)
            seen = dense[:, None] & inside[None, :]
            weight, ds = _gradients(score, dp, seen, log[:, None], delta[:, None], scale, KIND, EXACT)
            weight, ds = weight.to(grad.dtype), ds.to(key.dtype)
            query_sum = tl.dot(ds, key, query_sum, input_precision=DOT)
            _store(dk, tl.dot(tl.trans(ds), query, input_precision=DOT) * SUM, at, end, head, ALL, D, WIDE, STEP)
            value_gradient = tl.dot(tl.trans(weight), grad, input_precision=DOT) * factor
            _store(dv, value_gradient, at, end, V_BASE + head, ALL, D, WIDE, STEP)
        _store(dq, query_sum * SUM, example * J, example * J + J, head, heads, D, WIDE, P)


@triton.jit
def queries_backward_pair(
    q, kv, do, o, log_sum, starts, lengths, real, dq, dkv,
    B: tl.constexpr, T: tl.constexpr, J: tl.constexpr, P: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, FILL: tl.constexpr, ALL: tl.constexpr, V_BASE: tl.constexpr,
):  # fmt: skip
    """`queries_backward` for keys and values in one array."""
    queries_backward(
        q, kv, kv, do, o, log_sum, starts, lengths, real, dq, dkv, dkv, B, T, J, P, heads, scale, factor, KIND, EXACT, DOT,
        D, WIDE, STEP, FILL, ALL, V_BASE,
    )  # fmt: skip
