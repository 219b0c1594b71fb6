"""The synthetic stream: pure, consistent from example to example, its probabilities those of its equations and of its labels."""

import collections
import dataclasses

import numpy as np
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.synthetic import SyntheticConfig, SyntheticSource, clock, laws, reports, tape
from gem_jax.data.synthetic.ladder_features import crosses_up_to
from gem_jax.data.synthetic.laws import DAY_S
from gem_jax.errors import UserError
from tests.gem_jax.data.stream_reference import Reference, past

SMALL = SyntheticConfig(seed=3, train_examples=3_000, test_examples=1_000, active_users=60, active_ads=48)
WHOLE = dataclasses.replace(SMALL, organic_max_len=1_000, impressions_max_len=1_000)
"""Shows whole pasts."""


def read_all(source: SyntheticSource, step: int = 1) -> Examples:
    return source.read(np.arange(0, len(source), step))


@pytest.fixture(scope="module")
def default():
    return SyntheticConfig(train_examples=200_000, active_users=1_000).build()


@pytest.fixture(scope="module")
def spread(default) -> Examples:
    """10 000 examples from all over 80 days."""
    return read_all(default.train, step=20)


@pytest.fixture(scope="module")
def short():
    return SMALL.build()


@pytest.fixture(scope="module")
def whole():
    return WHOLE.build()


@pytest.fixture(scope="module")
def small(whole) -> Examples:
    return read_all(whole.train)


def events(examples: Examples, name: str) -> list[list[tuple]]:
    """Each example's history as a list of (age_s, {attribute: id}), oldest first."""
    history = examples.sequences[name]
    columns = [a.tolist() for a in history.ids.values()]
    rows = [
        (age, dict(zip(history.ids, v, strict=True))) for age, *v in zip(history.age_s.tolist(), *columns, strict=True)
    ]
    ends = np.cumsum(history.lengths)
    return [rows[end - length : end] for end, length in zip(ends, history.lengths, strict=True)]


def assert_same(a: Examples, b: Examples):
    for field in dataclasses.fields(Examples):
        if field.name == "sequences":
            for name in a.sequences:
                assert events(a, name) == events(b, name)
        elif isinstance(getattr(a, field.name), dict):
            for name, value in getattr(a, field.name).items():
                np.testing.assert_array_equal(value, getattr(b, field.name)[name])
        else:
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


# --- a pure function of (seed, index) ------------------------------------------------------------------------------------------


def test_an_example_is_the_same_alone_in_any_chunk_and_in_a_longer_stream(short):
    source = short.train
    order = np.random.default_rng(0).permutation(580)[:200]
    chunk = source.read(order)
    np.testing.assert_array_equal(chunk.example_id, order)
    for k in range(20):
        alone = source.read(order[k : k + 1])
        for name, ids in alone.ids.items():
            np.testing.assert_array_equal(ids[0], chunk.ids[name][k])
        for column in ("dense", "labels", "domain", "user", "time_s", "true_probability"):
            np.testing.assert_array_equal(getattr(alone, column)[0], getattr(chunk, column)[k])
        for name in alone.sequences:
            assert events(alone, name)[0] == events(chunk, name)[k]
    longer = dataclasses.replace(SMALL, train_examples=8_000).build().train
    assert_same(chunk, longer.read(order))
    np.testing.assert_array_equal(source.oracle(order), longer.oracle(order))


@pytest.mark.slow
def test_a_stream_that_does_not_fit_in_memory_is_the_same(monkeypatch):
    """With the least memory, chunks that go over many generations are made piece by piece."""
    config = dataclasses.replace(SMALL, train_examples=3_600, active_users=20)
    index = np.random.default_rng(0).integers(0, 3_600, 100)
    whole = config.build().train
    monkeypatch.setattr(tape, "SHELF_BYTES", 0)
    monkeypatch.setattr(tape, "ORDERED", 0)
    scarce = config.build().train
    assert scarce.stream.tape._shelves == 2 < whole.stream.tape._shelves
    assert_same(whole.read(index), scarce.read(index))
    np.testing.assert_array_equal(whole.oracle(index), scarce.oracle(index))


def test_the_test_part_follows_the_training_part(short):
    splits = short
    longer = dataclasses.replace(SMALL, train_examples=3_500, test_examples=500).build()
    assert_same(splits.test.read(np.arange(500)), longer.train.read(np.arange(3_000, 3_500)))
    assert (len(splits.train), len(splits.test)) == (3_000, 1_000)
    with pytest.raises(IndexError, match=r"\[0, 1000\)"):
        splits.test.read(np.array([1_000]))


