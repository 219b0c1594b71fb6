"""Types of raw columns: what encodings hide, and which family of values a column has.

| family | Arrow types |
|---|---|
| boolean | bool |
| integer | signed and unsigned integers of up to 63 bits |
| unsigned | uint64 |
| number | floats; decimals become floats |
| string | strings |
| time | timestamps and dates |
| empty | null: no value anywhere |
| list | lists of any of these |
| other | structs, maps, bytes, durations |
"""

import pyarrow as pa
import pyarrow.compute as pc

_types = pa.types

_list_flatten, _list_lengths = pc.list_flatten, pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]


def family(kind: pa.DataType) -> str:
    """The family of a plain type's values."""
    if _types.is_boolean(kind):
        return "boolean"
    if _types.is_integer(kind):
        return "unsigned" if _types.is_uint64(kind) else "integer"
    if _types.is_floating(kind):
        return "number"
    if _types.is_string(kind):
        return "string"
    if _types.is_timestamp(kind) or _types.is_date(kind):
        return "time"
    if _types.is_null(kind):
        return "empty"
    return "list" if is_list(kind) else "other"


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a plain list type."""
    return _types.is_list(kind) or _types.is_fixed_size_list(kind)


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: dictionaries, views, large offsets, decimals, extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if _types.is_dictionary(kind):
        return plain(kind.value_type)
    if _types.is_large_string(kind) or _types.is_string_view(kind):
        return pa.string()
    if _types.is_decimal(kind) or _types.is_float16(kind):
        return pa.float64()
    if _types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if _types.is_list(kind) or _types.is_large_list(kind) or _is_list_view(kind):
        return pa.list_(plain(kind.value_type))
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns in their plain types."""
    return pa.schema([pa.field(field.name, plain(field.type)) for field in schema])


def cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in a plain type that holds them.

    Raises:
      pa.ArrowException: it does not.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if values.type == kind:
        return values
    if _is_list_view(values.type):  # pyarrow 26 makes an invalid array of it
        flat = cast(_list_flatten(values), kind.value_type)
        ends = pc.cumulative_sum(pc.fill_null(_list_lengths(values), 0).cast(pa.int32()))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
        return pa.ListArray.from_arrays(offsets, flat, type=kind, mask=values.is_null())
    return values.cast(kind)


def _is_list_view(kind: pa.DataType) -> bool:
    return _types.is_list_view(kind) or _types.is_large_list_view(kind)
