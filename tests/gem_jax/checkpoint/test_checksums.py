"""Checksums: against NumPy, over all shardings, and no change of the numbers passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.checkpoint.checksums import SEEDS, checksums
from gem_jax.parallel.mesh import make_mesh

DTYPES = ("float32", "bfloat16", "int32", "uint32", "bool")


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bits at all, NaNs too."""
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)
    if dtype == "bool":
        return (bits & 1).astype(bool)
    return bits.astype(np.uint16).view(jnp.bfloat16) if dtype == "bfloat16" else bits.view(dtype)


def of(x) -> str:
    return checksums({"x": jnp.asarray(x)})["x"]


def mixed(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def reference(x: np.ndarray) -> str:
    """The same sums, element by element in 64 bits."""
    flat = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").astype(np.uint64).reshape(x.shape)
    text = ""
    for seed in SEEDS:
        place = np.full(x.shape, seed, np.uint64)
        for index in np.indices(x.shape, np.uint64):
            place = mixed(place ^ index)
        text += f"{int(mixed(flat ^ place).sum()) % 2**32:08x}"
    return text


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 5), (3, 2, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy(dtype, shape):
    x = numbers(dtype, shape) if shape else numbers(dtype, (1,))[0:1].reshape(())
    assert of(x) == reference(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_sharding_gives_the_same(dtype):
    x = numbers(dtype, (16, 8))
    cuts = (P(), P(("replica", "shard")), P("shard", "replica"))
    found = {
        checksums({"x": jax.device_put(x, NamedSharding(make_mesh(r, s), cut))})["x"]
        for r, s in ((1, 1), (1, 8), (8, 1), (2, 4), (4, 2))
        for cut in cuts
    }
    assert found == {reference(x)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_counts(dtype):
    """A flip of each bit of 6 elements."""
    x = numbers(dtype, (2, 3))
    found = {of(x)}
    width = 1 if dtype == "bool" else 8 * x.dtype.itemsize
    for element in range(x.size):
        for bit in range(width):
            flipped = x.copy()
            raw = flipped.view(f"u{x.dtype.itemsize}").reshape(-1)
            raw[element] ^= raw.dtype.type(1 << bit)
            found.add(of(flipped))
    assert len(found) == 1 + x.size * width


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 63), st.integers(0, 63), st.integers(0, 31))
def test_flips_and_exchanges_are_seen(seed, first, second, bit):
    x = numbers("uint32", (8, 8), seed)
    flipped, exchanged = x.copy().reshape(-1), x.copy().reshape(-1)
    flipped[first] ^= np.uint32(1 << bit)
    exchanged[[first, second]] = exchanged[[second, first]]
    assert of(flipped.reshape(8, 8)) != of(x)
    assert (of(exchanged.reshape(8, 8)) == of(x)) == (x.reshape(-1)[first] == x.reshape(-1)[second])


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)))
def test_permuted_rows_are_seen(order):
    x = numbers("float32", (8, 2))
    assert (of(x[list(order)]) == of(x)) == (list(order) == list(range(8)))


def test_signs_of_zero_and_kinds_of_nan_count():
    values = [0.0, -0.0, np.nan, -np.nan, np.float32(1e-45)]
    assert len({of(np.array([v], np.float32)) for v in values}) == len(values)


def test_rows_that_were_added_do_not_count():
    x = numbers("float32", (5, 3))
    grown = np.concatenate([x, numbers("float32", (4, 3), seed=1)])
    assert checksums({"x": jnp.asarray(grown)}, {"x": 5})["x"] == of(x) != of(grown)
