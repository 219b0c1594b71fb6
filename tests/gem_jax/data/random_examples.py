"""Random examples of every kind of column, for the tests of packing, loading and Parquet."""

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, TrainingColumn, Vector

SCHEMA = Schema(
    tables=(Table(name="ad", rows=50), Table(name="topic", rows=7)),
    categoricals=(
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="topics", table="topic", role="ad", max_ids=3),
    ),
    dense=(Dense(name="price", role="ad"), Dense(name="hour", role="context")),
    vectors=(Vector(name="image", dim=4, role="ad"),),
    sequences=(
        Sequence(
            name="clicks",
            attributes=(
                Categorical(name="ad", table="ad", role="event"),
                Categorical(name="topic", table="topic", role="event"),
            ),
            max_len=20,
        ),
        Sequence(name="views", attributes=(Categorical(name="ad", table="ad", role="event"),), max_len=5),
    ),
    tasks=(Task(name="click"), Task(name="conversion")),
    domains=("feed", "reels", "stories"),
)
TAUGHT = SCHEMA.replace(training=(TrainingColumn(name="teacher", dim=2), TrainingColumn(name="margin")))
"""The same with columns for training only."""


def random_examples(n: int, seed: int = 0, max_events: int = 40) -> Examples:
    """n examples of `TAUGHT` (and so of `SCHEMA`); user i is example i, histories have 0 .. max_events events.

    Ids of one seed are not those of another; one label in ten is soft, and of times and training columns some are unknown.
    """
    rng = np.random.default_rng(seed)
    float32 = np.float32

    def ids(rows: int, *shape: int) -> np.ndarray:
        return rng.integers(0, rows, shape).astype(np.int32)

    def history(attributes: dict[str, int]) -> Histories:
        lengths = rng.integers(0, max_events + 1, n).astype(np.int32)
        total = int(lengths.sum())
        age_s = rng.integers(0, 10**6, total).astype(np.int32)
        oldest_first = np.lexsort((-age_s, np.repeat(np.arange(n), lengths)))
        return Histories(
            ids={name: ids(rows, total) for name, rows in attributes.items()},
            age_s=age_s[oldest_first],
            lengths=lengths,
        )

    topics = ids(7, n, 3)
    topics[np.arange(3) >= rng.integers(0, 4, (n, 1))] = -1  # ids first, then absent ones
    labels = rng.integers(0, 2, (n, 2)).astype(float32)
    labels[rng.random((n, 2)) < 0.3] = np.nan
    soft = rng.random((n, 2)).astype(float32)
    labels = np.where((rng.random((n, 2)) < 0.1) & ~np.isnan(labels), soft, labels)
    time_s = rng.integers(0, 2**40, n)
    time_s[rng.random(n) < 0.1] = -1
    training = {"teacher": rng.normal(size=(n, 2)).astype(float32), "margin": rng.normal(size=(n, 1)).astype(float32)}
    training["teacher"][rng.random((n, 2)) < 0.3] = np.nan
    training["margin"][rng.random((n, 1)) < 0.3] = np.nan
    truth = rng.random((n, 2)).astype(float32)
    truth[rng.random((n, 2)) < 0.3] = np.nan
    return Examples(
        ids={"ad": np.where(rng.random((n, 1)) < 0.1, -1, ids(50, n, 1)).astype(np.int32), "topics": topics},
        dense=rng.normal(size=(n, 2)).astype(float32),
        vectors={"image": rng.normal(size=(n, 4)).astype(float32)},
        sequences={"clicks": history({"ad": 50, "topic": 7}), "views": history({"ad": 50})},
        labels=labels,
        domain=ids(3, n),
        weight=(rng.random(n) + 0.5).astype(float32),
        user=np.arange(n, dtype=np.int64),
        example_id=rng.permutation(n).astype(np.int64) + seed * 10**6,
        time_s=time_s,
        true_probability=truth,
        training=training,
    )


def events_of(history: Histories, index: int) -> dict[str, np.ndarray]:
    """Columns of one example's events (age under "age_s"), found the plain way."""
    first = int(history.lengths[:index].sum())
    rows = slice(first, first + int(history.lengths[index]))
    return {"age_s": history.age_s[rows], **{name: column[rows] for name, column in history.ids.items()}}


def assert_same_examples(actual: Examples, expected: Examples) -> None:
    """Every column equal in value, shape and dtype (NaN equals NaN)."""
    assert_same_columns(actual.__dict__, expected.__dict__, "examples")


def assert_same_columns(actual, expected, where: str) -> None:
    if isinstance(expected, Histories):
        actual, expected = actual.__dict__, expected.__dict__
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for name in expected:
            assert_same_columns(actual[name], expected[name], f"{where}.{name}")
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
    np.testing.assert_array_equal(actual, expected, err_msg=where)
