"""A store of one's own is a few lines beside `Tables`, which is not edited for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import RowStore
from tests.gem_jax.embedding.test_tables import SCHEMES, draw, export, make_step, make_tables, new_state, run

HALF = DeviceStore("bfloat16")


class CountingStore(DeviceStore):
    """Counts how often each row was written, in an array of its own."""

    def init(self, weight, slots):
        return super().init(weight, slots) | {"writes": jnp.zeros(weight.shape[0], jnp.int32)}

    def add(self, state, rows, change, seed):
        new = super().add(state, rows, change, seed)
        return new | {"writes": state["writes"].at[rows].add(1, mode="drop")}


@pytest.mark.parametrize("config", [TablesConfig(), TablesConfig(schemes=SCHEMES["mixed"], fully_sharded=True)])
def test_half_precision_rows_train(config):
    ids, grads = draw("random")
    half, full = (run(2, 4, config, ids, grads, steps=3, store=store) for store in (HALF, DeviceStore()))
    for name, arrays in half.after.items():
        weight = arrays["weight"]
        np.testing.assert_array_equal(weight, weight.astype(jnp.bfloat16).astype(np.float32))
        # Started from rounded weights and rounded thrice: 4 units of 8 bits, as rounding at random may take, of numbers up to 4.
        np.testing.assert_allclose(weight, full.after[name]["weight"], rtol=0, atol=4 * 4 * 2**-8)
        np.testing.assert_array_equal(arrays["accumulator"], full.after[name]["accumulator"])
        touched = np.unique(ids[name][ids[name] >= 0])
        assert (weight[touched] != half.before[name]["weight"][touched]).any(axis=1).all()


def test_half_precision_rows_take_half_the_bytes_and_keep_them_on_another_mesh():
    tables, other = (make_tables(*mesh, TablesConfig(), store=HALF) for mesh in ((2, 4), (1, 2)))
    assert tables.bytes_per_device()["weights"] * 2 == make_tables(2, 4, TablesConfig()).bytes_per_device()["weights"]
    state = new_state(tables)
    logical = {name: np.asarray(x) for name, x in tables.to_logical(state).items()}
    jax.tree.map(np.testing.assert_array_equal, export(tables, state), export(other, other.from_logical(logical)))


def test_a_store_may_keep_arrays_of_its_own():
    ids, grads = draw("random")
    tables = make_tables(2, 4, TablesConfig(), store=CountingStore())
    state, step = new_state(tables), make_step(tables)
    for number in range(3):
        state, _, _ = step(state, ids, grads, number)
    for name, values in ids.items():
        place = tables.placement.places[name]
        rows = np.arange(place.rows)
        address = tables.placement.address(name, jnp.asarray(rows))
        writes = np.asarray(state["rows"]["writes"]).reshape(4, -1)[address.owner, address.slot]
        np.testing.assert_array_equal(writes, 3 * np.isin(rows, values))


def test_small_steps_of_half_precision_rows_add_up():
    """A step of a sixteenth of the distance between neighbours is lost by rounding to the nearest, not on average by chance."""
    state, step = HALF.init(jnp.ones((64, 32)), {}), 2.0**-7 / 16
    rows = jnp.arange(64)
    for seed in range(32):
        state = HALF.add(state, rows, jnp.full((64, 32), step), seed)
    moved = np.asarray(HALF.read(state, "weight", rows)) - 1
    # Of 2,048 sums of 32 draws, each 2^-7 with a chance of 1/16: five standard errors of their mean.
    assert abs(moved.mean() - 32 * step) < 5 * 2.0**-7 * np.sqrt(32 / 16 * 15 / 16 / moved.size)
    assert np.unique(moved).size > 3


def test_stores_keep_the_contract():
    for store in (DeviceStore(), HALF, CountingStore()):
        assert isinstance(store, RowStore) and dataclasses.is_dataclass(store)
