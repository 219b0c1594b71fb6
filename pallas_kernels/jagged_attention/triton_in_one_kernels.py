"""Backward kernels of `triton_short` for q, k and v, or k and v alone, side by side in one array; see `triton_short_kernels`."""

from __future__ import annotations

import triton
import triton.language as tl

from pallas_kernels.jagged_attention.triton_short_kernels import (
    _activated,
    _before,
    _rows,
    _span,
    _store,
    _walk_keys,
    _walk_queries,
    backward,
)


@triton.jit
def backward_in_one(
    x, do, log_sum, spans, reach, into, dx,
    q_rows: tl.constexpr, kv_rows: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr,
    PREFIX: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, Q_ALL: tl.constexpr, Q_BASE: tl.constexpr, K_ALL: tl.constexpr, K_BASE: tl.constexpr,
    V_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """The gradient of q, k and v in one array, into one array: `dx` is `into`, whose other heads stay as they are.

    One head of keys a head. A program makes dq of ROWS rows, or their dk and dv: with activations the tiles that both need are too
    many registers for three programs on a multiprocessor.
    """
    SUM: tl.constexpr = scale * factor if KIND == "softmax" else 0.5 * scale * factor
    head, first = tl.program_id(0), tl.program_id(1) // 2 * ROWS
    row = first + tl.arange(0, ROWS)
    inside = row < q_rows
    total = tl.zeros([ROWS, WIDE], tl.float32)
    nothing = tl.zeros([ROWS], tl.float32)
    if tl.program_id(1) % 2 == 0:
        low, high, start, end = _span(spans, row, inside, q_rows, kv_rows, PREFIX)
        query = _activated(_rows(x, first, high >= 0, Q_BASE + head, Q_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        grad = _rows(do, first, high >= 0, head, heads, D, WIDE, ROWS)
        total = _walk_keys(
            query, grad, nothing, nothing, low, high, start, end, total, x, x, reach, first, head,
            kv_rows, scale, KIND, False, CAUSAL, False, PREFIX, EXACT, DOT, D, WIDE, ROWS, STEP, K_ALL, K_BASE, V_BASE, ACTIVE,
        )  # fmt: skip
        total = _before(total * SUM, x, first, high >= 0, Q_BASE + head, Q_ALL, ACTIVE, EXACT, D, WIDE, ROWS)
        _store(dx, total, first, q_rows, Q_BASE + head, Q_ALL, D, WIDE, ROWS)
    else:
        low = tl.load(reach + row, mask=inside, other=q_rows)
        high = tl.load(reach + kv_rows + row, mask=inside, other=-1)
        key = _activated(_rows(x, first, inside, K_BASE + head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        value = _activated(_rows(x, first, inside, V_BASE + head, K_ALL, D, WIDE, ROWS), ACTIVE, EXACT)
        value_total = tl.zeros([ROWS, WIDE], tl.float32)
        total, value_total = _walk_queries(
            key, value, low, high, total, value_total, x, do, do, log_sum, spans, first, row, head,
            q_rows, kv_rows, heads, scale, KIND, False, CAUSAL, False, PREFIX, EXACT, DOT, D, WIDE, ROWS, STEP,
            Q_ALL, Q_BASE, ACTIVE,
        )  # fmt: skip
        total = _before(total * SUM, x, first, high >= 0, K_BASE + head, K_ALL, ACTIVE, EXACT, D, WIDE, ROWS)
        _store(dx, total, first, kv_rows, K_BASE + head, K_ALL, D, WIDE, ROWS)
        value_total = _before(
            value_total * factor, x, first, high >= 0, V_BASE + head, K_ALL, ACTIVE, EXACT, D, WIDE, ROWS
        )
        _store(dx, value_total, first, kv_rows, V_BASE + head, K_ALL, D, WIDE, ROWS)


@triton.jit
def backward_pair(
    q, kv, do, o, log_sum, spans, reach, dq, dkv,
    q_rows: tl.constexpr, kv_rows: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, scale: tl.constexpr,
    factor: tl.constexpr, KIND: tl.constexpr, OWN: tl.constexpr, CAUSAL: tl.constexpr, TARGETS: tl.constexpr,
    PREFIX: tl.constexpr, EXACT: tl.constexpr, DOT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, Q_ALL: tl.constexpr, Q_BASE: tl.constexpr, K_ALL: tl.constexpr, K_BASE: tl.constexpr,
    V_BASE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """`backward` for k and v in one array."""
    backward(
        q, kv, kv, do, o, log_sum, spans, reach, dq, dkv, dkv, q_rows, kv_rows, heads, kv_heads, scale, factor, KIND, OWN,
        CAUSAL, TARGETS, PREFIX, EXACT, DOT, D, WIDE, ROWS, STEP, Q_ALL, Q_BASE, K_ALL, K_BASE, V_BASE, ACTIVE,
    )  # fmt: skip
