"""The jaxpr count against closed forms; against XLA's own count in test_ladder.py."""

import jax
import jax.numpy as jnp

from gem_jax.training import flops


def test_matmul_scan_and_cond():
    a = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    b = jax.ShapeDtypeStruct((5, 5), jnp.float32)
    assert flops.count(lambda a, b: a @ b, a, b) == {"matmul": 2 * 3 * 5 * 5, "total": 2 * 3 * 5 * 5}

    def looped(a, b):
        return jax.lax.scan(lambda x, _: (x @ b, None), a, length=4)[0]

    assert flops.count(looped, a, b)["matmul"] == 4 * 2 * 3 * 5 * 5

    def branch(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: (a @ b) @ b)

    assert flops.count(branch, a, b)["matmul"] == 2 * 2 * 3 * 5 * 5


def test_gradient_of_a_product_costs_two_more():
    a = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    b = jax.ShapeDtypeStruct((6, 2), jnp.float32)
    forward = flops.count(lambda a, b: (a @ b).sum(), a, b)["matmul"]
    both = flops.count(jax.value_and_grad(lambda a, b: ((a @ b) ** 2).sum(), argnums=(0, 1)), a, b)["matmul"]
    assert both == 3 * forward
