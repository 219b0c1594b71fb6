"""Gated attention and seeds on keys and values in one array, against formulas in float64; padding rows hold NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged_attention import Mask, gated_attention, seed_attention, seed_attention_pair
from tests.pallas_kernels.jagged_attention import cases
from tests.pallas_kernels.jagged_attention.cases import Case, sees

CASE = Case((0, 5, 17, 0, 8, 1, 0), heads=2, size=4, mask=Mask(window=6))
EPS = 1e-5


def formula(x: jax.Array) -> jax.Array:
    """Sequence by sequence; x is clean float64."""
    out = jnp.zeros((CASE.num_rows, CASE.heads * CASE.size))
    for start, n in zip(CASE.offsets, CASE.lengths, strict=False):
        u, v, q, k = (y * (1 / (1 + jnp.exp(-y))) for y in x[start : start + n].transpose(1, 2, 0, 3))
        scores = jnp.einsum("hik,hjk->hij", q, k) * CASE.size**-0.5
        mask = np.array([[sees(CASE.mask, i, j, n, 0) for j in range(n)] for i in range(n)], bool).reshape(n, n)
        weights = jnp.where(mask, scores / (1 + jnp.exp(-scores)), 0) / CASE.longest
        a, u = (y.transpose(1, 0, 2).reshape(n, CASE.heads * CASE.size) for y in (weights @ v, u))
        norm = (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + EPS)
        out = out.at[start : start + n].set(u * norm)
    return out


def test_gated_attention():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CASE.num_rows, 4, CASE.heads, CASE.size))
    grad = rng.normal(size=(CASE.num_rows, CASE.heads * CASE.size))
    with jax.enable_x64(True):
        truth, pull = jax.vjp(formula, jnp.asarray(np.where(CASE.valid()[:, None, None, None], x, 0)))
        expected = [np.asarray(y) for y in (truth, *pull(jnp.asarray(np.where(CASE.valid()[:, None], grad, 0))))]
    x[~CASE.valid()] = grad[~CASE.valid()] = np.nan
    layout = jnp.asarray(CASE.offsets), jnp.asarray(CASE.lengths, jnp.int32)

    def run(x):
        return gated_attention(x, *layout, max_len=CASE.longest, mask=CASE.mask, eps=EPS)

    out, pull = jax.vjp(run, jnp.asarray(x, jnp.float32))
    for value, true in zip((out, *pull(jnp.asarray(grad, jnp.float32))), expected, strict=True):
        assert np.all(np.asarray(value)[~CASE.valid()] == 0)
        # LN of o, whose deviation may be 1e-2 where a row sees little, raises o's rounding by a hundred.
        np.testing.assert_allclose(value, true, rtol=2e-4, atol=2e-4)


def check_gated(case: Case, implementation: str) -> None:
    """Gated attention, with NaN in its padding rows, against the composition in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.num_rows, 4, case.heads, case.size)).astype(case.dtype)
    grad = rng.normal(size=(case.num_rows, case.heads * case.size)).astype(case.dtype)
    x[~case.valid()] = grad[~case.valid()] = np.nan
    layout = jnp.asarray(case.offsets), jnp.asarray(case.lengths, jnp.int32)

    def run(x, implementation):
        return gated_attention(x, *layout, max_len=case.longest, mask=case.mask, implementation=implementation)

    out, pull = jax.vjp(lambda x: run(x, implementation), jnp.asarray(x))  # not jitted, for Triton's interpreter
    found = out, *pull(jnp.asarray(grad))
    with jax.enable_x64(True):
        clean, clean_grad = (jnp.asarray(np.nan_to_num(np.asarray(y, np.float64))) for y in (x, grad))
        truth, pull_truth = jax.vjp(lambda x: run(x, "reference"), clean)
        expected = truth, pull_truth(clean_grad)[0]
    for name, value, true in zip(("g", "dx"), found, expected, strict=True):
        value = np.asarray(value, np.float64)
        assert np.all(np.isfinite(value)) and np.all(value[~case.valid()] == 0), (case, name)
        error = cases.relative_error(value, np.asarray(true))
        # LN divides by the deviation of o, so o's relative error is that of the result, four roundings later.
        assert error < 4 * cases.tolerance(case.dtype, case.longest), (case, name, error)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton_short", "mosaic_gpu", "triton"])
@pytest.mark.parametrize("mask", [Mask(), Mask(window=60)], ids=["causal", "window"])
def test_gpu_gated_attention(implementation, mask):
    check_gated(Case(cases.GPU_LENGTHS, heads=2, size=64, mask=mask, dtype="bfloat16"), implementation)


def test_nothing_gives_zeros():
    x = jnp.zeros((8, 4, 2, 4), jnp.bfloat16)
    assert not np.any(gated_attention(x, jnp.zeros(1, jnp.int32), max_len=3))
    assert gated_attention(x[:0], jnp.zeros(2, jnp.int32), max_len=3).shape == (0, 8)


def test_seeds_on_a_pair_are_seeds_on_two():
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(len(CASE.lengths), 3, CASE.heads, CASE.size)), jnp.float32)
    kv = jnp.asarray(rng.normal(size=(CASE.num_rows, 2, CASE.heads, CASE.size)), jnp.float32)
    layout = jnp.asarray(CASE.offsets), jnp.asarray(CASE.lengths, jnp.int32)
    two = seed_attention(q, kv[:, 0], kv[:, 1], *layout, max_len=CASE.longest)
    np.testing.assert_array_equal(seed_attention_pair(q, kv, *layout, max_len=CASE.longest), two)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="uvqk must be"):
        gated_attention(jnp.zeros((8, 3, 2, 4)), jnp.zeros(2, jnp.int32), max_len=3)
    with pytest.raises(ValueError, match="kv"):
        seed_attention_pair(jnp.zeros((1, 2, 2, 4)), jnp.zeros((8, 3, 2, 4)), jnp.zeros(2, jnp.int32), max_len=3)
