"""30 training steps on every mesh and by every table scheme are the 30 steps of one device.

The sums are the same numbers in another order. A float32 sum of n terms of one size has an error of about sqrt(n) eps of it,
1e-6 here; Adam divides a gradient by its own size, which turns that into at most about 1e-2 of a step where a gradient is ten
thousand times smaller than its terms, and a step is at most the learning rate: 1e-2 of it a step, in a random direction, 30 steps.
"""

import functools

import numpy as np
import pytest

from gem_jax.embedding.sharded import TablesConfig
from tests.gem_jax.run.steps import DLRM, GEM, OPTIMIZER, Outcome, train_on

TOLERANCE = 1e-2 * 30**0.5
"""Of one step's size; see above."""


@functools.cache
def on_one_device(model) -> Outcome:
    return train_on(1, 1, model=model)


def assert_same(found: Outcome, wanted: Outcome) -> None:
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-4)
    np.testing.assert_allclose(found.norms, wanted.norms, rtol=1e-3)
    for name in wanted.dense:
        atol = TOLERANCE * OPTIMIZER.learning_rate
        np.testing.assert_allclose(found.dense[name], wanted.dense[name], rtol=1e-5, atol=atol, err_msg=name)
    for name in wanted.tables:
        atol = TOLERANCE * OPTIMIZER.table_learning_rate
        np.testing.assert_allclose(found.tables[name], wanted.tables[name], rtol=1e-5, atol=atol, err_msg=name)
        np.testing.assert_allclose(
            found.accumulators[name], wanted.accumulators[name], rtol=1e-2, atol=1e-9, err_msg=name
        )
    for logits in ("logits", "evaluated"):
        np.testing.assert_allclose(getattr(found, logits), getattr(wanted, logits), rtol=1e-3, atol=1e-3)


def test_the_run_on_one_device_trains():
    """Else agreeing with it would be easy."""
    one = on_one_device(DLRM)
    assert np.isfinite(one.losses).all() and one.losses.std() > 0.01
    untrained = [name for name, x in one.accumulators.items() if not (x > 0).any()]
    assert not untrained
    assert one.overflows == 0


SLOW_MESHES = [pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((1, 8), (8, 1), (4, 2))]


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), *SLOW_MESHES])
def test_gem_on_a_mesh(replica, shard):
    found = train_on(replica, shard, model=GEM)
    assert_same(found, on_one_device(GEM))
    assert found.overflows == 0


@pytest.mark.parametrize(("replica", "shard"), [(1, 8), (8, 1), (2, 4), (4, 2)])
def test_dlrm_on_a_mesh(replica, shard):
    assert_same(train_on(replica, shard), on_one_device(DLRM))


ALL = (
    "user",
    "ad",
    "category",
    "advertiser",
    "age",
    "country",
    "device",
    "hour",
    "goal",
    "format",
    "signal",
    "surface",
)
SCHEMES = {
    "columns": dict.fromkeys(ALL, "columns"),
    "whole tables": dict.fromkeys(ALL, "tables"),
    "mixed": {"ad": "columns", "user": "rows", "category": "tables", "hour": "tables", "surface": "columns"},
}
OWNERS = {name: number % 4 for number, name in enumerate(ALL)}


@pytest.mark.parametrize("schemes", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("fully_sharded", [False, True], ids=["2D", "fully sharded"])
def test_table_schemes(schemes, fully_sharded):
    config = TablesConfig(fully_sharded=fully_sharded)
    assert_same(train_on(2, 4, config, schemes=schemes, owners=OWNERS), on_one_device(DLRM))


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), (8, 1)])
def test_fully_sharded_rows(replica, shard):
    assert_same(train_on(replica, shard, TablesConfig(fully_sharded=True)), on_one_device(DLRM))


def test_overflowing_steps_are_exact_and_counted():
    found = train_on(2, 4, TablesConfig(capacity=0.05))
    assert found.overflows == 30
    assert_same(found, on_one_device(DLRM))
