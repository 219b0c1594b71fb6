"""A number for an array's content, the same however the array is cut over devices.

Two sums over the elements, modulo 2^32, of a mixing of the element's bits with its place. For a fixed place the mixing is a
bijection of the bits, so a change of any one element changes both sums for certain; what changes more of them passes unseen
with a probability of 2^-64. Sums of integers have no order: every sharding, every backend gives the same number.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

SEEDS = (0x9E3779B9, 0x7F4A7C15)
"""Of the two sums."""


def checksums(arrays: dict[str, jax.Array], rows: dict[str, int] | None = None) -> dict[str, str]:
    """Name -> 16 hexadecimal digits. Waits for the arrays.

    Args:
      arrays: float32, bfloat16, int32, uint32, bool or another dtype of at most 32 bits.
      rows: arrays of which only the first so many rows count: what they held before they grew.
    """
    groups: dict[jax.sharding.Sharding, dict[str, jax.Array]] = {}
    for name, x in sorted(arrays.items()):  # the same order in all processes: a group's sums are collective
        groups.setdefault(_everywhere(x.sharding), {})[name] = x
    sums: dict[str, jax.Array] = {}
    for everywhere, group in groups.items():
        counts = {n: np.uint32((rows or {}).get(n, x.shape[0] if x.ndim else 1)) for n, x in group.items()}
        sums |= _compiled(everywhere)(group, counts)
    words = jax.device_get({name: s.addressable_data(0) for name, s in sums.items()})
    return {name: f"{int(words[name][0]):08x}{int(words[name][1]):08x}" for name in arrays}


def checksum(x: Shaped[Array, "..."], rows: UInt32[Array, ""]) -> UInt32[Array, "2"]:
    """The two sums over the first `rows` rows of `x`. An element's place is its index on each axis in turn: no axis has 2^32."""
    bits = _bits(x)
    sums = []
    for seed in SEEDS:
        place = jnp.uint32(seed)
        for axis in range(x.ndim):
            place = _mix(place ^ jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
        mixed = _mix(bits ^ place)
        if x.ndim:
            mixed = jnp.where(jax.lax.broadcasted_iota(jnp.uint32, x.shape, 0) < rows, mixed, jnp.uint32(0))
        sums.append(jnp.sum(mixed, dtype=jnp.uint32))
    return jnp.stack(sums)


@functools.cache
def _compiled(everywhere: jax.sharding.Sharding) -> Callable:
    """One program for all arrays of a mesh: one compilation, and one exchange between devices."""
    return jax.jit(lambda xs, counts: jax.tree.map(checksum, xs, counts), out_shardings=everywhere)


def _everywhere(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """On every device of the same mesh."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def _bits(x: jax.Array) -> jax.Array:
    """Every element's bits as uint32."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    assert x.dtype.itemsize <= 4, x.dtype
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which each bit of the input moves about half of the output's (C. Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
