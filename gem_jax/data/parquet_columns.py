"""Between a Parquet table and `Examples`: the column convention of `gem_jax.data.parquet`, and its checks.

Shape letters: n rows of the table, E events of all rows.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.checks import check_finite, check_ids, check_labels, first_true, row_of_event
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.schema import Categorical, Schema, Sequence, Task, TrainingColumn
from gem_jax.data.source import DataError

MAX_AGE_S = 2**31 - 1

# pyarrow makes these two functions at import, where type checkers do not see them.
_list_lengths = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]
_index_in = pc.index_in  # pyright: ignore[reportAttributeAccessIssue]


def label_column(task: Task) -> str:
    """Column of a task's labels."""
    return f"label.{task.name}"


def _truth_column(task: Task) -> str:
    return f"true_probability.{task.name}"


def _training_column(column: TrainingColumn) -> str:
    return f"training.{column.name}"


def _user_is_a_feature(schema: Schema) -> bool:
    return any(feature.name == "user" for feature in schema.categoricals)


def _needed(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every column that must be there, and its kind: integer, number, label, integers or numbers (lists)."""
    for feature in schema.categoricals:
        yield feature.name, "integer" if feature.max_ids == 1 else "integers"
    yield from ((column.name, "number") for column in schema.dense)
    yield from ((vector.name, "numbers") for vector in schema.vectors)
    for sequence in schema.sequences:
        for name in (*(a.name for a in sequence.attributes), "age_s"):
            yield f"{sequence.name}.{name}", "integers"
    if len(schema.domains) > 1:
        yield "domain", "domain"


def _taught(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every column that must be there to train, and its kind."""
    for task in schema.tasks:
        yield label_column(task), "label"
    for column in schema.training:
        yield _training_column(column), "number" if column.dim == 1 else "numbers"


def _optional(schema: Schema) -> Iterator[tuple[str, str]]:
    if len(schema.domains) == 1:
        yield "domain", "domain"
    if not _user_is_a_feature(schema):
        yield "user", "integer"
    yield "example_id", "integer"
    yield "time_s", "integer"
    yield "weight", "number"
    for task in schema.tasks:
        yield _truth_column(task), "number"


def column_names(schema: Schema) -> list[str]:
    """Every column that a file of this schema may have."""
    return [name for name, _ in (*_needed(schema), *_taught(schema), *_optional(schema))]


def check_columns(found: pa.Schema, schema: Schema, file: pathlib.Path, for_training: bool) -> None:
    """Raises DataError where a column is missing, stands twice or is of the wrong type; scoring needs no labels."""
    missing = [name for name, _ in _needed(schema) if name not in found.names]
    if missing and not for_training:  # the schema is the trained model's: nothing can be taken out of it
        raise DataError(f"{file} lacks what the model reads: {', '.join(missing)}; add these columns")
    for name in (*missing, *(name for name, _ in _taught(schema) if for_training)):
        if name not in found.names:
            raise DataError(f"{file} has no column '{name}'; add it, or take it out of the schema")
    for name, kind in (*_needed(schema), *_taught(schema), *_optional(schema)):
        if found.names.count(name) > 1:
            raise DataError(f"{file} has {found.names.count(name)} columns '{name}'; keep one")
        if name in found.names and not _is_kind(found.field(name).type, kind):
            wanted = {"integers": "a list of integers", "numbers": "a list of numbers", "domain": "a string or integer"}
            wanted |= {"integer": "an integer", "number": "a number", "label": "a number or bool"}
            raise DataError(f"{file}: column '{name}' is {found.field(name).type}; it must be {wanted[kind]}")


def _is_kind(dtype: pa.DataType, kind: str) -> bool:
    types = pa.types
    if kind in ("integers", "numbers"):
        is_list = types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)
        return is_list and _is_kind(dtype.value_type, kind[:-1])
    if types.is_integer(dtype):
        return True
    if kind == "domain":
        value = dtype.value_type if types.is_dictionary(dtype) else dtype
        return types.is_string(value) or types.is_large_string(value)
    return (types.is_floating(dtype) and kind != "integer") or (types.is_boolean(dtype) and kind == "label")


def decode(table: pa.Table, schema: Schema, file: pathlib.Path, first_row: int, row_ids: np.ndarray) -> Examples:
    """Examples of a table.

    Args:
      table: rows of `file` from `first_row` on, columns as `check_columns` wants them.
      schema: names the columns.
      file: named in messages.
      first_row: rows in messages count from the file's first, 0.
      row_ids: int64 [n], the examples' ids where the table has none.

    Raises:
      DataError: an id outside its table, a number that is not finite, a label not from 0 to 1 or null, lists of one sequence
        or vector that do not have the right length, a negative age, an unknown domain, an example id that stands twice, or a
        null where none may be.
    """
    return _Decoder(table, schema, file, first_row, row_ids).examples()


