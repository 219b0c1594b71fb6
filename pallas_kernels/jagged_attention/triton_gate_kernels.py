"""Triton kernels around HSTU's attention: its gate, silu(u) * LN(a), and the gradient of its activation; see `triton_gated.py`.

u lies in front of v, q and k in one array.

A program takes ROWS whole rows of WIDTH columns. What XLA makes of the same is four passes over the rows forward and five backward:
a row's mean, its variance, and their gradients are sums that it does not keep a row in registers for.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _columns(x, row, keep, stride: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """float32 [ROWS, WIDE]: the first WIDTH columns of rows; zeros where there is nothing."""
    column = tl.arange(0, WIDE)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * stride + column
    return tl.load(x + at, mask=keep[:, None] & (column < WIDTH), other=0.0).to(tl.float32)


@triton.jit
def _put(x, value, row, keep, stride: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, WIDE)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * stride + column
    tl.store(x + at, value.to(x.dtype.element_ty), mask=keep[:, None] & (column < WIDTH))


@triton.jit
def _normalised(a, eps: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """LN of rows, and 1 / their deviation [ROWS, 1]."""
    column = tl.arange(0, WIDE)[None, :]
    centred = tl.where(column < WIDTH, a - tl.sum(a, 1)[:, None] / WIDTH, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)[:, None]
    return centred * inverse, inverse


@triton.jit
def gate(
    x, a, spans, g,
    rows: tl.constexpr, eps: tl.constexpr, ALL: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """g [T, WIDTH]; 0 in padding rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    real = tl.load(spans + rows + row, mask=inside, other=-1) >= 0
    u = _columns(x, row, real, ALL, WIDTH, WIDE)
    normal, _ = _normalised(_columns(a, row, real, WIDTH, WIDTH, WIDE), eps, WIDTH, WIDE)
    _put(g, u * tl.sigmoid(u) * normal, row, inside, WIDTH, WIDTH, WIDE)


@triton.jit
def gate_gradients(
    x, a, dg, spans, dx, da,
    rows: tl.constexpr, eps: tl.constexpr, ALL: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """da [T, WIDTH], and u's part of dx, whose other columns are left alone; 0 in padding rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    real = tl.load(spans + rows + row, mask=inside, other=-1) >= 0
    u = _columns(x, row, real, ALL, WIDTH, WIDE)
    grad = _columns(dg, row, real, WIDTH, WIDTH, WIDE)
    normal, inverse = _normalised(_columns(a, row, real, WIDTH, WIDTH, WIDE), eps, WIDTH, WIDE)
    sigmoid = tl.sigmoid(u)
    _put(dx, grad * normal * (sigmoid + u * sigmoid * (1.0 - sigmoid)), row, inside, ALL, WIDTH, WIDE)
    grad = grad * u * sigmoid
    mean, slope = tl.sum(grad, 1)[:, None] / WIDTH, tl.sum(grad * normal, 1)[:, None] / WIDTH
    _put(da, inverse * (grad - mean - normal * slope), row, inside, WIDTH, WIDTH, WIDE)


@triton.jit
def activation_gradients(
    x, dv, dq, dk, spans, into, dx,
    rows: tl.constexpr, eps: tl.constexpr, ALL: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """v's, q's and k's parts of dx, in place of those of `into`, from the gradients by their activations; 0 in padding rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    real = tl.load(spans + rows + row, mask=inside, other=-1) >= 0
    for part in tl.static_range(3):
        before = _columns(x + (part + 1) * WIDTH, row, real, ALL, WIDTH, WIDE)
        after = _columns(dv if part == 0 else (dq if part == 1 else dk), row, real, WIDTH, WIDTH, WIDE)
        sigmoid = tl.sigmoid(before)
        slope = sigmoid + before * sigmoid * (1.0 - sigmoid)
        _put(dx + (part + 1) * WIDTH, after * slope, row, inside, ALL, WIDTH, WIDE)
