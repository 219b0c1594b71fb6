"""Optimizers of touched rows against plain NumPy loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding import touched_rows
from gem_jax.embedding.touched_rows import TableState, lookup, new_state, sum_by_row

NUM_ROWS, DIM = 20, 8
IDS = {
    "all equal": np.array([3, 3, 3, 3, 3, 3]),
    "distinct": np.array([0, 1, 2, 3, 4, 5]),
    "none": np.array([-1, -1, -1, -1]),
    "first and last row": np.array([19, 0, -1, 19, 7, 0, -1, 3]),
    "many": np.random.default_rng(0).integers(-1, NUM_ROWS, 500),
    "all rows": np.random.default_rng(0).permutation(2 * NUM_ROWS) % NUM_ROWS,
    "all rows and none": np.random.default_rng(0).permutation(3 * NUM_ROWS) % (NUM_ROWS + 1) - 1,
}


def by_loop(optimizer, state, ids, grads, *, lr, l2, step, groups):
    """The update row by row; every array float64."""
    state = {name: np.float64(x) for name, x in vars(state).items() if x is not None}
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
    state = new_state(optimizer, jnp.asarray(rng.normal(size=(NUM_ROWS, DIM)), jnp.float32), 0.0)
    state = jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0.1, 1, x.shape), jnp.float32), state)
    grads = rng.normal(size=(len(ids), DIM)).astype(np.float32)

    @jax.jit
    def step(state, ids, grads):
        rows, sums = sum_by_row(ids, grads, NUM_ROWS)
        options = dict(learning_rate=0.1, step=3, l2=l2, beta1=0.9, beta2=0.99, groups=groups)
        return touched_rows.update(optimizer, state, rows, sums, **options)

    new = step(state, ids.astype(np.int32), grads)
    expected = by_loop(optimizer, state, ids, grads, lr=0.1, l2=l2, step=3, groups=groups)
    untouched = np.setdiff1d(np.arange(NUM_ROWS), ids)
    for name, values in expected.items():
        # A row sums up to R float32 gradients: relative error R eps/2 at worst, sqrt(R) eps typical; 500 lookups of 20
        # rows are 25 each. Adam's bias corrections divide by 1 - 0.99^4: 25 times that.
        np.testing.assert_allclose(getattr(new, name), values, rtol=2e-5, atol=5e-6)
        np.testing.assert_array_equal(
            np.asarray(getattr(new, name))[untouched], np.asarray(getattr(state, name))[untouched]
        )
    assert {n for n, x in vars(new).items() if x is not None} == expected.keys()


def test_lookup_of_absent_ids_is_zero():
    weight = jnp.arange(12.0).reshape(4, 3) + 1
    rows = lookup(weight, jnp.array([3, -1, 0]))
    np.testing.assert_array_equal(rows, [[10, 11, 12], [0, 0, 0], [1, 2, 3]])


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "sgd"])
def test_an_update_makes_nothing_of_the_tables_size(optimizer):
    num_rows, dim, num_ids = 200_000, 32, 256
    state = jax.eval_shape(lambda: new_state(optimizer, jnp.zeros((num_rows, dim)), 0.0))

    def step(state: TableState, ids, grads):
        rows, sums = sum_by_row(ids, grads, num_rows)
        return touched_rows.update(optimizer, state, rows, sums, learning_rate=0.1)

    args = jax.ShapeDtypeStruct((num_ids,), jnp.int32), jax.ShapeDtypeStruct((num_ids, dim), jnp.float32)
    memory = jax.jit(step, donate_argnums=0).lower(state, *args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 30 * num_ids * dim * 4 < num_rows * dim


def test_the_mean_of_a_row_may_come_from_elsewhere():
    """Half of the columns with the whole row's mean is half of the whole update."""
    rng = np.random.default_rng(2)
    weight, grads = (jnp.asarray(rng.normal(size=(6, 8)), jnp.float32) for _ in range(2))
    rows = jnp.arange(6)
    update = functools.partial(touched_rows.update, "rowwise_adagrad", learning_rate=0.3)
    whole = update(new_state("rowwise_adagrad", weight, 0.5), rows, grads)
    mean = jnp.square(grads).mean(axis=1)
    half = update(new_state("rowwise_adagrad", weight[:, :4], 0.5), rows, grads[:, :4], row_mean=lambda _: mean)
    np.testing.assert_array_equal(half.accumulator, whole.accumulator)
    np.testing.assert_array_equal(half.weight, whole.weight[:, :4])
