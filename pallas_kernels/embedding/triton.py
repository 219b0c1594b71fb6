"""The Triton backend, for NVIDIA GPUs from Ampere on: fused gathers, and an update without a gradient of all lookups.

An update sorts (row, source of the gradient) once, and walks the sorted lookups twice: `triton_kernels` says how. Beside the state,
which is written in place where the caller donates it, it needs the sorted pairs and 32 D / TILE bytes a lookup for parts of long runs.
Both packages are imported on first use.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.embedding.rules import EPS, Rule


class Launch(NamedTuple):
    """Lookups of a tile (a multiple of 4), its warps; parts that `join` adds at a time, and its warps."""

    tile: int = 64
    num_warps: int = 1
    meet: int = 16
    join_warps: int = 4


class Gather(NamedTuple):
    """Rows of a block, and warps."""

    rows: int = 8
    num_warps: int = 1


def lookup(rows: Array, ids: Array, *, mean: bool, dtype, launch: Gather | None = None) -> Array:
    """See `api.lookup`; ids [R] or [B, k]."""
    launch = launch or Gather()
    size = rows.shape[1]
    static = dict(V=rows.shape[0], D=size, WIDE=_power_of_two(size), ROWS=launch.rows)
    if ids.ndim == 1:
        programs = -(-ids.size // launch.rows)
        return _call(
            "gather", (rows, ids), _shape((ids.size, size), dtype), programs, launch.num_warps, R=ids.size, **static
        )
    bags, bag = ids.shape
    return _call("pool", (rows, ids), _shape((bags, size), dtype), bags, launch.num_warps, BAG=bag, MEAN=mean, **static)


def update(
    rows: Array,
    slots: tuple[Array, ...],
    ids: Array,
    sources: Array,
    grads: Array,
    *,
    rule: Rule,
    learning_rate: Array,
    step: Array,
    seed: Array,
    launch: Launch | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """See `api.update`."""
    launch = launch or Launch()
    height, size = rows.shape
    keys, sources = jax.lax.sort((ids, sources), num_keys=1, is_stable=False)
    count = jnp.asarray(step + 1, jnp.float32)
    corrections = (-1 / jnp.expm1(count * math.log(beta)) for beta in (rule.beta1, rule.beta2))
    scalars = jnp.stack([jnp.asarray(learning_rate, jnp.float32), *corrections])
    seed = jnp.asarray(seed, jnp.int32).reshape(1)
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
        launch.num_warps,
        **static,
        **in_place,
    )
    state = _call(
        "join",
        (*state, keys, part, scalars, seed),
        like,
        tiles,
        launch.join_warps,
        MEET=launch.meet,
        **static,
        **in_place,
    )
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
