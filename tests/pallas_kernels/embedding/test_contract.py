"""One contract for all backends; those of a GPU run here in `test_triton`'s interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from pallas_kernels.embedding import Rule, Step, check_inside, count_outside, lookup, update
from tests.pallas_kernels.embedding import cases
from tests.pallas_kernels.embedding.cases import CASES, RULES, Case

BACKENDS = ["xla", "reference", pytest.param("triton", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_update(case, implementation):
    cases.check_update(case, implementation)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_lookup(implementation):
    cases.check_lookup(implementation)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_lookup_of_bfloat16_rows(implementation):
    cases.check_lookup(implementation, "bfloat16", "bfloat16")
    cases.check_lookup(implementation, "bfloat16", "float32")


@pytest.mark.parametrize("implementation", BACKENDS)
def test_bfloat16_rows_are_rounded_by_chance(implementation):
    cases.check_rounding(implementation)


def test_backends_round_alike():
    case = Case("sgd", rows="bfloat16", ids="distinct", num_rows=64, lookups=64)
    one, other = (cases.run(case, name)[0] for name in ("xla", "reference"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_gpu_gives_the_same_bits_for_any_order(rule):
    cases.check_any_order(Case(rule, lookups=5000, num_rows=300, width=128, spread=6.0), "triton")


def test_ids_outside_are_counted_and_an_error_where_asked_for():
    rows, ids = jnp.ones((5, 4)), jnp.array([1, 5, -1, -2, 4], jnp.int32)
    assert int(count_outside(ids, 5)) == 2

    def looked_up(rows, ids):
        check_inside(ids, 5)
        return lookup(rows, ids)

    checked = jax.jit(checkify.checkify(looked_up))
    error, _ = checked(rows, ids)
    with pytest.raises(checkify.JaxRuntimeError, match="2 ids lie outside a table of 5 rows"):
        error.throw()
    error, _ = checked(rows, jnp.maximum(ids, -1) % 5)
    error.throw()


def test_donated_state_is_written_in_place():
    rows, ids = jax.ShapeDtypeStruct((1000, 8), jnp.float32), jax.ShapeDtypeStruct((20,), jnp.int32)
    grads, slot = jax.ShapeDtypeStruct((20, 8), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)

    def step(rows, slot, ids, grads):
        return update(rows, (slot,), ids, grads, rule=Rule(), step=Step(learning_rate=0.1))

    memory = jax.jit(step, donate_argnums=(0, 1)).lower(rows, slot, ids, grads).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 1000 * 9 * 4


def test_nothing_to_do():
    rows, slots = jnp.ones((5, 4)), (jnp.zeros(5),)
    ids = jnp.zeros(0, jnp.int32)
    new = update(rows, slots, ids, jnp.zeros((0, 4)), rule=Rule(), step=Step(learning_rate=0.1))
    np.testing.assert_array_equal(new[0], rows)
    assert lookup(rows, ids).shape == (0, 4) and lookup(rows, ids.reshape(0, 3)).shape == (0, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(ids=jnp.zeros(3, jnp.int16)), "ids must be int32"),
        (dict(grads=jnp.zeros((3, 5))), "with the table's columns"),
        (dict(grads=jnp.zeros((2, 4))), "one row for each of the 3 ids"),
        (dict(slots=()), "keeps slots of shapes"),
        (dict(sources=jnp.zeros(2, jnp.int32)), "sources must be int32"),
        (dict(rows=jnp.zeros((5, 4), jnp.int32)), "rows must be floating"),
        (dict(implementation="best"), "implementation must be one of"),
    ],
)
def test_wrong_arguments_are_one_sentence(changed, message):
    good = dict(
        rows=jnp.zeros((5, 4)), slots=(jnp.zeros(5),), ids=jnp.zeros(3, jnp.int32), grads=jnp.zeros((3, 4)),
        rule=Rule(), step=Step(learning_rate=0.1),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        update(**(good | changed))
