"""Triton kernels of `fused_rows`: a program keeps whole rows, or all keys of an example's head, in registers. See `triton.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x, row, keep, D: tl.constexpr, WIDE: tl.constexpr):
    """float32 [ROWS, WIDE]; zeros where `keep` says no and from D on."""
    column = tl.arange(0, WIDE)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * D + column
    return tl.load(x + at, mask=keep[:, None] & (column < D), other=0.0).to(tl.float32)


@triton.jit
def store_rows(x, value, row, keep, D: tl.constexpr, WIDE: tl.constexpr):
    """The counterpart of `load_rows`."""
    column = tl.arange(0, WIDE)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * D + column
    tl.store(x + at, value.to(x.dtype.element_ty), mask=keep[:, None] & (column < D))


@triton.jit
def normalised(x, eps: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr):
    """LN of rows, and 1 / their deviation [ROWS, 1]."""
    centred = tl.where(tl.arange(0, WIDE)[None, :] < D, x - tl.sum(x, 1)[:, None] / D, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)[:, None]
    return centred * inverse, inverse


@triton.jit
def norm_gradient(grad, normal, inverse, D: tl.constexpr):
    """LN's gradient; zeros beyond D stay zeros only after the store's mask."""
    mean, slope = tl.sum(grad, 1)[:, None] / D, tl.sum(grad * normal, 1)[:, None] / D
    return inverse * (grad - mean - normal * slope)


@triton.jit
def _rows_of_program(real, T: tl.constexpr, ROWS: tl.constexpr):
    """Rows of this program, which of them there are, and which are real."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < T
    return row, inside, tl.load(real + row, mask=inside, other=0) != 0


