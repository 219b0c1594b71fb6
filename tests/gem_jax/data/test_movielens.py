"""MovieLens: histories, parts and side features against a plain recomputation; published and npz ratings agree."""

import gzip
import pathlib
import re

import numpy as np
import pytest

from gem_jax.data.loader import Loader
from gem_jax.data.movielens import SEQUENCE, MovieLensConfig, SasRecConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.source import DataError

USERS = ["3::F::25::4::55117", "1::M::1::10::9067-12", "7::F::56::4::10003"]
MOVIES = [
    "10::Café (1995)::Drama|Comedy",
    "4::Two: the Return (1942)::Action",
    "99::Last, The (2000)::War|Action|Drama",
]
MOVIE_NUMBERS = [4, 10, 99]
YEAR_BUCKETS = {4: 0, 10: (1995 - 1942) // 5, 99: (2000 - 1942) // 5}
GENRES = {4: ["Action"], 10: ["Drama", "Comedy"], 99: ["War", "Action", "Drama"]}
GENRE_NUMBER = {"Action": 0, "Comedy": 1, "Drama": 2, "War": 3}


def _ratings() -> list[tuple[int, int, int, int]]:
    """user, movie, rating, time: 25, 20 and 31 ratings of the three users, in random order of the file."""
    rng = np.random.default_rng(0)
    rows = []
    for user, count in ((1, 25), (3, 20), (7, 31)):
        times = 1000 * user + np.cumsum(rng.integers(1, 90, count))
        rows += [(user, int(rng.choice(MOVIE_NUMBERS)), int(rng.integers(1, 6)), int(t)) for t in times]
    return [rows[k] for k in rng.permutation(len(rows))]


def _write_side(folder: pathlib.Path, users=USERS, movies=MOVIES, packed=True) -> None:
    for name, lines in (("users", users), ("movies", movies)):
        text = ("\n".join(lines) + "\n").encode("latin-1")
        if packed:
            (folder / f"ml1m_{name}.dat.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"{name}.dat").write_bytes(text)


def _write_published(folder: pathlib.Path, ratings=None) -> str:
    _write_side(folder, packed=False)
    rows = _ratings() if ratings is None else ratings
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows))
    return str(folder)


def _write_npz(folder: pathlib.Path, **changes) -> str:
    _write_side(folder)
    user, movie, rating, time = np.array(_ratings()).T
    position = np.array([np.sum((user == u) & (time < t)) for u, t in zip(user, time, strict=True)])
    np.savez(
        folder / "ml1m_ratings.npz", **{"user": user, "movie": movie, "rating": rating, "pos": position, **changes}
    )
    return str(folder)


def _parts(splits):
    assert splits.valid is not None
    return {"train": splits.train, "valid": splits.valid, "test": splits.test}


def test_examples_follow_their_definition(tmp_path):
    splits = MovieLensConfig(path=_write_published(tmp_path), max_len=5).build()
    by_user = {u: sorted((r for r in _ratings() if r[0] == u), key=lambda r: r[3]) for u in (1, 3, 7)}
    expected = {"train": [], "valid": [], "test": []}
    for row, rated in enumerate(by_user.values()):
        tenth = len(rated) // 10
        for k, (_, movie, rating, time) in enumerate(rated):
            left = len(rated) - k
            part = "test" if left <= tenth else "valid" if left <= 2 * tenth else "train"
            expected[part].append((row, movie, rating, time, rated[:k]))
    for name, source in _parts(splits).items():
        assert len(source) == len(expected[name])
        examples = source.read(np.arange(len(source)))
        past = examples.sequences[SEQUENCE]
        end = np.cumsum(past.lengths)
        for k, (user, movie, rating, time, earlier) in enumerate(expected[name]):
            assert examples.user[k] == user
            assert examples.labels[k, 0] == (rating >= 4)
            assert examples.ids["movie"][k, 0] == MOVIE_NUMBERS.index(movie)
            assert examples.ids["year"][k, 0] == YEAR_BUCKETS[movie]
            genres = [GENRE_NUMBER[g] for g in GENRES[movie]]
            assert examples.ids["genres"][k].tolist() == genres + [-1] * (3 - len(genres))
            events = slice(end[k] - past.lengths[k], end[k])
            assert past.age_s[events].tolist() == [time - e[3] for e in earlier]
            assert past.ids["movie"][events].tolist() == [MOVIE_NUMBERS.index(e[1]) for e in earlier]
            assert past.ids["rating"][events].tolist() == [e[2] - 1 for e in earlier]
            assert past.ids["genre"][events].tolist() == [GENRE_NUMBER[GENRES[e[1]][0]] for e in earlier]
    first = splits.train.read(np.array([0]))  # user 1: M, age 1, occupation 10, zip 9..
    assert {name: int(first.ids[name][0, 0]) for name in ("gender", "age", "occupation", "region")} == {
        "gender": 1,
        "age": 0,
        "occupation": 0,
        "region": 2,
    }


