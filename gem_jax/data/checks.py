"""What every reader checks of a user's files, and how it says so: one sentence with the file, the row, the field.

A check finds the rows that break one rule and hands them to `Rows.refuse`, which alone makes the sentence.

Shape letters: n rows, E events of all rows.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable

import numpy as np

from gem_jax.data.source import DataError

MAX_MAGNITUDE = 1e18
"""No number may be larger: the squares of larger ones overflow float32, and no measured quantity is; damaged bytes often are."""

MAX_WEIGHT = 1e9
"""No example may weigh more: weights are of order one, inverse propensities reach millions, Unix times are above it."""

MAX_AGE_S = 30 * 365 * 86_400
"""No event may be older: 30 years in seconds, which every Unix time since the year 2000 exceeds."""

LARGE = 1e4
"""Dense values above it are warned of: models expect features of order one, and such a one drowns the others' gradients."""


class BadRows(DataError):
    """Rows that break one rule; the message is of the first of them.

    Attributes:
      bad: bool [n], which rows.
    """

    def __init__(self, message: str, bad: np.ndarray):
        super().__init__(message)
        self.bad = bad


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a file, as messages name them.

    Attributes:
      file: its name.
      numbers: int64 [n], the rows' places in the file, from 0.
    """

    file: str
    numbers: np.ndarray

    @classmethod
    def first(cls, file: pathlib.Path | str, count: int) -> "Rows":
        """The first `count` rows of a file."""
        return cls(file=str(file), numbers=np.arange(count))

    def __len__(self) -> int:
        return len(self.numbers)

    def refuse(self, bad: np.ndarray, what: Callable[[int], str], lengths: np.ndarray | None = None) -> None:
        """Raises BadRows where anything is bad.

        Args:
          bad: bool [n], or [n, k]; or [E] with `lengths`.
          what: index of the first bad one along axis 0 of `bad` -> what is wrong with it.
          lengths: int [n], events of each row, where `bad` is of events.
        """
        if not bad.any():
            return
        index = first_true(bad)
        if lengths is None:
            of_rows = bad.reshape(len(bad), -1).any(axis=1)
        else:
            of_rows = np.zeros(len(self), bool)
            of_rows[np.repeat(np.arange(len(self)), lengths)[bad]] = True
        raise BadRows(f"{self.file}, row {self.numbers[first_true(of_rows)]}: {what(index)}", of_rows)


def existing_path(path: str, kind: str) -> pathlib.Path:
    """`path` as a Path.

    Args:
      path: the user's `data.path`.
      kind: what it should be, e.g. "a Parquet file", for the message.

    Raises:
      DataError: nothing is given, nothing is there, or a file is empty.
    """
    check_given(path, kind)
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        raise absent(found, kind)
    if found.is_file() and found.stat().st_size == 0:
        raise DataError(f"{found} is empty: set data.path to {kind}")
    return found


def check_given(path: str, kind: str) -> None:
    """Raises DataError where the user gives no `data.path`, which should be a `kind`."""
    if not path:
        raise DataError(f"data.path is not set: pass data.path=<{kind}>")


def absent(path: pathlib.Path | str, kind: str) -> DataError:
    """The error of a `data.path` where nothing is."""
    return DataError(f"{path} does not exist: set data.path to {kind}")


def check_rows(file: pathlib.Path | str, count: int) -> None:
    """Raises DataError where a file holds no rows."""
    if count == 0:
        raise DataError(f"{file} holds no rows: it needs at least one example")


def first_true(bad: np.ndarray) -> int:
    """Row of the first True; call only where there is one."""
    return int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))


def is_slip(name: str, meant: str) -> bool:
    """Whether `name` seems to be a slip of `meant`: other case or separators, letters swapped, one more or one less.

    Names of parts, "label.click", are compared part by part.
    """
    parts, others = name.casefold().split("."), meant.casefold().split(".")
    return name != meant and len(parts) == len(others) and all(map(_is_near, parts, others))


def _is_near(name: str, other: str) -> bool:
    letters, others = ([c for c in text if c.isalnum()] for text in (name, other))
    return sorted(letters) == sorted(others) or difflib.SequenceMatcher(None, name, other).ratio() >= 0.85


def check_labels(values: np.ndarray, rows: Rows, field: str) -> None:
    """Raises BadRows where a label (or true probability) [n] is neither in [0, 1] nor unknown (NaN)."""
    rows.refuse(
        (values < 0) | (values > 1),
        lambda row: f"'{field}' is {values[row]:g}; it must be from 0 to 1, or null (unobserved)",
    )


def check_labels_differ(labels: np.ndarray, tasks: list[str], file: pathlib.Path | str) -> None:
    """Raises DataError where a task's labels in the training part [n, N] are all the same or all unobserved."""
    for task, column in zip(tasks, labels.T, strict=True):
        observed = column[~np.isnan(column)]
        if not len(observed):
            raise DataError(f"{file}: no training row has a label '{task}'; remove the task or give labels")
        if observed.min() == observed.max():
            raise DataError(
                f"{file}: every '{task}' label of the training part is {observed[0]:g}; training needs labels that differ"
            )


def check_ids(
    values: np.ndarray, table: str, size: int, rows: Rows, field: str, lengths: np.ndarray | None = None
) -> None:
    """Raises BadRows where an id is outside its table and is not -1 (absent).

    Args:
      values: int [n] or [n, max_ids], or [E] for events.
      table: named in the message.
      size: rows of the table.
      rows: of the file.
      field: named in the message.
      lengths: int [n], events of each row, where values are events.
    """
    bad = (values < -1) | (values >= size)

    def what(index: int) -> str:
        value = int(values[index][bad[index]][0] if values.ndim > 1 else values[index])
        return (
            f"'{field}' is {value}, outside table '{table}' of {size} rows; ids go from 0 to {size - 1} (-1 = absent), "
            "so enlarge the table or correct the data"
        )

    rows.refuse(bad, what, lengths)


def check_numbers(values: np.ndarray, rows: Rows, field: str, largest: float = MAX_MAGNITUDE) -> None:
    """Raises BadRows where a number, [n] or [n, dim], is NaN, infinite or beyond `largest`."""
    bad = ~(np.abs(values) <= largest)

    def what(row: int) -> str:
        value = values[row][bad[row]][0] if values.ndim > 1 else values[row]
        if np.isfinite(value):
            return f"'{field}' is {value:g}, and a number beyond {largest:g} is taken for damage; scale or correct it"
        return f"'{field}' is {value:g}; replace it by a number (and add a 0/1 feature that says it was missing)"

    rows.refuse(bad, what)
