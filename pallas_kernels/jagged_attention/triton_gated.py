"""Gated attention with the gate in Triton: `triton_short`'s kernels on u, v, q and k in one array, or another backend's on three.

Over short histories nothing is split, joined or activated by passes of their own: attention reads q, k and v where the product
with the weights left them and activates them on the way; the gate's gradient kernel writes u's part of the gradient, attention's
the rest of that array. Around another backend q, k and v are activated first, and a kernel writes their parts of the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.jagged_attention import triton_short
from pallas_kernels.jagged_attention.packing import sequence_of_rows
from pallas_kernels.jagged_attention.triton_problem import Settings
from pallas_kernels.jagged_attention.triton_short import Call, Places
from pallas_kernels.jagged_attention.worklist import Layout

ROWS, NUM_WARPS = 8, 4  # of a program of the gate


def gated_attention(uvqk, starts, lengths, *, max_len: int, mask, scale: float, eps: float):
    """See `gated.gated_attention`."""
    layout = Layout(starts, lengths, starts, lengths, lengths)
    return _gated(uvqk, layout, Settings("silu", mask, scale, float(max_len), False), eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gated(uvqk, layout, settings, eps):
    return _forward(uvqk, layout, settings, eps)[0]


def _forward(uvqk, layout, settings, eps):
    rows, _, heads, size = uvqk.shape
    x = uvqk.reshape(rows, 4 * heads, size)
    spans, reach = _tables(layout, settings, rows)
    attended, _ = triton_short.forward(x, x, x, spans, reach, _call(uvqk), settings)
    attended = checkpoint_name(attended, "attention")
    shape = jax.ShapeDtypeStruct((rows, heads * size), x.dtype)
    (gated,) = _gate_call("gate", (x, attended, spans), (shape,), x, heads, eps)
    return gated, (uvqk, layout, attended)


def gated_around(attend: Callable[..., Array], uvqk: Array, offsets: Array, lengths: Array, *, eps: float) -> Array:
    """`gated.gated_attention` by another backend's attention(q, k, v, offsets, lengths) of rows that are activated."""
    return _gated_around(uvqk, offsets, lengths, attend, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _gated_around(uvqk, offsets, lengths, attend, eps):
    return _forward_around(uvqk, offsets, lengths, attend, eps)[0]


def _forward_around(uvqk, offsets, lengths, attend, eps):
    rows, _, heads, size = uvqk.shape
    real = sequence_of_rows(offsets[:-1], lengths, rows)[2]
    # Cleared first: a NaN before SiLU would stay one after it.
    v, q, k = (jax.nn.silu(jnp.where(real[:, None, None], uvqk[:, i], 0)) for i in (1, 2, 3))
    attended, pull = jax.vjp(lambda q, k, v: attend(q, k, v, offsets, lengths), q, k, v)
    attended = checkpoint_name(attended, "attention")
    spans = jnp.broadcast_to(jnp.where(real, 0, -1), (2, rows))  # of which the gate reads whether a row is real
    shape = jax.ShapeDtypeStruct((rows, heads * size), uvqk.dtype)
    (gated,) = _gate_call("gate", (_rows(uvqk), attended, spans), (shape,), _rows(uvqk), heads, eps)
    return gated, (uvqk, spans, attended, pull, offsets, lengths)


def _backward_around(attend, eps, saved, grad):
    uvqk, spans, attended, pull, *integers = saved
    x, heads = _rows(uvqk), uvqk.shape[2]
    shapes = (jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (x, attended))
    into, d_attended = _gate_call("gate_gradients", (x, attended, grad, spans), tuple(shapes), x, heads, eps)
    dq, dk, dv = pull(d_attended)
    arguments, shape = (x, dv, dq, dk, spans, into), jax.ShapeDtypeStruct(x.shape, x.dtype)
    (dx,) = _gate_call("activation_gradients", arguments, (shape,), x, heads, eps, input_output_aliases={5: 0})
    return dx.reshape(uvqk.shape), *jax.tree.map(lambda y: np.zeros(y.shape, jax.dtypes.float0), integers)


def _rows(uvqk: Array) -> Array:
    """[T, 4 H, K]."""
    return uvqk.reshape(uvqk.shape[0], -1, uvqk.shape[3])


def _backward(settings, eps, saved, grad):
    uvqk, layout, attended = saved
    rows, _, heads, size = uvqk.shape
    x = uvqk.reshape(rows, 4 * heads, size)
    spans, reach = _tables(layout, settings, rows)
    shapes = (jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (x, attended))
    into, d_attended = _gate_call("gate_gradients", (x, attended, grad, spans), tuple(shapes), x, heads, eps)
    dx = triton_short.backward_in_one(x, d_attended, spans, reach, into, _call(uvqk), settings)
    return dx.reshape(uvqk.shape), jax.tree.map(lambda y: np.zeros(y.shape, jax.dtypes.float0), layout)


def _call(uvqk) -> Call:
    rows, _, heads, size = uvqk.shape
    places = Places(q_all=4 * heads, q_base=2 * heads, k_all=4 * heads, k_base=3 * heads, v_base=heads, active=True)
    return Call(rows, rows, heads, heads, size, uvqk.dtype, places)


def _tables(layout, settings, rows):
    return triton_short.spans(layout, settings, rows, rows), triton_short.reach(layout, settings, rows, rows)


def _gate_call(name: str, arguments: tuple, shapes: tuple, x, heads: int, eps: float, **options) -> Any:
    import jax_triton

    from pallas_kernels.jagged_attention import triton_gate_kernels

    rows, total, size = x.shape
    width = heads * size
    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(triton_gate_kernels, name),
        out_shape=shapes,
        grid=(-(-rows // ROWS),),
        num_warps=NUM_WARPS,
        num_stages=1,
        rows=rows,
        eps=eps,
        ALL=total * size,
        WIDTH=width,
        WIDE=1 << (width - 1).bit_length(),
        ROWS=ROWS,
        **options,
    )


_gated.defvjp(_forward, _backward)
_gated_around.defvjp(_forward_around, _backward_around)
