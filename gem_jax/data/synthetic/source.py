"""The synthetic stream as a `Source`: its config, its schema, and reading."""

import dataclasses
import threading
from collections.abc import Callable

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.columns import empty_examples, join_examples, take_examples
from gem_jax.data.identity import digest
from gem_jax.data.schema import Categorical, Dense, Role, Schema, Sequence, Table, Task, TrainingColumn, Vector
from gem_jax.data.source import Splits
from gem_jax.data.synthetic import laws
from gem_jax.data.synthetic.clock import FIRST_SLAB, LIFE_SLABS, SLAB_S, num_slabs, num_users, slab_size
from gem_jax.data.synthetic.head import ACTIONS, Head
from gem_jax.data.synthetic.inventory import Inventory, num_ads
from gem_jax.data.synthetic.people import MAX_INTERESTS
from gem_jax.data.synthetic.tape import Place, Tape, joined
from gem_jax.errors import UserError

STREAM_VERSION = 2
"""Part of the data's identity: raise it with every change of the rules that changes an example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A stream of ads impressions, in order of time, whose true click and conversion probabilities are known."""

    seed: int = 0
    """Every seed is another world, with other laws, users and ads."""
    train_examples: int = 400_000
    """The first examples in time."""
    test_examples: int = 50_000
    """The examples after them."""
    active_users: int = 2_400
    """Users at any time; each stays 60 days and is followed by a new one. They see 9.8 impressions in four days on average."""
    active_ads: int = 480
    """Ads running at any time, a multiple of 24 (the categories); one runs a week (median) and is followed by a new one."""
    organic_max_len: int = 64
    """Newest organic events that an example shows."""
    impressions_max_len: int = 32
    """Newest earlier impressions that an example shows."""
    organic_intensity: int = 1
    """Multiplies organic events: at 1 the most active users have up to 900 of them, at 12 up to 10,800."""
    read_days: float = 45.0
    """Labels are what had been reported this many days after the impression: 0 is at once, from 44 on they are final."""
    crosses: int = 64
    """Products of up to six features in the click's logarithmic odds: more of them are more to learn, and cost time."""

    def __post_init__(self):
        if self.train_examples < 1 or self.test_examples < 1:
            raise UserError(
                f"train_examples={self.train_examples} and test_examples={self.test_examples} must both be at least 1"
            )
        if self.active_users < 20:
            raise UserError(f"active_users={self.active_users} is too few; use at least 20")
        if self.active_ads < laws.CATEGORIES or self.active_ads % laws.CATEGORIES:
            raise UserError(f"active_ads={self.active_ads} must be a positive multiple of {laws.CATEGORIES}")
        for name in ("organic_max_len", "impressions_max_len", "organic_intensity", "crosses"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.read_days >= 0:
            raise UserError(f"read_days={self.read_days} must not be negative")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")

    def schema(self) -> Schema:
        """The stream's schema, in closed form: no user and no ad is made."""
        slabs = num_slabs(self.active_users, self.train_examples + self.test_examples)
        users = num_users(self.active_users, slabs)
        return _schema(self, users, num_ads(self.seed, self.active_ads, slabs * SLAB_S))

    def build(self) -> Splits:
        """The stream's two parts: train = examples [0, train_examples), test = the `test_examples` after them."""
        stream = Stream(self)
        return Splits(
            train=SyntheticSource(stream, first=0, length=self.train_examples),
            test=SyntheticSource(stream, first=self.train_examples, length=self.test_examples),
        )


def _one(name: str, role: Role, table: str | None = None) -> Categorical:
    return Categorical(name=name, table=table or name, role=role)


def _schema(config: SyntheticConfig, users: int, ads: int) -> Schema:
    sizes = {
        "user": users,
        "ad": ads,
        "category": laws.CATEGORIES,
        "advertiser": laws.ADVERTISERS,
        "style": laws.STYLES,
        "format": len(laws.FORMATS),
        "goal": len(laws.GOALS),
        "price": len(laws.PRICES),
        "signal": len(laws.SIGNALS),
        "surface": len(laws.SURFACES),
        "age": laws.AGES,
        "country": laws.COUNTRIES,
        "language": laws.LANGUAGES,
        "device": len(laws.DEVICES),
        "hour": 24,
        "action": len(ACTIONS),
        "organic_action": len(laws.ORGANIC_ACTIONS),
        "response": len(laws.RESPONSES),
    }
    organic = (
        _one("topic", "event", "category"),
        _one("action", "event", "organic_action"),
        *(_one(name, "event") for name in ("style", "response", "surface")),
    )
    seen = ("ad", "category", "advertiser", "format", "surface", "action", "price")
    return Schema(
        tables=tuple(Table(name=name, rows=rows) for name, rows in sizes.items()),
        categoricals=(
            *(_one(name, "user") for name in ("user", "age", "country", "language")),
            Categorical(name="interests", table="category", role="user", max_ids=MAX_INTERESTS),
            *(_one(name, "context") for name in ("hour", "device")),
            *(_one(name, "ad") for name in ("ad", "category", "advertiser", "style", "price")),
            _one("goal", "goal"),
            _one("format", "format"),
            _one("signal", "measurement"),
            _one("surface", "surface"),
        ),
        dense=(
            Dense(name="log_account_age", role="user"),
            Dense(name="log_ad_age", role="ad"),
            Dense(name="price_level", role="ad"),
        ),
        vectors=(Vector(name="image", dim=laws.IMAGE_DIM, role="ad"),),
        sequences=(
            Sequence(name="organic", attributes=organic, max_len=config.organic_max_len),
            Sequence(
                name="impressions",
                attributes=tuple(_one(name, "event") for name in seen),
                max_len=config.impressions_max_len,
            ),
        ),
        tasks=(Task(name="click"), Task(name="conversion")),
        domains=laws.SURFACES,
        training=(TrainingColumn(name="maturity"), TrainingColumn(name="conversion_final")),
    )


class Stream:
    """Laws, ads and tape of one config, shared by the parts of the stream."""

    def __init__(self, config: SyntheticConfig):
        self.config, self.schema = config, config.schema()
        slabs = num_slabs(config.active_users, config.train_examples + config.test_examples)
        self.laws = laws.Laws(config.seed, config.crosses)
        end_s = (slabs + 2 * LIFE_SLABS) * SLAB_S  # a block's lives are made whole
        self.ads = Inventory(config.seed, config.active_ads, end_s, self.laws)
        self.tape = Tape(
            seed=config.seed,
            seats=config.active_users,
            intensity=config.organic_intensity,
            slabs=slabs,
            world=self.laws,
            ads=self.ads,
        )
        self._head = Head(config.seed, self.schema, self.tape, self.ads, config.read_days)
        self._slab_size = slab_size(config.active_users)
        self._lock = threading.Lock()  # reading may make lives, and puts them where others lay

    def read(self, index: np.ndarray) -> Examples:
        """Examples of the stream, int64 [n]."""
        if not len(index):
            return empty_examples(self.schema)
        parts, positions = self._each(index, self._head.show)
        return parts[0] if len(parts) == 1 else take_examples(join_examples(parts), np.argsort(positions))

    def oracle(self, index: np.ndarray) -> np.ndarray:
        """Probability of a click of one who knows the intent, float32 [n]."""
        if not len(index):
            return np.zeros(0, np.float32)
        parts, positions = self._each(index, lambda _, place: self.tape.impressions["oracle"][place.impression])
        return np.concatenate(parts)[np.argsort(positions)]

    def _each[T](self, index: np.ndarray, show: Callable[[np.ndarray, Place], T]) -> tuple[list[T], np.ndarray]:
        """What `show` makes of the examples, of as many slabs at a time as the tape holds, and which examples these are."""
        slab, position = np.divmod(index, self._slab_size)
        slab += FIRST_SLAB
        parts, positions = [], []
        with self._lock:
            for run in self.tape.runs(np.unique(slab)):
                chosen = [np.flatnonzero(slab == s) for s in run]
                places = [self.tape.locate(int(s), position[k]) for s, k in zip(run, chosen, strict=True)]
                whole = np.concatenate(chosen)
                order = np.argsort(whole)
                positions.append(whole[order])
                parts.append(show(index[positions[-1]], joined(places, order)))
        return parts, np.concatenate(positions)


class SyntheticSource:
    """A range of the stream; see `Source`.

    An example's id is its number in the stream, so training and test ids do not meet; its time counts the stream's own seconds,
    which begin 56 days before example 0.

    Args:
      stream: shared by the parts.
      first: the stream's example at which this part starts.
      length: examples in this part.
    """

    def __init__(self, stream: Stream, first: int, length: int):
        self.stream, self.first, self.length = stream, first, length
        self.schema = stream.schema

    def __len__(self) -> int:
        return self.length

    def identity(self) -> str:
        """Digest of what determines the examples: an example does not depend on the stream's length."""
        fields = dataclasses.asdict(self.stream.config)
        del fields["train_examples"], fields["test_examples"]
        return digest("synthetic", STREAM_VERSION, fields, self.first, self.length)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]); `true_probability` is that of one who knows the laws and all that a user did before.

        Raises:
          IndexError: an index is outside `[0, len(self))`.
        """
        return self.stream.read(self._in_stream(indices))

    def oracle(self, indices: np.ndarray) -> np.ndarray:
        """Probability of a click of one who also knows the hidden intent, float32 [n]; arguments and errors as of `read`."""
        return self.stream.oracle(self._in_stream(indices))

    def _in_stream(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        if indices.size and not (0 <= indices.min() and indices.max() < self.length):
            raise IndexError(f"indices {indices.min()} to {indices.max()} are not all in [0, {self.length})")
        return indices + self.first