def test_frozen_histories_end_where_the_users_part_begins(tmp_path):
    path = _write_published(tmp_path)
    sequential = _parts(MovieLensConfig(path=path).build())
    frozen = _parts(MovieLensConfig(path=path, freeze_histories=True).build())
    for name, source in frozen.items():
        examples, before = (s.read(np.arange(len(s))) for s in (source, sequential[name]))
        np.testing.assert_array_equal(examples.labels, before.labels)
        past, whole = examples.sequences[SEQUENCE], before.sequences[SEQUENCE]
        if name == "train":
            np.testing.assert_array_equal(past.lengths, whole.lengths)
            continue
        for user in np.unique(examples.user):
            own = examples.user == user
            assert set(past.lengths[own]) == {whole.lengths[own].min()}  # rows before the part's first, for all of them
            assert whole.lengths[own].max() == whole.lengths[own].min() + own.sum() - 1
        # The events are the oldest of the whole history, their ages still counted from the example's own time.
        starts, ends = (np.cumsum(h.lengths) - h.lengths for h in (past, whole)), np.cumsum(past.lengths)
        for a, b, count in zip(*starts, past.lengths, strict=True):
            np.testing.assert_array_equal(past.age_s[a : a + count], whole.age_s[b : b + count])
            np.testing.assert_array_equal(past.ids["rating"][a : a + count], whole.ids["rating"][b : b + count])
        assert ends[-1] == len(past.age_s)
    assert frozen["test"].identity() != sequential["test"].identity()
    assert frozen["train"].identity() == sequential["train"].identity()


