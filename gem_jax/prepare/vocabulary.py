"""Values and their ids: 0 for what is unknown or rare, then 1, 2, .. by falling count."""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from gem_jax.data.source import DataError
from gem_jax.prepare.types import family
from gem_jax.prepare.values import Column, whole_numbers

UNKNOWN, ABSENT = 0, -1

_index_in = pc.index_in  # pyright: ignore[reportAttributeAccessIssue]

VALUE_TYPES: dict[str, pa.DataType] = {
    "integer": pa.int64(),
    "unsigned": pa.uint64(),
    "number": pa.float64(),
    "string": pa.string(),
}
"""How a vocabulary's values are kept; booleans are integers."""


def value_family(values: pa.Array) -> str:
    """Which family of `VALUE_TYPES` raw values belong to: whole numbers that pandas made floats are integers."""
    found = family(whole_numbers(values).type)
    return {"boolean": "integer", "empty": "string"}.get(found, found)


def as_values(column: Column, wanted: str) -> pa.Array:
    """A column's values as a vocabulary of the family `wanted` keeps them.

    Raises:
      DataError: they are of another type, or one cannot be kept so.
    """
    values, target = column.values, VALUE_TYPES[wanted]
    if column.family == "empty":
        return pa.nulls(len(values), target)
    accepted = {"integer": ("boolean", "unsigned", "number"), "unsigned": ("integer",), "string": ()}
    if column.family != wanted and column.family not in accepted.get(wanted, ("boolean", "integer", "unsigned")):
        column.refuse_type(f"its values were of the kind '{wanted}' when the log was prepared")
    if column.family == "number":  # an absent value of pandas
        values = pc.if_else(pc.is_nan(values), None, values)
    try:
        return values.cast(target)
    except pa.ArrowException as error:
        raise DataError(
            f"{column.log}, rows from {column.first_row} on: '{column.name}' has a value that does not fit: "
            f"{str(error).splitlines()[0]}; its values were of the kind '{wanted}' in the first rows that were prepared"
        ) from error


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The values that have an id of their own.

    Attributes:
      values: value k has id k + 1.
    """

    values: pa.Array

    @property
    def rows(self) -> int:
        """Ids there are, `UNKNOWN` too."""
        return len(self.values) + 1

    @property
    def family(self) -> str:
        """What its values are."""
        return family(self.values.type)

    def ids(self, column: Column) -> np.ndarray:
        """Ids of a column's values, int32 [n]: `UNKNOWN` where it has none, `ABSENT` where the value is null."""
        values = as_values(column, self.family)
        places = _index_in(values, self.values)
        ids = places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
        return np.where(np.asarray(values.is_null()), np.int32(ABSENT), ids) if values.null_count else ids

    def save(self, file: pathlib.Path) -> None:
        """Writes the values in the order of their ids, as Parquet."""
        pyarrow.parquet.write_table(pa.table({"value": self.values}), file)

    @classmethod
    def load(cls, file: pathlib.Path) -> "Vocabulary":
        """What `save` wrote.

        Raises:
          DataError: the file is missing or damaged.
        """
        try:
            return cls(pyarrow.parquet.read_table(file)["value"].combine_chunks())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(
                f"{file} cannot be read as a vocabulary ({str(error).splitlines()[0]}); prepare the log again"
            ) from error


class ValueCounts:
    """How often each value occurs; holds one entry a distinct value.

    Args:
      kind: the family of the values.
    """

    _MOST_WAITING = 2**20

    def __init__(self, kind: str):
        self._type = VALUE_TYPES[kind]
        self._counts = pa.table({"value": pa.array([], self._type), "count": pa.array([], pa.int64())})
        self._waiting: list[pa.Table] = []

    def add(self, values: pa.Array) -> None:
        """Counts values; nulls do not count."""
        found = pc.value_counts(values.drop_null())
        self._waiting.append(pa.table({"value": found.field("values"), "count": found.field("counts")}))
        if sum(t.num_rows for t in self._waiting) > max(self._counts.num_rows, self._MOST_WAITING):
            self._merge()

    def vocabulary(self, min_count: int) -> Vocabulary:
        """The values that occur at least `min_count` times, by falling count, equal counts by value."""
        self._merge()
        frequent = self._counts.filter(pc.greater_equal(self._counts["count"], min_count))
        ordered = frequent.sort_by([("count", "descending"), ("value", "ascending")])
        return Vocabulary(pa.concat_arrays([pa.array([], self._type), *ordered["value"].chunks]))

    def _merge(self) -> None:
        joined = pa.concat_tables([self._counts, *self._waiting])
        grouped = joined.group_by("value").aggregate([("count", "sum")])
        self._counts = grouped.select(["value", "count_sum"]).rename_columns(["value", "count"])
        self._waiting = []
