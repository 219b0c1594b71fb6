"""The columns that a file of a schema has: their names, the kinds of their values, and which of them must be there."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from gem_jax.data.checks import is_slip
from gem_jax.data.parquet.values import is_list, is_number, is_text
from gem_jax.data.schema import Schema, Sequence, Task, TrainingColumn
from gem_jax.data.source import DataError

AGE = "age_s"
"""The age of a sequence's events stands beside their attributes under this name."""

_KINDS = {
    "integer": "an integer",
    "number": "a number or bool",
    "integers": "a list of integers",
    "numbers": "a list of numbers",
    "domain": "a string or integer",
}

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a folder `column=value` whose rows have none."""

type Column = tuple[str, pa.DataType]
"""Name and type of a column found."""


def label_column(task: Task) -> str:
    """Column of a task's labels."""
    return f"label.{task.name}"


def truth_column(task: Task) -> str:
    """Column of a task's true probabilities."""
    return f"true_probability.{task.name}"


def training_column(column: TrainingColumn) -> str:
    """Column of numbers that objectives read."""
    return f"training.{column.name}"


def event_columns(sequence: Sequence) -> list[str]:
    """Columns of a sequence: each attribute's, then the ages'."""
    return [f"{sequence.name}.{name}" for name in (*(a.name for a in sequence.attributes), AGE)]


def user_is_a_feature(schema: Schema) -> bool:
    """Whether the user's id is also a categorical feature."""
    return any(feature.name == "user" for feature in schema.categoricals)


def _needed(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every column that must be there, and its kind."""
    for feature in schema.categoricals:
        yield feature.name, "integer" if feature.max_ids == 1 else "integers"
    yield from ((column.name, "number") for column in schema.dense)
    yield from ((vector.name, "numbers") for vector in schema.vectors)
    for sequence in schema.sequences:
        yield from ((name, "integers") for name in event_columns(sequence))
    if len(schema.domains) > 1:
        yield "domain", "domain"


def _taught(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every column that must be there to train, and its kind."""
    for task in schema.tasks:
        yield label_column(task), "number"
    for column in schema.training:
        yield training_column(column), "number" if column.dim == 1 else "numbers"


def _optional(schema: Schema) -> Iterator[tuple[str, str]]:
    if len(schema.domains) == 1:
        yield "domain", "domain"
    if not user_is_a_feature(schema):
        yield "user", "integer"
    yield "example_id", "integer"
    yield "time_s", "integer"
    yield "weight", "number"
    for task in schema.tasks:
        yield truth_column(task), "number"


def optional_columns(schema: Schema) -> list[str]:
    """Every column that a file may lack."""
    return [name for name, _ in _optional(schema)]


def column_names(schema: Schema) -> list[str]:
    """Every column that a file of this schema may have, with a sequence's own, where its events are structs."""
    names = [name for name, _ in (*_needed(schema), *_taught(schema), *_optional(schema))]
    return names + [sequence.name for sequence in schema.sequences]


def columns_found(found: pa.Schema, schema: Schema) -> list[Column]:
    """Columns of a file; those of a sequence stored as lists of structs under the names that lists of their own would have."""
    sequences = {sequence.name for sequence in schema.sequences}
    columns = []
    for field in found:
        if field.name in sequences and is_list(field.type) and pa.types.is_struct(field.type.value_type):
            columns += [(f"{field.name}.{inner.name}", pa.list_(inner.type)) for inner in field.type.value_type]
        else:
            columns.append((field.name, field.type))
    return columns


def partition_value(column: str, value: str, schema: Schema) -> pa.Scalar:
    """What the rows below a folder `column=value` have in the column: a number where the value reads as one, else text."""
    if value == _HIVE_NULL:
        return pa.scalar(None)
    if not (column == "domain" and value in schema.domains):
        for dtype in (pa.int64(), pa.float64()):
            with contextlib.suppress(pa.ArrowInvalid):
                return pa.scalar(value).cast(dtype)
    return pa.scalar(value)


def check_columns(found: list[Column], schema: Schema, file: str, for_training: bool) -> None:
    """Refuses a file whose columns do not fit the schema; scoring needs no labels.

    Raises:
      DataError: a column is missing, stands twice or is of the wrong type, or one that may be missing seems to be there under
        a name that is a slip of its own.
    """
    names = [name for name, _ in found]
    required = {name for name, _ in (*_needed(schema), *(_taught(schema) if for_training else ()))}
    known = {**dict(_needed(schema)), **dict(_taught(schema)), **dict(_optional(schema))}

    def slip_of(name: str) -> str | None:
        return next((other for other in names if other not in known and is_slip(other, name)), None)

    missing = [name for name in known if name in required and name not in names]
    if missing and not for_training:  # the schema is the trained model's: nothing can be taken out of it
        slips = [f"is {slip!r} '{name}'?" for name in missing if (slip := slip_of(name))]
        raise DataError(f"{file} lacks what the model reads: {', '.join(missing)}; {'; '.join(['add it', *slips])}")
    for name in known:
        if name not in names:
            slip = slip_of(name)
            if name in required:
                hint = f"rename {slip!r}" if slip else "add it"
                raise DataError(f"{file} has no column '{name}'; {hint}, or take it out of the schema")
            if slip:
                raise DataError(
                    f"{file} has a column {slip!r} and no '{name}'; rename it if that is what it means, or call it otherwise"
                )
    for name, dtype in found:
        if name not in known:
            continue
        if names.count(name) > 1:
            raise DataError(f"{file} has {names.count(name)} columns '{name}'; keep one")
        if not _is_kind(dtype, known[name]):
            hint = "; number strings by python -m gem_jax.prepare" if _has_text(dtype) else ""
            raise DataError(f"{file}: column '{name}' is {dtype}; it must be {_KINDS[known[name]]}{hint}")


def _is_kind(dtype: pa.DataType, kind: str) -> bool:
    if kind in ("integers", "numbers"):
        return pa.types.is_null(dtype) or (is_list(dtype) and is_number(dtype.value_type))
    return is_number(dtype) or (kind == "domain" and is_text(dtype))


def _has_text(dtype: pa.DataType) -> bool:
    return is_text(dtype.value_type if is_list(dtype) else dtype)
