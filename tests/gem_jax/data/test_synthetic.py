"""The synthetic stream: pure, consistent from example to example, calibrated to its own truth."""

import collections
import dataclasses

import numpy as np
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.synthetic import SyntheticConfig, SyntheticSource, population
from gem_jax.data.synthetic.source import World
from gem_jax.data.synthetic.truth import Impressions

SMALL = SyntheticConfig(seed=3, train_examples=4_000, test_examples=1_000, active_users=60, active_ads=64)
DAY_S = 86_400


def read_all(source: SyntheticSource, step: int = 1) -> Examples:
    return source.read(np.arange(0, len(source), step))


@pytest.fixture(scope="module")
def default():
    return SyntheticConfig().build()


@pytest.fixture(scope="module")
def spread(default) -> Examples:
    """20 000 examples from all over the default training part."""
    return read_all(default.train, step=20)


@pytest.fixture(scope="module")
def small() -> Examples:
    return read_all(SMALL.build().train)


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


def test_an_example_is_the_same_alone_in_any_chunk_and_in_a_longer_stream():
    source = SMALL.build().train
    order = np.random.default_rng(0).permutation(len(source))[:200]
    chunk = source.read(order)
    for k in range(20):
        alone = source.read(order[k : k + 1])
        for name, ids in alone.ids.items():
            np.testing.assert_array_equal(ids[0], chunk.ids[name][k])
        for column in ("dense", "labels", "domain", "user", "true_probability"):
            np.testing.assert_array_equal(getattr(alone, column)[0], getattr(chunk, column)[k])
        for name in alone.sequences:
            assert events(alone, name)[0] == events(chunk, name)[k]
    longer = dataclasses.replace(SMALL, train_examples=90_000).build().train
    assert_same(chunk, longer.read(order))


def test_the_test_part_follows_the_training_part():
    splits = SMALL.build()
    longer = dataclasses.replace(SMALL, train_examples=4_500, test_examples=500).build()
    assert_same(splits.test.read(np.arange(500)), longer.train.read(np.arange(4_000, 4_500)))
    assert (len(splits.train), len(splits.test)) == (4_000, 1_000)
    with pytest.raises(IndexError, match=r"\[0, 1000\)"):
        splits.test.read(np.array([1_000]))


def test_another_seed_is_another_world():
    a = read_all(SMALL.build().train, 100)
    b = read_all(dataclasses.replace(SMALL, seed=4).build().train, 100)
    assert not np.array_equal(a.ids["user"], b.ids["user"])
    assert not np.array_equal(a.labels[:, 0], b.labels[:, 0])


def test_contents_fit_the_schema(default, spread):
    schema = default.schema
    for feature in schema.categoricals:
        ids = spread.ids[feature.name]
        assert ids.dtype == np.int32 and ids.shape == (len(spread), feature.max_ids)
        assert -1 <= ids.min() and ids.max() < schema.table(feature.table).rows
        assert feature.max_ids > 1 or ids.min() >= 0
    for sequence in schema.sequences:
        history = spread.sequences[sequence.name]
        assert history.lengths.max() == sequence.max_len and history.lengths.sum() == len(history.age_s)
        assert history.age_s.min() >= 0
        for attribute in sequence.attributes:
            ids = history.ids[attribute.name]
            assert ids.dtype == np.int32 and 0 <= ids.min() and ids.max() < schema.table(attribute.table).rows
    assert set(spread.ids) == {c.name for c in schema.categoricals}
    assert spread.dense.shape[1] == len(schema.dense) and np.isfinite(spread.dense).all()
    assert 0.3 < np.abs(spread.dense).mean() < 3.0
    np.testing.assert_array_equal(spread.domain, spread.ids["surface"][:, 0])
    assert {f.role for f in (*schema.categoricals, *schema.dense)} == {
        "user", "context", "ad", "goal", "format", "measurement", "surface",
    }  # fmt: skip


def test_empty_read(default):
    examples = default.train.read(np.zeros(0, np.int64))
    assert len(examples) == 0 and len(examples.sequences["organic"].age_s) == 0


def test_earlier_impressions_are_the_later_history(small):
    """Row by row: what a user saw before is in the history with its attributes, its label, and the right age."""
    histories = events(small, "impressions")
    shown_of = collections.defaultdict(list)  # user -> (example, its time on the user's own clock)
    max_len = SMALL.impressions_max_len
    late_conversions = checked = 0
    for i, user in enumerate(small.user):
        past, history = shown_of[user], histories[i]
        in_stream = min(len(past), max_len)
        assert len(history) >= in_stream
        now = past[-1][1] + history[-1][0] if past else 0
        for (j, then), (age, event) in zip(
            past[len(past) - in_stream :], history[len(history) - in_stream :], strict=True
        ):
            assert age == now - then
            for name in ("ad", "category", "advertiser", "format", "surface"):
                assert event[name] == small.ids[name][j, 0], (i, j, name)
            clicked, converted = small.labels[j]
            assert (event["action"] >= 1) == (clicked == 1)
            if event["action"] == 2:
                assert converted == 1
            if converted == 1 and age >= 7 * DAY_S:
                assert event["action"] == 2
            late_conversions += converted == 1 and event["action"] == 1
            checked += 1
        if past:  # the clock agrees with the hour that the examples state
            elapsed_h = (small.ids["hour"][i, 0] - small.ids["hour"][past[-1][0], 0]) % 24
            assert abs((history[-1][0] / 3600 - elapsed_h + 12) % 24 - 12) <= 1
        shown_of[user].append((i, now))
    assert checked > 20_000 and late_conversions > 0


