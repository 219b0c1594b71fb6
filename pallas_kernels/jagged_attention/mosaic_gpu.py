"""The Hopper backend: what it can do, and forward and backward wired together.

Kernels: `mosaic_forward`, `mosaic_backward` (dK, dV, fused dQ; `mosaic_wide`: dK and dV of heads of 256) and
`mosaic_dq` (dQ by itself). GDPA and seed attention are the same kernels with keys of another place and no mask.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.common import dispatch
from pallas_kernels.hopper import memory
from pallas_kernels.jagged_attention import (
    mosaic_backward,
    mosaic_dq,
    mosaic_forward,
    mosaic_wide,
    tuning,
)
from pallas_kernels.jagged_attention.mosaic_problem import Problem
from pallas_kernels.jagged_attention.packing import sequence_of_rows
from pallas_kernels.jagged_attention.worklist import Layout, WorkList, padded_rows, work_list_of

# Keys a query sees, up to which dQ gets a kernel of its own: its float32 buffer moves 10 bytes a number (zeroed, read,
# cast) whatever the mask, and costs more than two matmuls again (at 512 keys, 344 TFLOP/s fused against 362).
LOCAL = 512
HEAD_DIMS = (64, 128, 256)  # smaller heads are padded to 64


class Settings(NamedTuple):
    """Static choices of one call; hashable."""

    problem: Problem
    deterministic: bool
    tilings: tuning.Tilings
    programs: int


def jagged_attention(
    q, k, v, starts, lengths, num_targets, bias, *, max_len, kind, mask, scale, deterministic, work_list
) -> Array:
    """See `api.jagged_attention`."""
    del bias
    history = lengths if num_targets is None else lengths - num_targets
    layout = Layout(starts, lengths, starts, lengths, history)
    divide_by = 1.0 if kind == "softmax" else float(max_len)
    problem = Problem(kind, mask, scale, divide_by, num_targets is not None)
    return _run(q, k, v, layout, problem, deterministic, work_list)


def gdpa(q, k, v, starts, lengths, *, max_len, activation, scale) -> Array:
    """See `api.gdpa`."""
    del max_len
    batch, keys = k.shape[:2]
    kv_start, kv_length = _dense_layout(batch, keys)
    # keys of an example without queries get no tile: their gradient is only zeroed
    layout = Layout(starts, lengths, kv_start, jnp.where(lengths > 0, kv_length, 0), lengths)
    problem = Problem(activation, None, scale, 1.0, False)
    k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
    return _run(q, k, v, layout, problem, False, None)


def seed_attention(q, k, v, starts, lengths, *, max_len, kind, scale) -> Array:
    """See `api.seed_attention`."""
    batch, seeds = q.shape[:2]
    padded = -(-seeds // 8) * 8
    queries = jnp.pad(q, ((0, 0), (0, padded - seeds), (0, 0), (0, 0)))
    # an empty sequence has no tile to visit: its seeds are not attended, only zeroed
    q_start, q_length = _dense_layout(batch, padded)
    layout = Layout(q_start, jnp.where(lengths > 0, q_length, 0), starts, lengths, lengths)
    divide_by = 1.0 if kind == "softmax" else float(max_len)
    problem = Problem(kind, None, scale, divide_by, False)
    out = _run(queries.reshape(-1, *q.shape[2:]), k, v, layout, problem, False, None)
    return out.reshape(batch, padded, *q.shape[2:])[:, :seeds]


def _dense_layout(batch, rows):
    return jnp.arange(batch, dtype=jnp.int32) * rows, jnp.full((batch,), rows, jnp.int32)


def _run(q, k, v, layout, problem, deterministic, work_list):
    device = dispatch.default_device()
    tilings = tuning.tilings(device.device_kind, max(q.shape[-1], HEAD_DIMS[0]))
    settings = Settings(problem, deterministic, tilings, device.core_count)
    return attend(q, k, v, layout, settings, work_list)


def _in_32_bits(function):
    """The kernels' index arithmetic is int32; under jax_enable_x64 Python integers would widen it."""

    @functools.wraps(function)
    def wrapped(*args):
        with jax.enable_x64(False):
            return function(*args)

    return wrapped


