"""Moving rows between the packed [T, ...] layout and one padded row block per sequence [B, N, ...]."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def sequence_of_rows(starts: Array, lengths: Array, num_rows: int):
    """For each packed row: its sequence, its position in it, and whether it is a token at all.

    Args:
      starts, lengths: int32 [B]; starts ascend.
      num_rows: T.

    Returns:
      sequence int32 [T], position int32 [T], valid bool [T]; sequence and position mean nothing
      where valid is False.
    """
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    # Of several sequences with one start only the last can be non-empty: "right" picks it.
    # Unrolled: as a loop it is a kernel and a look at the condition a halving on a GPU, a tenth of a short backward pass.
    sequence = jnp.searchsorted(starts, rows, side="right", method="scan_unrolled").astype(jnp.int32) - 1
    sequence = jnp.maximum(sequence, 0)
    position = rows - starts[sequence]
    valid = (position >= 0) & (position < lengths[sequence])
    return sequence, position, valid


def _zero_padding(x, valid):
    return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def unpack(x: Array, starts: Array, lengths: Array, block: int) -> Array:
    """Packed [T, ...] -> [B, block, ...]; zeros beyond each length. block >= every length.

    Its transpose is `pack`, so the backward pass is a gather as well (a scatter-add of rows is
    several times slower on a CPU).
    """
    position = jnp.arange(block, dtype=jnp.int32)
    rows = jnp.minimum(starts[:, None] + position, x.shape[0] - 1)
    return _zero_padding(x[rows], position < lengths[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pack(x: Array, starts: Array, lengths: Array, num_rows: int) -> Array:
    """[B, block, ...] -> packed [num_rows, ...]; zeros in rows of no sequence. Inverse of `unpack`."""
    sequence, position, valid = sequence_of_rows(starts, lengths, num_rows)
    return _zero_padding(x[sequence, jnp.clip(position, 0, x.shape[1] - 1)], valid)


def _unpack_forward(x, starts, lengths, block):
    return unpack(x, starts, lengths, block), (starts, lengths, x.shape[0])


def _unpack_backward(block, saved, grad):
    starts, lengths, num_rows = saved
    return pack(grad, starts, lengths, num_rows), *_no_gradient(starts, lengths)


def _pack_forward(x, starts, lengths, num_rows):
    return pack(x, starts, lengths, num_rows), (starts, lengths, x.shape[1])


def _pack_backward(num_rows, saved, grad):
    starts, lengths, block = saved
    return unpack(grad, starts, lengths, block), *_no_gradient(starts, lengths)


def _no_gradient(*integers):
    return tuple(np.zeros(x.shape, jax.dtypes.float0) for x in integers)


unpack.defvjp(_unpack_forward, _unpack_backward)
pack.defvjp(_pack_forward, _pack_backward)