def test_organic_events_are_the_same_from_example_to_example(small):
    organic, impressions = events(small, "organic"), events(small, "impressions")
    clock, seen, shared = {}, collections.defaultdict(dict), 0
    for i, user in enumerate(small.user):
        clock[user] = clock[user] + impressions[i][-1][0] if user in clock else 0
        for age, event in organic[i]:
            known = seen[user].setdefault(clock[user] - age, event)
            shared += known is not event
            assert known == event
        ages = [age for age, _ in organic[i]]
        assert ages == sorted(ages, reverse=True)
    assert shared > 20_000


def test_truth_follows_from_what_the_example_shows(default):
    """Match and fatigue recomputed event by event from the examples alone give back the true probability."""
    source, world = default.train, default.train.world
    index = np.random.default_rng(1).integers(0, len(source), 400)
    examples = source.read(index)
    match, fatigue = [], []
    shown = zip(events(examples, "organic"), events(examples, "impressions"), strict=True)
    for row, (organic, impressions) in enumerate(shown):
        ad, advertiser, category = (examples.ids[name][row, 0] for name in ("ad", "advertiser", "category"))
        weights = [(1.0, 2.0, 4.0)[e["action"]] * 0.85**k for k, (_, e) in enumerate(organic[::-1][:8])]
        on_topic = [e["topic"] == category for _, e in organic[::-1][:8]]
        match.append(np.dot(weights, on_topic) / sum(weights) if weights else 0.0)
        newest = [e for _, e in impressions[-8:]]
        times = sum(e["ad"] == ad for e in newest) + 0.5 * sum(e["advertiser"] == advertiser for e in newest)
        fatigue.append(1.0 - 0.5**times)
    _, user, time_s = world.schedule.locate(index + world.schedule.first_index)
    impressions = Impressions(
        user=user,
        ad=examples.ids["ad"][:, 0],
        surface=examples.ids["surface"][:, 0],
        device=examples.ids["device"][:, 0],
        time_s=time_s,
        match=np.array(match),
        fatigue=np.array(fatigue),
    )
    np.testing.assert_array_equal(user, examples.user)
    np.testing.assert_allclose(world.truth.click(impressions), examples.true_probability[:, 0], rtol=1e-6)
    assert np.std(match) > 0.2 and np.std(fatigue) > 0.1


def test_rates(spread):
    """A few per cent of clicks, a few per mille of conversions; a fifth or so of the ads has no signal."""
    click, conversion = spread.labels.T
    assert 0.04 < click.mean() < 0.06
    assert 0.003 < np.nanmean(conversion) < 0.008
    assert set(np.unique(click)) == {0.0, 1.0}
    assert 0.1 < np.isnan(conversion).mean() < 0.35
    assert (click[conversion == 1] == 1).all()
    by_surface = [click[spread.domain == d].mean() for d in range(3)]
    assert max(by_surface) > 1.4 * min(by_surface)


def test_conversions_are_unobserved_exactly_without_a_signal(spread):
    unobserved = np.isnan(spread.labels[:, 1])
    np.testing.assert_array_equal(unobserved, spread.ids["signal"][:, 0] == population.SIGNALS.index("none"))
    np.testing.assert_array_equal(unobserved, np.isnan(spread.true_probability[:, 1]))


@pytest.mark.parametrize("task", [0, 1])
def test_labels_are_calibrated_to_the_truth(spread, task):
    """Sums of labels against sums of probabilities: |z| < 4, overall, by domain and by decile of the probability."""
    y, p = spread.labels[:, task], spread.true_probability[:, task].astype(np.float64)
    observed = ~np.isnan(y)
    decile = np.searchsorted(np.nanquantile(p, np.arange(0.1, 1.0, 0.1)), p)
    groups = [
        observed,
        *(observed & (spread.domain == d) for d in range(3)),
        *(observed & (decile == k) for k in range(10)),
    ]
    for group in groups:
        z = (y[group].sum() - p[group].sum()) / np.sqrt((p[group] * (1 - p[group])).sum())
        assert abs(z) < 4


