"""How embedding tables are cut over a mesh of `replica` x `shard` GPUs, from the load of each table.

Cost model: bytes that a GPU receives per step. A table has R ids in a GPU's batch, V rows, at most U = min(R, V) distinct ids and
width D; ids are 4 bytes, rows and gradients 4 D. Of the S shards of a group, with ids spread evenly over them:
- *rows* (row r on shard r + salt mod S): (S-1)/S min(R, S ceil(V/S)) ids and gradients as owner, (S-1)/S U rows as asker;
- *tables* (whole): the owner (S-1) U ids and gradients, every other shard U rows;
- *columns*: (S-1) R ids, not de-duplicated, and for each D/S columns of its row and of its gradient.
Besides, from each of the other G-1 replica groups: id and gradient of those rows this shard has of the min(S R, V) that a group
touches; and, where tables are fully sharded, its part of this shard, optimizer state included.

The rule:
1. Rows, or columns where they are cheaper and `MIN_COLUMNS` are left a shard; both load all shards alike. Looking up columns is
   never cheaper (S times the ids, repeats too), so they win only where replicas are many and rows and ids few.
2. A table with fewer rows than shards leaves shards idle: those of at most c rows go whole, for the c with the least traffic at the
   busiest shard. Owners by longest processing time: the table with most traffic first, to the least loaded shard with room.
3. An override always wins. A free split has the fewest shards that fit: short all-to-alls (2D parallelism, arXiv 2508.03854).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import cast, get_args

import numpy as np
import rich.box
from rich.table import Table
from rich.text import Text

from gem_jax.embedding.config import Scheme
from gem_jax.embedding.row_optimizers import RowOptimizer, RowwiseAdagrad
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import RowStore
from gem_jax.errors import UserError

ID_BYTES = FLOAT_BYTES = 4
NO_LIMIT = 2**62  # bytes; sums of it still fit an int64
MIN_COLUMNS = 16  # left to a shard where the planner proposes columns: 64 bytes, two sectors of GPU memory


class PlanError(UserError):
    """The tables cannot be placed as asked; the sentence says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableLoad:
    """A table and how much it is used: `rows` V; `ids` R, looked up by one GPU per step, repeats counted."""

    name: str
    rows: int
    ids: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedTable(TableLoad):
    """Where a table goes. `owner`: the shard that holds all of it (scheme tables), else None."""

    scheme: Scheme
    owner: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesPlan:
    """The mesh, the place of every table, and what a GPU of each shard index bears, alike in every replica.

    memory_bytes: [shard] stored rows and optimizer state. Shards are blocks of one array: every GPU allocates the largest.
    transient_bytes: the fullest shard, gathered for a step beside what is stored, where tables are fully sharded; else 0.
    traffic_bytes: [shard] received per step. imbalance: largest / mean of it; 1 without traffic. dense_bytes: a GPU's share.
    """

    replica: int
    shard: int
    dim: int
    tables: tuple[PlannedTable, ...]
    memory_bytes: tuple[int, ...]
    transient_bytes: int
    traffic_bytes: tuple[int, ...]
    imbalance: float
    dense_bytes: int

    @property
    def device_bytes(self) -> tuple[int, ...]:
        """[shard] all that a GPU needs at once but activations."""
        return tuple(stored + self.transient_bytes + self.dense_bytes for stored in self.memory_bytes)


