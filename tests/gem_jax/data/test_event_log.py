"""Ranges of a log are the histories that a plain search finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.data.columns import MemorySource
from gem_jax.data.event_log import EventLog, LogSource, Past
from tests.gem_jax.data.random_examples import SCHEMA, events_of, random_examples

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 99)), max_size=30)
QUERIES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10)), min_size=1, max_size=10)


def make_log(events, ticks_per_s: int = 1) -> EventLog:
    user, time, ad = np.array(sorted(events), np.int64).reshape(-1, 3).T
    return EventLog(user=user, time=time, ids={"ad": ad.astype(np.int32)}, ticks_per_s=ticks_per_s)


@settings(max_examples=100, deadline=None)
@given(EVENTS, QUERIES, st.integers(1, 5))
def test_earlier_events_are_those_of_a_plain_search(events, queries, most):
    log = make_log(events)
    users, times = np.array(queries, np.int64).T
    first, stop = log.earlier(users, times, most)
    histories = log.histories(first, stop, times)
    ends = np.cumsum(histories.lengths)
    for k, (user, time) in enumerate(queries):
        expected = [e for e in sorted(events) if e[0] == user and e[1] < time][-most:]
        here = slice(ends[k] - histories.lengths[k], ends[k])
        assert histories.ids["ad"][here].tolist() == [e[2] for e in expected]
        assert histories.age_s[here].tolist() == [time - e[1] for e in expected]


@pytest.mark.parametrize("kind", ["memory", "map"])
def test_several_sources_and_ages_in_seconds(tmp_path, kind):
    rng = np.random.default_rng(0)
    examples = random_examples(20)
    times = rng.integers(0, 10_000, 20)
    pasts, logs = {}, {}
    for name in ("clicks", "views"):
        events = [(int(u), int(t), int(a)) for u, t, a in rng.integers(0, (20, 10_000, 50), (200, 3))]
        log = make_log(events, ticks_per_s=1000)
        if kind == "map":
            np.save(tmp_path / f"{name}.npy", log.time)
            log = EventLog(
                user=log.user, time=np.load(tmp_path / f"{name}.npy", mmap_mode="r"), ids=log.ids, ticks_per_s=1000
            )
        logs[name] = log
        pasts[name] = Past(log, *log.earlier(examples.user, times, 7), times)
    bare = MemorySource(schema=SCHEMA.replace(sequences=()), examples=examples)
    source = LogSource(SCHEMA, bare, pasts)
    indices = np.array([3, 17, 3, 0])
    read = source.read(indices)
    np.testing.assert_array_equal(read.ids["ad"], examples.ids["ad"][indices])
    for name, log in logs.items():
        for k, index in enumerate(indices):
            rows = np.flatnonzero((log.user == examples.user[index]) & (log.time < times[index]))[-7:]
            found = events_of(read.sequences[name], k)
            assert found["ad"].tolist() == log.ids["ad"][rows].tolist()
            assert found["age_s"].tolist() == ((times[index] - log.time[rows]) // 1000).tolist()
    shorter = {**pasts, "views": Past(logs["views"], *logs["views"].earlier(examples.user, times, 6), times)}
    assert source.identity() != LogSource(SCHEMA, bare, shorter).identity()