@triton.jit
def row_norm(
    x, real, y, T: tl.constexpr, eps: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """y = LN(x)."""
    row, inside, keep = _rows_of_program(real, T, ROWS)
    normal, _ = normalised(load_rows(x, row, keep, D, WIDE), eps, D, WIDE)
    store_rows(y, normal, row, inside, D, WIDE)


@triton.jit
def row_norm_gradient(
    x, real, dy, dx, T: tl.constexpr, eps: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """dx of `row_norm`."""
    row, inside, keep = _rows_of_program(real, T, ROWS)
    normal, inverse = normalised(load_rows(x, row, keep, D, WIDE), eps, D, WIDE)
    grad = norm_gradient(load_rows(dy, row, keep, D, WIDE), normal, inverse, D)
    store_rows(dx, grad, row, inside, D, WIDE)


@triton.jit
def sum_norms(
    a, b, real, y, z, T: tl.constexpr, eps: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """y = RMS(a + b), z = LN(y)."""
    row, inside, keep = _rows_of_program(real, T, ROWS)
    x = load_rows(a, row, keep, D, WIDE) + load_rows(b, row, keep, D, WIDE)
    x = x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    store_rows(y, x, row, inside, D, WIDE)
    normal, _ = normalised(x, eps, D, WIDE)
    store_rows(z, normal, row, inside, D, WIDE)


@triton.jit
def sum_norms_gradient(
    a, b, real, dy, dz, dx, T: tl.constexpr, eps: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """The gradient of a, and of b, of `sum_norms`."""
    row, inside, keep = _rows_of_program(real, T, ROWS)
    x = load_rows(a, row, keep, D, WIDE) + load_rows(b, row, keep, D, WIDE)
    root = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    x = x * root
    normal, inverse = normalised(x, eps, D, WIDE)
    grad = load_rows(dy, row, keep, D, WIDE)
    through = norm_gradient(load_rows(dz, row, keep, D, WIDE), normal, inverse, D)
    grad += tl.where(tl.arange(0, WIDE)[None, :] < D, through, 0.0)
    store_rows(dx, root * (grad - x * (tl.sum(grad * x, 1)[:, None] / D)), row, inside, D, WIDE)


@triton.jit
def _weights(
    w, head, m: tl.constexpr, H: tl.constexpr, J: tl.constexpr, KEYS: tl.constexpr, M: tl.constexpr, P: tl.constexpr
):
    """[M, P] of w [G, m, H, J]: a head's weights, token by token, of the G * J = KEYS keys; zeros beside them."""
    token, key = tl.arange(0, M)[:, None], tl.arange(0, P)[None, :]
    at = ((key // J) * m + token) * (H * J) + head * J + key % J
    return tl.load(w + at, mask=(token < m) & (key < KEYS), other=0.0)


@triton.jit
def _tokens(x, example, head, m: tl.constexpr, H: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr):
    """[M, WIDE] of x [B, m, H, K]."""
    token, column = tl.arange(0, M)[:, None], tl.arange(0, WIDE)[None, :]
    at = (example * m + token) * (H * K) + head * K + column
    return tl.load(x + at, mask=(token < m) & (column < K), other=0.0)


@triton.jit
def _places(
    example, head, B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, J: tl.constexpr, KEYS: tl.constexpr, P: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Where the KEYS keys of an example lie in [G * B, J, H, K], [P, WIDE], and which of them there are."""
    key, column = tl.arange(0, P)[:, None], tl.arange(0, WIDE)[None, :]
    row = tl.cast((key // J) * B + example, tl.int64) * J + key % J
    return row * (H * K) + head * K + column, (key < KEYS) & (column < K)


@triton.jit
def mixed_keys(
    x, w1, w2, k, v,
    B: tl.constexpr, m: tl.constexpr, H: tl.constexpr, K: tl.constexpr, J: tl.constexpr, KEYS: tl.constexpr,
    M: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """k and v of BLOCK examples' head."""
    head = tl.program_id(1)
    first, second = tl.trans(_weights(w1, head, m, H, J, KEYS, M, P)), tl.trans(_weights(w2, head, m, H, J, KEYS, M, P))
    for example in range(tl.program_id(0) * BLOCK, tl.minimum(tl.program_id(0) * BLOCK + BLOCK, B)):
        tokens = _tokens(x, example, head, m, H, K, WIDE, M)
        at, keep = _places(example, head, B, H, K, J, KEYS, P, WIDE)
        tl.store(k + at, tl.dot(first, tokens, input_precision=DOT).to(k.dtype.element_ty), mask=keep)
        tl.store(v + at, tl.dot(second, tokens, input_precision=DOT).to(v.dtype.element_ty), mask=keep)


@triton.jit
def mixed_keys_gradient(
    x, w1, w2, dk, dv, dx, dw1, dw2,
    B: tl.constexpr, m: tl.constexpr, H: tl.constexpr, K: tl.constexpr, J: tl.constexpr, KEYS: tl.constexpr,
    M: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """dx of BLOCK examples' head, and their sums of dw1 and dw2, float32 [programs, H, M, P]."""
    head = tl.program_id(1)
    first, second = _weights(w1, head, m, H, J, KEYS, M, P), _weights(w2, head, m, H, J, KEYS, M, P)
    sum1, sum2 = tl.zeros([M, P], tl.float32), tl.zeros([M, P], tl.float32)
    token, column = tl.arange(0, M)[:, None], tl.arange(0, WIDE)[None, :]
    for example in range(tl.program_id(0) * BLOCK, tl.minimum(tl.program_id(0) * BLOCK + BLOCK, B)):
        tokens = _tokens(x, example, head, m, H, K, WIDE, M)
        at, keep = _places(example, head, B, H, K, J, KEYS, P, WIDE)
        grad_k = tl.load(dk + at, mask=keep, other=0.0)
        grad_v = tl.load(dv + at, mask=keep, other=0.0)
        grad = tl.dot(first, grad_k, input_precision=DOT)
        grad = tl.dot(second, grad_v, grad, input_precision=DOT)
        sum1 = tl.dot(tokens, tl.trans(grad_k), sum1, input_precision=DOT)
        sum2 = tl.dot(tokens, tl.trans(grad_v), sum2, input_precision=DOT)
        place = (example * m + token) * (H * K) + head * K + column
        tl.store(dx + place, grad.to(dx.dtype.element_ty), mask=(token < m) & (column < K))
    at = (tl.program_id(0) * H + head) * (M * P) + token * P + tl.arange(0, P)[None, :]
    tl.store(dw1 + at, sum1)
    tl.store(dw2 + at, sum2)
