"""Raw values as numbers: times, users, vocabularies, scalings, and events that stand in two sets."""

import collections
import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.data.source import DataError
from gem_jax.prepare.preparation import newest, union
from gem_jax.prepare.records import event_order, log_of
from gem_jax.prepare.scaling import Moments
from gem_jax.prepare.values import Clock, Column
from gem_jax.prepare.vocabulary import ValueCounts, Vocabulary
from tests.gem_jax.data.random_examples import assert_same_columns


def column(values: pa.Array) -> Column:
    return Column(values=values, name="x", log="log")


NOON = datetime.datetime(2026, 1, 31, 12, 0, 0, 250_000)
SECONDS = int(NOON.replace(tzinfo=datetime.UTC).timestamp())


@pytest.mark.parametrize(
    "values",
    [
        pa.array([NOON]),
        pa.array([NOON], pa.timestamp("ms")),
        pa.array([NOON], pa.timestamp("ns")),
        pa.array([NOON.replace(tzinfo=datetime.UTC)], pa.timestamp("us", "Europe/Berlin")),
        pa.array(["2026-01-31T12:00:00.250"]),
        pa.array([SECONDS + 0.25]),
        pa.array([SECONDS]),
        pa.array([SECONDS * 1000 + 250]),
        pa.array([SECONDS * 10**6 + 250_000]),
        pa.array([SECONDS * 10**9 + 250_000_000]),
        pa.array([SECONDS], pa.uint32()),
    ],
    ids=lambda values: str(values.type),
)
def test_one_time_however_it_is_written(values):
    ticks = column(values).ticks()
    clock = Clock.of(values.type, int(ticks.max()))
    assert clock.ticks(column(values)) // clock.ticks_per_s == SECONDS


def test_dates_and_early_times():
    assert column(pa.array([datetime.date(1970, 1, 2)])).ticks().tolist() == [86400 * 10**6]
    assert Clock.of(pa.int64(), 500).unit == "seconds"
    with pytest.raises(DataError, match="row 1: 'x' is 1969-12-31 00:00:00; times must be 0 or more, or 1970 or later"):
        column(pa.array([datetime.datetime(1970, 1, 1), datetime.datetime(1969, 12, 31)], pa.timestamp("s"))).ticks()


def test_users_are_the_same_whatever_their_type():
    plain = [0, 7, 2**31, 2**63 - 1]
    for kind in (pa.int64(), pa.uint64(), pa.string()):
        values = pa.array([str(v) for v in plain] if kind == pa.string() else plain, kind)
        assert column(values).users().tolist() == plain
    odd = column(pa.array(["ann", "007", "", None, "ann"])).users()
    assert (odd[[0, 1, 2, 4]] >= 0).all() and odd[3] == -1 and odd[0] == odd[4] and len(set(odd.tolist())) == 4
    assert column(pa.array(["ann"])).users()[0] == 2734568703782763149  # files and runs of other days hold this number
    assert (column(pa.array([2**64 - 1, 2**63], pa.uint64())).users() >= 0).all()
    assert column(pa.array([3.0, None, np.nan])).users().tolist() == [3, -1, -1]
    mixed = column(pa.array([-5, 3, None])).users()
    assert mixed[0] > 0 and mixed[1:].tolist() == [3, -1]
    with pytest.raises(DataError, match="column 'x' is double; users must be integers or strings"):
        column(pa.array([1.5])).users()


VALUES = {
    "integer": st.integers(-3, 5),
    "unsigned": st.integers(2**64 - 4, 2**64 - 1),
    "number": st.sampled_from([0.5, -1.5, 2.25]),
    "string": st.sampled_from(["", "a", "B", "é", "ab"]),
}


@pytest.mark.parametrize("kind", VALUES)
def test_vocabularies_order_by_count_then_value(kind):
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.lists(st.none() | VALUES[kind], max_size=12), max_size=4), st.integers(1, 3))
    def check(batches, min_count):
        counts = ValueCounts(kind)
        for batch in batches:
            counts.add(pa.array(batch, counts._type))
        vocabulary = counts.vocabulary(min_count)
        found = collections.Counter(v for batch in batches for v in batch if v is not None)
        kept = [v for v, n in found.items() if n >= min_count]
        expected = sorted(kept, key=lambda v: (-found[v], v.encode() if isinstance(v, str) else v))
        assert vocabulary.values.to_pylist() == expected
        ids = {v: k + 1 for k, v in enumerate(expected)}
        every = [v for batch in batches for v in batch]
        encoded = vocabulary.ids(column(pa.array(every, counts._type)))
        assert encoded.tolist() == [-1 if v is None else ids.get(v, 0) for v in every]

    check()


