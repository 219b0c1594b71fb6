"""30 training steps on every mesh and by every table scheme are the 30 steps of one device.

The sums are the same numbers in another order. A float32 sum of n terms of one size has an error of about sqrt(n) eps of it,
1e-6 here; Adam divides a gradient by its own size, which turns that into at most about 1e-2 of a step where a gradient is ten
thousand times smaller than its terms, and a step is at most the learning rate: 1e-2 of it a step, in a random direction, 30 steps.
"""

import functools

import numpy as np
import pytest

from gem_jax.embedding.config import TablesConfig
from gem_jax.models import (
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    ESMMConfig,
    FinalMLPConfig,
    HSTUConfig,
    MMoEConfig,
    SASRecConfig,
)
from tests.gem_jax.run.steps import DLRM, GEM, OPTIMIZER, SCHEMA, Outcome, train_on

TOLERANCE = 1e-2 * 30**0.5
"""Of one step's size; see above."""


@functools.cache
def on_one_device(model) -> Outcome:
    return train_on(1, 1, model=model)


def assert_same(found: Outcome, wanted: Outcome) -> None:
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-4)
    np.testing.assert_allclose(found.norms, wanted.norms, rtol=1e-3)
    assert found.state.keys() == wanted.state.keys()
    for name, x in wanted.state.items():
        assert_same_array(name, found.state[name], x)
    for logits in ("logits", "evaluated"):
        np.testing.assert_allclose(getattr(found, logits), getattr(wanted, logits), rtol=1e-3, atol=1e-3)


def assert_same_array(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    """The weights; and of the optimizers' numbers, which follow from gradients, the first moments' size and the sums of squares."""
    if name.endswith("/value"):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=TOLERANCE * OPTIMIZER.learning_rate, err_msg=name)
    elif name.endswith("/weight"):
        atol = TOLERANCE * OPTIMIZER.table_learning_rate
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=atol, err_msg=name)
    elif name.endswith("/accumulator"):
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-9, err_msg=name)
    elif name.endswith(("/mu", "/nu")):  # of the largest in the array: small ones are differences of large ones
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max(), err_msg=name)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_the_run_on_one_device_trains():
    """Else agreeing with it would be easy."""
    one = on_one_device(DLRM)
    assert np.isfinite(one.losses).all() and one.losses.std() > 0.01
    accumulators = [x for name, x in one.state.items() if name.endswith("/accumulator")]
    assert len(accumulators) == len(SCHEMA.tables) and all((x > 0).any() for x in accumulators)
    assert one.overflows == 0


SLOW_MESHES = [pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((1, 8), (8, 1), (4, 2))]


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), *SLOW_MESHES])
def test_gem_on_a_mesh(replica, shard):
    found = train_on(replica, shard, model=GEM)
    assert_same(found, on_one_device(GEM))
    assert found.overflows == 0


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), *SLOW_MESHES])
def test_dlrm_on_a_mesh(replica, shard):
    assert_same(train_on(replica, shard), on_one_device(DLRM))


WIDTH = dict(embedding_dim=16)
RULERS = {
    "dcnv2": DCNv2Config(rank=4, num_experts=2, hidden=(16,), norm=True, **WIDTH),
    "deepfm": DeepFMConfig(hidden=(16,), **WIDTH),
    "din": DINConfig(attention_hidden=(8,), head_hidden=(16,), likeness=True, **WIDTH),
    "esmm": ESMMConfig(parents={"conversion": "click"}, tower_hidden=(16,), **WIDTH),
    "finalmlp": FinalMLPConfig(gate_hidden=(8,), first_hidden=(16,), second_hidden=(16,), **WIDTH),
    "hstu": HSTUConfig(num_layers=1, width=16, head_dim=8, head_hidden=(16,), **WIDTH),
    "mmoe": MMoEConfig(num_experts=2, expert_hidden=(16,), tower_hidden=(8,), **WIDTH),
    "sasrec": SASRecConfig(num_layers=1, width=16, head_hidden=(16,), **WIDTH),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULERS)
def test_baselines_on_a_mesh(name):
    assert_same(train_on(2, 4, model=RULERS[name]), train_on(1, 1, model=RULERS[name]))


ALL = tuple(table.name for table in SCHEMA.tables)
SCHEMES = {
    "columns": dict.fromkeys(ALL, "columns"),
    "whole tables": dict.fromkeys(ALL, "tables"),
    "mixed": {"ad": "columns", "user": "rows", "category": "tables", "hour": "tables", "surface": "columns"},
}


@pytest.mark.parametrize(
    "name", ["mixed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("columns", "whole tables"))]
)
@pytest.mark.parametrize("fully_sharded", [False, True], ids=["2D", "fully sharded"])
def test_table_schemes(name, fully_sharded):
    config = TablesConfig(fully_sharded=fully_sharded)
    assert_same(train_on(2, 4, config, schemes=SCHEMES[name]), on_one_device(DLRM))


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_fully_sharded_rows(replica, shard):
    assert_same(train_on(replica, shard, TablesConfig(fully_sharded=True)), on_one_device(DLRM))


def test_overflowing_steps_are_exact_and_counted():
    found = train_on(2, 4, TablesConfig(capacity=0.05))
    assert found.overflows == 30
    assert_same(found, on_one_device(DLRM))
