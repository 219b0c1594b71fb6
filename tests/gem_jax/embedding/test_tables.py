"""Table collection and row-wise Adagrad against plain NumPy loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.data.batch import Batch, Events
from gem_jax.data.schema import Categorical, Schema, Sequence, Table, Task
from gem_jax.embedding import rowwise_adagrad
from gem_jax.embedding.collection import TableCollection, lookup

SCHEMA = Schema(
    tables=(Table(name="ad", rows=7), Table(name="topic", rows=5)),
    categoricals=(
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="interests", table="topic", role="user", max_ids=3),
    ),
    sequences=(Sequence(name="clicks", attributes=(Categorical(name="ad", table="ad", role="event"),), max_len=4),),
    tasks=(Task(name="click"),),
    domains=("feed",),
)


def make_batch() -> Batch:
    return Batch(
        ids={"ad": np.array([[3], [-1]], np.int32), "interests": np.array([[0, 4, -1], [-1, -1, -1]], np.int32)},
        dense=np.zeros((2, 0), np.float32),
        vectors={},
        sequences={
            "clicks": Events(
                ids={"ad": np.array([6, 3, -1, -1, -1, -1, -1, -1, 0] + [-1] * 7, np.int32)},
                age_s=np.zeros(16, np.int32),
                offsets=np.array([0, 8, 16], np.int32),
                lengths=np.array([2, 1], np.int32),
            )
        },
        labels=np.zeros((2, 1), np.float32),
        domain=np.zeros(2, np.int32),
        weight=np.ones(2, np.float32),
    )


def test_each_feature_gets_the_rows_of_its_table():
    tables = TableCollection(SCHEMA, dim=4)
    table = tables.init(jax.random.key(0), 1.0)
    batch = make_batch()
    embedded = tables.split(lookup(table, tables.ids(batch)), batch)
    w = np.asarray(table)
    np.testing.assert_array_equal(embedded.features["ad"], np.stack([w[3], np.zeros(4)]))
    np.testing.assert_allclose(embedded.features["interests"], np.stack([(w[7] + w[11]) / 2, np.zeros(4)]), rtol=1e-6)
    expected = np.zeros((16, 4))
    expected[[0, 1, 8]] = w[[6, 3, 0]]
    np.testing.assert_array_equal(embedded.events["clicks"]["ad"], expected)


def adagrad_by_loop(table, accumulator, ids, grads, lr, eps, l2):
    table, accumulator = table.astype(np.float64), accumulator.astype(np.float64)
    for row in sorted({i for i in ids.tolist() if i >= 0}):
        g = grads[ids == row].astype(np.float64).sum(axis=0) + l2 * table[row]
        accumulator[row] += np.mean(g**2)
        table[row] -= lr * g / (np.sqrt(accumulator[row]) + eps)
    return table, accumulator


@pytest.mark.parametrize(
    "ids",
    [
        np.array([3, 3, 3, 3, 3, 3]),
        np.array([0, 1, 2, 3, 4, 5]),
        np.array([-1, -1, -1, -1]),
        np.array([19, 0, -1, 19, 7, 0, -1, 3]),
        np.random.default_rng(0).integers(-1, 20, 500),
    ],
    ids=["all equal", "distinct", "none", "first and last row", "many"],
)
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rowwise_adagrad_matches_a_loop(ids, l2):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(20, 8)).astype(np.float32)
    accumulator = rng.uniform(0.1, 1, 20).astype(np.float32)
    grads = rng.normal(size=(len(ids), 8)).astype(np.float32)
    step = jax.jit(functools.partial(rowwise_adagrad.update, learning_rate=0.1, eps=1e-8, l2=l2))
    new_table, new_accumulator = step(table, accumulator, ids.astype(np.int32), grads)
    want_table, want_accumulator = adagrad_by_loop(table, accumulator, ids, grads, 0.1, 1e-8, l2)
    # A row sums up to R float32 gradients: relative error R eps/2 at worst, sqrt(R) eps typical; 500 lookups of 20 rows: ~25 each.
    np.testing.assert_allclose(new_table, want_table, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(new_accumulator, want_accumulator, rtol=2e-5)
    untouched = np.setdiff1d(np.arange(20), ids)
    np.testing.assert_array_equal(np.asarray(new_table)[untouched], table[untouched])


def test_the_update_makes_nothing_of_the_tables_size():
    num_rows, dim, num_ids = 200_000, 32, 256
    args = (
        jax.ShapeDtypeStruct((num_rows, dim), jnp.float32),
        jax.ShapeDtypeStruct((num_rows,), jnp.float32),
        jax.ShapeDtypeStruct((num_ids,), jnp.int32),
        jax.ShapeDtypeStruct((num_ids, dim), jnp.float32),
    )
    step = jax.jit(lambda *a: rowwise_adagrad.update(*a, learning_rate=0.1, eps=1e-8), donate_argnums=(0, 1))
    memory = step.lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20 * num_ids * dim * 4
