"""A state by name knows no mesh: from any mesh and scheme to any other, to the last bit, and training goes on as it would have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.data.schema import Table
from gem_jax.embedding.config import TablesConfig
from gem_jax.parallel.sharding import place_batch
from gem_jax.run.program import Program
from tests.gem_jax.run.steps import BASE_LOGITS, DATA, batch_of_step, program_on, take_steps
from tests.gem_jax.run.test_steps_on_meshes import SCHEMES, assert_same_array

SCHEMA = DATA.schema().replace(
    tables=tuple(Table(name=t.name, rows=1 << (t.rows - 1).bit_length()) for t in DATA.schema().tables)
)
"""The stream's, with tables of powers of two: of such sizes nothing but names tells a right restore from a wrong one."""
MESHES = ((1, 1), (1, 8), (8, 1), (2, 4), (4, 2))
LAYOUTS = {"rows": ({}, False), "columns": (SCHEMES["columns"], False), "tables": (SCHEMES["whole tables"], False)}
LAYOUTS |= {"fully sharded": ({}, True), "mixed, fully sharded": (SCHEMES["mixed"], True)}
# Two layouts a mesh and two meshes a layout at every change; all pairs where there is time.
PLACES = [
    pytest.param(mesh, layout, marks=[] if (i - j) % len(LAYOUTS) < 2 else pytest.mark.slow)
    for i, mesh in enumerate(MESHES)
    for j, layout in enumerate(LAYOUTS)
]
STEPS = 4


@functools.cache
def program_at(mesh: tuple[int, int], layout: str) -> Program:
    schemes, fully_sharded = LAYOUTS[layout]
    return program_on(*mesh, TablesConfig(fully_sharded=fully_sharded), schemes=schemes, schema=SCHEMA)


@functools.cache
def trained() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The state by name after a few steps on one device, and after as many again."""
    program = program_at((1, 1), "rows")
    first = take_steps(program, program.init(0, BASE_LOGITS), range(STEPS)).state
    return first, take_steps(program, placed_on(program, first), range(STEPS, 2 * STEPS)).state


def placed_on(program: Program, arrays: dict[str, np.ndarray]):
    """The state that these arrays make."""
    return program.from_logical(jax.tree.map(jnp.asarray, arrays))


def test_there_is_something_to_get_wrong():
    """Every array differs from row to row, and all tables have a power of two of rows."""
    first, _ = trained()
    assert all(table.rows & (table.rows - 1) == 0 for table in SCHEMA.tables)
    for table in SCHEMA.tables:
        weights = first[f"tables/{table.name}/weight"]
        assert weights.shape[0] == table.rows and len(np.unique(weights, axis=0)) == table.rows
    assert np.abs(first["dense/tokens/dense/layers/0/kernel/mu"]).max() > 0


@pytest.mark.parametrize(("mesh", "layout"), PLACES, ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else x)
def test_it_comes_back_to_the_last_bit(mesh, layout):
    """There and back: whatever the place that a checkpoint was made in, what it holds is the same, so any place restores it."""
    first, _ = trained()
    program = program_at(mesh, layout)
    state = placed_on(program, first)
    for x, shape in zip(jax.tree.leaves(state), jax.tree.leaves(program.shapes()), strict=True):
        assert x.sharding.is_equivalent_to(shape.sharding, x.ndim)
    back = program.to_logical(state)
    assert back.keys() == first.keys()
    for name, x in first.items():
        np.testing.assert_array_equal(np.asarray(back[name]), x, err_msg=name)


GOES_ON = [((1, 8), "rows"), ((2, 4), "mixed, fully sharded"), ((4, 2), "columns")]


@pytest.mark.parametrize(
    ("mesh", "layout"), GOES_ON, ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else x
)
def test_training_goes_on_as_on_the_old_mesh(mesh, layout):
    first, second = trained()
    program = program_at(mesh, layout)
    found = take_steps(program, placed_on(program, first), range(STEPS, 2 * STEPS)).state
    for name, x in second.items():
        assert_same_array(name, found[name], x)


def test_evaluation_is_the_same_to_the_last_bit_where_the_packed_batches_are():
    """Eight devices have the same batches in any arrangement; what they look up and gather is exact."""
    first, _ = trained()
    source, logits = DATA.build().train, []
    for mesh, layout in (((1, 8), "rows"), ((8, 1), "rows"), ((2, 4), "columns"), ((2, 4), "mixed, fully sharded")):
        program = program_at(mesh, layout)
        _, batch = batch_of_step(source, program, 0)
        logits.append(np.asarray(program.eval_step(placed_on(program, first), place_batch(batch, program.mesh))))
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])
