"""Fused rows: the contract of each backend, what is refused, and the kernels in Triton's interpreter."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.common import dispatch
from pallas_kernels.fused_rows import mixed_keys, row_norm, sum_norms
from pallas_kernels.fused_rows.backends import BACKENDS
from tests.pallas_kernels.fused_rows import cases
from tests.pallas_kernels.jagged_attention.test_triton_short import run

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="not installed: triton")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_rows", "width"), [(21, 256), (9, 40), (0, 8)])
def test_norms(dtype, num_rows, width):
    cases.check_rows(dtype, num_rows, width, "xla")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_keys(dtype):
    cases.check_mixed_keys(dtype, (11, 8, 2, 16, 3, 16), "xla")


def test_wrong_arguments_are_refused():
    x, real = jnp.zeros((4, 8)), jnp.ones(4, bool)
    with pytest.raises(ValueError, match="real bool"):
        row_norm(x, real[:3])
    with pytest.raises(ValueError, match="alike"):
        sum_norms(x, x.astype(jnp.bfloat16), real)
    tokens, weights = jnp.zeros((2, 3, 1, 4)), jnp.zeros((2, 3, 1, 5))
    with pytest.raises(ValueError, match="weights"):
        mixed_keys(tokens, weights, weights[:, :2])
    with pytest.raises(ValueError, match="dtype"):
        mixed_keys(tokens, weights, weights.astype(jnp.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", [b.name for b in BACKENDS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contract_on_a_gpu(implementation, dtype):
    backend = next(b for b in BACKENDS if b.name == implementation)
    if backend.supported_on(dispatch.default_device()) is not None or jax.default_backend() != "gpu":
        pytest.skip("not on this device")
    cases.check_rows(dtype, 1000, 256, implementation)
    cases.check_mixed_keys(dtype, (67, 8, 4, 64, 6, 16), implementation)


@pytest.mark.slow
@needs_triton
def test_contract_in_tritons_interpreter():
    run("../fused_rows/emulate_triton.py")
