"""The steps of test_steps_on_meshes on real GPUs, where ids and rows travel by a ragged all-to-all and sums run through NCCL.

GEM_TEST_GPU=1 pytest -m gpu tests/gem_jax/run, on a machine with two GPUs or more.
"""

import jax
import pytest

from gem_jax.embedding.config import TablesConfig
from tests.gem_jax.run.steps import DLRM, GEM, train_on
from tests.gem_jax.run.test_steps_on_meshes import SCHEMES, assert_same, on_one_device

pytestmark = pytest.mark.gpu


@pytest.fixture
def shards() -> int:
    """All GPUs, which divide the batch."""
    gpus = [d for d in jax.devices() if d.platform == "gpu"]
    if len(gpus) < 2:
        pytest.skip(f"needs two GPUs, there are {len(gpus)}")
    return len(gpus)


def test_gem(shards):
    with jax.default_matmul_precision("highest"):  # TF32 would differ by more than summation order does
        assert_same(train_on(1, shards, model=GEM), on_one_device(GEM))


@pytest.mark.parametrize("schemes", [{}, *SCHEMES.values()], ids=["rows", *SCHEMES])
def test_table_schemes(shards, schemes):
    with jax.default_matmul_precision("highest"):
        found = train_on(1, shards, schemes=schemes)
        assert_same(found, on_one_device(DLRM))
    assert found.overflows == 0


def test_overflowing_steps(shards):
    with jax.default_matmul_precision("highest"):
        found = train_on(1, shards, TablesConfig(capacity=0.05))
        assert_same(found, on_one_device(DLRM))
    assert found.overflows == 30


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_replicas(shards, fully_sharded):
    with jax.default_matmul_precision("highest"):
        assert_same(train_on(shards, 1, TablesConfig(fully_sharded=fully_sharded)), on_one_device(DLRM))
