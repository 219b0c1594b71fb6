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


class HalfStore(DeviceStore):
    """Weights in bfloat16: rounded when written, float32 when read; slots stay float32."""

    def init(self, weight, slots):
        return super().init(weight.astype(jnp.bfloat16), slots)

    def read(self, state, name, rows):
        return super().read(state, name, rows).astype(jnp.float32)

    def add(self, state, rows, change):
        return self.write(state, "weight", rows, self.read(state, "weight", rows) + change)

    def write(self, state, name, rows, values):
        return super().write(state, name, rows, values.astype(state[name].dtype))

    def row_bytes(self, width, slots):
        return super().row_bytes(width, slots) - 2 * width


class CountingStore(DeviceStore):
    """Counts how often each row was written, in an array of its own."""

    def init(self, weight, slots):
        return super().init(weight, slots) | {"writes": jnp.zeros(weight.shape[0], jnp.int32)}

    def add(self, state, rows, change):
        new = super().add(state, rows, change)
        return new | {"writes": state["writes"].at[rows].add(1, mode="drop")}


@pytest.mark.parametrize("config", [TablesConfig(), TablesConfig(schemes=SCHEMES["mixed"], fully_sharded=True)])
def test_half_precision_rows_train(config):
    ids, grads = draw("random")
    half, full = (run(2, 4, config, ids, grads, steps=3, store=store) for store in (HalfStore(), DeviceStore()))
    for name, arrays in half.after.items():
        weight = arrays["weight"]
        np.testing.assert_array_equal(weight, weight.astype(jnp.bfloat16).astype(np.float32))
        # Started from rounded weights and rounded thrice: 4 times half a unit of 8 bits of numbers up to 4.
        np.testing.assert_allclose(weight, full.after[name]["weight"], rtol=0, atol=4 * 4 * 2**-9)
        np.testing.assert_array_equal(arrays["accumulator"], full.after[name]["accumulator"])
        touched = np.unique(ids[name][ids[name] >= 0])
        assert (weight[touched] != half.before[name]["weight"][touched]).any(axis=1).all()


def test_half_precision_rows_take_half_the_bytes_and_keep_them_on_another_mesh():
    tables, other = (make_tables(*mesh, TablesConfig(), store=HalfStore()) for mesh in ((2, 4), (1, 2)))
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


def test_stores_keep_the_contract():
    for store in (DeviceStore(), HalfStore(), CountingStore()):
        assert isinstance(store, RowStore) and dataclasses.is_dataclass(store)
