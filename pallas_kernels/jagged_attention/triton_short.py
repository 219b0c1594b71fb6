"""The Triton backend for short histories, for NVIDIA GPUs from Ampere on: tiles that hold rows of many of them.

Where histories have some dozens of rows, a tile a history is mostly empty, and a list of tiles costs more than the
attention. Here row n of the packed array is in tile n // rows whatever its history, and a tile walks the few others that
its rows' histories lie in: there is no list, only what each row sees (`spans`, `reach`). Every mask, kind and cross form;
right for long histories too, where other backends are faster. Kernels are in `triton_short_kernels`; jax-triton launches
them. Both packages are imported on first use.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jagged_attention import triton_dense
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


class Places(NamedTuple):
    """Where q, k and v lie: heads a row of the array that holds each, and its first; `active`: as numbers before SiLU."""

    q_all: int
    q_base: int
    k_all: int
    k_base: int
    v_base: int
    active: bool = False


def launches(head_size: int, dtype: Any, *, own: bool = True) -> tuple[Launch, Launch]:
    """(forward, backward) launches; `own` where queries and keys are the same rows."""
    size = head_size * jnp.dtype(dtype).itemsize // 2
    if size <= 64:
        return Launch(64, 16, 4, 2), Launch(64, 16, 4, 1)
    if size <= 128:
        return Launch(64, 16, 4, 2), Launch(32, 16, 4, 1)
    return Launch(32, 16, 4, 1), Launch(32, 16, 4, 1)


def spans(layout: Layout, settings: Settings, q_rows: int, kv_rows: int):
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


def reach(layout: Layout, settings: Settings, q_rows: int, kv_rows: int):
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


def static_arguments(dtype, size: int, settings: Settings, launch: Launch, places: Places) -> dict[str, Any]:
    """What the kernels are compiled for, beside numbers of rows and heads."""
    exact = dtype == jnp.float32
    return dict(
        scale=settings.scale,
        factor=1.0 / settings.divide_by,
        KIND=settings.kind,
        OWN=settings.mask is not None,
        CAUSAL=is_causal(settings),
        TARGETS=settings.has_targets,
        PREFIX=bool(settings.mask is not None and settings.mask.prefix),
        EXACT=exact,
        DOT="tf32x3" if exact else "tf32",
        D=size,
        WIDE=1 << (size - 1).bit_length(),
        ROWS=launch.rows,
        STEP=launch.step,
        Q_ALL=places.q_all,
        Q_BASE=places.q_base,
        K_ALL=places.k_all,
        K_BASE=places.k_base,
        V_BASE=places.v_base,
        ACTIVE=places.active,
    )


class Call(NamedTuple):
    """One call's static sizes: rows and heads of queries and of keys, the size of a head, and where they lie."""

    q_rows: int
    kv_rows: int
    heads: int
    kv_heads: int
    size: int
    dtype: Any
    places: Places


def _call(kernel_name: str, arguments: tuple, out_shape: tuple, call: Call, settings: Settings, **options):
    import jax_triton

    from pallas_kernels.jagged_attention import triton_in_one_kernels, triton_short_kernels

    kernels = triton_short_kernels if kernel_name in ("forward", "backward") else triton_in_one_kernels
    is_backward = kernel_name != "forward"
    launch = launches(call.size, call.dtype, own=settings.mask is not None)[is_backward]
    heads, rows = (call.kv_heads, max(call.q_rows, call.kv_rows)) if is_backward else (call.heads, call.q_rows)
    tiles = -(-rows // launch.rows) * (2 if kernel_name == "backward_in_one" else 1)
    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(kernels, kernel_name),
        out_shape=out_shape,
        grid=(heads, tiles),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        q_rows=call.q_rows,
        kv_rows=call.kv_rows,
        heads=call.heads,
        kv_heads=call.kv_heads,
        **static_arguments(call.dtype, call.size, settings, launch, call.places),
        **options,
    )


def forward(q, k, v, spans, reach, call: Call, settings: Settings):
    """o [Tq, H, K], and for softmax the logarithms of the denominators, float32 [H, Tq]."""
    out = jax.ShapeDtypeStruct((call.q_rows, call.heads, call.size), call.dtype)
    sums = (call.heads, call.q_rows) if settings.kind == "softmax" else (1,)
    shapes = out, jax.ShapeDtypeStruct(sums, jnp.float32)
    return _call("forward", (q, k, v, spans, reach), shapes, call, settings)


