"""A table in memory as examples to score, by the columns of `gem_jax.data.parquet`."""

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa

from gem_jax.data.checks import check_rows
from gem_jax.data.columns import MemorySource
from gem_jax.data.parquet_columns import check_columns, decode
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, numbered

NAME = pathlib.Path("the table")
"""What messages call it."""


def table_source(table: Any, schema: Schema) -> MemorySource:
    """The rows of a table, in their order; an example without an id of its own has its row's number.

    Args:
      table: of pyarrow, Polars or pandas (2.2 or newer): anything with `__arrow_c_stream__`. Labels may be absent.
      schema: names the columns; others are ignored.

    Raises:
      DataError: it is no table, has no rows, lacks a column, or has a value that its column may not have.
    """
    if not hasattr(table, "__arrow_c_stream__"):
        raise DataError(
            f"examples cannot be a '{type(table).__name__}'; give a path, or a table of pyarrow, Polars or pandas (2.2 or newer)"
        )
    rows = pa.RecordBatchReader.from_stream(table).read_all()
    check_columns(rows.schema, schema, NAME, for_training=False)
    check_rows(NAME, rows.num_rows)
    row_ids = numbered("train", np.arange(rows.num_rows))
    return MemorySource(schema=schema, examples=decode(rows.combine_chunks(), schema, NAME, 0, row_ids))
