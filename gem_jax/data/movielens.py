"""MovieLens-1M: who rated which film in which order, with the films rated before as the history.

`MovieLensConfig` reads the ratings with the published side files and predicts a rating of 4 or more. `SasRecConfig`
reads the text release of SASRec (arXiv 1808.09781), which has users, items and order only, and predicts the next item
against a sampled one.

Both make one log of events sorted by user and time; an example is a row of it, and its history the user's rows before.
"""

import dataclasses
import pathlib

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.checks import check_labels_differ, existing_path, first_true
from gem_jax.data.event_log import EventLog, LogSource, Past
from gem_jax.data.identity import digest
from gem_jax.data.movielens_files import read_movies, read_ratings, read_users, rows_of, split_columns
from gem_jax.data.schema import Categorical, Role, Schema, Sequence, Table, Task
from gem_jax.data.source import DataError, Splits

SEQUENCE = "past"
"""The one sequence of these examples: everything the user rated before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovieLensConfig:
    """Label `like` = rating of 4 or more; history of films, ratings and genres.

    The last tenth of each user's ratings is for test, the tenth before for validation. Test histories contain the
    events of the other parts, and earlier test ratings: they are the user's past. `age_s` is in seconds where the
    ratings have timestamps; the
    npz has the order only, and there it counts ratings (1 = the one before). Ratings whose place in the order is
    unknown (pos -1) are left out, and a log line says how many.

    An example's id is its rating's place among all ratings sorted by user and time; its time is the timestamp, unknown in the npz.
    """

    path: str
    """Folder with users.dat, movies.dat (also gzipped) and the ratings: ratings.dat or ml1m_ratings.npz."""
    max_len: int = 100
    """Newest events of a history that the model sees."""
    freeze_histories: bool = False
    """End the histories of validation and test where the user's part begins, so that no example's history holds another's label.

    Measure gAUC on these: where a user's rate of likes is unknown and constant, the labels of the other test ratings in the
    history predict the wrong way within a group (after likes fewer are left), as in leave-one-out target encoding (Nickell, 1981).
    """

    def schema(self) -> Schema:
        """The data's schema; reads all files, because they say how many users and films there are."""
        return self.build().schema

    def build(self) -> Splits:
        """Reads all files.

        Raises:
          DataError: a file is missing or malformed, a rating names an unknown user or film, or all training labels are the same.
        """
        folder = existing_path(self.path, "the MovieLens-1M folder")
        if folder.is_file():
            folder = folder.parent
        file, (users, movies, ratings, times) = read_ratings(folder)
        user_file, user_keys, user_ids = read_users(folder)
        movie_file, movie_keys, item_ids = read_movies(folder)
        user = rows_of(users, user_keys, file, "user", user_file)
        item = rows_of(movies, movie_keys, file, "movie", movie_file)
        user_ids["user"] = np.arange(len(user_keys), dtype=np.int32)[:, None]
        order = np.lexsort((np.arange(len(user)), times, user))
        user, item, ratings = (column[order].astype(np.int32) for column in (user, item, ratings))
        log = EventLog(
            user=user,
            time=times[order],
            ids={"movie": item, "rating": ratings - 1, "genre": item_ids["genres"][item, 0]},
        )
        from_end = log.rank_from_end()
        tenth = (from_end + np.arange(len(user)) - log.first_rows()) // 10
        parts = {
            "train": from_end > 2 * tenth,
            "valid": (from_end > tenth) & (from_end <= 2 * tenth),
            "test": from_end <= tenth,
        }
        labels = (ratings >= 4).astype(np.float32)
        check_labels_differ(labels[parts["train"], None], ["like"], file)
        schema = _ratings_schema(user_ids, item_ids, tuple(log.ids), self.max_len)
        in_seconds = file.suffix != ".npz"

        def source(name: str, rows: np.ndarray) -> LogSource:
            examples = _RatingRows(
                schema=schema,
                user=user[rows],
                item=item[rows],
                user_ids=user_ids,
                item_ids=item_ids,
                labels=labels[rows],
                example_ids=rows,
                time_s=log.time[rows] if in_seconds else np.full(len(rows), -1, np.int64),
            )
            past = _everything_before(log, rows)
            if self.freeze_histories and name != "train":
                first_of_part = rows[np.searchsorted(user[rows], user[rows])]
                past = dataclasses.replace(past, stop=first_of_part)
            return LogSource(schema, examples, {SEQUENCE: past})

        return Splits(**{name: source(name, np.flatnonzero(part)) for name, part in parts.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SasRecConfig:
    """Task `next`: is this item the user's next? Each event from a user's second on gives two examples.

    Example 2k is an event (label 1), example 2k + 1 an item that the user never has, drawn uniformly (label 0), at the
    same place in the same history. The last event of each user is for test, the one before for validation (leave one
    out). `age_s` counts events (1 = the one before).

    With event e the e-th of all events sorted by user, its example has id 2e, and that of the item never had id 2e + 1. Times are
    unknown.
    """

    path: str
    """The text file, `user item` lines in time order, users and items numbered from 1; also gzipped."""
    max_len: int = 200
    """Newest events of a history that the model sees."""
    negative_seed: int = 0
    """Seed of the sampled negatives."""

    def schema(self) -> Schema:
        """The data's schema; reads the file, because it says how many items there are."""
        return self.build().schema

    def build(self) -> Splits:
        """Reads the file.

        Raises:
          DataError: the file is missing, empty or malformed, or a user has every item.
        """
        file = existing_path(self.path, "the SASRec text release of ML-1M")
        columns = split_columns(file, " ", ("user", "item"), (0, 1))
        order = np.argsort(columns[:, 0], kind="stable")
        user, item = (columns[order].astype(np.int32) - 1).T
        num_items = int(item.max()) + 1
        if user.min() < 0 or item.min() < 0:
            row = first_true(columns < 1)
            raise DataError(f"{file}, line {row + 1}: users and items are numbered from 1")
        first = np.searchsorted(user, user)
        log = EventLog(
            user=user,
            time=np.arange(len(user)) - first,
            ids={"item": item},
        )
        from_end = log.rank_from_end()
        second_on = log.time > 0
        parts = {
            "train": second_on & (from_end > 2),
            "valid": second_on & (from_end == 2),
            "test": second_on & (from_end == 1),
        }
        schema = Schema(
            tables=(Table(name="item", rows=num_items),),
            categoricals=(Categorical(name="item", table="item", role="ad"),),
            sequences=(
                Sequence(
                    name=SEQUENCE,
                    attributes=(Categorical(name="item", table="item", role="event"),),
                    max_len=self.max_len,
                ),
            ),
            tasks=(Task(name="next"),),
            domains=("movies",),
        )
        negatives = _unseen_items(user, item, num_items, self.negative_seed, file)

        def source(part: np.ndarray) -> LogSource:
            places = np.flatnonzero(part)
            rows = np.repeat(places, 2)
            examples = _RatingRows(
                schema=schema,
                user=user[rows],
                item=np.stack([item[places], negatives[places]], axis=1).reshape(-1),
                user_ids={},
                item_ids={"item": np.arange(num_items, dtype=np.int32)[:, None]},
                labels=np.tile(np.array([1, 0], np.float32), len(places)),
                example_ids=np.stack([2 * places, 2 * places + 1], axis=1).reshape(-1),
                time_s=np.full(len(rows), -1, np.int64),
            )
            return LogSource(schema, examples, {SEQUENCE: _everything_before(log, rows)})

        return Splits(**{name: source(part) for name, part in parts.items()})


@dataclasses.dataclass(kw_only=True)
class _RatingRows:
    """n examples without their histories: a user, an item, a label.

    Attributes:
      schema: of the examples.
      user: int32 [n], row of the user's features.
      item: int32 [n], row of the features of the item whose label is asked for.
      user_ids: feature -> int32 [users, max_ids].
      item_ids: feature -> int32 [items, max_ids].
      labels: float32 [n].
      example_ids: int64 [n].
      time_s: int64 [n], -1 unknown.
    """

    schema: Schema
    user: np.ndarray
    item: np.ndarray
    user_ids: dict[str, np.ndarray]
    item_ids: dict[str, np.ndarray]
    labels: np.ndarray
    example_ids: np.ndarray
    time_s: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def identity(self) -> str:
        """Digest of all columns."""
        return digest({f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "schema"})

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order."""
        users, items, count = self.user[indices], self.item[indices], len(indices)
        return Examples(
            ids={name: column[users] for name, column in self.user_ids.items()}
            | {name: column[items] for name, column in self.item_ids.items()},
            dense=np.zeros((count, 0), np.float32),
            vectors={},
            sequences={},
            labels=self.labels[indices][:, None],
            domain=np.zeros(count, np.int32),
            weight=np.ones(count, np.float32),
            user=users.astype(np.int64),
            example_id=self.example_ids[indices],
            time_s=self.time_s[indices],
            true_probability=np.full((count, 1), np.nan, np.float32),
        )


def _everything_before(log: EventLog, rows: np.ndarray) -> Past:
    """The histories of examples that stand at rows of the log: every row of the user's before."""
    return Past(log, log.first_rows()[rows], rows, log.time[rows])


def _unseen_items(user: np.ndarray, item: np.ndarray, num_items: int, seed: int, file: pathlib.Path) -> np.ndarray:
    """For every event an item that its user never has, int32 [E]."""
    seen = np.unique(user.astype(np.int64) * num_items + item)
    full = np.bincount(seen // num_items) == num_items
    if full.any():
        raise DataError(f"{file}: user {np.argmax(full) + 1} has every item, so no negative can be drawn; leave it out")
    random = np.random.default_rng(seed)
    drawn = random.integers(0, num_items, len(user), np.int32)
    while True:
        keys = user.astype(np.int64) * num_items + drawn
        clash = seen[np.minimum(np.searchsorted(seen, keys), len(seen) - 1)] == keys
        if not clash.any():
            return drawn
        drawn[clash] = random.integers(0, num_items, int(clash.sum()), np.int32)


def _ratings_schema(
    user_ids: dict[str, np.ndarray], item_ids: dict[str, np.ndarray], event_names: tuple[str, ...], max_len: int
) -> Schema:
    rows = {name: int(ids.max()) + 1 for name, ids in (user_ids | item_ids).items()} | {"rating": 5}
    tables = {"genres": "genre"}

    def feature(name: str, role: Role, max_ids: int = 1) -> Categorical:
        return Categorical(name=name, table=tables.get(name, name), role=role, max_ids=max_ids)

    return Schema(
        tables=tuple(Table(name=tables.get(name, name), rows=count) for name, count in rows.items()),
        categoricals=tuple(feature(name, "user") for name in user_ids)
        + tuple(feature(name, "ad", ids.shape[1]) for name, ids in item_ids.items()),
        sequences=(
            Sequence(
                name=SEQUENCE,
                attributes=tuple(feature(name, "event") for name in event_names),
                max_len=max_len,
            ),
        ),
        tasks=(Task(name="like"),),
        domains=("movies",),
    )
