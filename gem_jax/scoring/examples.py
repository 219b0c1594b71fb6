"""What can be scored, as a source of examples of the run's schema."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gem_jax.data.parquet import ParquetSource
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source
from gem_jax.data.table_source import table_source
from gem_jax.errors import UserError
from gem_jax.run.saves import PREPARATION


def open_examples(data: Any, schema: Schema, run_dir: pathlib.Path, events: Mapping[str, Any] | None = None) -> Source:
    """Examples to score, labels or not.

    Of a run that was trained on a prepared log, a path or a table holds raw rows as that log had them, whatever their columns are
    called: a column of raw ids may have the name of a feature, whose ids are others. Of any other run it has the columns of
    `gem_jax.data.parquet`.

    Args:
      data: a Parquet file or a folder of them, also by a URL that fsspec knows; a table in memory (pyarrow, Polars, pandas 2.2 or
        newer); or a source.
      schema: the run's.
      run_dir: the run's folder.
      events: source of events -> a path or a table of what has happened since the log was prepared.

    Raises:
      UserError: nothing is there or can be read, a column is missing, a source has another schema, or events are given to a run
        that has no preparation.
    """
    preparation = run_dir / PREPARATION
    if isinstance(data, Source):
        if events:
            raise UserError("events are found for raw rows, and a source has histories already; give one of them")
        source = data
    elif preparation.is_dir():
        source = _raw_rows(preparation, data, events)
    elif events:
        raise UserError(
            f"events are for runs on prepared logs, and {run_dir} has no {PREPARATION}/; give histories as columns instead"
        )
    elif isinstance(data, str | os.PathLike):
        source = ParquetSource((os.path.expanduser(data),), schema, for_training=False)
    else:
        source = table_source(data, schema)
    _check_schema(source.schema, schema)
    if not len(source):
        raise DataError("there is nothing to score: the data has no rows")
    return source


def _raw_rows(folder: pathlib.Path, data: Any, events: Mapping[str, Any] | None) -> Source:
    """Raw rows as the run's preparation makes examples of them."""
    from gem_jax.prepare import Preparation  # most runs have none

    return Preparation.load(folder).source(data, events=dict(events or {}))


def _check_schema(found: Schema, wanted: Schema) -> None:
    """A model knows its features by the schema it was trained with, their order included; columns for training it never reads."""
    different = [name for name, value in vars(wanted).items() if name != "training" and getattr(found, name) != value]
    if different:
        raise DataError(
            f"the source has another schema than the run: {', '.join(different)} differ; open the data with the run's `schema`"
        )
