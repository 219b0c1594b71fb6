"""What every reader checks of a user's files, and how it says so: one sentence with the file, the row, the field."""

import pathlib

import numpy as np

from gem_jax.data.source import DataError


def existing_path(path: str, kind: str) -> pathlib.Path:
    """`path` as a Path.

    Args:
      path: the user's `data.path`.
      kind: what it should be, e.g. "a Parquet file", for the message.

    Raises:
      DataError: nothing is given, nothing is there, or a file is empty.
    """
    if not path:
        raise DataError(f"data.path is not set: pass data.path=<{kind}>")
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{found} does not exist: set data.path to {kind}")
    if found.is_file() and found.stat().st_size == 0:
        raise DataError(f"{found} is empty: set data.path to {kind}")
    return found


def check_rows(file: pathlib.Path, count: int) -> None:
    """Raises DataError where a file holds no rows."""
    if count == 0:
        raise DataError(f"{file} holds no rows: it needs at least one example")


def first_true(bad: np.ndarray) -> int:
    """Row of the first True; call only where there is one."""
    return int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))


def check_labels(values: np.ndarray, file: pathlib.Path, field: str, first_row: int = 0) -> None:
    """Raises DataError where a label (or true probability) is neither in [0, 1] nor unknown (NaN); rows count from 0."""
    bad = (values < 0) | (values > 1)
    if bad.any():
        row = first_true(bad)
        raise DataError(
            f"{file}, row {first_row + row}: '{field}' is {values[row]:g}; it must be from 0 to 1, or null (unobserved)"
        )


def check_labels_differ(labels: np.ndarray, tasks: list[str], file: pathlib.Path) -> None:
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
    values: np.ndarray,
    rows: int,
    file: pathlib.Path,
    field: str,
    table: str,
    first_row: int = 0,
    lengths: np.ndarray | None = None,
) -> None:
    """Raises DataError where an id is outside its table and is not -1 (absent).

    Args:
      values: int [n] or [n, max_ids], or [E] for events.
      rows: of the table.
      file: named in the message, with `field` and `table`.
      field: named in the message.
      table: named in the message.
      first_row: row of the file at which values start; rows count from 0.
      lengths: int [n], events of each row, where values are events.
    """
    bad = (values < -1) | (values >= rows)
    if bad.any():
        index = first_true(bad)
        value = int(values[index][bad[index]][0] if values.ndim > 1 else values[index])
        raise DataError(
            f"{file}, row {first_row + row_of_event(index, lengths)}: '{field}' is {value}, outside table '{table}' of "
            f"{rows} rows; ids go from 0 to {rows - 1} (-1 = absent), so enlarge the table or correct the data"
        )


def row_of_event(index: int, lengths: np.ndarray | None) -> int:
    """Row that an event belongs to, given the events of each row; `index` itself where rows have no events."""
    return index if lengths is None else int(np.searchsorted(np.cumsum(lengths), index, side="right"))


def check_finite(values: np.ndarray, file: pathlib.Path, field: str, first_row: int = 0) -> None:
    """Raises DataError where a real number is NaN or infinite; rows count from 0."""
    bad = ~np.isfinite(values)
    if bad.any():
        row = first_true(bad)
        value = values[row][bad[row]][0] if values.ndim > 1 else values[row]
        raise DataError(
            f"{file}, row {first_row + row}: '{field}' is {value:g}; replace it by a number "
            "(and add a 0/1 feature that says it was missing)"
        )
