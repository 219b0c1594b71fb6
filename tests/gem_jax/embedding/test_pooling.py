"""Which rows a batch looks up, and which feature gets them."""

import jax
import jax.numpy as jnp
import numpy as np

from gem_jax.data.batch import Batch, Events
from gem_jax.data.schema import Categorical, Schema, Sequence, Table, Task
from gem_jax.embedding.pooled import read_pooled
from gem_jax.embedding.tables import num_lookups, pool, requests_of, unpool

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
    batch = make_batch()
    rng = np.random.default_rng(0)
    tables = {t.name: rng.normal(size=(t.rows, 4)).astype(np.float32) for t in SCHEMA.tables}
    parts = [np.where((ids >= 0)[:, None], tables[table][ids], 0) for table, ids in requests_of(SCHEMA, batch)]
    embedded = pool(SCHEMA, jnp.asarray(np.concatenate(parts), jnp.float32), batch)
    ad, topic = tables["ad"], tables["topic"]
    np.testing.assert_array_equal(embedded.features["ad"], np.stack([ad[3], np.zeros(4)]))
    np.testing.assert_allclose(
        embedded.features["interests"], np.stack([(topic[0] + topic[4]) / 2, np.zeros(4)]), rtol=1e-6
    )
    expected = np.zeros((16, 4))
    expected[[0, 1, 8]] = ad[[6, 3, 0]]
    np.testing.assert_array_equal(embedded.events["clicks"]["ad"], expected)


def test_kernels_pool_as_they_read():
    """The same features whether rows are pooled after the lookup or in it."""
    batch = make_batch()
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(12, 4)), jnp.float32)
    first = {"ad": 0, "topic": 7}
    slots = jnp.concatenate([jnp.where(ids >= 0, first[t] + ids, -1) for t, ids in requests_of(SCHEMA, batch)])
    rows = jnp.where((slots >= 0)[:, None], weight[slots], 0)
    expected = pool(SCHEMA, rows, batch)
    features, events = read_pooled(SCHEMA, weight, slots, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), features, expected.features)
    jax.tree.map(np.testing.assert_array_equal, events, expected.events)


def test_gradients_go_back_the_way_that_rows_came():
    """To the bit what differentiating `pool` gives."""
    batch = make_batch()
    rng = np.random.default_rng(1)
    rows = jnp.asarray(rng.normal(size=(24, 4)), jnp.float32)
    embedded, pull_back = jax.vjp(lambda rows: pool(SCHEMA, rows, batch), rows)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), embedded)
    values, sources = unpool(SCHEMA, grads, batch.ids)
    np.testing.assert_array_equal(values[sources], *pull_back(grads))
    assert len(values) == 2 + 2 + 16  # a row a bag and an event, not one a lookup


def test_lookups_are_counted_from_shapes_alone():
    batch = make_batch()
    assert num_lookups(SCHEMA, batch) == sum(len(ids) for _, ids in requests_of(SCHEMA, batch)) == 2 + 6 + 16
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    assert num_lookups(SCHEMA, shapes) == 24
