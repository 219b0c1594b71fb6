"""Where each row of each table lives on the shards of a group.

Tables of all features have one width D and are fused into at most two arrays, so that a step does one exchange per array:
- `rows` [S L, D], cut along its first axis: S blocks of L slots, one per shard. A table placed by *rows* gives its row r to shard
  (r + salt) mod S, at slot first + r div S: round robin spreads a range of hot ids over all shards, and the salt, another one for
  every table, keeps the hottest rows of all tables from sharing shard 0. A table placed *whole* has all its rows on its owner.
- `columns` [V, D], cut along its second axis: every shard has D / S columns of every row.

A row's address is a pair (owner, slot): a shard's slots are int32, all shards' together need not be. Nothing here is of the
tables' size.

Shape letters: S shards, L slots of a shard, V rows of the columns array, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from gem_jax.data.schema import Table
from gem_jax.embedding.config import Scheme
from gem_jax.embedding.planner import TablesPlan
from gem_jax.errors import UserError

type Leaf = Any
"""An array, or what stands for one in a tree: a shape, axes on the mesh, an array of the host."""

Group = Literal["rows", "columns"]
"""A fused array."""

GROUP: dict[Scheme, Group] = {"rows": "rows", "tables": "rows", "columns": "columns"}
"""Scheme -> the fused array that holds such tables."""

SALT = 0x9E3779B1
"""Odd, and far from a multiple of any number of shards: 2^32 over the golden ratio (Knuth's multiplicative hash)."""

MAX_ID = 2**31 - 1
"""The largest int32: ids of one table."""

MAX_SLOTS = 2**31 - 2**28
"""Slots of one shard: int32, less the places beyond them to which a step sends what it drops (`sum_by_row`)."""

NOT_HERE = np.iinfo(np.int32).max
"""The first slot, on this shard, of a table that lies whole on another one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where one table lies.

    Attributes:
      rows: of the table.
      scheme: how it is cut.
      stacked: its first row where the tables' rows are counted one table after the other, in the schema's order.
      first: its first slot on each shard that has it (scheme rows and tables), or its first row in the columns array.
      shard: of row 0 (rows) or of the whole table (tables); 0 for columns.
    """

    rows: int
    scheme: Scheme
    stacked: int
    first: int
    shard: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Addresses:
    """Places in a fused array.

    Attributes:
      owner: int32 [R], the shard; 0 in the columns array, of which every shard has a part.
      slot: int32 [R], on that shard; -1 where there is no id.
    """

    owner: Leaf
    slot: Leaf


class Placement:
    """The places of all tables for one number of shards.

    Args:
      tables: in the schema's order.
      num_shards: S.
      schemes: table -> scheme; rows unless given.
      owners: table -> shard, for the tables that are placed whole.
      multiple: slots of a shard, and rows of the columns array, are rounded up to it (the replicas, where rows are cut over them).

    Attributes:
      num_shards: S.
      places: table -> `TablePlace`, in the schema's order.
      num_rows: of all tables together.
      slots: L, slots of one shard in the rows array.
      column_rows: V, rows of the columns array.
      groups: the fused arrays that have tables.

    Raises:
      UserError: a table has more rows than int32 ids tell apart, or a shard more slots.
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
        places: dict[str, TablePlace] = {}
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
            places[table.name] = TablePlace(
                rows=table.rows, scheme=scheme, stacked=stacked[table.name], first=first, shard=shard
            )
        self.places = {table.name: places[table.name] for table in tables}
        self.num_rows = sum(table.rows for table in tables)
        self.slots = _round_up(int(free.max()), multiple)
        self.column_rows = _round_up(column_rows, multiple)
        used = {GROUP[place.scheme] for place in self.places.values()}
        self.groups: tuple[Group, ...] = tuple(group for group in ("rows", "columns") if group in used)
        self._check()

    @classmethod
    def of(cls, plan: TablesPlan, *, multiple: int = 1) -> "Placement":
        """The places that a plan gives its tables."""
        return cls(
            [Table(name=t.name, rows=t.rows) for t in plan.tables],
            plan.shard,
            schemes={t.name: t.scheme for t in plan.tables},
            owners={t.name: t.owner for t in plan.tables if t.owner is not None},
            multiple=multiple,
        )

    def _check(self) -> None:
        for name, place in self.places.items():
            if place.rows > MAX_ID:
                raise UserError(
                    f"table '{name}' has {place.rows:,} rows and int32 ids tell at most {MAX_ID:,} apart; cut it into several "
                    "tables, or hash its ids into fewer rows"
                )
        if self.slots > MAX_SLOTS:
            raise UserError(
                f"the tables need {self.slots:,} slots on each of {self.num_shards} shards and int32 slots address at most "
                f"{MAX_SLOTS:,}; choose a larger mesh.shard"
            )
        if self.column_rows > MAX_SLOTS:
            raise UserError(
                f"the tables placed by columns have {self.column_rows:,} rows and int32 rows address at most {MAX_SLOTS:,}; give "
                "some of them the scheme 'rows' in tables.schemes"
            )

    def height(self, group: Group) -> int:
        """Rows of a shard's part of a fused array: L, or V."""
        return self.slots if group == "rows" else self.column_rows

    def address(self, table: str, ids: Int[Array, "*s"]) -> Addresses:
        """The addresses of ids of a table; slot -1 for ids of -1."""
        place = self.places[table]
        if place.scheme == "rows":
            # Not (ids + shard) mod S, which may leave int32.
            owner = (ids % self.num_shards + place.shard) % self.num_shards
            slot = place.first + ids // self.num_shards
        else:
            owner = jnp.full_like(ids, place.shard)
            slot = place.first + ids
        return Addresses(owner=jnp.where(ids >= 0, owner, 0), slot=jnp.where(ids >= 0, slot, -1))

    def stacked_rows(
        self, group: Group, owner: Int[Array, ""] | int, slots: Int[Array, " L"]
    ) -> tuple[UInt[Array, " L"], UInt[Array, " L"], Bool[Array, " L"]]:
        """The inverse of `address`: which row lies in slots of a shard.

        Rows are counted one table after the other, in the schema's order: (low word, high word, whether the slot holds a row).
        """
        places = [place for place in self.places.values() if GROUP[place.scheme] == group]
        first, rows, shard = (
            jnp.array([getattr(p, name) for p in places], jnp.int32) for name in ("first", "rows", "shard")
        )
        cut = jnp.array([p.scheme == "rows" for p in places])
        divisor = jnp.where(cut, self.num_shards, 1)
        low = jnp.array([p.stacked % 2**32 for p in places], jnp.uint32)
        high = jnp.array([p.stacked // 2**32 for p in places], jnp.uint32)
        whole = jnp.array([p.scheme == "tables" for p in places])
        first = jnp.where(whole & (shard != owner), NOT_HERE, first)
        order = jnp.argsort(first)
        table = order[jnp.maximum(jnp.searchsorted(first[order], slots, side="right") - 1, 0)]

        place = slots - first[table]
        inside = (place >= 0) & (place < -(-rows // divisor)[table])
        remainder = jnp.where(cut, (owner - shard) % self.num_shards, 0)
        row = jnp.where(inside, place, 0) * divisor[table] + remainder[table]
        # The last round of a table may lack some shards; there the product has passed int32 only if it turned negative.
        used = inside & (row >= 0) & (row < rows[table])
        row = jnp.where(used, row, 0).astype(jnp.uint32)
        sum_low = low[table] + row
        carry = (sum_low < row).astype(jnp.uint32)
        return sum_low, high[table] + carry, used


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