def plan_tables(
    loads: Sequence[TableLoad],
    *,
    dim: int,
    num_devices: int,
    replica: int | None = None,
    shard: int | None = None,
    memory_bytes_per_device: int | None = None,
    dense_bytes: int = 0,
    reserved_bytes: int = 0,
    overrides: Mapping[str, str] | None = None,
    optimizer: RowOptimizer = RowwiseAdagrad(),  # noqa: B008  (frozen)
    store: RowStore = DeviceStore(),  # noqa: B008
    fully_sharded: bool = False,
) -> TablesPlan:
    """The plan of the rule above; the same arguments give the same plan.

    Args:
      dim: D of every table.
      num_devices: replica * shard. One of the two may be None and follows from the other; of neither, the rule decides.
      memory_bytes_per_device: None for no limit.
      dense_bytes: parameters, gradients and moments of the dense model; the GPUs of a group share them (HSDP).
      reserved_bytes: of every GPU, for activations and the like.
      overrides: table -> scheme that the user wants.
      optimizer, store: say how many bytes a row takes.
      fully_sharded: what a shard stores is cut over the replicas and gathered for a step; saves memory only between steps.

    Raises:
      PlanError: an argument is wrong, or nothing fits.
    """
    schemes = _checked(loads, overrides or {})
    room = (NO_LIMIT if memory_bytes_per_device is None else memory_bytes_per_device) - reserved_bytes

    def row_bytes(width: int) -> int:
        return store.row_bytes(width, optimizer.slots)

    planner = _Planner(tuple(loads), dim, room, dense_bytes, schemes, row_bytes, fully_sharded)
    for n in _shards(num_devices, replica, shard, dim, [name for name, s in schemes.items() if s == "columns"]):
        plan = planner.plan(num_devices // n, n)
        if planner.fits(plan):
            return plan
    raise PlanError(_does_not_fit(plan, reserved_bytes, room + reserved_bytes))


def received_bytes(t: TableLoad, scheme: Scheme, dim: int, replica: int, shard: int) -> tuple[int, int]:
    """What (its owner, any other shard) receives per step for table t; the same twice unless the table is whole."""
    row, others, copies = FLOAT_BYTES * dim, shard - 1, replica - 1
    distinct, touched = min(t.ids, t.rows), min(shard * t.ids, t.rows)
    if scheme == "tables":
        return (others * distinct + copies * touched) * (ID_BYTES + row), min(others, 1) * distinct * row
    if scheme == "columns":
        part = row // shard
        total = others * t.ids * (ID_BYTES + 2 * part) + copies * touched * (ID_BYTES + part)
    else:
        asked = min(t.ids, shard * _ceil(t.rows, shard))
        lookups = _ceil(others * (asked * (ID_BYTES + row) + distinct * row), shard)
        total = lookups + copies * _ceil(touched, shard) * (ID_BYTES + row)
    return total, total


def table_of(plan: TablesPlan) -> Table:
    """The plan for people: a row per table (weights; traffic of its busiest shard), under them what the GPUs bear."""
    title = f"Embedding tables of width {plan.dim} on replica={plan.replica} x shard={plan.shard}"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("table")
    for header in ("rows", "MiB", "scheme", "owner", "ids/step", "traffic\nMiB/step"):
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for t in plan.tables:
        owner, weights = "" if t.owner is None else str(t.owner), _mib(FLOAT_BYTES * plan.dim * t.rows)
        traffic = _mib(max(received_bytes(t, t.scheme, plan.dim, plan.replica, plan.shard)))
        table.add_row(Text(t.name), f"{t.rows:,}", weights, t.scheme, owner, f"{t.ids:,}", traffic)
    stored, gathered, dense = _mib(max(plan.memory_bytes)), _mib(plan.transient_bytes), _mib(plan.dense_bytes)
    table.caption = (
        f"memory per GPU: {_mib(min(plan.device_bytes))} to {_mib(max(plan.device_bytes))} MiB\n"
        f"  at most: tables {stored}, gathered {gathered}, dense {dense}\n"
        f"traffic per GPU: at most {_mib(max(plan.traffic_bytes))} MiB/step, max / mean {plan.imbalance:.2f}"
    )
    return table


@dataclasses.dataclass(frozen=True)
class _Planner:
    """What is the same for every split. room: bytes of a GPU for tables and dense model; row_bytes: of a row of some width."""

    loads: tuple[TableLoad, ...]
    dim: int
    room: int
    dense_bytes: int
    overrides: dict[str, Scheme]
    row_bytes: Callable[[int], int]
    fully_sharded: bool

    def plan(self, replica: int, shard: int) -> TablesPlan:
        """The best plan of one split; one that fits before one that does not."""
        can_cut = self.dim % shard == 0 and self.dim // shard >= MIN_COLUMNS

        def scheme(t: TableLoad, cutoff: int) -> Scheme:
            if t.name in self.overrides:
                return self.overrides[t.name]
            if t.rows <= cutoff:
                return "tables"
            rows, columns = (received_bytes(t, s, self.dim, replica, shard) for s in ("rows", "columns"))
            return "columns" if can_cut and columns < rows else "rows"

        cutoffs = sorted({0, *(t.rows for t in self.loads if t.rows < shard)})
        plans = [self._place([scheme(t, cutoff) for t in self.loads], replica, shard) for cutoff in cutoffs]
        return min(plans, key=lambda plan: (not self.fits(plan), max(plan.traffic_bytes)))  # the first of equals

    def fits(self, plan: TablesPlan) -> bool:
        return max(plan.device_bytes) <= self.room

    def _place(self, schemes: Sequence[Scheme], replica: int, shard: int) -> TablesPlan:
        """Owners, and the figures, for given schemes."""
        parts = replica if self.fully_sharded else 1  # of what a shard stores
        copies = parts if parts > 1 else 0  # of a part, once gathered
        row_stored, column_stored = self.row_bytes(self.dim), self.row_bytes(self.dim // shard)
        placed = list(zip(self.loads, schemes, strict=True))
        even_rows = sum(_ceil(t.rows, shard) for t, scheme in placed if scheme == "rows")
        column_part = _ceil(sum(t.rows for t, scheme in placed if scheme == "columns"), parts)
        dense_share = _ceil(self.dense_bytes, shard)
        room = self.room - dense_share - (1 + copies) * column_part * column_stored
        capacity = min(NO_LIMIT, parts * (room // ((1 + copies) * row_stored)))  # rows that a shard has room for

        received = [received_bytes(t, scheme, self.dim, replica, shard) for t, scheme in placed]
        sizes = {i: t.rows for i, (t, scheme) in enumerate(placed) if scheme == "tables"}
        extra = {i: received[i][0] - received[i][1] for i in sizes}
        costs = {i: extra[i] + (parts - 1) * _ceil(sizes[i], parts) * row_stored for i in sizes}
        owners, held = _assign(sizes, costs, np.full(shard, even_rows), capacity)

        part = -(-held // parts)
        stored = part * row_stored + column_part * column_stored
        traffic = (parts - 1) * stored + sum(other for _, other in received)
        for i, owner in owners.items():
            traffic[owner] += extra[i]
        return TablesPlan(
            replica=replica,
            shard=shard,
            dim=self.dim,
            tables=tuple(
                PlannedTable(name=t.name, scheme=scheme, owner=owners.get(i), rows=t.rows, ids=t.ids)
                for i, (t, scheme) in enumerate(placed)
            ),
            memory_bytes=tuple(stored.tolist()),
            transient_bytes=copies * int(stored.max()),
            traffic_bytes=tuple(traffic.tolist()),
            imbalance=float(traffic.max() / traffic.mean()) if traffic.any() else 1.0,
            dense_bytes=dense_share,
        )


def _assign(
    sizes: dict[int, int], costs: dict[int, int], rows: np.ndarray, capacity: int
) -> tuple[dict[int, int], np.ndarray]:
    """Table -> owner, and the rows [shard] held, from `rows` held before. By size where by cost does not fit."""
    owners: dict[int, int] = {}
    for weights in (costs, sizes):
        held, load = rows.copy(), np.zeros_like(rows)
        for i in sorted(sizes, key=weights.__getitem__, reverse=True):
            owners[i] = int(np.lexsort((load, held + sizes[i] > capacity))[0])  # with room, then least loaded
            load[owners[i]] += weights[i]
            held[owners[i]] += sizes[i]
        if held.max() <= capacity:
            break
    return owners, held


def _shards(num_devices: int, replica: int | None, shard: int | None, dim: int, by_columns: list[str]) -> list[int]:
    """The shard counts to try, fewest first."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    shards = [n for n in divisors if shard in (None, n) and replica in (None, num_devices // n)]
    if not shards:
        raise PlanError(
            f"replica={replica} x shard={shard} cannot make {num_devices} GPUs; choose from {divisors} so that the product "
            f"is {num_devices}, or change the number of GPUs"
        )
    cuttable = [n for n in shards if not by_columns or dim % n == 0]
    if not cuttable:
        raise PlanError(
            f"table '{by_columns[0]}' cannot go by columns: dim={dim} is not a multiple of shard={shards[0]}; change one of "
            "them, or its scheme to 'rows'"
        )
    return cuttable


def _does_not_fit(plan: TablesPlan, reserved: int, has: int) -> str:
    needs = max(plan.device_bytes) + reserved
    advice = ["a larger shard" if plan.replica > 1 else "more GPUs"]
    advice += ["fully_sharded=False"] if plan.transient_bytes else []
    largest = ""
    for t in sorted(plan.tables, key=lambda t: t.rows)[-1:]:
        largest = f"; the largest table is '{t.name}' ({t.rows:,} rows, {FLOAT_BYTES * plan.dim * t.rows:,} bytes)"
        advice += [f"scheme 'rows' for '{t.name}'"] if t.scheme == "tables" else []
    return (
        f"replica={plan.replica} x shard={plan.shard} needs {needs:,} bytes per GPU (tables {max(plan.memory_bytes):,}, "
        f"gathered {plan.transient_bytes:,}, dense {plan.dense_bytes:,}, reserved {reserved:,}) and there are {has:,}"
        f"{largest}; use {', '.join(advice)} or smaller tables"
    )


def _checked(loads: Sequence[TableLoad], overrides: Mapping[str, str]) -> dict[str, Scheme]:
    """The overrides, which come from a user as any words."""
    names = [t.name for t in loads]
    if len(set(names)) < len(names):
        raise PlanError(f"the tables are {names}; give each a name of its own")
    for t in loads:
        if t.rows < 1 or t.ids < 0:
            raise PlanError(f"table '{t.name}' has rows={t.rows}, ids={t.ids}; it needs rows >= 1 and ids >= 0")
    for name, scheme in overrides.items():
        if name not in names:
            raise PlanError(f"there is no table '{name}' to give a scheme; the tables are {names}")
        if scheme not in get_args(Scheme):
            raise PlanError(f"table '{name}' has the scheme '{scheme}'; choose one of {list(get_args(Scheme))}")
    return cast(dict[str, Scheme], dict(overrides))


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f}"
