"""Whether example ids of Parquet files are unique, as far as footers tell; `parquet.decode` looks at each within a row group."""

import dataclasses

import pyarrow.parquet

from gem_jax.data.source import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdBounds:
    """The smallest and the largest example id of a row group, as its footer says.

    Attributes:
      where: file and row group, for messages.
      lowest: the smallest id.
      highest: the largest id.
      rows: ids of the row group.
    """

    where: str
    lowest: int
    highest: int
    rows: int


def id_bounds(metadata: pyarrow.parquet.FileMetaData, file: str) -> list[IdBounds]:
    """Bounds of every row group of a file that has ids, where its footer has their statistics."""
    places = [k for k in range(metadata.num_columns) if metadata.schema.column(k).path == "example_id"]
    bounds = []
    for place in places:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            ids = group.column(place).statistics
            if ids is not None and ids.has_min_max and isinstance(ids.min, int):
                where = f"{file}, row group {number}"
                bounds.append(IdBounds(where=where, lowest=ids.min, highest=ids.max, rows=ids.num_values))
    return bounds


def check_ids_differ(bounds: list[IdBounds]) -> None:
    """Raises DataError where two row groups surely share an example id, as far as their bounds can tell.

    They do where one's bound, which is an id of it, is another's, or where overlapping groups have more rows than ids lie between
    their bounds. So numbers that start anew in every file are refused, and a file that stands twice.
    """
    ends: dict[int, IdBounds] = {}
    for group in bounds:
        for value in {group.lowest, group.highest}:
            if value in ends:
                raise DataError(
                    f"{group.where} and {ends[value].where} both have 'example_id' {value}; ids must be unique"
                )
            ends[value] = group
    first, highest, rows = 0, -(2**63) - 1, 0
    for group in sorted(bounds, key=lambda group: group.lowest):
        if group.lowest > highest:
            first, rows = group.lowest, 0
        highest, rows = max(highest, group.highest), rows + group.rows
        if rows > highest - first + 1:
            raise DataError(
                f"{group.where} shares values of 'example_id' with others: {rows} rows have ids from {first} to {highest}; "
                "ids must be unique"
            )
