"""The Triton backend, for NVIDIA GPUs from Ampere on: fused gathers, and an update without a gradient of all lookups.

An update sorts (row, source of the gradient) once, and walks the sorted lookups twice: `triton_kernels` says how. Beside the
state, which is written in place where the caller donates it, it needs the sorted pairs and, for parts of long runs, 32 D / TILE
bytes a lookup (for float32 gradients of their own: an eighth of them at a tile of 64). Both packages are imported on first use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.embedding.rules import EPS, Rule, Step


class Launch(NamedTuple):
    """Lookups of a tile (a multiple of 4), tiles of a group (a power of two), warps of `fold` and `join`."""

    tile: int = 64
    group: int = 32
    join_warps: int = 8


BLOCK = 8
"""Rows that a warp gathers at once."""
POOLED = 32
"""Rows of a bag that a warp adds at once, at most."""


def lookup(rows: Array, ids: Array, *, mean: bool, dtype: Any) -> Array:
    """See `api.lookup`; ids [R] or [B, k]."""
    size = rows.shape[1]
    static = dict(V=rows.shape[0], D=size, WIDE=_power_of_two(size))
    if ids.ndim == 1:
        out = _shape((ids.size, size), dtype)
        return _call("gather", (rows, ids), out, -(-ids.size // BLOCK), 1, R=ids.size, ROWS=BLOCK, **static)
    bags, bag = ids.shape
    at_once = min(_power_of_two(bag), max(POOLED * 128 // _power_of_two(size), 1), POOLED)  # in the registers of a warp
    return _call("pool", (rows, ids), _shape((bags, size), dtype), bags, 1, BAG=bag, MEAN=mean, ROWS=at_once, **static)


def update(
    rows: Array,
    slots: tuple[Array, ...],
    ids: Array,
    sources: Array,
    grads: Array,
    rule: Rule,
    step: Step,
    launch: Launch | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """See `api.update`."""
    launch = launch or Launch()
    height, size = rows.shape
    kept = jnp.where((ids >= 0) & (ids < height), ids, height)  # what is dropped comes last
    keys, sources = jax.lax.sort((kept, sources), num_keys=1, is_stable=False)
    scalars = jnp.stack([jnp.asarray(step.learning_rate, jnp.float32), *rule.corrections(step)])
    seed = jnp.asarray(step.seed, jnp.int32).reshape(1)
    tiles = -(-keys.size // launch.tile)
    absent = tuple(jnp.zeros(1, jnp.float32) for _ in range(2 - len(slots)))
    static = dict(
        R=keys.size,
        V=height,
        TILE=launch.tile,
        RULE=rule.kind,
        L2=rule.l2,
        GROUPS=float(rule.groups),
        BETA1=rule.beta1,
        BETA2=rule.beta2,
        EPS=EPS,
        ROUND=rows.dtype == jnp.bfloat16,
        D=size,
        WIDE=_power_of_two(size),
    )
    state = (rows, *slots, *absent)
    like = tuple(_shape(x.shape, x.dtype) for x in state)
    in_place = {"input_output_aliases": {0: 0, 1: 1, 2: 2}}
    *state, part = _call(
        "walk",
        (*state, grads, keys, sources, scalars, seed),
        (*like, _shape((2 * tiles, 2 * size, 2), jnp.float32)),  # float64 by its bytes
        tiles,
        1,
        **static,
        **in_place,
    )
    tiling = {name: static[name] for name in ("R", "V", "TILE", "D", "WIDE")} | dict(GROUP=launch.group)
    groups = tiles // launch.group
    if groups:
        inside = {"input_output_aliases": {1: 0}}
        part = _call(
            "fold", (keys, part), _shape(part.shape, part.dtype), groups, launch.join_warps, **tiling, **inside
        )
    static |= dict(GROUP=launch.group)
    state = _call("join", (*state, keys, part, scalars, seed), like, tiles, launch.join_warps, **static, **in_place)
    return state[0], tuple(state[1 : 1 + len(slots)])


def _call(kernel: str, arguments, out_shape, programs: int, num_warps: int, **static):
    import jax_triton

    from pallas_kernels.embedding import triton_kernels

    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(triton_kernels, kernel),
        out_shape=out_shape,
        grid=(programs,),
        num_warps=num_warps,
        **static,
    )


def _shape(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
