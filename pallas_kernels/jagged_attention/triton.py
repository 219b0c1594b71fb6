"""The Triton backend, for NVIDIA GPUs from Ampere on (A100, L4, Ada; Hopper too): any mask, kind and cross form.

Kernels are in `triton_kernels`; jax-triton launches them. Both packages are imported on first use only.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.jagged_attention import tiles
from pallas_kernels.jagged_attention.mask import key_bounds
from pallas_kernels.jagged_attention.packing import sequence_of_rows
from pallas_kernels.jagged_attention.triton_problem import Settings, operations
from pallas_kernels.jagged_attention.worklist import TILE, Layout, tile_table


class Launch(NamedTuple):
    """Queries and keys a tile, warps, and loads in flight."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def launches(head_size: int) -> tuple[Launch, Launch]:
    """(forward, backward) launches; tiles fit the 99 KiB of shared memory of an L4 as well."""
    if head_size <= 64:
        return Launch(64, 64, 4, 3), Launch(64, 64, 4, 2)
    if head_size == 128:
        return Launch(64, 64, 4, 2), Launch(64, 64, 8, 1)
    return Launch(64, 32, 8, 1), Launch(32, 32, 4, 1)


def _items(layout: Layout, settings: Settings, tiled: str, num_rows: int, heads: int, rows: int, tile: int) -> Array:
    """The table of `triton_kernels`: tiles of `rows` rows of one side, and the tiles of `tile` rows they visit."""
    mask, has_targets = settings.mask, settings.has_targets
    table = tile_table(layout, tiled=tiled, num_rows=num_rows, heads=heads, mask=mask, has_targets=has_targets)
    *fields, row, head, _ = jnp.repeat(table, TILE // rows, axis=1)
    row = row + rows * (jnp.arange(row.shape[0]) % (TILE // rows))
    q_start, q_length, kv_start, kv_length, history = fields
    if mask is None:
        runs = [(row * 0, -(-(kv_length if tiled == "q" else q_length) // tile))]
    else:
        visit = tiles.key_tiles if tiled == "q" else tiles.query_tiles
        runs = list(visit(mask, row, rows, q_length, history, tile, has_targets).runs)
    runs += [(row * 0, row * 0)] * (3 - len(runs))
    prefix = jnp.minimum(mask.prefix if mask is not None else 0, history)
    columns = [q_start, q_length, kv_start, kv_length, prefix, row, head, *(x for run in runs for x in run)]
    return jnp.stack(columns).astype(jnp.int32)


def _bounds(layout: Layout, settings: Settings, num_rows: int):
    """low and high, int32 [T]: the interval of keys that each query sees."""
    sequence, position, _ = sequence_of_rows(layout.q_start, layout.q_length, num_rows)
    if settings.mask is None:
        return position * 0, layout.kv_length[sequence]
    low, high = key_bounds(settings.mask, position, layout.history[sequence], settings.has_targets)
    return low.astype(jnp.int32), high.astype(jnp.int32)


def _call(kernel_name, arguments, out_shape, items, q, k, settings, launch):
    """Launch a kernel; its results are zero where it writes nothing."""
    import jax_triton

    from pallas_kernels.jagged_attention import triton_kernels

    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(triton_kernels, kernel_name),
        out_shape=out_shape,
        grid=(items.shape[1],),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        zeroed_outputs=tuple(range(len(out_shape))),
        n=items.shape[1],
        rows_total=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        scale=settings.scale,
        factor=1.0 / settings.divide_by,
        KIND=settings.kind,
        TARGETS=settings.has_targets,
        D=q.shape[2],
        QUERIES=launch.queries,
        KEYS=launch.keys,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, layout, settings):
    return _forward(q, k, v, layout, settings)[0]


def _forward(q, k, v, layout, settings):
    launch = launches(q.shape[2])[0]
    items = _items(layout, settings, "q", q.shape[0], q.shape[1], launch.queries, launch.keys)
    bounds = _bounds(layout, settings, q.shape[0])
    shapes = _like(q), jax.ShapeDtypeStruct(q.shape[1::-1], jnp.float32)
    out, log_sum = _call("forward", (q, k, v, items, *bounds), shapes, items, q, k, settings, launch)
    return out, (q, k, v, layout, out, log_sum)


def _backward(settings, saved, grad):
    q, k, v, layout, out, log_sum = saved
    launch = launches(q.shape[2])[1]
    valid = sequence_of_rows(layout.q_start, layout.q_length, q.shape[0])[2]
    delta = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = jnp.where(valid, delta.T, 0)
    bounds = _bounds(layout, settings, q.shape[0])
    sides = {
        "backward_q": ("q", q, launch.queries, launch.keys, (_like(q),)),
        "backward_kv": ("kv", k, launch.keys, launch.queries, (_like(k), _like(v))),
    }
    gradients = []
    for name, (tiled, x, rows, tile, shapes) in sides.items():
        items = _items(layout, settings, tiled, x.shape[0], x.shape[1], rows, tile)
        arguments = (q, k, v, grad, log_sum, delta, items, *bounds)
        gradients += _call(name, arguments, shapes, items, q, k, settings, launch)
    return *gradients, jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), layout)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


_attend.defvjp(_forward, _backward)
jagged_attention, gdpa, seed_attention = operations(_attend)