@_in_32_bits
def attend(q, k, v, layout: Layout, settings: Settings, work_list: WorkList | None) -> Array:
    """Attention on any device with Hopper's instructions; arguments are taken as checked."""
    rows, size = q.shape[0], q.shape[2]
    q, k, v = (_pad(x) for x in (q, k, v))
    if work_list is None:
        work_list = work_list_of(
            layout,
            q_rows=q.shape[0],
            kv_rows=k.shape[0],
            heads=q.shape[1],
            kv_heads=k.shape[1],
            mask=settings.problem.mask,
            has_targets=settings.problem.has_targets,
            programs=settings.programs,
        )
    elif (work_list.programs, work_list.mask) != (settings.programs, settings.problem.mask):
        raise ValueError(
            f"work_list was made for {work_list.programs} multiprocessors and {work_list.mask}, but this call needs "
            f"{settings.programs} and {settings.problem.mask}; give make_work_list the same mask and `programs`."
        )
    out = jnp.asarray(_attend(q, k, v, layout, work_list, settings))
    return out[:rows, :, :size]


def _pad(x):
    """Rows in whole groups of 8 and at least a tile, heads of at least 64."""
    extra = padded_rows(x.shape[0]) - x.shape[0], 0, max(0, HEAD_DIMS[0] - x.shape[2])
    return jnp.pad(x, [(0, n) for n in extra]) if any(extra) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, layout, work_list, settings):
    return _forward(q, k, v, layout, work_list, settings)[0]


@_in_32_bits
def _forward(q, k, v, layout, work_list, settings):
    problem, _, tilings, programs = settings
    softmax = problem.kind == "softmax"
    tiling = tilings.forward_softmax if softmax else tilings.forward
    out, log_sum = mosaic_forward.forward(q, k, v, work_list.by_query, work_list.q_gaps, problem, tiling, programs)
    return out, (q, k, v, layout, work_list, out if softmax else None, log_sum)


@_in_32_bits
def _backward(settings, saved, grad):
    q, k, v, layout, work_list, out, log_sum = saved
    problem, deterministic, tilings, programs = settings
    delta = None
    if problem.kind == "softmax":
        valid = sequence_of_rows(layout.q_start, layout.q_length, q.shape[0])[2]
        delta = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        delta = jnp.where(valid, delta.T, 0)
    inputs = (q, k, v, grad, log_sum, delta)
    by_key, by_query = (work_list.by_key, work_list.kv_gaps, problem), (work_list.by_query, work_list.q_gaps, problem)
    wide = q.shape[2] > 128
    if deterministic or wide or _is_local(problem.mask):
        backward_kv = (mosaic_wide if wide else mosaic_backward).backward_kv
        dk, dv = backward_kv(*inputs, *by_key, tilings.backward_kv, programs)
        dq = mosaic_dq.backward_q(*inputs, *by_query, tilings.dq, programs)
    else:
        # Zero only once the gradient is there: else XLA zeroes the buffers of all layers together, at the start.
        zero, _ = jax.lax.optimization_barrier((jnp.float32(0), grad))
        dq_sum = jax.new_ref(jnp.broadcast_to(zero, q.shape))
        dk, dv = mosaic_backward.backward_kv(*inputs, *by_key, tilings.backward, programs, dq_sum)
        dq = (memory.in_order(dq_sum[...]) * problem.gradient_scale).astype(q.dtype)
    none = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), (layout, work_list))
    return dq, dk, dv, *none


def _is_local(mask) -> bool:
    """Does a query see so little that the fused dQ's float32 buffer would cost more than two matmuls again?"""
    if mask is None:
        return False
    spans = [mask.block, mask.window if mask.causal or mask.window is None else 2 * mask.window]
    return any(span is not None and span <= LOCAL for span in spans)


_attend.defvjp(_forward, _backward)