@pytest.mark.parametrize(
    "known, values, expected",
    [
        (pa.array([5, 7]), pa.array([7, None, 9], pa.int16()), [2, -1, 0]),
        (pa.array([5, 7]), pa.array([7.0, np.nan, None]), [2, -1, -1]),
        (pa.array([0, 1]), pa.array([True, False, None]), [2, 1, -1]),
        (pa.array([2**63], pa.uint64()), pa.array([5]), [0]),
        (pa.array([5]), pa.array([5], pa.uint64()), [1]),
        (pa.array(["5"]), pa.nulls(2), [-1, -1]),
        (pa.array([0.5, 2.0]), pa.array([2]), [2]),
    ],
)
def test_values_of_a_near_type_are_found(known, values, expected):
    assert Vocabulary(known).ids(column(values)).tolist() == expected


@pytest.mark.parametrize(
    "known, values, message",
    [
        (pa.array([5]), pa.array(["5"]), "column 'x' is string; its values were of the kind 'integer'"),
        (pa.array(["5"]), pa.array([5]), "column 'x' is int64; its values were of the kind 'string'"),
        (pa.array([5]), pa.array([5.5]), "'x' has a value that does not fit"),
        (pa.array([5]), pa.array([2**63], pa.uint64()), "'x' has a value that does not fit"),
        (pa.array([5], pa.uint64()), pa.array([-1]), "'x' has a value that does not fit"),
    ],
)
def test_values_of_another_type_are_refused(known, values, message):
    with pytest.raises(DataError, match=message):
        Vocabulary(known).ids(column(values))


@pytest.mark.parametrize("log", [False, True])
def test_scaling_is_that_of_all_values_at_once(log):
    rng = np.random.default_rng(0)
    batches = [rng.normal(1e6, 1.0, n) for n in (1, 100, 0, 50)]
    batches[1][3] = np.nan
    moments = Moments(log)
    for batch in batches:
        moments.add(batch)
    scaling = moments.scaling()
    whole = np.concatenate(batches)
    known = whole[~np.isnan(whole)]
    expected = np.log1p(known) if log else known
    assert scaling.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert scaling.std == pytest.approx(expected.std(), rel=1e-6)
    assert scaling.has_missing
    scaled = scaling.apply(whole)
    assert scaled[np.isnan(whole)] == 0 and abs(scaled.mean()) < 1e-6 and scaled.dtype == np.float32


def test_constant_and_absent_values_scale_to_zero():
    for values in (np.full(9, 0.1), np.full(3, np.nan), np.zeros(0)):
        moments = Moments(False)
        moments.add(values)
        scaling = moments.scaling()
        assert scaling.std == 1.0
        np.testing.assert_allclose(scaling.apply(values), 0, atol=1e-7)


EVENT = np.dtype([("user", "<i8"), ("time", "<i8"), ("ids", [("ad", "<i4"), ("click", "<i4")])])


def events(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    records = np.array([(u, t, (a, c)) for u, t, a, c in rows], EVENT)
    return records[event_order(records)]


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1), st.integers(-1, 1)), max_size=14)


@settings(max_examples=100, deadline=None)
@given(ROWS, ROWS)
def test_the_union_has_each_event_once(kept, given_rows):
    """Given events all stay; of equal ones (but for the outcome) there are as many as in the set with more of them."""
    merged = union(events(kept), events(given_rows), ("ad",))
    keys = [collections.Counter(row[:3] for row in rows) for rows in (kept, given_rows)]
    found = [(int(r["user"]), int(r["time"]), int(r["ids"]["ad"]), int(r["ids"]["click"])) for r in merged]
    assert collections.Counter(row[:3] for row in found) == keys[0] | keys[1]
    assert not collections.Counter(given_rows) - collections.Counter(found)
    assert not collections.Counter(found) - (collections.Counter(given_rows) + collections.Counter(kept))
    assert found == sorted(found)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(0, 4))
def test_kept_events_give_whole_histories_from_a_tick_on(rows, most, start):
    log = events(rows)
    whole, kept = (log_of(records, 1) for records in (log, newest(log, most, start)))
    users, times = (values.reshape(-1) for values in np.meshgrid(np.arange(3), np.arange(start, 6)))
    expected, found = (one.histories(*one.earlier(users, times, most), times) for one in (whole, kept))
    assert_same_columns(found, expected, "histories")
    assert (np.unique(kept.user, return_counts=True)[1] <= most).all() or (log["time"] >= start).any()


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 4))
def test_the_newest_of_a_union_need_only_the_newest_kept(rows, most):
    """Why the last events of each user are enough to score what comes later."""
    log = events(rows)
    later = events([(0, 4, 1, 0), (1, 5, 0, 1)])
    few, whole = (newest(union(kept, later, ("ad",)), most, 9) for kept in (newest(log, most, 9), log))
    np.testing.assert_array_equal(few, whole)