class _Decoder:
    def __init__(self, table: pa.Table, schema: Schema, file: pathlib.Path, first_row: int, row_ids: np.ndarray):
        self.table = table
        self.schema = schema
        self.file = file
        self.first_row = first_row
        self.row_ids = row_ids

    def examples(self) -> Examples:
        schema, count = self.schema, self.table.num_rows
        dense = [self._finite(feature.name) for feature in schema.dense]
        return Examples(
            ids={f.name: self._ids(f) for f in schema.categoricals},
            dense=np.stack(dense, axis=1) if dense else np.zeros((count, 0), np.float32),
            vectors={v.name: self._vector(v.name, v.dim) for v in schema.vectors},
            sequences={s.name: self._histories(s) for s in schema.sequences},
            labels=np.stack([self._probability(label_column(t)) for t in schema.tasks], axis=1),
            domain=self._domain(),
            weight=self._weight(),
            user=self._filled("user", -1, np.int64) if self._has("user") else np.full(count, -1, np.int64),
            example_id=self._example_id(),
            time_s=self._time(),
            true_probability=np.stack([self._probability(_truth_column(t)) for t in schema.tasks], axis=1),
            training={c.name: self._training(_training_column(c), c.dim) for c in schema.training},
        )

    def _has(self, name: str) -> bool:
        return name in self.table.column_names

    def _wrong(self, row: int, message: str) -> DataError:
        return DataError(f"{self.file}, row {self.first_row + row}: {message}")

    def _filled(self, name: str, null: int | float, dtype: type) -> np.ndarray:
        """A column of numbers, nulls replaced."""
        return pc.fill_null(self._cast(name, self.table[name], dtype), null).to_numpy()

    def _cast(self, name: str, values: pa.ChunkedArray | pa.Array, dtype: type) -> pa.ChunkedArray | pa.Array:
        try:
            return values.cast(pa.from_numpy_dtype(dtype))
        except pa.ArrowException as error:
            last = self.first_row + self.table.num_rows - 1
            raise DataError(
                f"{self.file}, rows {self.first_row} to {last}: '{name}' does not fit {np.dtype(dtype)}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _finite(self, name: str) -> np.ndarray:
        values = self._filled(name, np.nan, np.float32)
        check_finite(values, self.file, name, self.first_row)
        return values

    def _lists(self, name: str) -> tuple[pa.Array, np.ndarray]:
        """A list column's values [E] and lengths int32 [n]; a null list is an empty one."""
        column = self.table[name].combine_chunks()
        lengths = pc.fill_null(_list_lengths(column), 0).to_numpy(zero_copy_only=False)
        return column.flatten(), lengths.astype(np.int32)

    def _check_ids(self, values: np.ndarray, feature: Categorical, field: str, lengths=None) -> np.ndarray:
        rows = self.schema.table(feature.table).rows
        check_ids(values, rows, self.file, field, feature.table, self.first_row, lengths)
        return values.astype(np.int32, copy=False)

    def _ids(self, feature: Categorical) -> np.ndarray:
        if feature.max_ids == 1:
            return self._check_ids(self._filled(feature.name, -1, np.int64), feature, feature.name)[:, None]
        flat, lengths = self._lists(feature.name)
        too_many = lengths > feature.max_ids
        if too_many.any():
            row = first_true(too_many)
            raise self._wrong(
                row,
                f"'{feature.name}' has {lengths[row]} ids; raise its max_ids ({feature.max_ids}) or shorten the list",
            )
        ids = np.full((len(lengths), feature.max_ids), -1, np.int64)
        ids[np.arange(feature.max_ids) < lengths[:, None]] = _integers(flat)
        return self._check_ids(ids, feature, feature.name)

    def _vector(self, name: str, dim: int) -> np.ndarray:
        flat, lengths = self._lists(name)
        if (lengths != dim).any():
            row = first_true(lengths != dim)
            raise self._wrong(row, f"'{name}' has {lengths[row]} numbers; the schema says dim={dim}")
        values = self._cast(name, flat, np.float32)
        values = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).reshape(-1, dim)
        check_finite(values, self.file, name, self.first_row)
        return values

    def _training(self, name: str, dim: int) -> np.ndarray:
        values = np.full((self.table.num_rows, dim), np.nan, np.float32)
        if not self._has(name):
            return values
        if dim == 1:
            values[:, 0] = self._filled(name, np.nan, np.float32)
        else:
            flat, lengths = self._lists(name)
            known = np.asarray(self.table[name].is_valid())
            bad = known & (lengths != dim)
            if bad.any():
                row = first_true(bad)
                raise self._wrong(row, f"'{name}' has {lengths[row]} numbers; the schema says dim={dim}")
            numbers = pc.fill_null(self._cast(name, flat, np.float32), np.nan)
            values[known] = numbers.to_numpy(zero_copy_only=False).reshape(-1, dim)
        if np.isinf(values).any():
            row = first_true(np.isinf(values))
            raise self._wrong(row, f"'{name}' is infinite; give a number, or null where it is unknown")
        return values

    def _example_id(self) -> np.ndarray:
        if not self._has("example_id"):
            return self.row_ids
        if self.table["example_id"].null_count:
            row = first_true(np.asarray(self.table["example_id"].is_null()))
            raise self._wrong(row, "'example_id' is null; give every example one, or leave the column out")
        ids = self._filled("example_id", -1, np.int64)
        if (ids < 0).any():
            row = first_true(ids < 0)
            raise self._wrong(row, f"'example_id' is {ids[row]}; it must be 0 or more")
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if len(again):
            raise self._wrong(int(again.min()), f"'example_id' is {ids[again.min()]} again; ids must be unique")
        return ids

    def _time(self) -> np.ndarray:
        if not self._has("time_s"):
            return np.full(self.table.num_rows, -1, np.int64)
        time_s = self._filled("time_s", -1, np.int64)
        bad = (time_s < 0) & np.asarray(self.table["time_s"].is_valid())
        if bad.any():
            row = first_true(bad)
            raise self._wrong(row, f"'time_s' is {time_s[row]}; it must be 0 or more, or null where it is unknown")
        return time_s

    def _histories(self, sequence: Sequence) -> Histories:
        age_name = f"{sequence.name}.age_s"
        flat, lengths = self._lists(age_name)
        age = _integers(flat)
        bad = (age < 0) | (age > MAX_AGE_S)
        if flat.null_count or bad.any():
            index = first_true(np.asarray(flat.is_null()) | bad)
            raise self._wrong(
                row_of_event(index, lengths),
                f"'{age_name}' has {flat[index]}; an event's age is 0 to {MAX_AGE_S} seconds before the example",
            )
        ids = {}
        for attribute in sequence.attributes:
            name = f"{sequence.name}.{attribute.name}"
            flat, own_lengths = self._lists(name)
            if (own_lengths != lengths).any():
                row = first_true(own_lengths != lengths)
                raise self._wrong(
                    row, f"'{name}' has {own_lengths[row]} events and '{age_name}' {lengths[row]}; they must agree"
                )
            ids[attribute.name] = self._check_ids(_integers(flat), attribute, name, lengths)
        return Histories(ids=ids, age_s=age.astype(np.int32, copy=False), lengths=lengths)

    def _probability(self, name: str) -> np.ndarray:
        """A label or a true probability; NaN where it is null or the file has no such column."""
        if not self._has(name):
            return np.full(self.table.num_rows, np.nan, np.float32)
        values = self._filled(name, np.nan, np.float32)
        check_labels(values, self.file, name, self.first_row)
        return values

    def _weight(self) -> np.ndarray:
        if not self._has("weight"):
            return np.ones(self.table.num_rows, np.float32)
        weight = self._finite("weight")
        if (weight < 0).any():
            row = first_true(weight < 0)
            raise self._wrong(row, f"'weight' is {weight[row]:g}; it must be 0 or more")
        return weight

    def _domain(self) -> np.ndarray:
        if not self._has("domain"):
            return np.zeros(self.table.num_rows, np.int32)
        column, names = self.table["domain"], self.schema.domains
        if pa.types.is_integer(column.type):
            domain = self._filled("domain", -1, np.int64)
        else:
            domain = pc.fill_null(_index_in(column.cast(pa.string()), pa.array(names)), -1).to_numpy()
        bad = (domain < 0) | (domain >= len(names))
        if bad.any():
            row = first_true(bad)
            raise self._wrong(row, f"'domain' is {column[row]}; the schema has {', '.join(names)}")
        return domain.astype(np.int32)


def _integers(flat: pa.Array) -> np.ndarray:
    """Values in the column's own integer type, or in int64 with nulls as -1."""
    if flat.null_count:
        flat = pc.fill_null(flat.cast(pa.int64()), -1)
    return flat.to_numpy(zero_copy_only=False)


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
        for name, values in (*history.ids.items(), ("age_s", history.age_s)):
            columns[f"{sequence.name}.{name}"] = _list_array(values, history.lengths)
    for k, task in enumerate(schema.tasks):
        columns[label_column(task)] = pa.array(examples.labels[:, k], from_pandas=True)
        columns[_truth_column(task)] = pa.array(examples.true_probability[:, k], from_pandas=True)
    columns["domain"] = pa.array(np.array(schema.domains)[examples.domain])
    if not _user_is_a_feature(schema):
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
        name = _training_column(training)
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
