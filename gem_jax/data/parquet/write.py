"""Writing examples as a Parquet file, the inverse of `gem_jax.data.parquet.decode`."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from gem_jax.data.batch import Examples
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.parquet.columns import AGE, label_column, training_column, truth_column, user_is_a_feature
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source


def write_parquet(
    path: pathlib.Path, source: Source, indices: np.ndarray | None = None, rows_per_group: int = 8192
) -> None:
    """Writes examples of any source as one file, which `ParquetSource` reads back equal; pages have checksums.

    Args:
      path: the file; it appears when it is complete.
      source: what to write.
      indices: int64 [n], the examples; all of them if not given.
      rows_per_group: rows of a row group, also what is held in memory at once.

    Raises:
      DataError: there are no examples, a row group would hold none, the schema's feature `user` differs from the users' ids, or
        the file cannot be written.
    """
    indices = np.arange(len(source)) if indices is None else indices
    if not len(indices):
        raise DataError(f"there are no examples to write to {path}; give at least one")
    if rows_per_group < 1:
        raise DataError(f"rows_per_group is {rows_per_group}; a row group holds at least 1")
    groups = [indices[start : start + rows_per_group] for start in range(0, len(indices), rows_per_group)]
    first = encode(source.read(groups[0]), source.schema)
    unfinished = path.with_name(f".{path.name}.unfinished")  # hidden: readers of the folder pass over it
    try:
        with pyarrow.parquet.ParquetWriter(unfinished, first.schema, write_page_checksum=True) as writer:
            writer.write_table(first)
            for group in groups[1:]:
                writer.write_table(encode(source.read(group), source.schema))
        unfinished.rename(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}); name a place that can") from error
    finally:
        unfinished.unlink(missing_ok=True)


def encode(examples: Examples, schema: Schema) -> pa.Table:
    """The table that `decode` turns back into equal examples."""
    columns: dict[str, pa.Array] = {}
    for feature in schema.categoricals:
        ids = examples.ids[feature.name]
        columns[feature.name] = pa.array(ids[:, 0]) if feature.max_ids == 1 else _id_lists(ids)
    for k, column in enumerate(schema.dense):
        columns[column.name] = pa.array(examples.dense[:, k])
    for vector in schema.vectors:
        flat = pa.array(examples.vectors[vector.name].reshape(-1))
        columns[vector.name] = pa.FixedSizeListArray.from_arrays(flat, vector.dim)
    for sequence in schema.sequences:
        history = examples.sequences[sequence.name]
        for name, values in (*history.ids.items(), (AGE, history.age_s)):
            columns[f"{sequence.name}.{name}"] = _list_array(values, history.lengths)
    for k, task in enumerate(schema.tasks):
        columns[label_column(task)] = pa.array(examples.labels[:, k], from_pandas=True)
        columns[truth_column(task)] = pa.array(examples.true_probability[:, k], from_pandas=True)
    columns["domain"] = pa.array(np.array(schema.domains)[examples.domain])
    if not user_is_a_feature(schema):
        columns["user"] = pa.array(examples.user)
    elif not np.array_equal(examples.ids["user"][:, 0], examples.user):
        raise DataError(
            "the schema's feature 'user' is the user's id, but its ids differ from the users; rename the feature"
        )
    columns["example_id"] = pa.array(examples.example_id)
    columns["time_s"] = pa.array(examples.time_s, mask=examples.time_s < 0)
    for training in schema.training:
        values = examples.training[training.name]
        flat = pa.array(values.reshape(-1))
        name = training_column(training)
        columns[name] = flat if training.dim == 1 else pa.FixedSizeListArray.from_arrays(flat, training.dim)
    columns["weight"] = pa.array(examples.weight)
    return pa.table(columns)


def _list_array(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _id_lists(ids: np.ndarray) -> pa.Array:
    """Lists without the -1 that fill up each row's end."""
    width = ids.shape[1]
    lengths = width - np.argmax(np.column_stack([ids[:, ::-1] >= 0, np.ones(len(ids), bool)]), axis=1)
    return _list_array(ids.reshape(-1)[ragged_ranges(np.arange(len(ids)) * width, lengths)], lengths)