def backward_in_one(x, grad, spans, reach, into, call: Call, settings: Settings):
    """The gradient of an array that holds q, k and v: `into`, written over where they lie."""
    arguments = (x, grad, jnp.zeros(1, jnp.float32), spans, reach, into)
    shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype),)
    return _call("backward_in_one", arguments, shapes, call, settings, input_output_aliases={5: 0})[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, layout, settings):
    return _forward(q, k, v, layout, settings)[0]


def _forward(q, k, v, layout, settings):
    tables = _tables(layout, settings, q.shape[0], k.shape[0])
    out, log_sum = forward(q, k, v, *tables, _apart(q, k), settings)
    return out, (q, k, v, layout, out if settings.kind == "softmax" else None, log_sum)


def _backward(settings, saved, grad):
    q, k, v, layout, out, log_sum = saved
    tables = _tables(layout, settings, q.shape[0], k.shape[0])
    arguments = (q, k, v, grad, grad if out is None else out, log_sum, *tables)
    gradients = _call("backward", arguments, (_like(q), _like(k), _like(v)), _apart(q, k), settings)
    return *gradients, _no_gradient(layout)


def _apart(q, k) -> Call:
    places = Places(q_all=q.shape[1], q_base=0, k_all=k.shape[1], k_base=0, v_base=0)
    return Call(q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2], q.dtype, places)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_pair(q, kv, layout, settings):
    return _forward_pair(q, kv, layout, settings)[0]


def _forward_pair(q, kv, layout, settings):
    tables = _tables(layout, settings, q.shape[0], kv.shape[0])
    out, log_sum = forward(q, kv, kv, *tables, _pair(q, kv), settings)
    return out, (q, kv, layout, out if settings.kind == "softmax" else None, log_sum)


def _backward_pair(settings, saved, grad):
    q, kv, layout, out, log_sum = saved
    tables = _tables(layout, settings, q.shape[0], kv.shape[0])
    arguments = (q, kv, grad, grad if out is None else out, log_sum, *tables)
    gradients = _call("backward_pair", arguments, (_like(q), _like(kv)), _pair(q, kv), settings)
    return *gradients, _no_gradient(layout)


def _pair(q, kv) -> Call:
    heads = kv.shape[1] // 2
    places = Places(q_all=q.shape[1], q_base=0, k_all=2 * heads, k_base=0, v_base=heads)
    return Call(q.shape[0], kv.shape[0], q.shape[1], heads, q.shape[2], q.dtype, places)


def _tables(layout: Layout, settings: Settings, q_rows: int, kv_rows: int):
    return spans(layout, settings, q_rows, kv_rows), reach(layout, settings, q_rows, kv_rows)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _no_gradient(layout: Layout):
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), layout)


_attend.defvjp(_forward, _backward)
_attend_pair.defvjp(_forward_pair, _backward_pair)
jagged_attention, _gdpa, _seed_attention = operations(_attend)


def gdpa(q, k, v, starts, lengths, *, max_len: int, activation: str, scale: float):
    """See `api.gdpa`."""
    if triton_dense.fits(k.shape[1], q.shape[1], k.shape[2], q.shape[2]):
        return triton_dense.on_keys(q, k, v, starts, lengths, Settings(activation, None, scale, 1.0, False))
    return _gdpa(q, k, v, starts, lengths, max_len=max_len, activation=activation, scale=scale)


def seed_attention(q, k, v, starts, lengths, *, max_len: int, kind: str, scale: float):
    """See `api.seed_attention`."""
    if triton_dense.fits(q.shape[1], q.shape[2], k.shape[1], q.shape[3]):
        return triton_dense.of_queries(q, (k, v), starts, lengths, _seed_settings(max_len, kind, scale))
    return _seed_attention(q, k, v, starts, lengths, max_len=max_len, kind=kind, scale=scale)


def seed_attention_pair(q, kv, starts, lengths, *, max_len: int, kind: str, scale: float):
    """See `api.seed_attention_pair`; kv is [T, 2 Hkv, K]."""
    if triton_dense.fits(q.shape[1], q.shape[2], kv.shape[1] // 2, q.shape[3]):
        return triton_dense.of_queries(q, kv, starts, lengths, _seed_settings(max_len, kind, scale))

    def attend(q, k, v, layout, settings):
        del v
        return _attend_pair(q, k, layout, settings)

    return operations(attend)[2](q, kv, kv, starts, lengths, max_len=max_len, kind=kind, scale=scale)


def _seed_settings(max_len: int, kind: str, scale: float) -> Settings:
    return Settings(kind, None, scale, 1.0 if kind == "softmax" else float(max_len), False)
