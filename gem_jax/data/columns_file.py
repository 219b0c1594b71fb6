"""Named columns of numbers as one Parquet file: what a run writes down about its examples, for it and for any other tool."""

import pathlib

import numpy as np

from gem_jax.data.source import DataError


def write_columns(path: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
    """Writes columns [n] under a temporary name beside `path` and moves the file there; the folder is made if missing.

    Raises:
      DataError: the file cannot be written.
    """
    import pyarrow as pa  # --help has no use for it
    import pyarrow.parquet

    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pa.table(columns), partial, compression="zstd")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written ({error}); name a place that can") from error


def read_columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What `write_columns` wrote, dtypes and NaN as they were.

    Raises:
      DataError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as Parquet ({error}); name a file that a run wrote") from error
    return {name: table[name].to_numpy() for name in table.column_names}
