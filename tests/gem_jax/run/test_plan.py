"""From a config and a schema to the mesh, the places of the tables and the bytes of a device, before anything is made."""

import dataclasses
import io
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from rich.console import Console

from gem_jax.config import Config, load
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.planner import table_of
from gem_jax.errors import UserError
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.run.memory import GIB, device_memory, readable
from gem_jax.run.plan import RunPlan, table_loads
from gem_jax.run.program import Program
from tests.gem_jax.run.steps import DATA, DLRM, SCHEMA

DEBUG = pathlib.Path(__file__).parents[3] / "configs" / "gem_debug.py"


def config(*overrides: str) -> Config:
    return load(
        DEBUG, ["batch.examples=8", "batch.tokens.organic=64", "batch.tokens.impressions=64", *overrides]
    ).replace(data=DATA)


def test_loads_are_the_lookups_of_a_full_batch():
    loads = {load.name: load.ids for load in table_loads(SCHEMA, config().batch)}
    assert loads["user"] == 8 and loads["ad"] == 8 + 64
    interests = next(f for f in SCHEMA.categoricals if f.name == "interests")
    assert loads["category"] == 8 + 8 * interests.max_ids + 64 + 64
    features = sum(8 * f.max_ids for f in SCHEMA.categoricals)
    assert sum(loads.values()) == features + sum(64 * len(s.attributes) for s in SCHEMA.sequences)


@pytest.mark.parametrize(
    ("overrides", "mesh"),
    [
        ([], {"replica": 8, "shard": 1}),  # everything fits one device: the smallest group
        (["mesh.shard=4"], {"replica": 2, "shard": 4}),
        (["mesh.replica=1"], {"replica": 1, "shard": 8}),
        (["mesh.replica=1", "mesh.shard=1"], {"replica": 1, "shard": 1}),
    ],
)
def test_meshes(overrides, mesh):
    plan = RunPlan.of(config(*overrides), SCHEMA)
    assert dict(plan.mesh.shape) == mesh
    assert {t.name for t in plan.tables.tables} == {table.name for table in SCHEMA.tables}
    shown = io.StringIO()
    Console(file=shown, width=120).print(table_of(plan.tables))
    assert f"replica={mesh['replica']} x shard={mesh['shard']}" in shown.getvalue()


def test_less_memory_takes_larger_groups():
    """Dense state and tables are some MB: where a device has room for a part of them, several share them."""
    whole = RunPlan.of(config("mesh.shard=1"), SCHEMA).memory
    kinds = whole.kinds
    shared = sum(kinds[kind] for kind in ("parameters", "gradients", "optimizer", "tables"))
    limit = (whole.total - shared / 2) / GIB
    plan = RunPlan.of(config(f"tables.memory_gib={limit}"), SCHEMA)
    assert plan.mesh.shape["shard"] > 1 and plan.memory.total <= plan.memory.limit
    with pytest.raises(UserError, match=r"replica=1 x shard=8 needs [0-9,]+ bytes per GPU .* and there are 107,374;"):
        RunPlan.of(config("tables.memory_gib=0.0001"), SCHEMA)


def test_what_does_not_fit_a_cpu_is_refused_with_the_numbers_before_it_is_made():
    tables = tuple(dataclasses.replace(t, rows=2**30) if t.name == "user" else t for t in SCHEMA.tables)
    with pytest.raises(UserError, match=r"needs [0-9,]+ bytes per GPU \(tables [0-9,]+, .*the largest table is 'user'"):
        RunPlan.of(config("mesh.shard=1"), SCHEMA.replace(tables=tables))


def test_schemes_of_the_user_win():
    plan = RunPlan.of(config("mesh.shard=4", "tables.schemes.user=columns", "tables.schemes.ad=tables"), SCHEMA)
    found = {t.name: t for t in plan.tables.tables}
    assert found["user"].scheme == "columns" and found["ad"].scheme == "tables" and found["ad"].owner is not None
    assert plan.placement.places["user"].scheme == "columns"


def test_memory_that_is_given_or_reported():
    assert device_memory(2.0, jax.devices()) == 2**31
    if jax.default_backend() == "cpu":  # of the machine, shared by its forced devices
        assert 2**24 < device_memory(None, jax.devices()) < 2**45


def test_bytes_for_people():
    assert [readable(n) for n in (512, 2**20, 3 * 2**29, 150 * 2**30, 5 * 2**40)] == [
        "0.50 KiB",
        "1.00 MiB",
        "1.50 GiB",
        "150 GiB",
        "5.00 TiB",
    ]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "sgd"])
@pytest.mark.parametrize("schemes", [{}, {"user": "columns", "ad": "tables"}], ids=["rows", "mixed"])
@pytest.mark.parametrize("fully_sharded", [False, True])
def test_every_array_of_a_state_has_a_place(optimizer, schemes, fully_sharded):
    by_rows = dict.fromkeys((table.name for table in SCHEMA.tables), "rows")
    base = config(f"optimizer.table_optimizer={optimizer}")
    given = base.replace(
        model=DLRM,
        mesh=MeshConfig(replica=2, shard=4),
        tables=TablesConfig(schemes=by_rows | schemes, fully_sharded=fully_sharded),
    )
    program = Program.of(given, SCHEMA, RunPlan.of(given, SCHEMA))
    state = program.shapes()
    assert jax.tree.structure(program.specs, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(state)
    shares = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.size / np.prod(x.sharding.shard_shape(x.shape))
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]
        if x.shape
    }
    for path, share in shares.items():
        if path.startswith("tables/"):
            whole_rows = path.endswith("columns/accumulator")
            assert share == (1 if whole_rows else 4) * (2 if fully_sharded else 1), path
        else:
            assert share == (4 if path.startswith("dense") else 1), path
