"""Gated attention over short histories in Triton: `triton_short`'s kernels on u, v, q and k in one array, and the gate's own.

Nothing is split, joined or activated by passes of their own: attention reads q, k and v where the product with the weights left
them and activates them on the way; the gate's gradient kernel writes u's part of the gradient, attention's the rest of that array.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.jagged_attention import triton_short
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


def _gate_call(name: str, arguments: tuple, shapes: tuple, x, heads: int, eps: float) -> Any:
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
    )


_gated.defvjp(_forward, _backward)
