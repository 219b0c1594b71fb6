"""Storage of embeddings: bounds on what is lost, any width, and the loss that is reported."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.errors import UserError
from gem_jax.transfer.manifest import EmbeddingConfig
from gem_jax.transfer.quantize import Loss, compress, expand

LEVELS = {"int8": 127, "int4": 7}
F32 = float(np.finfo(np.float32).eps)


def kept(values, storage):
    stored, scale = compress(values, storage)
    return expand(stored, scale, storage, values.shape[1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 9), dim=st.integers(1, 9), spread=st.floats(1e-6, 1e6))
def test_no_component_is_off_by_more_than_half_a_level(seed, n, dim, spread):
    values = (np.random.default_rng(seed).normal(size=(n, dim)) * spread).astype(np.float32)
    values[1:2] = 0
    for storage, levels in LEVELS.items():
        largest = np.abs(values).max(axis=1, initial=0.0, keepdims=True)
        bound = largest / (2 * levels) * (1 + 4 * levels * F32)  # the scale and its product are rounded once each
        assert (np.abs(kept(values, storage) - values) <= bound).all(), storage
    np.testing.assert_array_equal(kept(values, "float32"), values)


def test_half_precision_rounds_and_does_not_overflow():
    values = np.array([[1 / 3, -1e6, 0.0]], np.float32)
    np.testing.assert_array_equal(kept(values, "float16"), [[np.float16(1 / 3), -65504, 0]])


def test_bytes_of_a_row():
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    sizes = {s: compress(values, s)[0].nbytes / len(values) for s in ("float32", "float16", "int8", "int4")}
    assert sizes == {"float32": 28, "float16": 14, "int8": 7, "int4": 4}


def test_the_loss_is_that_of_all_rows_together():
    values = np.random.default_rng(1).normal(size=(4000, 64)).astype(np.float32)
    found = {}
    for storage in ("float32", "float16", "int8", "int4"):
        loss = Loss()
        for start in range(0, len(values), 900):
            block = values[start : start + 900]
            loss.add(block, kept(block, storage))
        exact = values.astype(np.float64)
        expected = np.linalg.norm(exact - kept(values, storage)) / np.linalg.norm(exact)
        np.testing.assert_allclose(loss.relative, expected, rtol=1e-12)
        found[storage] = loss.relative
    assert found["float32"] == 0 and Loss().relative == 0
    # A uniform rounding error of step m / L has variance (m / L)^2 / 12, and the largest of 64 normal numbers is about 2.4.
    for storage, levels in LEVELS.items():
        assert 0.9 < found[storage] / (2.42 / levels / np.sqrt(12)) < 1.1


def test_embeddings_of_no_components_are_refused():
    with pytest.raises(UserError, match="embedding.dim=0 must be at least 1"):
        EmbeddingConfig(dim=0)
