"""Modules with random parameters, run under jit from pure state, with their gradients checked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gem_jax.nn.jagged import Layout
from gem_jax.precision.policy import Policy
from tests.gem_jax.models.batches import packed_offsets

LENGTHS = (5, 0, 9, 1)
NUM_ROWS = 40
MAX_LEN = 10
FLOAT32 = Policy()


# Tests compile for seconds and run for milliseconds: without LLVM's optimisations XLA compiles twice as fast.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def randomised(make, seed=0):
    """The module that `make` builds, every parameter random: also biases and norms, which start at 0 and 1."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    return nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(0.4 * rng.normal(size=p.shape), p.dtype), state))


def run(module, *args):
    """module(*args) under jit; its gradients by the parameters and by float arguments must exist and be finite."""
    graphdef, state = nnx.split(module)
    is_float = [isinstance(a, np.ndarray) and a.dtype == np.float32 for a in args]
    floats = [a for a, f in zip(args, is_float, strict=True) if f]
    others = [a for a, f in zip(args, is_float, strict=True) if not f]

    def forward(state, floats, others):
        it_floats, it_others = iter(floats), iter(others)
        y = nnx.merge(graphdef, state)(*(next(it_floats) if f else next(it_others) for f in is_float))
        return jnp.sin(y).sum(), y

    gradients, y = quick_jit(jax.grad(forward, argnums=(0, 1), has_aux=True))(state, floats, others)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    return np.asarray(y)


def example_layout() -> Layout:
    lengths = np.array(LENGTHS, np.int32)
    return Layout.make(jnp.asarray(packed_offsets(lengths)), jnp.asarray(lengths), NUM_ROWS, MAX_LEN)


def random_rows(width, seed=0):
    """Packed rows with NaN in padding, and the histories in float64."""
    rng = np.random.default_rng(seed)
    x = np.full((NUM_ROWS, width), np.nan, np.float32)
    histories = []
    for start, length in zip(packed_offsets(np.array(LENGTHS))[:-1], LENGTHS, strict=True):
        x[start : start + length] = rng.normal(size=(length, width))
        histories.append(x[start : start + length].astype(np.float64))
    return x, histories


def assert_rows(y, histories, tolerance=2e-5):
    """Packed rows equal the histories, 0 in padding. float32 sums of tens of terms of order 1 lose about 1e-6."""
    expected = np.zeros_like(y)
    for history, start in zip(histories, packed_offsets(np.array(LENGTHS))[:-1], strict=True):
        expected[start : start + len(history)] = history
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
