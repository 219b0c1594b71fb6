"""The synthetic stream as a `Source`: its config, its schema, and reading."""

import dataclasses

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.identity import digest
from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, Vector
from gem_jax.data.source import Splits
from gem_jax.data.synthetic import hashing
from gem_jax.data.synthetic import population as pop
from gem_jax.data.synthetic import truth as truth_
from gem_jax.data.synthetic.schedule import DAY_S, ROUND_S, Schedule, num_rounds, num_users
from gem_jax.errors import UserError

STREAM_VERSION = 1
"""Part of the data's identity: raise it with every change of the rules that changes an example."""

ACTIONS = ("seen", "clicked", "converted")
"""What an impression in a history led to, as far as it is known at the example's time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A stream of ads impressions whose true click and conversion probabilities are known."""

    seed: int = 0
    """Every seed is another world, with other users, ads and tastes."""
    train_examples: int = 400_000
    """The first examples in time."""
    test_examples: int = 50_000
    """The examples after them."""
    active_users: int = 6_400
    """Users at any time; each stays 30 days and is followed by a new one."""
    active_ads: int = 480
    """Ads running at any time, a multiple of 16 (the categories); each runs 25 days and is followed by a new one."""
    organic_max_len: int = 32
    """Newest organic events that an example shows, at least 8."""
    impressions_max_len: int = 24
    """Newest earlier impressions that an example shows, at least 8."""

    def __post_init__(self):
        if self.train_examples < 1 or self.test_examples < 1:
            raise UserError(
                f"train_examples={self.train_examples} and test_examples={self.test_examples} must both be at least 1"
            )
        if self.active_users < 20:
            raise UserError(f"active_users={self.active_users} is too few; use at least 20")
        if self.active_ads < pop.NUM_CATEGORIES or self.active_ads % pop.NUM_CATEGORIES:
            raise UserError(f"active_ads={self.active_ads} must be a positive multiple of {pop.NUM_CATEGORIES}")
        if self.organic_max_len < truth_.MATCH_EVENTS:
            raise UserError(f"organic_max_len={self.organic_max_len} must be at least {truth_.MATCH_EVENTS}")
        if self.impressions_max_len < truth_.FATIGUE_IMPRESSIONS:
            raise UserError(
                f"impressions_max_len={self.impressions_max_len} must be at least {truth_.FATIGUE_IMPRESSIONS}"
            )
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")

    def schema(self) -> Schema:
        """The stream's schema, in closed form: no user and no ad is made."""
        rounds = num_rounds(self.active_users, self.train_examples + self.test_examples)
        return _schema(self, num_users(self.active_users, rounds), pop.num_ads(self.active_ads, rounds * ROUND_S))

    def build(self) -> Splits:
        """The stream's two parts: train = examples [0, train_examples), test = the `test_examples` after them."""
        world = World(self)
        return Splits(
            train=SyntheticSource(world, first=0, length=self.train_examples),
            test=SyntheticSource(world, first=self.train_examples, length=self.test_examples),
        )


class World:
    """Schedule, population and truth of one config: tables of size O(users + ads), nothing per example."""

    def __init__(self, config: SyntheticConfig):
        self.config = config
        self.schedule = Schedule(config.seed, config.active_users, config.train_examples + config.test_examples)
        self.population = pop.Population(config.seed, self.schedule, config.active_ads)
        self.truth = truth_.Truth(config.seed, self.population)
        self.keys = {what: hashing.stream(config.seed, what) for what in ("click", "conversion", "delay")}
        self.schema = config.schema()


