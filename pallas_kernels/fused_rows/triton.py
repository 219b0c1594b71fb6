"""The Triton backend, for NVIDIA GPUs from Ampere on: each operation one kernel forward and one backward.

Nothing but the arguments is kept between them: statistics are computed again where the row is in registers anyway. Gradients of
`mixed_keys`' weights are summed by a program over BLOCK examples and over programs by XLA, always in the same order.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROW_ELEMENTS = 2048  # of a program: 16 a thread
BLOCK = 8  # examples of a program of `mixed_keys`
NUM_WARPS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def row_norm(x, real, eps):
    """See `api.row_norm`."""
    return _rows("row_norm", (x, real), (x,), x, eps)[0]


def _row_norm_backward(eps, saved, dy):
    x, real = saved
    return _rows("row_norm_gradient", (x, real, dy), (x,), x, eps)[0], _nothing(real)


row_norm.defvjp(lambda x, real, eps: (row_norm(x, real, eps), (x, real)), _row_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def sum_norms(a, b, real, eps):
    """See `api.sum_norms`."""
    return tuple(_rows("sum_norms", (a, b, real), (a, a), a, eps))


def _sum_norms_backward(eps, saved, grads):
    a, b, real = saved
    dx = _rows("sum_norms_gradient", (a, b, real, *grads), (a,), a, eps)[0]
    return dx, dx, _nothing(real)


sum_norms.defvjp(lambda a, b, real, eps: (sum_norms(a, b, real, eps), (a, b, real)), _sum_norms_backward)


@jax.custom_vjp
def mixed_keys(x, w1, w2):
    """See `api.mixed_keys`."""
    keys = jax.ShapeDtypeStruct((w1.shape[0] * len(x), w1.shape[3], *x.shape[2:]), x.dtype)
    k, v = _mix("mixed_keys", (x, w1, w2), (keys, keys), x, w1)
    return k, v


def _mixed_keys_backward(saved, grads):
    x, w1, w2 = saved
    sizes = _mix_sizes(x, w1)
    groups, tokens, heads, keys = w1.shape
    sums = jax.ShapeDtypeStruct((-(-len(x) // BLOCK), heads, sizes["M"], sizes["P"]), jnp.float32)
    dx, *parts = _mix("mixed_keys_gradient", (x, w1, w2, *grads), (_like(x), sums, sums), x, w1)
    weights = (p.sum(axis=0)[:, :tokens, : groups * keys].reshape(heads, tokens, groups, keys) for p in parts)
    return dx, *(w.transpose(2, 1, 0, 3).astype(w1.dtype) for w in weights)


mixed_keys.defvjp(lambda x, w1, w2: (mixed_keys(x, w1, w2), (x, w1, w2)), _mixed_keys_backward)


def _rows(name: str, arguments: tuple, results: tuple, x, eps: float) -> Any:
    """A kernel on rows; flags travel as bytes."""
    wide = _power(x.shape[1])
    rows = max(ROW_ELEMENTS // wide, 1)
    arguments = tuple(y.astype(jnp.int8) if y.dtype == bool else y for y in arguments)
    sizes = dict(T=len(x), eps=eps, D=x.shape[1], WIDE=wide, ROWS=rows)
    return _call(name, arguments, tuple(map(_like, results)), (-(-len(x) // rows),), **sizes)


def _mix(name: str, arguments: tuple, shapes: tuple, x, w) -> Any:
    return _call(name, arguments, shapes, (-(-len(x) // BLOCK), x.shape[2]), **_mix_sizes(x, w))


def _mix_sizes(x, w) -> dict[str, Any]:
    """Matrix instructions want 16 tokens and keys at least."""
    batch, tokens, heads, size = x.shape
    keys = w.shape[0] * w.shape[3]
    padded = dict(M=max(_power(tokens), 16), P=max(_power(keys), 16), WIDE=max(_power(size), 16))
    exact = "tf32x3" if x.dtype == jnp.float32 else "tf32"
    return dict(B=batch, m=tokens, H=heads, K=size, J=w.shape[3], KEYS=keys, BLOCK=BLOCK, DOT=exact) | padded


def _call(name: str, arguments: tuple, shapes: tuple, grid: tuple, **sizes: Any) -> Any:
    import jax_triton

    from pallas_kernels.fused_rows import triton_kernels

    kernel = getattr(triton_kernels, name)
    return jax_triton.triton_call(
        *arguments, kernel=kernel, out_shape=shapes, grid=grid, num_warps=NUM_WARPS, num_stages=1, **sizes
    )


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _nothing(x):
    return np.zeros(x.shape, jax.dtypes.float0)