def test_npz_agrees_with_the_published_files_but_for_the_ages(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = MovieLensConfig(path=_write_published(tmp_path / "a")).build()
    b = MovieLensConfig(path=_write_npz(tmp_path / "b")).build()
    assert a.schema == b.schema
    for name, source in _parts(a).items():
        everything = np.arange(len(source))
        x, y = source.read(everything), _parts(b)[name].read(everything)
        np.testing.assert_array_equal(x.labels, y.labels)
        np.testing.assert_array_equal(x.ids["genres"], y.ids["genres"])
        np.testing.assert_array_equal(x.sequences[SEQUENCE].ids["movie"], y.sequences[SEQUENCE].ids["movie"])
        lengths = y.sequences[SEQUENCE].lengths
        counted_back = np.concatenate([np.arange(n, 0, -1) for n in lengths])
        np.testing.assert_array_equal(y.sequences[SEQUENCE].age_s, counted_back)


def test_ratings_of_unknown_place_are_left_out_and_said(tmp_path, caplog):
    user = np.array(_ratings())[:, 0]
    position = np.arange(len(user))
    position[[0, 5, 9]] = -1
    splits = MovieLensConfig(path=_write_npz(tmp_path, pos=position)).build()
    assert sum(map(len, _parts(splits).values())) == len(user) - 3
    assert "left out 3 ratings" in caplog.text


def _sasrec(tmp_path, lines) -> str:
    path = tmp_path / "s.txt.gz"
    path.write_bytes(gzip.compress("".join(f"{u} {i}\n" for u, i in lines).encode()))
    return str(path)


def test_sasrec_pairs_each_event_with_an_unseen_item(tmp_path):
    rng = np.random.default_rng(0)
    events = {u: rng.choice(30, n, replace=False) + 1 for u, n in ((1, 12), (2, 5), (3, 28), (4, 1))}
    lines = [(u, i) for u, items in events.items() for i in items]
    config = SasRecConfig(path=_sasrec(tmp_path, lines), max_len=10)
    splits = config.build()
    num_items = splits.schema.table("item").rows
    assert [len(p) for p in _parts(splits).values()] == [2 * (9 + 2 + 25), 6, 6]
    seen_pairs = []
    for name, source in _parts(splits).items():
        examples = source.read(np.arange(len(source)))
        np.testing.assert_array_equal(examples.labels[:, 0], np.tile([1, 0], len(source) // 2))
        past = examples.sequences[SEQUENCE]
        end = np.cumsum(past.lengths)
        for k in range(len(source)):
            items = events[int(examples.user[k]) + 1] - 1
            place = int(past.lengths[k])
            assert past.ids["item"][end[k] - place : end[k]].tolist() == items[:place].tolist()
            left = len(items) - place
            assert name == {1: "test", 2: "valid"}.get(left, "train")
            item = int(examples.ids["item"][k, 0])
            if examples.labels[k, 0]:
                assert item == items[place]
                seen_pairs.append((int(examples.user[k]), place))
            else:
                assert item not in items and 0 <= item < num_items
    assert len(set(seen_pairs)) == len(seen_pairs) == len(lines) - 4  # all but first events
    again = config.build().train.read(np.arange(10)).ids["item"]
    np.testing.assert_array_equal(again, splits.train.read(np.arange(10)).ids["item"])


@pytest.mark.parametrize(
    "lines, message",
    [
        ([(1, 1), (1, 2), (2, 1)], "user 1 has every item"),
        ([(1, 1), (1, 0), (2, 3)], "line 2: users and items are numbered from 1"),
        ([(1, 1), (1, "x"), (2, 3)], "is not text of ' '-separated numbers"),
        ([(1, 1), (1, ""), (2, 3)], "line 2: 'item' is empty"),
    ],
)
def test_bad_sasrec_lines_are_named(tmp_path, lines, message):
    path = _sasrec(tmp_path, lines)
    with pytest.raises(DataError, match=message) as error:
        SasRecConfig(path=path).build()
    assert path in str(error.value) and "\n" not in str(error.value)


def _replace(rows, index, value):
    return [value if k == index else row for k, row in enumerate(rows)]


@pytest.mark.parametrize(
    "ratings, message",
    [
        ([(1, 10, 1, 5), (1, 10, 6, 7)], "row 1: rating is 6; ratings go from 1 to 5"),
        ([(1, 10, 1, 5), (2, 10, 1, 7)], "user 2 is not in"),
        ([(1, 11, 1, 5), (1, 10, 1, 7)], "movie 11 is not in"),
        ([(1, 10, 1, k) for k in range(30)], "every 'like' label of the training part is 0"),
        ([(1, "ten", 1, 5)], "is not text of ':'-separated numbers"),
    ],
)
def test_bad_ratings_are_named(tmp_path, ratings, message):
    path = _write_published(tmp_path, ratings)
    with pytest.raises(DataError, match=message) as error:
        MovieLensConfig(path=path).build()
    assert "ratings.dat" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "users, movies, message",
    [
        (_replace(USERS, 1, "1::M::1"), MOVIES, "ml1m_users.dat.gz, line 2: expected 5 fields"),
        (USERS, _replace(MOVIES, 2, "x::Last (2000)::War"), "ml1m_movies.dat.gz, line 3: expected 3 fields"),
        (USERS, _replace(MOVIES, 2, "99::Last::War"), "the title of movie 99 does not end in '(year)'"),
    ],
)
def test_bad_side_files_are_named(tmp_path, users, movies, message):
    path = _write_npz(tmp_path)
    _write_side(tmp_path, users, movies)
    with pytest.raises(DataError, match=re.escape(message)):
        MovieLensConfig(path=path).build()


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match="data.path is not set"):
        MovieLensConfig(path="").build()
    with pytest.raises(DataError, match="has no ratings.dat, ratings.dat.gz or ml1m_ratings.npz"):
        MovieLensConfig(path=str(tmp_path)).build()
    path = _write_npz(tmp_path, rating=np.zeros(3, int))
    with pytest.raises(DataError, match="must be whole numbers of one length"):
        MovieLensConfig(path=path).build()
    (tmp_path / "ml1m_ratings.npz").write_text("hello")
    with pytest.raises(DataError, match="ml1m_ratings.npz is not an npz file"):
        MovieLensConfig(path=path).build()
    _write_npz(tmp_path)
    (tmp_path / "ml1m_users.dat.gz").write_bytes(b"hello")
    with pytest.raises(DataError, match="ml1m_users.dat.gz is not a whole gzip file"):
        MovieLensConfig(path=path).build()
    (tmp_path / "ml1m_users.dat.gz").unlink()
    with pytest.raises(DataError, match="has no users.dat or users.dat.gz or ml1m_users.dat.gz"):
        MovieLensConfig(path=path).build()


def test_real_files_have_the_published_counts(shared_data):
    splits = MovieLensConfig(path=str(shared_data)).build()
    assert sum(map(len, _parts(splits).values())) == 1_000_209 - 598
    assert splits.schema.table("movie").rows == 3883 and splits.schema.table("genre").rows == 18
    loader = Loader(splits.test, BatchConfig(examples=256), seed=0, num_epochs=None)
    batch, columns = next(iter(loader))
    assert columns.num_examples == 256 and columns.truncated[SEQUENCE] > 0
    assert batch.sequences[SEQUENCE].lengths.max() == 100
    sasrec = SasRecConfig(path=str(shared_data / "ml1m_sasrec.txt.gz")).build()
    assert sasrec.schema.table("item").rows == 3416
    assert [len(p) for p in _parts(sasrec).values()] == [2 * (999_611 - 3 * 6040), 2 * 6040, 2 * 6040]