def test_lengths_are_uneven(spread):
    for history in spread.sequences.values():
        share = np.bincount(history.lengths) / len(spread)
        assert share[0] > 0.02 and share[-1] > 0.1
        assert (share[1:-1] > 0.002).all()


def test_popularity_is_heavy_tailed(spread):
    count = np.sort(np.bincount(spread.ids["ad"][:, 0]))[::-1]
    assert count[: len(count) // 10].sum() > 0.35 * count.sum()


def test_ads_come_and_go_and_tastes_drift(default):
    parts = [default.train.read(np.arange(start, start + 5_000)) for start in range(0, 400_000, 98_000)]
    ads = [set(part.ids["ad"][:, 0].tolist()) for part in parts]
    assert not ads[0] & ads[-1]  # 80 days apart, and an ad runs 25
    assert max(ads[0]) < max(ads[-1])
    counts = [np.bincount(part.ids["category"][:, 0], minlength=16) for part in parts]
    # Two samples of 5 000 from the same distribution differ by chi2 of about 15 +- 5.
    chi2 = [((a - b) ** 2 / (a + b)).sum() for a, b in zip(counts, counts[1:], strict=False)]
    assert min(chi2) > 60
    newcomers = set(default.test.read(np.arange(5_000)).user) - set(parts[-1].user)
    assert len(newcomers) > 100


def test_interest_moves_in_episodes(default):
    """Neighbouring organic events agree in topic far more often than events ten apart."""
    examples = default.train.read(np.arange(0, 400_000, 200))
    topics = [[e["topic"] for _, e in h] for h in events(examples, "organic") if len(h) >= 20]
    near = np.mean([np.mean(np.equal(t[1:], t[:-1])) for t in topics])
    far = np.mean([np.mean(np.equal(t[10:], t[:-10])) for t in topics])
    assert near > far + 0.03


def _alterations(world: World) -> dict[str, tuple]:
    """Feature -> (table whose column it is, or None for a column of the impressions; the column)."""
    users, ads = world.population.users, world.population.ads
    return {
        "age": (users, "age"), "country": (users, "country"), "interests": (users, "interests"),
        "taste": (users, "taste"), "log_account_age": (users, "joined_s"),
        "category": (ads, "category"), "goal": (ads, "goal"), "format": (ads, "format"), "signal": (ads, "signal"),
        "price": (ads, "price"), "log_ad_age": (ads, "launched_s"), "ad, image": (world.truth, "quality"),
        "hour": (None, "time_s"), "device": (None, "device"), "surface": (None, "surface"),
        "organic": (None, "match"), "impressions": (None, "fatigue"),
    }  # fmt: skip


@pytest.mark.parametrize("feature", _alterations(SMALL.build().train.world))
def test_every_feature_changes_the_truth(feature):
    world = SMALL.build().train.world
    rng = np.random.default_rng(0)
    n, schedule = 2_000, world.schedule
    index = rng.integers(schedule.first_index, schedule.first_index + 4_000, n)
    _, user, time_s = schedule.locate(index)
    ad, surface, device = world.population.serve(index, user, time_s)
    match, fatigue = rng.random((2, n))
    x = Impressions(user=user, ad=ad, surface=surface, device=device, time_s=time_s, match=match, fatigue=fatigue)

    def probability(x: Impressions) -> np.ndarray:
        conversion = np.nan_to_num(world.truth.conversion_given_click(x))
        return world.truth.click(x) * (1.0 + conversion)

    before = probability(x)
    holder, column = _alterations(world)[feature]
    if column == "time_s":
        x = dataclasses.replace(x, time_s=x.time_s + 8 * 3600)
    elif holder is None:
        x = dataclasses.replace(x, **{column: rng.permutation(getattr(x, column))})
    elif column in ("joined_s", "launched_s"):
        setattr(holder, column, getattr(holder, column) - 10 * DAY_S)
    else:
        setattr(holder, column, rng.permutation(getattr(holder, column)))
    changed = np.abs(np.log(probability(x) / before))
    assert np.mean(changed > 0.02) > 0.15


def test_image_shows_the_quality_of_an_ad(default):
    ads, quality = default.train.world.population.ads, default.train.world.truth.quality
    design = np.c_[ads.image, np.ones(ads.count)]
    residual = quality - design @ np.linalg.lstsq(design, quality, rcond=None)[0]
    assert 0.6 < 1.0 - residual.var() / quality.var() < 0.95


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_examples", 0, "train_examples=0"),
        ("test_examples", -1, "test_examples=-1"),
        ("active_users", 3, "active_users=3 is too few"),
        ("active_ads", 100, "active_ads=100 must be a positive multiple of 16"),
        ("organic_max_len", 4, "organic_max_len=4 must be at least 8"),
        ("impressions_max_len", 7, "impressions_max_len=7 must be at least 8"),
        ("seed", -1, "seed=-1"),
    ],
)
def test_wrong_config_says_what_to_change(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})
