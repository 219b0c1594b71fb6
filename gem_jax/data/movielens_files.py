"""The files of MovieLens-1M: the published text, gzipped or not, and the npz of the same ratings in order."""

import gzip
import logging
import pathlib
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.csv

from gem_jax.data.checks import check_rows, first_true
from gem_jax.data.source import DataError

YEARS_PER_BUCKET = 5

_log = logging.getLogger(__name__)


def _find(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_ratings(folder: pathlib.Path) -> tuple[pathlib.Path, tuple[np.ndarray, ...]]:
    """The file, and its users, movies, ratings (1 to 5) and times (seconds or positions), each int64 [E]."""
    file = _find(folder, "ratings.dat", "ratings.dat.gz", "ml1m_ratings.npz")
    if file is None:
        raise DataError(
            f"{folder} has no ratings.dat, ratings.dat.gz or ml1m_ratings.npz: give the MovieLens-1M folder"
        )
    if file.suffix != ".npz":
        # Splitting "1::1193::5::978300760" at each ":" leaves an empty column between two values.
        columns = split_columns(file, ":", ("user", "-", "movie", "-", "rating", "-", "timestamp"), (0, 2, 4, 6)).T
    else:
        columns = _read_ratings_npz(file)
        known = columns[3] >= 0
        if not known.all():
            _log.warning("%s: left out %d ratings whose place in the history is unknown", file, int((~known).sum()))
        columns = columns[:, known]
    bad = (columns[2] < 1) | (columns[2] > 5)
    if bad.any():
        raise DataError(f"{file}, row {first_true(bad)}: rating is {columns[2][bad][0]}; ratings go from 1 to 5")
    return file, tuple(columns)


def _read_ratings_npz(file: pathlib.Path) -> np.ndarray:
    """user, movie, rating, pos: int64 [4, E]."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = [arrays[name] for name in ("user", "movie", "rating", "pos")]
    except KeyError as error:
        raise DataError(f"{file} needs the arrays user, movie, rating and pos") from error
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not an npz file: give the MovieLens-1M folder") from error
    if len({c.shape for c in columns}) > 1 or any(c.dtype.kind not in "iu" or c.ndim != 1 for c in columns):
        raise DataError(f"{file}: user, movie, rating and pos must be whole numbers of one length")
    check_rows(file, len(columns[0]))
    return np.stack(columns).astype(np.int64)


def split_columns(file: pathlib.Path, separator: str, names: tuple[str, ...], wanted: tuple[int, ...]) -> np.ndarray:
    """Whole numbers of a text file, int64 [lines, wanted]."""
    labels = [f"{name}{k}" for k, name in enumerate(names)]
    types = {label: pa.int64() if k in wanted else pa.null() for k, label in enumerate(labels)}
    try:
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=labels),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[""]),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} is not text of {separator!r}-separated numbers: {str(error).splitlines()[0]}"
        ) from error
    for k in wanted:
        if table[k].null_count:
            row = first_true(np.asarray(table[k].is_null()))
            raise DataError(f"{file}, line {row + 1}: '{names[k]}' is empty; give a whole number")
    return np.stack([table[k].to_numpy() for k in wanted], axis=1)


def _side_file(folder: pathlib.Path, what: str, num_fields: int) -> tuple[pathlib.Path, list[list[str]]]:
    """The file and its lines, each split into `num_fields`."""
    names = (f"{what}.dat", f"{what}.dat.gz", f"ml1m_{what}.dat.gz")
    file = _find(folder, *names)
    if file is None:
        raise DataError(f"{folder} has no {' or '.join(names)}: give the MovieLens-1M folder")
    try:
        with (
            gzip.open(file, "rt", encoding="latin-1") if file.suffix == ".gz" else file.open(encoding="latin-1") as text
        ):
            lines = [line.rstrip("\n").split("::") for line in text]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file: download it again") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    check_rows(file, len(lines))
    for number, fields in enumerate(lines, 1):
        if len(fields) != num_fields or not fields[0].isdigit():
            raise DataError(
                f"{file}, line {number}: expected {num_fields} fields separated by '::', the first a number"
            )
    return file, lines


def _codes(values: list[str]) -> np.ndarray:
    """Each value's place among the distinct values, int32 [n, 1]."""
    return np.unique(values, return_inverse=True)[1].astype(np.int32)[:, None]


def read_users(folder: pathlib.Path) -> tuple[pathlib.Path, np.ndarray, dict[str, np.ndarray]]:
    """The file, the user numbers (sorted) and the features of each; the region is the first digit of the zip code."""
    file, lines = _side_file(folder, "users", 5)
    lines.sort(key=lambda fields: int(fields[0]))
    number, gender, age, occupation, zip_code = (list(column) for column in zip(*lines, strict=True))
    ids = {"gender": gender, "age": age, "occupation": occupation, "region": [z[:1] for z in zip_code]}
    return file, np.array(number, np.int64), {name: _codes(values) for name, values in ids.items()}


def read_movies(folder: pathlib.Path) -> tuple[pathlib.Path, np.ndarray, dict[str, np.ndarray]]:
    """The file, the movie numbers (sorted) and the features of each; the year stands at the end of the title."""
    file, lines = _side_file(folder, "movies", 3)
    lines.sort(key=lambda fields: int(fields[0]))
    names = sorted({genre for _, _, genres in lines for genre in genres.split("|")})
    of_name = {name: k for k, name in enumerate(names)}
    per_movie = [[of_name[genre] for genre in genres.split("|")] for _, _, genres in lines]
    most = max(map(len, per_movie))
    for number, title, _ in lines:
        if not title[-5:-1].isdigit():
            raise DataError(f"{file}: the title of movie {number} does not end in '(year)'")
    year = np.array([int(title[-5:-1]) for _, title, _ in lines])
    return (
        file,
        np.array([int(number) for number, _, _ in lines]),
        {
            "movie": np.arange(len(lines), dtype=np.int32)[:, None],
            "genres": np.array([g + [-1] * (most - len(g)) for g in per_movie], np.int32),
            "year": ((year - year.min()) // YEARS_PER_BUCKET).astype(np.int32)[:, None],
        },
    )


def rows_of(keys: np.ndarray, known: np.ndarray, file: pathlib.Path, field: str, side_file: pathlib.Path) -> np.ndarray:
    """Row of each key among the sorted known keys."""
    rows = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    bad = known[rows] != keys
    if bad.any():
        raise DataError(
            f"{file}: {field} {keys[first_true(bad)]} is not in {side_file}; use the two files of one release"
        )
    return rows
