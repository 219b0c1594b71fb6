"""A table in memory as examples to score, by the columns of `gem_jax.data.parquet`."""

from typing import Any

import numpy as np
import pyarrow as pa

from gem_jax.data.checks import Rows, check_rows
from gem_jax.data.columns import MemorySource
from gem_jax.data.parquet.columns import check_columns, columns_found
from gem_jax.data.parquet.decode import decode
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, numbered

NAME = "the table"
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
    check_columns(columns_found(rows.schema, schema), schema, NAME, for_training=False)
    check_rows(NAME, rows.num_rows)
    row_ids = numbered("train", np.arange(rows.num_rows))
    return MemorySource(schema=schema, examples=decode(rows, schema, Rows.first(NAME, rows.num_rows), row_ids))
