"""The public functions: what they mean, what they check, and which backend runs them.

Shape letters: T rows, D width, G groups, B examples, m tokens, H heads, K head dim, J keys.
"""

from __future__ import annotations

from jax import Array

from pallas_kernels.common import dispatch
from pallas_kernels.fused_rows.backends import BACKENDS, Request


def row_norm(x: Array, real: Array, *, eps: float = 1e-5, implementation: str | None = None) -> Array:
    """LN of each real row, (x - mean) / sqrt(variance + eps), without scale and bias; 0 in the others, as is their gradient.

    Args:
      x: [T, D]; rows that are not real may hold anything, NaN included.
      real: bool [T].
      eps: added to the variance.
      implementation: None takes the fastest backend that has the case on this device; a name runs that one or raises.

    Returns:
      [T, D], dtype of x; sums are kept in float32 or wider.

    Raises:
      ValueError: an argument is wrong.
      NotImplementedError: the named implementation cannot do this case.
    """
    _check_rows(x, real)
    return _backend("row_norm", Request(x.dtype, x.shape[-1]), implementation)(x, real, eps)


def sum_norms(
    a: Array, b: Array, real: Array, *, eps: float = 1e-5, implementation: str | None = None
) -> tuple[Array, Array]:
    """(y, LN(y)) of each real row, y = RMS(a + b): a residual's norm, and the norm in front of what comes next.

    RMS(x) = x / sqrt(mean(x^2) + eps). Other rows and their gradients are 0.

    Args:
      a, b: [T, D] of one dtype; rows that are not real may hold anything, NaN included.
      real, eps, implementation: as in `row_norm`.

    Returns:
      Both [T, D], dtype of a.

    Raises:
      ValueError, NotImplementedError: as in `row_norm`.
    """
    _check_rows(a, real)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"a and b must be alike, got {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}.")
    return _backend("sum_norms", Request(a.dtype, a.shape[-1]), implementation)(a, b, real, eps)


def mixed_keys(x: Array, w1: Array, w2: Array, *, implementation: str | None = None) -> tuple[Array, Array]:
    """Keys and values that are mixtures of an example's tokens, for each of G groups with its own weights, head by head.

    k[g B + b, j, h] = sum_i w1[g, i, h, j] x[b, i, h], and v with w2.

    Args:
      x: [B, m, H, K] tokens.
      w1, w2: [G, m, H, J], dtype of x.
      implementation: as in `row_norm`.

    Returns:
      k, v: [G * B, J, H, K], dtype of x; sums are kept in float32 or wider.

    Raises:
      ValueError, NotImplementedError: as in `row_norm`.
    """
    if x.ndim != 4 or w1.ndim != 4 or w1.shape != w2.shape or w1.shape[1:3] != x.shape[1:3]:
        raise ValueError(f"x must be [B, m, H, K] and weights [G, m, H, J], got {x.shape}, {w1.shape}, {w2.shape}.")
    if not x.dtype == w1.dtype == w2.dtype:
        raise ValueError(f"x and the weights must share one dtype, got {x.dtype}, {w1.dtype}, {w2.dtype}.")
    request = Request(x.dtype, x.shape[-1], tokens=x.shape[1], keys=w1.shape[0] * w1.shape[-1])
    return _backend("mixed_keys", request, implementation)(x, w1, w2)


def _backend(operation: str, request: Request, implementation: str | None):
    return getattr(dispatch.choose(operation, BACKENDS, request, implementation).load(), operation)


def _check_rows(x: Array, real: Array) -> None:
    if x.ndim != 2 or real.shape != x.shape[:1] or real.dtype != bool:
        raise ValueError(f"rows must be [T, D] and real bool [T], got {x.shape} and {real.dtype}{list(real.shape)}.")
