"""Optimizers of touched rows against plain NumPy loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding.row_optimizers import Adam, RowwiseAdagrad, Sgd, StepContext, row_optimizer
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import update_rows
from pallas_kernels.embedding.repeats import sum_by_row

NUM_ROWS, DIM = 20, 8
STORE = DeviceStore()
IDS = {
    "all equal": np.array([3, 3, 3, 3, 3, 3]),
    "distinct": np.array([0, 1, 2, 3, 4, 5]),
    "none": np.array([-1, -1, -1, -1]),
    "first and last row": np.array([19, 0, -1, 19, 7, 0, -1, 3]),
    "many": np.random.default_rng(0).integers(-1, NUM_ROWS, 500),
    "all rows": np.random.default_rng(0).permutation(2 * NUM_ROWS) % NUM_ROWS,
    "all rows and none": np.random.default_rng(0).permutation(3 * NUM_ROWS) % (NUM_ROWS + 1) - 1,
}


def new_state(optimizer, weight):
    shapes = {slot.name: weight.shape if slot.per == "number" else weight.shape[:1] for slot in optimizer.slots}
    initial = {slot.name: slot.initial for slot in optimizer.slots}
    return STORE.init(weight, {name: jnp.full(shape, initial[name], jnp.float32) for name, shape in shapes.items()})


def by_loop(optimizer, state, ids, grads, *, lr, l2, step, groups):
    """The update row by row; every array float64."""
    state = {name: np.float64(x) for name, x in state.items()}
    weight = state["weight"]
    for row in sorted({i for i in ids.tolist() if i >= 0}):
        g = grads[ids == row].astype(np.float64).sum(axis=0) + l2 * weight[row]
        if optimizer == "sgd":
            weight[row] -= lr * g
        elif optimizer == "rowwise_adagrad":
            state["accumulator"][row] += np.mean(g**2)
            weight[row] -= lr * g / (np.sqrt(state["accumulator"][row] / groups) + 1e-8)
        else:
            state["mean"][row] = 0.9 * state["mean"][row] + 0.1 * g
            state["square"][row] = 0.99 * state["square"][row] + 0.01 * g**2
            mean, square = state["mean"][row] / (1 - 0.9 ** (step + 1)), state["square"][row] / (1 - 0.99 ** (step + 1))
            weight[row] -= lr * mean / (np.sqrt(square) + 1e-8)
    return state


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize(
    ("optimizer", "l2", "groups"),
    [("rowwise_adagrad", 0.0, 1), ("rowwise_adagrad", 0.1, 4), ("adam", 0.1, 1), ("sgd", 0.1, 1)],
)
def test_an_update_matches_a_loop(optimizer, ids, l2, groups):
    rng = np.random.default_rng(1)
    rule = row_optimizer(optimizer, l2=l2, beta2=0.99)
    state = new_state(rule, jnp.asarray(rng.normal(size=(NUM_ROWS, DIM)), jnp.float32))
    state = jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0.1, 1, x.shape), jnp.float32), state)
    grads = rng.normal(size=(len(ids), DIM)).astype(np.float32)

    @jax.jit
    def step(state, ids, grads):
        rows, sums = sum_by_row(ids, grads, NUM_ROWS)
        return update_rows(STORE, rule, state, rows, sums, StepContext(learning_rate=0.1, step=3, groups=groups))

    new = step(state, ids.astype(np.int32), grads)
    expected = by_loop(optimizer, state, ids, grads, lr=0.1, l2=l2, step=3, groups=groups)
    untouched = np.setdiff1d(np.arange(NUM_ROWS), ids)
    for name, values in expected.items():
        # A row sums up to R float32 gradients: relative error R eps/2 at worst, sqrt(R) eps typical; 500 lookups of 20
        # rows are 25 each. Adam's bias corrections divide by 1 - 0.99^4: 25 times that.
        np.testing.assert_allclose(new[name], values, rtol=2e-5, atol=5e-6)
        np.testing.assert_array_equal(np.asarray(new[name])[untouched], np.asarray(state[name])[untouched])
    assert new.keys() == expected.keys()


def test_rows_outside_are_read_as_zeros_and_not_written():
    weight = jnp.arange(12.0).reshape(4, 3) + 1
    state = STORE.init(weight, {"accumulator": jnp.arange(4.0)})
    rows = jnp.array([-1, 0, 3, 4])
    np.testing.assert_array_equal(STORE.read(state, "weight", rows), [[0] * 3, [1, 2, 3], [10, 11, 12], [0] * 3])
    np.testing.assert_array_equal(STORE.read(state, "accumulator", rows), [0, 0, 3, 0])
    added = STORE.add(state, rows, jnp.ones((4, 3)), 0)
    np.testing.assert_array_equal(added["weight"] - weight, [[1] * 3, [0] * 3, [0] * 3, [1] * 3])
    written = STORE.write(state, "accumulator", rows, jnp.full(4, 9.0))
    np.testing.assert_array_equal(written["accumulator"], [9, 1, 2, 9])


def test_initial_slots_and_bytes_of_a_row():
    adagrad, adam = RowwiseAdagrad(initial_accumulator=0.5), Adam()
    assert [(s.name, s.per, s.initial) for s in adagrad.slots] == [("accumulator", "row", 0.5)]
    assert [STORE.row_bytes(16, o.slots) for o in (adagrad, adam, Sgd())] == [68, 192, 64]


@pytest.mark.parametrize("optimizer", [RowwiseAdagrad(), Adam(), Sgd()])
def test_an_update_makes_nothing_of_the_tables_size(optimizer):
    num_rows, dim, num_ids = 200_000, 32, 256
    state = jax.eval_shape(lambda: new_state(optimizer, jnp.zeros((num_rows, dim))))

    def step(state, ids, grads):
        rows, sums = sum_by_row(ids, grads, num_rows)
        return update_rows(STORE, optimizer, state, rows, sums, StepContext(learning_rate=0.1))

    args = jax.ShapeDtypeStruct((num_ids,), jnp.int32), jax.ShapeDtypeStruct((num_ids, dim), jnp.float32)
    memory = jax.jit(step, donate_argnums=0).lower(state, *args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 30 * num_ids * dim * 4 < num_rows * dim


def test_the_mean_of_a_row_may_come_from_elsewhere():
    """Half of the columns with the whole row's mean is half of the whole update."""
    rng = np.random.default_rng(2)
    weight, grads = (jnp.asarray(rng.normal(size=(6, 8)), jnp.float32) for _ in range(2))
    rows, rule = jnp.arange(6), RowwiseAdagrad(initial_accumulator=0.5)
    whole = update_rows(STORE, rule, new_state(rule, weight), rows, grads, StepContext(learning_rate=0.3))
    mean = jnp.square(grads).mean(axis=1)
    context = StepContext(learning_rate=0.3, row_mean=lambda _: mean)
    half = update_rows(STORE, rule, new_state(rule, weight[:, :4]), rows, grads[:, :4], context)
    np.testing.assert_array_equal(half["accumulator"], whole["accumulator"])
    np.testing.assert_array_equal(half["weight"], whole["weight"][:, :4])