def _schema(config: SyntheticConfig, num_users: int, num_ads: int) -> Schema:
    def one(name, role, table=None):
        return Categorical(name=name, table=table or name, role=role)

    sizes = {
        "user": num_users,
        "ad": num_ads,
        "category": pop.NUM_CATEGORIES,
        "advertiser": pop.NUM_CATEGORIES * pop.ADVERTISERS_PER_CATEGORY,
        "age": pop.NUM_AGES,
        "country": pop.NUM_COUNTRIES,
        "device": len(pop.DEVICES),
        "hour": 24,
        "goal": len(pop.GOALS),
        "format": len(pop.FORMATS),
        "signal": len(pop.SIGNALS),
        "surface": len(pop.SURFACES),
        "action": len(ACTIONS),
        "organic_action": len(pop.ORGANIC_ACTIONS),
    }
    seen = ("ad", "category", "advertiser", "format", "surface", "action")
    return Schema(
        tables=tuple(Table(name=name, rows=rows) for name, rows in sizes.items()),
        categoricals=(
            *(one(name, "user") for name in ("user", "age", "country")),
            Categorical(name="interests", table="category", role="user", max_ids=pop.NUM_INTERESTS),
            *(one(name, "context") for name in ("hour", "device")),
            *(one(name, "ad") for name in ("ad", "category", "advertiser")),
            one("goal", "goal"),
            one("format", "format"),
            one("signal", "measurement"),
            one("surface", "surface"),
        ),
        dense=(
            Dense(name="log_account_age", role="user"),
            Dense(name="log_ad_age", role="ad"),
            Dense(name="price", role="ad"),
        ),
        vectors=(Vector(name="image", dim=pop.IMAGE_DIM, role="ad"),),
        sequences=(
            Sequence(
                name="organic",
                attributes=(
                    one("topic", "event", "category"),
                    one("action", "event", "organic_action"),
                    one("surface", "event"),
                ),
                max_len=config.organic_max_len,
            ),
            Sequence(
                name="impressions",
                attributes=tuple(one(name, "event") for name in seen),
                max_len=config.impressions_max_len,
            ),
        ),
        tasks=(Task(name="click"), Task(name="conversion")),
        domains=pop.SURFACES,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """The newest impressions of n users and their outcomes, flat over those that exist; the example's own is each last.

    Attributes:
      row: which example an impression belongs to, ascending.
      lengths: [n], impressions per example.
      impressions: who saw what, when and where.
      clicked: float32, 1 if it was clicked.
      reported: float32, 1 if its conversion counts.
      reported_s: the time from which that is known.
      click_probability: the truth behind `clicked`.
      conversion_probability: the truth behind `reported`; NaN without a measurement signal.
    """

    row: np.ndarray
    lengths: np.ndarray
    impressions: truth_.Impressions
    clicked: np.ndarray
    reported: np.ndarray
    reported_s: np.ndarray
    click_probability: np.ndarray
    conversion_probability: np.ndarray


class SyntheticSource:
    """A range of the stream; see `Source`.

    An example's id is its number in the stream, so training and test ids do not meet; its time counts the stream's own seconds,
    which begin `USER_ROUNDS` rounds before example 0.

    Args:
      world: shared by the parts of a stream.
      first: the stream's example at which this part starts.
      length: examples in this part.
    """

    def __init__(self, world: World, first: int, length: int):
        self.world, self.first, self.length = world, first, length
        self.schema = world.schema

    def __len__(self) -> int:
        return self.length

    def identity(self) -> str:
        """Digest of what determines the examples: an example does not depend on the stream's length."""
        fields = dataclasses.asdict(self.world.config)
        del fields["train_examples"], fields["test_examples"]
        return digest("synthetic", STREAM_VERSION, fields, self.first, self.length)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]).

        Raises:
          IndexError: an index is outside `[0, len(self))`.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (0 <= indices.min() and indices.max() < self.length):
            raise IndexError(f"indices {indices.min()} to {indices.max()} are not all in [0, {self.length})")
        index = indices + self.first + self.world.schedule.first_index
        window = self._window(index)
        own = np.cumsum(window.lengths) - 1
        x = window.impressions.at(own)
        labels = np.stack([window.clicked[own], window.reported[own]], axis=1)
        labels[np.isnan(window.conversion_probability[own]), 1] = np.nan
        return Examples(
            ids=self._ids(x),
            dense=self._dense(x),
            vectors={"image": self.world.population.ads.image[x.ad]},
            sequences={"organic": self._organic(x), "impressions": self._impressions(window, x.time_s)},
            labels=labels.astype(np.float32),
            domain=x.surface.astype(np.int32),
            weight=np.ones(len(index), np.float32),
            user=x.user,
            example_id=indices + self.first,
            time_s=x.time_s,
            true_probability=np.stack(
                [window.click_probability[own], window.conversion_probability[own]], axis=1
            ).astype(np.float32),
        )

    def _ids(self, x: truth_.Impressions) -> dict[str, np.ndarray]:
        users, ads = self.world.population.users, self.world.population.ads
        ids = {"user": x.user, "hour": x.time_s % DAY_S // 3600, "device": x.device, "ad": x.ad, "surface": x.surface}
        ids |= {name: getattr(users, name)[x.user] for name in ("age", "country", "interests")}
        ids |= {name: getattr(ads, name)[x.ad] for name in ("category", "advertiser", "goal", "format", "signal")}
        return {name: (a if a.ndim == 2 else a[:, None]).astype(np.int32) for name, a in ids.items()}

    def _dense(self, x: truth_.Impressions) -> np.ndarray:
        users, ads = self.world.population.users, self.world.population.ads
        account_age = np.log1p(truth_.age_days(x.time_s, users.joined_s[x.user])) - 2.0
        ad_age = np.log1p(truth_.age_days(x.time_s, ads.launched_s[x.ad])) - 2.0
        return np.stack([account_age, ad_age, ads.price[x.ad]], axis=1).astype(np.float32)

    def _window(self, index: np.ndarray) -> _Window:
        """The impressions that examples show; those before them are made too, for the fatigue of the oldest."""
        world, ads = self.world, self.world.population.ads
        past = truth_.FATIGUE_IMPRESSIONS
        seat, _, _ = world.schedule.locate(index)
        previous_nk = world.schedule.previous(index, seat, past + world.config.impressions_max_len)
        index_nk = np.concatenate([previous_nk, index[:, None]], axis=1)
        exists = index_nk >= 0
        _, user, time_s = world.schedule.locate(index_nk[exists])
        ad, surface, device = world.population.serve(index_nk[exists], user, time_s)
        ad_nk, advertiser_nk = np.full((2, *index_nk.shape), -1)
        ad_nk[exists], advertiser_nk[exists] = ad, ads.advertiser[ad]
        fatigue = truth_.fatigue(ad_nk, advertiser_nk)[exists[:, past:]]

        shown = np.broadcast_to(np.arange(exists.shape[1]) >= past, exists.shape)[exists]
        user, ad, surface, device, time_s = (a[shown] for a in (user, ad, surface, device, time_s))
        match = self._match(user, ads.category[ad], time_s)
        x = truth_.Impressions(
            user=user, ad=ad, surface=surface, device=device, time_s=time_s, match=match, fatigue=fatigue
        )
        return self._outcomes(index_nk[exists][shown], x, exists[:, past:].sum(axis=1))

    def _outcomes(self, index: np.ndarray, x: truth_.Impressions, lengths: np.ndarray) -> _Window:
        truth, keys = self.world.truth, self.world.keys
        click, conversion = truth.click(x), truth.conversion_given_click(x)
        clicked = hashing.uniform(keys["click"], index) < click
        reported = clicked & (hashing.uniform(keys["conversion"], index) < conversion)
        return _Window(
            row=np.repeat(np.arange(len(lengths)), lengths),
            lengths=lengths,
            impressions=x,
            clicked=clicked.astype(np.float32),
            reported=reported.astype(np.float32),
            reported_s=x.time_s + truth.delay_s(x, hashing.uniform(keys["delay"], index)),
            click_probability=click,
            conversion_probability=click * conversion,
        )

    def _match(self, user: np.ndarray, category: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        newest = self.world.population.last_organic(user, time_s)
        number = newest[:, None] - np.arange(truth_.MATCH_EVENTS)
        events = self.world.population.organic(user[:, None], np.maximum(number, 0))
        return truth_.interest_match(events.topic, events.action, number >= 0, category)

    def _organic(self, x: truth_.Impressions) -> Histories:
        newest = self.world.population.last_organic(x.user, x.time_s)
        number = newest[:, None] + np.arange(1 - self.world.config.organic_max_len, 1)
        exists = number >= 0
        user, number = x.user[:, None], np.maximum(number, 0)
        events = self.world.population.organic(user, number)
        surface = self.world.population.organic_surface(user, number)
        ids = {"topic": events.topic, "action": events.action, "surface": surface}
        return Histories(
            ids={name: a[exists].astype(np.int32) for name, a in ids.items()},
            age_s=(x.time_s[:, None] - events.time_s)[exists].astype(np.int32),
            lengths=exists.sum(axis=1).astype(np.int32),
        )

    def _impressions(self, window: _Window, now_s: np.ndarray) -> Histories:
        own = np.zeros(len(window.row), bool)
        own[np.cumsum(window.lengths) - 1] = True
        row, x, ads = window.row[~own], window.impressions, self.world.population.ads
        ad, surface = x.ad[~own], x.surface[~own]
        converted = (window.reported[~own] > 0) & (window.reported_s[~own] <= now_s[row])
        ids = {
            "ad": ad,
            "category": ads.category[ad],
            "advertiser": ads.advertiser[ad],
            "format": ads.format[ad],
            "surface": surface,
            "action": window.clicked[~own] + converted,
        }
        return Histories(
            ids={name: a.astype(np.int32) for name, a in ids.items()},
            age_s=(now_s[row] - x.time_s[~own]).astype(np.int32),
            lengths=(window.lengths - 1).astype(np.int32),
        )
