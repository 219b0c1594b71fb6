"""Where each row of each table lives on the shards of a group.

Tables of all features have one width D and are fused into at most two arrays, so that a step does one exchange per array:
- `rows` [S L, D], cut along its first axis: S blocks of L slots, one per shard. A table placed by *rows* gives its row r to shard
  (r + salt) mod S, at slot first + r div S: round robin spreads a range of hot ids over all shards, and the salt, another one for
  every table, keeps the hottest rows of all tables from sharing shard 0. A table placed *whole* has all its rows on its owner.
- `columns` [V, D], cut along its second axis: every shard has D / S columns of every row.

Everything else speaks of *stacked* ids: the rows of all tables one after the other in the schema's order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gem_jax.data.schema import Table

Scheme = Literal["rows", "columns", "tables"]
"""How a table is cut over the shards: round robin by row, by column, or not at all (whole, on one shard)."""

GROUP = {"rows": "rows", "tables": "rows", "columns": "columns"}
"""Scheme -> the fused array that holds such tables."""

SALT = 0x9E3779B1
"""Odd, and far from a multiple of any number of shards: 2^32 over the golden ratio (Knuth's multiplicative hash)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where one table lies.

    stacked: its first row among the stacked ids; first: its first slot on each shard that has it (scheme rows and tables) or its
    first row in the columns array; shard: of row 0 (rows) or of the whole table (tables); 0 for columns.
    """

    rows: int
    scheme: Scheme
    stacked: int
    first: int
    shard: int


class Placement:
    """The places of all tables for one number of shards.

    Args:
      tables: in the schema's order.
      num_shards: S.
      schemes: table -> scheme; rows unless given.
      owners: table -> shard, for the tables that are placed whole.
      multiple: slots of a shard, and rows of the columns array, are rounded up to it (the replicas, where rows are cut over them).

    Attributes:
      places: table -> `TablePlace`.
      slots: L, slots of one shard in the rows array.
      column_rows: rows of the columns array.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        num_shards: int,
        *,
        schemes: Mapping[str, Scheme] | None = None,
        owners: Mapping[str, int] | None = None,
        multiple: int = 1,
    ):
        self.num_shards = num_shards
        self.places: dict[str, TablePlace] = {}
        schemes, owners = schemes or {}, owners or {}
        free = np.zeros(num_shards, np.int64)  # first free slot of each shard
        stacked = dict(zip((t.name for t in tables), np.cumsum([0, *(t.rows for t in tables)]).tolist(), strict=False))
        column_rows = 0
        # Whole tables come last: what is cut by rows needs the same slots on every shard.
        numbered = sorted(enumerate(tables), key=lambda item: schemes.get(item[1].name) == "tables")
        for number, table in numbered:
            scheme = schemes.get(table.name, "rows")
            shard = 0
            if scheme == "columns":
                first, column_rows = column_rows, column_rows + table.rows
            elif scheme == "rows":
                shard = (number * SALT >> 16) % num_shards
                first = int(free[0])
                free += -(-table.rows // num_shards)
            else:
                shard = owners.get(table.name, 0)
                first = int(free[shard])
                free[shard] += table.rows
            self.places[table.name] = TablePlace(
                rows=table.rows, scheme=scheme, stacked=stacked[table.name], first=first, shard=shard
            )
        self.num_rows = sum(table.rows for table in tables)
        self.slots = _round_up(int(free.max()), multiple)
        self.column_rows = _round_up(column_rows, multiple)
        for what, count in (("rows", self.num_rows), ("slots", num_shards * self.slots)):
            if count >= 2**31:
                raise ValueError(f"the tables have {count} {what} together; int32 ids address at most 2^31 - 1")

    def address(self, table: str, ids: Int[Array, "*s"] | np.ndarray) -> Int[Array, "*s"]:
        """Rows of the table's fused array for ids of the table; -1 stays -1. Of NumPy arrays or in a traced step."""
        place = self.places[table]
        xp = np if isinstance(ids, np.ndarray) else jnp
        if place.scheme == "columns":
            address = place.first + ids
        elif place.scheme == "tables":
            address = place.shard * self.slots + place.first + ids
        else:
            owner = (ids + place.shard) % self.num_shards
            address = owner * self.slots + place.first + ids // self.num_shards
        return xp.where(ids >= 0, address, -1)

    def stacked_ids(self, group: str) -> np.ndarray:
        """The stacked id in each row of a fused array, int32 [S L] or [column rows]; -1 in rows that no table uses."""
        stacked = np.full(self.num_shards * self.slots if group == "rows" else self.column_rows, -1, np.int32)
        for name, place in self.places.items():
            if GROUP[place.scheme] == group:
                ids = np.arange(place.rows, dtype=np.int32)
                stacked[self.address(name, ids)] = place.stacked + ids
        return stacked


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
