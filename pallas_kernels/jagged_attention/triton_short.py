"""The Triton backend for short histories, for NVIDIA GPUs from Ampere on: tiles that hold rows of many of them.

Where histories have some dozens of rows, a tile a history is mostly empty, and a list of tiles costs more than the
attention. Here row n of the packed array is in tile n // rows whatever its history, and a tile walks the few others that
its rows' histories lie in: there is no list, only what each row sees (`_spans`, `_reach`). Every mask, kind and cross form;
right for long histories too, where other backends are faster. Kernels are in `triton_short_kernels`; jax-triton launches
them. Both packages are imported on first use.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jagged_attention.mask import key_bounds
from pallas_kernels.jagged_attention.packing import sequence_of_rows
from pallas_kernels.jagged_attention.triton_problem import Settings, operations
from pallas_kernels.jagged_attention.worklist import Layout


class Launch(NamedTuple):
    """Rows of a tile, rows of the other side that it meets a step, warps, and loads in flight."""

    rows: int
    step: int
    num_warps: int
    num_stages: int


def launches(head_size: int, dtype: Any) -> tuple[Launch, Launch]:
    """(forward, backward) launches."""
    size = head_size * jnp.dtype(dtype).itemsize // 2
    if size <= 64:
        return Launch(64, 16, 4, 2), Launch(64, 16, 4, 1)
    if size <= 128:
        return Launch(64, 16, 4, 2), Launch(32, 16, 4, 1)
    return Launch(32, 16, 4, 1), Launch(32, 16, 4, 1)


def _spans(layout: Layout, settings: Settings, q_rows: int, kv_rows: int):
    """int32 [2 or 4, Tq]: which key rows each query sees; see `triton_short_kernels`."""
    sequence, position, valid = sequence_of_rows(layout.q_start, layout.q_length, q_rows)
    start, history = layout.kv_start[sequence], layout.history[sequence]
    if settings.mask is None:
        low, high, prefix = start, start + layout.kv_length[sequence], 0
    else:
        low, high = (start + x for x in key_bounds(settings.mask, position, history, settings.has_targets))
        prefix = settings.mask.prefix
    ends = [low, high]
    if prefix:
        ends += [start, start + jnp.minimum(prefix, history)]
    nothing = [kv_rows, -1] * 2
    return jnp.stack([jnp.where(valid, x, none) for x, none in zip(ends, nothing, strict=False)]).astype(jnp.int32)


def _reach(layout: Layout, settings: Settings, q_rows: int, kv_rows: int):
    """int32 [2, Tk]: between which query rows those lie that may see a key; see `triton_short_kernels`."""
    sequence, position, valid = sequence_of_rows(layout.kv_start, layout.kv_length, kv_rows)
    length = layout.q_length[sequence]
    first = layout.q_start[sequence]
    end = first + length
    if is_causal(settings):
        first = first + position
    valid &= length > 0
    return jnp.stack([jnp.where(valid, first, q_rows), jnp.where(valid, end, -1)]).astype(jnp.int32)


def is_causal(settings: Settings) -> bool:
    """Does no query see a later row?"""
    return settings.mask is not None and settings.mask.causal and not settings.mask.prefix


def static_arguments(q, k, settings: Settings, launch: Launch) -> dict[str, Any]:
    """What the kernels are compiled for."""
    exact = q.dtype == jnp.float32
    return dict(
        q_rows=q.shape[0],
        kv_rows=k.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        scale=settings.scale,
        factor=1.0 / settings.divide_by,
        KIND=settings.kind,
        OWN=settings.mask is not None,
        CAUSAL=is_causal(settings),
        TARGETS=settings.has_targets,
        PREFIX=bool(settings.mask is not None and settings.mask.prefix),
        EXACT=exact,
        DOT="tf32x3" if exact else "tf32",
        D=q.shape[2],
        WIDE=1 << (q.shape[2] - 1).bit_length(),
        ROWS=launch.rows,
        STEP=launch.step,
    )


def _call(kernel_name, arguments, out_shape, q, k, settings, programs, launch):
    import jax_triton

    from pallas_kernels.jagged_attention import triton_short_kernels

    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(triton_short_kernels, kernel_name),
        out_shape=out_shape,
        grid=programs,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **static_arguments(q, k, settings, launch),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, layout, settings):
    return _forward(q, k, v, layout, settings)[0]


def _forward(q, k, v, layout, settings):
    launch = launches(q.shape[2], q.dtype)[0]
    rows = q.shape[0], k.shape[0]
    tables = _spans(layout, settings, *rows), _reach(layout, settings, *rows)
    softmax = settings.kind == "softmax"
    shapes = _like(q), jax.ShapeDtypeStruct(q.shape[1::-1] if softmax else (1,), jnp.float32)
    programs = q.shape[1], -(-q.shape[0] // launch.rows)
    out, log_sum = _call("forward", (q, k, v, *tables), shapes, q, k, settings, programs, launch)
    return out, (q, k, v, layout, out if softmax else None, log_sum)


def _backward(settings, saved, grad):
    q, k, v, layout, out, log_sum = saved
    launch = launches(q.shape[2], q.dtype)[1]
    rows = q.shape[0], k.shape[0]
    tables = _spans(layout, settings, *rows), _reach(layout, settings, *rows)
    arguments = (q, k, v, grad, grad if out is None else out, log_sum, *tables)
    programs = k.shape[1], -(-max(rows) // launch.rows)
    shapes = _like(q), _like(k), _like(v)
    gradients = _call("backward", arguments, shapes, q, k, settings, programs, launch)
    return *gradients, jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), layout)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


_attend.defvjp(_forward, _backward)
jagged_attention, gdpa, seed_attention = operations(_attend)
