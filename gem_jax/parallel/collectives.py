"""Collectives of the dense parameters: HSDP, called inside the `shard_map` of a step.

A unit of the model is one flat vector (`training.buckets`) of which each device of a shard group keeps 1/S. It is gathered before
use; its gradient is reduce-scattered inside the group and only that share is summed over the replicas. For P parameters of B bytes,
S shards and G replica groups a device receives (S - 1) / S P B to gather, as much of float32 to reduce, and 2 (G - 1) / G P 4 / S
over the replicas.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gem_jax.parallel.mesh import EVERYWHERE, REPLICA, SHARD


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(share: Float[Array, " p"], dtype) -> Float[Array, " P"]:
    """The whole vector from every device's share, in `dtype`; its gradient is the group's sum, cut, in float32.

    Cast before it travels: a bfloat16 model moves half the bytes. Gradients are summed in float32, since a sum over many devices in
    bfloat16 loses the small ones.
    """
    return jax.lax.all_gather(share.astype(dtype), SHARD, tiled=True)


def _gather_forward(share, dtype):
    return gather(share, dtype), None


def _gather_backward(dtype, _, gradient):
    del dtype
    return (jax.lax.psum_scatter(gradient.astype(jnp.float32), SHARD, scatter_dimension=0, tiled=True),)


gather.defvjp(_gather_forward, _gather_backward)


def sum_over_replicas(tree):
    """Gradients that each replica group has summed for itself, summed over the groups."""
    return jax.tree.map(lambda x: jax.lax.psum(x, REPLICA), tree)


def sum_everywhere(x):
    """Over all devices."""
    return jax.lax.psum(x, EVERYWHERE)


def global_norm(shares) -> Float[Array, ""]:
    """The norm of vectors of which every device of a group holds a share."""
    squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(shares))
    return jnp.sqrt(jax.lax.psum(squares, SHARD))


def device_index() -> Array:
    """This device's place among all, replica by replica."""
    return jax.lax.axis_index(REPLICA) * jax.lax.axis_size(SHARD) + jax.lax.axis_index(SHARD)
