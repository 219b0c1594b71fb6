"""Named rows from any mesh and scheme to any other, to the last bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.data.schema import Schema, Table, Task
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.placement import Placement
from gem_jax.embedding.row_optimizers import RowOptimizer, Slot
from gem_jax.embedding.tables import Tables
from gem_jax.parallel.mesh import make_mesh

DIM = 8
ROWS = {"user": 300, "ad": 64, "hour": 5, "page_topic": 56}
TABLES = tuple(Table(name=name, rows=rows) for name, rows in ROWS.items())
SCHEMA = Schema(tables=TABLES, categoricals=(), tasks=(Task(name="click"),), domains=("feed",))
SCHEMES = {
    "rows": {},
    "columns": dict.fromkeys(ROWS, "columns"),
    "tables": dict.fromkeys(ROWS, "tables"),
    "mixed": {"user": "columns", "ad": "rows", "hour": "tables", "page_topic": "tables"},
}


class EverySlot:
    """An optimizer with a slot of each kind."""

    l2 = 0.0
    slots = Slot(name="accumulator", per="row", initial=0.25), Slot(name="mean", per="number")

    def rule(self, old, grads, context):
        raise NotImplementedError


def make_tables(mesh, schemes, fully_sharded, dim=DIM) -> Tables:
    replica, shard = mesh
    owners = {name: (3 * i + 1) % shard for i, name in enumerate(ROWS)}
    placement = Placement(
        TABLES, shard, schemes=SCHEMES[schemes], owners=owners, multiple=replica if fully_sharded else 1
    )
    optimizer = EverySlot()
    assert isinstance(optimizer, RowOptimizer)
    config = TablesConfig(fully_sharded=fully_sharded)
    return Tables(SCHEMA, dim, make_mesh(*mesh), config, placement, optimizer)


def reference(dim=DIM) -> dict[str, np.ndarray]:
    """Any bits at all: negative zeros, denormals, infinities and NaNs too."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, rows in ROWS.items():
        for slot, shape in (("weight", (rows, dim)), ("accumulator", (rows,)), ("mean", (rows, dim))):
            bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
            arrays[f"{name}/{slot}"] = bits.view(np.float32)
    arrays["user/weight"][::7] = -0.0
    return arrays


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]).view(np.uint32), values.view(np.uint32), err_msg=name)


def values_where_placed(tables: Tables, state, name: str) -> np.ndarray:
    """A logical array by the addresses alone."""
    table, slot = name.rsplit("/", 1)
    place = tables.placement.places[table]
    address = tables.placement.address(table, jnp.arange(place.rows))
    group = "columns" if place.scheme == "columns" else "rows"
    fused = np.asarray(state[group][slot])
    return fused[np.asarray(address.owner) * tables.placement.height(group) + np.asarray(address.slot)]


CASES = [
    *itertools.product(((1, 1), (8, 1)), ["mixed"], [False]),  # one shard: all schemes are one
    *itertools.product(((1, 8), (2, 4), (4, 2)), ["rows", "columns", "tables"], [False]),
    *itertools.product(((8, 1), (2, 4), (4, 2)), ["mixed"], [True]),
]


@pytest.mark.parametrize(("mesh", "schemes", "fully_sharded"), CASES)
def test_rows_arrive_where_they_are_looked_up_and_come_back(mesh, schemes, fully_sharded):
    """As the logical arrays are those of the reference on every mesh, any mesh restores what any other saved."""
    tables, expected = make_tables(mesh, schemes, fully_sharded), reference()
    state = tables.from_logical(expected)
    assert_same_bits({name: values_where_placed(tables, state, name) for name in expected}, expected)
    assert_same_bits(tables.to_logical(state), expected)
    assert {g: {n: x.sharding.spec for n, x in s.items()} for g, s in state.items()} == tables.specs()


def test_shapes_and_shardings_are_as_announced():
    tables = make_tables((2, 4), "mixed", True)
    state = tables.from_logical(reference())
    specs = tables.logical_specs()
    assert list(specs)[:4] == ["user/weight", "user/accumulator", "user/mean", "ad/weight"]
    for name, spec in specs.items():
        array = tables.extract(state, name)
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        assert array.sharding.is_equivalent_to(spec.sharding, array.ndim)
    # Rows are cut where the shards divide them, else columns, else nothing.
    local = {name: spec.sharding.shard_shape(spec.shape) for name, spec in specs.items()}
    assert local["user/weight"] == (75, 8) and local["hour/weight"] == (5, 2) and local["hour/accumulator"] == (5,)


def test_a_width_that_the_shards_do_not_divide():
    tables, expected = make_tables((2, 4), "rows", False, dim=6), reference(dim=6)
    assert_same_bits(tables.to_logical(tables.from_logical(expected)), expected)


def test_one_array_may_be_replaced_in_a_state():
    """As where a table has grown: what the others hold stays."""
    tables, expected = make_tables((2, 4), "mixed", False), reference()
    state = tables.from_logical(expected)
    new = {"ad/mean": np.arange(64 * DIM, dtype=np.float32).reshape(64, DIM)}
    state = tables.insert(state, "ad/mean", new["ad/mean"])
    assert_same_bits(tables.to_logical(state), expected | new)


@pytest.mark.parametrize("schemes", ["rows", "columns"])
def test_no_device_ever_has_a_whole_table_that_is_cut(schemes):
    replica, shard, rows, dim = 2, 4, 40_000, 64
    table = (Table(name="big", rows=rows),)
    schema = Schema(tables=table, categoricals=(), tasks=(Task(name="click"),), domains=("feed",))
    placement = Placement(table, shard, schemes={"big": schemes}, multiple=replica)
    config = TablesConfig(fully_sharded=True)
    tables = Tables(schema, dim, make_mesh(replica, shard), config, placement, EverySlot())
    shapes = jax.eval_shape(tables.init, jax.random.key(0))
    place = placement.places["big"]
    own, group = rows * dim * 4 // shard, schemes
    extract = tables.logical._extracting(schemes, rows, "weight", True).lower(shapes[group], place.first, place.shard)
    values = tables.logical_specs()["big/weight"]
    insert = tables.logical._inserting(schemes, rows, "weight", True).lower(
        shapes[group], values, place.first, place.shard
    )
    for program in (extract, insert):
        temporary = program.compile().memory_analysis().temp_size_in_bytes
        assert temporary < 3.5 * own < rows * dim * 4
