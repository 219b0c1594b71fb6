"""From a config and its data to the mesh and the places of the tables."""

import io
import pathlib

import jax
import pytest
from gem_jax.layout import memory_options, num_dense_parameters, plan_run, table_loads
from rich.console import Console

from gem_jax.config import Config, load
from gem_jax.training.state import abstract_state, count_parameters
from tests.gem_jax.run.steps import DATA

DEBUG = pathlib.Path(__file__).parents[2] / "configs" / "gem_debug.py"


def config(*overrides: str) -> Config:
    return load(
        DEBUG, ["batch.examples=8", "batch.tokens.organic=64", "batch.tokens.impressions=64", *overrides]
    ).replace(data=DATA)


@pytest.fixture(scope="module")
def schema():
    return DATA.build().schema


def test_loads_are_the_lookups_of_a_full_batch(schema):
    loads = {load.name: load.ids for load in table_loads(schema, config().batch)}
    assert loads["user"] == 8 and loads["ad"] == 8 + 64
    interests = next(f for f in schema.categoricals if f.name == "interests")
    assert loads["category"] == 8 + 8 * interests.max_ids + 64 + 64
    features = sum(8 * f.max_ids for f in schema.categoricals)
    assert sum(loads.values()) == features + sum(64 * len(s.attributes) for s in schema.sequences)


def test_dense_parameters_are_counted_without_making_them(schema):
    setup, _ = abstract_state(config().model, schema, config().optimizer)
    assert num_dense_parameters(config(), schema) == count_parameters(setup)["dense"]


@pytest.mark.parametrize(
    ("overrides", "mesh"),
    [
        ([], {"replica": 8, "shard": 1}),  # everything fits one device: the smallest group
        (["mesh.shard=4"], {"replica": 2, "shard": 4}),
        (["mesh.replica=1"], {"replica": 1, "shard": 8}),
        (["mesh.replica=1", "mesh.shard=1"], {"replica": 1, "shard": 1}),
    ],
)
def test_meshes(schema, overrides, mesh):
    shown = io.StringIO()
    layout = plan_run(config(*overrides), schema, Console(file=shown, width=120))
    assert dict(layout.mesh.shape) == mesh
    assert set(layout.schemes) == {table.name for table in schema.tables}
    title = f"replica={mesh['replica']} x shard={mesh['shard']}"
    assert (title in shown.getvalue()) == (layout.mesh.size > 1)  # nothing to plan on one device


def test_less_memory_takes_larger_groups(schema):
    """The dense state is 3.3 MB and half of the 3.2 MB that a device has are for activations: several must share it."""
    layout = plan_run(config("tables.memory_gib=0.003"), schema, Console(quiet=True))
    assert layout.mesh.shape["shard"] > 1
    needed = max(layout.plan.device_bytes)
    assert needed <= 0.003 * 2**30 / 2
    with pytest.raises(ValueError, match=r"replica=1 x shard=8 needs [0-9,]+ bytes per GPU .* and there are 107,374;"):
        plan_run(config("tables.memory_gib=0.0001"), schema, Console(quiet=True))


def test_schemes_of_the_user_win(schema):
    layout = plan_run(
        config("mesh.shard=4", "tables.schemes.user=columns", "tables.schemes.ad=tables"), schema, Console(quiet=True)
    )
    assert layout.schemes["user"] == "columns" and layout.schemes["ad"] == "tables" and "ad" in layout.owners


def test_memory_that_is_given_or_reported():
    assert memory_options(2.0) == {"memory_bytes_per_device": 2**31, "reserved_bytes": 2**30}
    if jax.default_backend() == "cpu":
        assert memory_options(None) == {}
