"""Arrow columns of every type that holds whole numbers, numbers or lists of them, as NumPy arrays.

Shape letters: n rows, E elements of all rows' lists.
"""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.checks import Rows

_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}
"""Up to here every whole number is itself in a float of the type."""

_DIGITS = 76
"""Of the widest decimal type."""

# pyarrow makes this function at import, where type checkers do not see it.
_list_lengths = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]


def is_list(dtype: pa.DataType) -> bool:
    """Whether a column of the type has lists, in any layout."""
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(dtype) for is_kind in kinds)


def is_text(dtype: pa.DataType) -> bool:
    """Whether a column of the type has strings, in any layout."""
    types = pa.types
    value = dtype.value_type if types.is_dictionary(dtype) else dtype
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)


def is_number(dtype: pa.DataType) -> bool:
    """Whether a column of the type has numbers: also bool, decimals, and a column of nulls alone, which has no type of its own."""
    types = pa.types
    kinds = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    return any(is_kind(dtype) for is_kind in kinds)


def in_one(column: pa.ChunkedArray) -> pa.Array:
    """A table's column as one array, copied only where it lies in pieces."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def lists(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """A list column's elements [E], and each row's count of them, int32 [n]; a null list is an empty one."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.null()))
    lengths = pc.fill_null(_list_lengths(column), 0).to_numpy(zero_copy_only=False)
    return column.flatten(), lengths.astype(np.int32)


def numbers(values: pa.Array) -> np.ndarray:
    """Numbers as floats of their own width, others as float64, rounded where they must be; null is NaN."""
    if not pa.types.is_floating(values.type):
        values = pc.cast(values.cast(pa.uint8()) if pa.types.is_boolean(values.type) else values, pa.float64(), False)
    elif pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    return pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)


def float32(values: pa.Array) -> np.ndarray:
    """Numbers rounded to float32; null is NaN, and what is beyond float32 is infinite."""
    with np.errstate(over="ignore"):
        return numbers(values).astype(np.float32, copy=False)


def integers(
    values: pa.Array, rows: Rows, field: str, lengths: np.ndarray | None = None, *, as_bits: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, whatever type they are stored in.

    Args:
      values: integers, bools, floats or decimals, [n], or [E] with `lengths`.
      rows: of the file.
      field: named in messages.
      lengths: int [n], elements of each row's list.
      as_bits: take numbers from 2^63 to 2^64 - 2 for the int64 of the same bits, which keeps different ones different.

    Returns:
      (integers, absent): int64 or a smaller integer type, -1 where absent; bool, where the value is null or NaN.

    Raises:
      BadRows: a number is not whole, beyond int64, or so large that its float type cannot tell it from its neighbours.
    """
    dtype = values.type
    absent = np.asarray(values.is_null())
    if pa.types.is_null(dtype):
        return np.full(len(values), -1, np.int64), absent
    if pa.types.is_floating(dtype):
        found = numbers(values)
        absent = np.isnan(found)
        bad = ~absent & ~(np.abs(found) <= _EXACT[dtype])
        rows.refuse(
            bad,
            lambda k: f"'{field}' is {found[k]:g}, too large to be exact as {dtype}; write it as an integer",
            lengths,
        )
        rows.refuse(~absent & (found != np.floor(found)), lambda k: _not_whole(field, values[k]), lengths)
        return np.where(absent, -1, found).astype(np.int64), absent
    if pa.types.is_decimal(dtype):
        values = _whole(values, rows, field, lengths)
    if pa.types.is_boolean(dtype):
        values = values.cast(pa.int8())
    found = (values if not values.null_count else pc.fill_null(values, 0)).to_numpy(zero_copy_only=False)
    if found.dtype == np.uint64:
        limit, said = (2**64 - 1, "2^64 - 1") if as_bits else (2**63, "2^63")
        rows.refuse(found >= limit, lambda k: _out_of_range(field, values[k], said), lengths)
        found = found.view(np.int64)
    return (np.where(absent, -1, found.astype(np.int64)) if absent.any() else found), absent


def _whole(values: pa.Array, rows: Rows, field: str, lengths: np.ndarray | None) -> pa.Array:
    """Decimals as uint64 where none is negative, else as int64.

    Raises:
      BadRows: one is not whole, or beyond those types.
    """
    wide = values.cast(pa.decimal256(_DIGITS, values.type.scale))
    whole = pc.round(wide)
    rows.refuse(_true(pc.not_equal(whole, wide)), lambda k: _not_whole(field, values[k]), lengths)
    whole = whole.cast(pa.decimal256(_DIGITS, 0))
    signed = _true(pc.less(whole, _decimal(0))).any()
    lowest, limit, said = (-(2**63), 2**63, "2^63") if signed else (0, 2**64, "2^64 - 1")
    outside = _true(pc.less(whole, _decimal(lowest))) | _true(pc.greater_equal(whole, _decimal(limit)))
    rows.refuse(outside, lambda k: _out_of_range(field, values[k], said), lengths)
    return whole.cast(pa.int64() if signed else pa.uint64())


def _decimal(value: int) -> pa.Scalar:
    return pa.scalar(decimal.Decimal(value), pa.decimal256(_DIGITS, 0))


def _true(mask: pa.Array) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _not_whole(field: str, value: pa.Scalar) -> str:
    return f"'{field}' is {value}; it must be a whole number"


def _out_of_range(field: str, value: pa.Scalar, limit: str) -> str:
    return (
        f"'{field}' is {value}; it must be below {limit}, so shift hashes right by a bit, or number what they stand for "
        "(python -m gem_jax.prepare)"
    )