def test_another_seed_is_another_world(short):
    index = np.arange(0, 500, 5)
    a, b = (splits.train.read(index) for splits in (short, dataclasses.replace(SMALL, seed=4).build()))
    assert not np.array_equal(a.ids["ad"], b.ids["ad"])
    assert not np.array_equal(a.true_probability[:, 0], b.true_probability[:, 0])


def test_examples_are_in_order_of_time(small):
    assert (np.diff(small.time_s) >= 0).all()
    slab = clock.slab_size(WHOLE.active_users)
    np.testing.assert_array_equal(small.time_s // clock.SLAB_S, clock.FIRST_SLAB + np.arange(len(small)) // slab)
    np.testing.assert_array_equal(small.ids["hour"][:, 0], small.time_s % DAY_S // 3600)


def test_contents_fit_the_schema(default, spread):
    schema = default.schema
    assert schema == default.train.stream.config.schema()
    for feature in schema.categoricals:
        ids = spread.ids[feature.name]
        assert ids.dtype == np.int32 and ids.shape == (len(spread), feature.max_ids)
        assert -1 <= ids.min() and ids.max() < schema.table(feature.table).rows
        assert feature.max_ids > 1 or ids.min() >= 0
    for sequence in schema.sequences:
        history = spread.sequences[sequence.name]
        assert history.lengths.max() == sequence.max_len and history.lengths.sum() == len(history.age_s)
        assert history.age_s.min() >= 0 and history.age_s.dtype == np.int32
        for attribute in sequence.attributes:
            ids = history.ids[attribute.name]
            assert ids.dtype == np.int32 and 0 <= ids.min() and ids.max() < schema.table(attribute.table).rows
    assert set(spread.ids) == {c.name for c in schema.categoricals} >= set(laws.CROSS_FEATURES)
    assert set(spread.training) == {t.name for t in schema.training}
    assert spread.dense.shape[1] == len(schema.dense) and np.isfinite(spread.dense).all()
    assert 0.3 < np.abs(spread.dense).mean() < 3.0
    np.testing.assert_array_equal(spread.domain, spread.ids["surface"][:, 0])


def test_every_user_and_ad_of_the_tables_is_within_reach(short):
    """The closed form of the schema is neither short nor wasteful: at its end the stream uses the last ids."""
    last = short.test
    found = read_all(last)
    users, ads = (last.schema.table(name).rows for name in ("user", "ad"))
    assert users - 60 <= found.user.max() < users
    assert ads - 48 <= found.ids["ad"].max() < ads


def test_empty_read(default):
    examples = default.train.read(np.zeros(0, np.int64))
    assert len(examples) == 0 and len(examples.sequences["organic"].age_s) == 0


def test_config_says_what_to_change():
    for fields, message in (
        ({"active_users": 5}, "at least 20"),
        ({"active_ads": 50}, "multiple of 24"),
        ({"read_days": -1.0}, "read_days=-1.0"),
        ({"crosses": 0}, "crosses=0"),
    ):
        with pytest.raises(UserError, match=message):
            SyntheticConfig(**fields)


# --- one history -----------------------------------------------------------------------------------------------------------------


def test_earlier_impressions_are_the_later_history(small):
    """Row by row: what a user saw before is in the history with its attributes, its label, and the right age."""
    histories = events(small, "impressions")
    shown_of = collections.defaultdict(list)
    late_conversions = checked = 0
    for i, user in enumerate(small.user):
        before, history = shown_of[user], histories[i]
        assert len(history) >= len(before)
        for j, (age, event) in zip(before, history[len(history) - len(before) :], strict=True):
            assert age == small.time_s[i] - small.time_s[j]
            for name in ("ad", "category", "advertiser", "format", "surface", "price"):
                assert event[name] == small.ids[name][j, 0], (i, j, name)
            clicked, converted = small.labels[j]
            assert (event["action"] >= 1) == (clicked == 1)
            if event["action"] == 2:
                assert converted == 1
            if converted == 1 and age >= 45 * DAY_S:
                assert event["action"] == 2
            late_conversions += converted == 1 and event["action"] == 1
            checked += 1
        before.append(i)
    assert checked > 20_000 and late_conversions > 0


@pytest.mark.slow
def test_a_shorter_history_is_the_newest_of_the_longer(small, short):
    short = read_all(short.train)
    for name, max_len in (("organic", SMALL.organic_max_len), ("impressions", SMALL.impressions_max_len)):
        for shown, whole in zip(events(short, name), events(small, name), strict=True):
            assert shown == whole[max(len(whole) - max_len, 0) :]
    np.testing.assert_array_equal(short.true_probability, small.true_probability)


def test_organic_events_are_the_same_from_example_to_example(small):
    seen, shared = collections.defaultdict(dict), 0
    for user, now, history in zip(small.user, small.time_s, events(small, "organic"), strict=True):
        for age, event in history[-100:]:
            known = seen[user].setdefault(now - age, event)
            shared += known is not event
            assert known == event
        ages = [age for age, _ in history]
        assert ages == sorted(ages, reverse=True)
    assert shared > 20_000


def test_more_organic_events_when_asked():
    """Of the same users before as many impressions, so twice as many but for chance."""
    many = dataclasses.replace(WHOLE, organic_intensity=2, organic_max_len=10_000, active_users=20).build().train
    few = dataclasses.replace(WHOLE, active_users=20).build().train
    events_shown = [s.read(np.arange(clock.slab_size(20))).sequences["organic"].lengths.sum() for s in (many, few)]
    assert 1.9 < events_shown[0] / events_shown[1] < 2.1


# --- the probabilities are those of the equations --------------------------------------------------------------------------------


def chosen(examples: Examples) -> np.ndarray:
    """Some examples, those whose users converted most, and those that are likeliest to convert."""
    history = examples.sequences["impressions"]
    row = np.repeat(np.arange(len(examples)), history.lengths)
    conversions = np.bincount(row, history.ids["action"] == 2, len(examples))
    likely = np.nan_to_num(examples.true_probability[:, 1])
    found = [np.argsort(key, kind="stable")[-4:] for key in (conversions, likely)]
    return np.unique(np.concatenate([np.arange(300, 3_000, 250), *found]))


@pytest.fixture(scope="module")
def stories(whole, small):
    """Whole pasts of some examples, ready for the reference, with the stream's own probabilities [n, 2]."""
    index = chosen(small)
    examples, stream = whole.train.read(index), whole.train.stream
    slab, position = np.divmod(index, clock.slab_size(WHOLE.active_users))
    found = []
    for row in range(len(index)):
        place = stream.tape.locate(int(slab[row]) + clock.FIRST_SLAB, position[row : row + 1])
        first, end = int(place.impression[0] - place.turn[0]), int(place.impression[0])
        began_s = int(place.began_s[0])
        time_s, due = (stream.tape.impressions[name][first:end] for name in ("time_s", "due"))
        reported = {began_s + int(t): began_s + int(d) for t, d in zip(time_s, due, strict=True) if 0 <= d < 2**31 - 1}
        user = {name: int(examples.ids[name][row, 0]) for name in ("age", "country", "language", "device")}
        interests = [i for i in examples.ids["interests"][row].tolist() if i >= 0]
        chain = (user, interests, began_s)
        found.append((past(examples, row), reported, chain))
    convert = [
        stream.tape.impressions["convert"][stream.tape.locate(int(s) + clock.FIRST_SLAB, np.array([p])).impression[0]]
        for s, p in zip(slab, position, strict=True)
    ]
    return stream, found, np.stack([examples.true_probability[:, 0], convert], axis=1)


def recomputed(stories) -> np.ndarray:
    stream, found, _ = stories
    return np.array(
        [Reference(stream.laws, stream.ads, *chain).probabilities(story, due) for story, due, chain in found]
    )


def test_probabilities_follow_from_what_examples_show(stories):
    """A dense float64 chain over the whole past gives the stream's float32 filter: hundreds of events, each rounded at 6e-8."""
    _, found, own = stories
    assert max(len(story.kind) for story, _, _ in found) > 700 and any(due for _, due, _ in found)
    np.testing.assert_allclose(own, recomputed(stories), rtol=5e-5, atol=0)


REMOVED = {
    "intents fade": ("STAGE_DAYS", np.array([1e6, 1e6, 1e6])),
    "intents begin": ("BIRTH_PER_DAY", 0.0),
    "trend": ("TREND", 0.0),
    "succession": ("SUCCESSION", 0.0),
    "satiation": ("SATIATION_DAYS", 1e-3),
    "interests": ("TASTE", 0.0),
    "organic events on topic": ("ON_TOPIC", 0.0),
    "actions by stage": ("ACTIONS", np.tile(laws.ACTIONS_IDLE, (3, 1))),
    "order": ("PROGRESS", np.zeros(2)),
    "order in time": ("PROGRESS_WITHIN_S", 60),
    "styles": ("STYLE_WEIGHT", 0.0),
    "limit of style evidence": ("STYLE_LIMIT", 0.5),
    "fatigue fades": ("FATIGUE_DAYS", 1e6),
    "clicked price": ("PRICE_MATCH", 0.0),
    "clicked price fades": ("TIER_DAYS", 1e6),
    "drift": ("DRIFT", 0.0),
    "conversions by stage": ("CONVERT_STAGE_3", 0.0),
    "conversions by goal": ("CONVERT_GOAL", np.zeros(4)),
}


@pytest.mark.parametrize("what", REMOVED)
def test_every_mechanism_counts(stories, what, monkeypatch):
    before = recomputed_once(stories)
    name, value = REMOVED[what]
    monkeypatch.setattr(laws, name, value)
    change = np.abs(np.log(recomputed(stories) / before)).max(axis=1)
    assert (change > 1e-3).any(), change


_BEFORE: list[np.ndarray] = []


def recomputed_once(stories) -> np.ndarray:
    if not _BEFORE:
        _BEFORE.append(recomputed(stories))
    return _BEFORE[0]


@pytest.mark.parametrize("what", ["gamma", "weight", "fatigue", "base"])
def test_domains_differ(what):
    world = laws.Laws(0, 64)
    values = getattr(world, what).reshape(len(laws.SURFACES), -1)
    assert len(np.unique(values, axis=0)) == len(laws.SURFACES)
    if what == "weight":  # they share and differ: turned from what they share by about half a radian
        shared = world.shared_weight * world.cross_scale
        cosine = values @ shared / np.linalg.norm(values, axis=1) / np.linalg.norm(shared)
        assert (cosine > 0.6).all() and (cosine < 0.99).all()


def test_deep_products_count():
    """Terms of three and more features hold a tenth of the crosses' variance at least."""
    world, rng = laws.Laws(1, 64), np.random.default_rng(0)
    ids = {name: rng.integers(0, rows, 4_000) for name, rows in zip(laws.CROSS_FEATURES, laws.CROSS_ROWS, strict=True)}
    whole = world.crosses(ids)
    np.testing.assert_allclose(crosses_up_to(world, ids, 6, world.weight), whole, atol=2e-5)
    left = [np.var(whole - crosses_up_to(world, ids, k, world.weight)) / np.var(whole) for k in (1, 2, 3)]
    assert 0.9 > left[0] > left[1] > 0.1 and left[1] > left[2] > 0


# --- and of the labels -----------------------------------------------------------------------------------------------------------


def test_rates(spread):
    click, conversion = spread.labels.T
    assert 0.035 < click.mean() < 0.065
    assert 0.08 < np.nansum(conversion) / click[~np.isnan(conversion)].sum() < 0.25
    assert set(np.unique(click)) == {0.0, 1.0}
    assert 0.05 < np.isnan(conversion).mean() < 0.25
    assert (click[conversion == 1] == 1).all()


def test_conversions_are_unobserved_exactly_without_a_signal(spread):
    unobserved = np.isnan(spread.labels[:, 1])
    np.testing.assert_array_equal(unobserved, spread.ids["signal"][:, 0] == laws.SIGNALS.index("none"))
    np.testing.assert_array_equal(unobserved, np.isnan(spread.true_probability[:, 1]))


def sums_by_user(user: np.ndarray, group: np.ndarray, excess: np.ndarray) -> float:
    """z of the sum of `excess` over a group, users being independent."""
    _, number = np.unique(user, return_inverse=True)
    total = np.bincount(number, excess * group)
    return total.sum() / np.sqrt((total**2).sum())


@pytest.fixture(scope="module")
def calibrated():
    """(user, true probabilities [n, 2], labels [n, 2], oracle [n]) of 300 000 examples."""
    source = SyntheticConfig(
        train_examples=300_000, active_users=4_000, organic_max_len=1, impressions_max_len=1
    ).build()
    parts = [source.train.read(k + np.arange(30_000)) for k in range(0, 300_000, 30_000)]
    oracle = source.train.oracle(np.arange(300_000))
    user, p, y = (np.concatenate([getattr(x, n) for x in parts]) for n in ("user", "true_probability", "labels"))
    return user, p.astype(np.float64), y, oracle.astype(np.float64)


@pytest.mark.parametrize("task", [0, 1])
def test_labels_are_calibrated_to_the_truth(calibrated, task):
    """Labels less probabilities: |z| < 4 overall and by decile of the probability."""
    p, y = calibrated[1][:, task], calibrated[2][:, task]
    p, y = p[~np.isnan(y)], y[~np.isnan(y)]
    decile = np.searchsorted(np.quantile(p, np.arange(0.1, 1.0, 0.1)), p)
    for group in [decile >= 0, *(decile == k for k in range(10))]:
        assert abs((y - p)[group].sum()) < 4 * np.sqrt((p * (1 - p))[group].sum())


def test_the_filter_is_calibrated_to_the_hidden_intents(calibrated):
    """The oracle's probability, averaged over what the filter cannot know, is the filter's: by decile, |z| < 4."""
    user, p, _, oracle = calibrated
    p = p[:, 0]
    decile = np.searchsorted(np.quantile(p, np.arange(0.1, 1.0, 0.1)), p)
    for k in range(10):
        assert abs(sums_by_user(user, decile == k, oracle - p)) < 4
    assert np.mean(np.abs(np.log(oracle / p)) > 0.1) > 0.2


# --- reports ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_days", [0.0, 2.0, 10.0, 60.0])
def test_reports_come_as_often_as_they_say(read_days):
    rng, n = np.random.default_rng(0), 400_000
    convert, goal, signal = rng.random(n).astype(np.float32), rng.integers(0, 4, n), rng.integers(0, 5, n)
    delay = reports.draw_reports(rng, convert, goal, signal)
    p = reports.Reports(read_days).probability(convert, goal, signal)
    in_time = (delay >= 0) & (delay <= read_days * DAY_S)
    for m in range(5):
        own = signal == m
        assert abs((in_time[own] - p[own]).sum()) <= 4 * np.sqrt((p[own] * (1 - p[own])).sum()) + n / 5 * 2e-5


def test_labels_are_as_of_the_read_time():
    final, early = (
        dataclasses.replace(SMALL, train_examples=2_900, active_users=300, read_days=d).build().train
        for d in (45.0, 1.0)
    )
    a, b = read_all(final), read_all(early)
    np.testing.assert_array_equal(a.labels[:, 0], b.labels[:, 0])
    observed = ~np.isnan(a.labels[:, 1])
    assert (b.labels[observed, 1] <= a.labels[observed, 1]).all()
    assert 0.1 < b.labels[observed, 1].sum() / a.labels[observed, 1].sum() < 0.8
    np.testing.assert_array_equal(b.training["conversion_final"][:, 0], a.labels[:, 1])
    np.testing.assert_allclose(
        b.true_probability[observed, 1],
        (a.true_probability[:, 1] * b.training["maturity"][:, 0])[observed],
        rtol=1e-5,
    )
    np.testing.assert_allclose(a.training["maturity"][observed], 1.0)


# --- like ads --------------------------------------------------------------------------------------------------------------------


def test_lengths_are_uneven(spread):
    for history in spread.sequences.values():
        share = np.bincount(history.lengths) / len(spread)
        assert share[0] > 0.001 and share[-1] > 0.1
        assert np.mean(share[1:-1] > 0) > 0.9


def test_popularity_is_heavy_tailed(spread):
    count = np.sort(np.bincount(spread.ids["ad"][:, 0]))[::-1]
    assert count[: len(count) // 10].sum() > 0.35 * count.sum()


def test_ads_come_and_go(default):
    parts = [default.train.read(np.arange(start, start + 5_000)) for start in (0, 195_000)]
    first, last = (part.ids["ad"][:, 0] for part in parts)
    assert len(np.intersect1d(first, last)) < 0.2 * len(np.unique(last))
    assert first.max() < np.median(last)
    assert not set(parts[0].user) >= set(parts[1].user)


def test_events_come_in_sessions(spread):
    """Most gaps are of minutes, most of the others of hours."""
    history = spread.sequences["organic"]
    same = np.diff(np.repeat(np.arange(len(spread)), history.lengths)) == 0
    gap = -np.diff(history.age_s)[same]
    assert np.mean(gap < 600) > 0.4 and np.mean(gap > 2 * 3600) > 0.1
    assert np.mean((gap > 900) & (gap < 1800)) < 0.05
