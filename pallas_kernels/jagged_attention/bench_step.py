"""A training step of HSTU-like layers, with the work list given and made inside: what the list costs a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.jagged_attention import jagged_attention, make_work_list


@dataclasses.dataclass(frozen=True)
class Step:
    """Layers of SiLU attention between projections, bfloat16, sequences of full length: loss and all gradients."""

    batch: int = 32
    max_len: int = 4096
    layers: int = 8
    heads: int = 4
    head_dim: int = 128
    implementation: str = "mosaic_gpu"


def calls(step: Step) -> dict[str, tuple[Callable, tuple]]:
    """ "given" and "inside" (is the work list an argument, or made in the step?) -> a jitted function and its arguments."""
    rows, width = step.batch * step.max_len, step.heads * step.head_dim
    offsets = jnp.arange(step.batch + 1, dtype=jnp.int32) * step.max_len
    lengths = jnp.full((step.batch,), step.max_len, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (step.layers, width, 4 * width), (step.layers, width, width), (rows, width)
    into, out, x = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True))
    weights = into * width**-0.5, out * width**-0.5

    def layer(x, into, out, work_list):
        gate, v, q, k = jnp.split(jax.nn.silu(_norm(x) @ into), 4, -1)
        q, k, v = (y.reshape(rows, step.heads, step.head_dim) for y in (q, k, v))
        mixed = jagged_attention(
            q, k, v, offsets, lengths, max_len=step.max_len, implementation=step.implementation, work_list=work_list
        )
        return x + (_norm(mixed.reshape(rows, width)) * gate) @ out

    def loss(weights, x, work_list):
        for into, out in zip(*weights, strict=True):
            x = layer(x, into, out, work_list)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    make = functools.partial(make_work_list, offsets, lengths, num_rows=rows, heads=step.heads)
    grad = jax.value_and_grad(loss)
    return {
        "given": (jax.jit(grad), (weights, x, jax.jit(make)())),
        "inside": (jax.jit(lambda weights, x: grad(weights, x, make())), (weights, x)),
    }


def _norm(x):
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)).astype(x.dtype)
