"""Linear maps: as flax's to the last bit; those of several modules against one float64 product per module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.nn.dense import Dense, GroupedDense, grouped_product, mixed_tokens
from gem_jax.nn.parameters import numbered
from gem_jax.precision.policy import Policy
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import FLOAT32, normal, quick_jit, randomised

CLOSE = dict(rtol=1e-5, atol=1e-5)  # sums of at most 16 terms of order one


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_is_flaxs_linear_to_the_last_bit(compute, use_bias):
    x = jnp.asarray(normal(2, 6, 5))
    ours = Dense(5, 4, use_bias=use_bias, policy=Policy(compute=compute), rngs=nnx.Rngs(3))
    flax = nnx.Linear(5, 4, use_bias=use_bias, dtype=jnp.dtype(compute), rngs=nnx.Rngs(3))
    flax.kernel[...] = ours.kernel[...]
    if use_bias:
        for layer in (ours, flax):
            layer.bias[...] = jnp.arange(4.0) / 3
    assert (ours.bias is None) == (not use_bias)
    assert ours(x).dtype == compute
    np.testing.assert_array_equal(ours(x), flax(x))
    assert ours.kernel.decay and not ours.kernel.exact


def make(use_bias):
    return randomised(
        lambda: GroupedDense(numbered("module", 3), 5, 4, use_bias=use_bias, policy=FLOAT32, rngs=nnx.Rngs(0))
    )


def module_map(layer, i, x):
    bias = 0 if layer.bias is None else f64(layer.bias)[i]
    return f64(x) @ f64(layer.weight)[i] + bias


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("row_counts", [(8, 16, 24), (16, 0, 8)])
def test_rows(use_bias, row_counts):
    layer = make(use_bias)
    assert (layer.bias is not None) == use_bias
    x = normal(sum(row_counts), 5)
    parts = np.split(x, np.cumsum(row_counts)[:-1])
    expected = np.concatenate([module_map(layer, i, part) for i, part in enumerate(parts)])
    np.testing.assert_allclose(layer.rows(jnp.asarray(x), row_counts), expected, **CLOSE)


@pytest.mark.parametrize("use_bias", [True, False])
def test_blocks(use_bias):
    layer = make(use_bias)
    x = normal(3, 7, 2, 5)
    expected = [module_map(layer, i, block) for i, block in enumerate(x)]
    np.testing.assert_allclose(layer.blocks(jnp.asarray(x)), expected, **CLOSE)


def test_a_modules_gradient_is_of_its_own_rows():
    layer = make(use_bias=True)
    graphdef, state = nnx.split(layer)
    row_counts = (8, 16, 8)
    x, w = normal(32, 5), normal(32, 4, seed=2)

    def objective(state, x):
        return jnp.vdot(nnx.merge(graphdef, state).rows(x, row_counts), w)

    of_state, of_x = quick_jit(jax.grad(objective, argnums=(0, 1)))(state, x)
    ends = np.cumsum(row_counts)
    for i, (count, end) in enumerate(zip(row_counts, ends, strict=True)):
        own = slice(end - count, end)
        np.testing.assert_allclose(of_state["weight"][i], f64(x[own]).T @ f64(w[own]), **CLOSE)
        np.testing.assert_allclose(of_state["bias"][i], f64(w[own]).sum(axis=0), **CLOSE)
        np.testing.assert_allclose(of_x[own], f64(w[own]) @ f64(layer.weight)[i].T, **CLOSE)


def test_dtype_and_scale_of_new_weights():
    layer = GroupedDense(
        numbered("module", 4), 400, 100, use_bias=True, policy=Policy(compute="bfloat16"), rngs=nnx.Rngs(0)
    )
    assert layer.weight.dtype == jnp.float32 and not np.any(layer.bias)
    assert abs(f64(layer.weight).std() * 20 - 1) < 0.01  # 1 / sqrt(400), from 160,000 draws
    assert layer.rows(jnp.ones((8, 400)), (2, 2, 2, 2)).dtype == jnp.bfloat16
    assert layer.blocks(jnp.ones((4, 1, 1, 400))).dtype == jnp.bfloat16


def test_grouped_product_and_mixed_tokens_against_einsum():
    """Values and gradients, modules of no rows included."""
    row_counts, groups = (16, 0, 8), np.repeat(np.arange(3), (16, 0, 8))
    x, weight, grad = (jnp.asarray(normal(*s)) for s in ((24, 5), (3, 5, 4), (24, 4)))
    out, pull = jax.vjp(lambda x, w: grouped_product(x, w, row_counts), x, weight)
    truth, pull_truth = jax.vjp(lambda x, w: jnp.einsum("ri,rio->ro", x, w[groups]), x, weight)
    for value, expected in zip((out, *pull(grad)), (truth, *pull_truth(grad)), strict=True):
        np.testing.assert_allclose(value, expected, **CLOSE)
    x, weight, grad = (jnp.asarray(normal(*s)) for s in ((6, 5, 4), (5, 3), (6, 3, 4)))
    out, pull = jax.vjp(mixed_tokens, x, weight)
    truth, pull_truth = jax.vjp(lambda x, w: jnp.einsum("bnd,nm->bmd", x, w), x, weight)
    for value, expected in zip((out, *pull(grad)), (truth, *pull_truth(grad)), strict=True):
        np.testing.assert_allclose(value, expected, **CLOSE)


def test_narrow_inputs_are_padded_to_16_bytes():
    layer = Dense(13, 4, policy=Policy(compute="bfloat16"), rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(3, 13))
    expected = f64(x.astype(jnp.bfloat16)) @ f64(layer.kernel[...].astype(jnp.bfloat16))
    np.testing.assert_allclose(f64(layer(x)), expected, rtol=0.01, atol=0.02)
