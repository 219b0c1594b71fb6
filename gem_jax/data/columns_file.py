"""Named columns of numbers as one Parquet file: what a run writes down about its examples, for it and for any other tool."""

import pathlib
from typing import Any

import numpy as np

from gem_jax.data.source import DataError


def write_columns(path: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
    """Writes columns [n] or [n, k] under a temporary name beside `path` and moves the file there; the folder is made if missing.

    Raises:
      DataError: the file cannot be written.
    """
    import pyarrow as pa  # --help has no use for it
    import pyarrow.parquet

    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {name: _as_list(values) if values.ndim == 2 else values for name, values in columns.items()}
        pyarrow.parquet.write_table(pa.table(table), partial, compression="zstd", write_page_checksum=True)
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
        table = pyarrow.parquet.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as Parquet ({error}); name a file that a run wrote") from error
    return {name: _values(table[name]) for name in table.column_names}


def _as_list(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _values(column: Any) -> np.ndarray:
    """[n], or [n, k] of a column of lists of k."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = column.combine_chunks().flatten() if len(column) else pa.array([], column.type.value_type)
    return flat.to_numpy().reshape(-1, column.type.list_size)
