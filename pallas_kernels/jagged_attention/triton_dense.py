"""GDPA and seed attention on short histories in Triton, where an example has few dense rows: one warp a head of an example.

See `triton_dense_kernels`. `triton_short` hands over the calls that `fits` names; it keeps many dense rows and grouped heads.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jagged_attention.packing import sequence_of_rows
from pallas_kernels.jagged_attention.triton_problem import Settings

MOST_ROWS = 32  # dense rows of an example that a warp holds
MOST_COLUMNS = 64  # of a head
STEP = 16  # packed rows a step; what a matrix instruction takes
FILL = 64  # padding rows of a program


def fits(dense_rows: int, heads: int, kv_heads: int, size: int) -> bool:
    """Has this file the case?"""
    return dense_rows <= MOST_ROWS and heads == kv_heads and size <= MOST_COLUMNS


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def on_keys(q, k, v, starts, lengths, settings: Settings):
    """o [T, H, K] of packed q on k and v [B, J, H, K]."""
    return _on_keys_forward(q, k, v, starts, lengths, settings)[0]


def _on_keys_forward(q, k, v, starts, lengths, settings):
    tables = starts, lengths, _real(starts, lengths, len(q))
    sizes = _sizes(q, len(q), k.shape[1], starts, settings, q.shape[1], 0)
    (out,) = _call("keys_forward", (q, k, v, *tables), (q,), _programs(q, starts), sizes)
    return out, (q, k, v, starts, lengths)


def _on_keys_backward(settings, saved, grad):
    q, k, v, starts, lengths = saved
    tables = starts, lengths, _real(starts, lengths, len(q))
    sizes = _sizes(q, len(q), k.shape[1], starts, settings, q.shape[1], 0)
    grads = _call("keys_backward", (q, k, v, grad, *tables), (q, k, v), _programs(q, starts), sizes)
    return *grads, _nothing(starts), _nothing(lengths)


on_keys.defvjp(_on_keys_forward, _on_keys_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def of_queries(q, kv, starts, lengths, settings: Settings):
    """o of q [B, J, H, K] on packed kv: (k, v), each [T, H, K], or one array [T, 2 H, K] that holds both."""
    return _of_queries_forward(q, kv, starts, lengths, settings)[0]


def _of_queries_forward(q, kv, starts, lengths, settings):
    k, v, sizes = _sides(q, kv, starts, settings)
    sums = (q.shape[2], q.shape[0] * q.shape[1]) if settings.kind == "softmax" else (1,)
    shapes = q, jax.ShapeDtypeStruct(sums, jnp.float32)
    out, log_sum = _call("queries_forward", (q, k, v, starts, lengths), shapes, len(starts), sizes)
    return out, (q, kv, starts, lengths, out if settings.kind == "softmax" else None, log_sum)


def _of_queries_backward(settings, saved, grad):
    q, kv, starts, lengths, out, log_sum = saved
    k, v, sizes = _sides(q, kv, starts, settings)
    shared = grad, grad if out is None else out, log_sum, starts, lengths, _real(starts, lengths, len(k))
    if isinstance(kv, tuple):
        dq, *dkv = _call("queries_backward", (q, k, v, *shared), (q, k, v), _programs(k, starts), sizes)
        dkv = tuple(dkv)
    else:
        dq, dkv = _call("queries_backward_pair", (q, kv, *shared), (q, kv), _programs(k, starts), sizes)
    return dq, dkv, _nothing(starts), _nothing(lengths)


of_queries.defvjp(_of_queries_forward, _of_queries_backward)


def _sides(q, kv, starts, settings):
    """Arrays of keys and of values, and the kernels' sizes."""
    heads = q.shape[2]
    if isinstance(kv, tuple):
        k, v = kv
        return k, v, _sizes(q, len(k), q.shape[1], starts, settings, heads, 0)
    return kv, kv, _sizes(q, len(kv), q.shape[1], starts, settings, 2 * heads, heads)


def _sizes(
    q, num_rows: int, dense_rows: int, starts, settings: Settings, all_heads: int, v_base: int
) -> dict[str, Any]:
    """Static arguments; the side of the keys has `all_heads` heads a row, values from `v_base` on."""
    heads, size = q.shape[-2:]
    exact = q.dtype == jnp.float32
    return dict(
        B=len(starts),
        T=num_rows,
        J=dense_rows,
        P=max(_power(dense_rows), 16),
        heads=heads,
        scale=settings.scale,
        factor=1.0 / settings.divide_by,
        KIND=settings.kind,
        EXACT=exact,
        DOT="tf32x3" if exact else "tf32",
        D=size,
        WIDE=_power(size),
        STEP=STEP,
        FILL=FILL,
        ALL=all_heads,
        V_BASE=v_base,
    )


def _call(name: str, arguments: tuple, results: tuple, programs: int, sizes: dict[str, Any]) -> Any:
    import jax_triton

    from pallas_kernels.jagged_attention import triton_dense_kernels

    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(triton_dense_kernels, name),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results),
        grid=(sizes["heads"], programs),
        num_warps=1,
        num_stages=1,
        **sizes,
    )


def _programs(rows, starts) -> int:
    return len(starts) + -(-len(rows) // FILL)


def _real(starts, lengths, num_rows: int):
    return sequence_of_rows(starts, lengths, num_rows)[2].astype(jnp.int8)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _nothing(x):
    return np.zeros(x.shape, jax.dtypes.float0)
