"""The tables of a run on its mesh: made, looked up, updated, read back. 2D sparse parallelism.

Over `shard` the tables are cut (`placement`); over `replica` every group has them, kept in step in one of two ways:
- sync "gradients": each shard collects from the other groups the rows they touched with their gradients, and every group makes
  the same update: exactly the run on one device.
- sync "weights" (arXiv 2508.03854): each group updates with its own batch's gradient, row-wise Adagrad scaled by the number of
  groups (`touched_rows.update`), and every `sync_every` steps weights and optimizer state are averaged over the groups.

With `fully_sharded` (GEM's third version) a shard's rows and state are cut over the replicas between steps, and gathered for
the step.

Everything but `ShardedTables.init` and `.export` runs inside the `shard_map` of a step.

Shape letters: R looked-up ids of a device, S shards, M replicas, L slots of a shard, D width.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from gem_jax.data.schema import Schema
from gem_jax.embedding import exchange, touched_rows
from gem_jax.embedding.placement import GROUP, Placement, Scheme
from gem_jax.embedding.touched_rows import TableOptimizer, TableState, lookup
from gem_jax.parallel.mesh import EVERYWHERE, REPLICA, SHARD
from gem_jax.parallel.sharding import spec_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """How embedding tables are cut over the mesh; the planner chooses what is not said here."""

    schemes: dict[str, Scheme] = dataclasses.field(default_factory=dict)
    """Table -> rows (round robin over the shards), columns, or tables (whole, on one shard); the planner chooses for the others."""
    sync: Literal["gradients", "weights"] = "gradients"
    """What replica groups exchange: gradients of touched rows (exact), or averages of weights and state (the 2D paper's way)."""
    sync_every: int = 1
    """Steps between two averages, where sync is weights."""
    fully_sharded: bool = False
    """Cut each shard's rows over the replicas too, and gather them for the step."""
    capacity: float = 1.25
    """Places for ids between two devices, times an even share of the distinct ids there can be; more of them take a slower way."""
    memory_gib: float | None = None
    """Memory of a device that the planner may count on; None for what the device reports, without bound where it does not."""

    def __post_init__(self):
        if self.sync_every < 1:
            raise ValueError(f"tables.sync_every={self.sync_every} must be at least 1")
        if self.sync_every > 1 and (self.sync != "weights" or self.fully_sharded):
            raise ValueError(
                f"tables.sync_every={self.sync_every} needs tables.sync=weights and tables.fully_sharded=False; gradients, and "
                "rows cut over the replicas, are exchanged every step"
            )
        if self.capacity <= 0:
            raise ValueError(f"tables.capacity={self.capacity} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup:
    """What a lookup leaves for the update: addresses by fused array, and the routes of the rows array."""

    addresses: dict[str, Array]
    routes: exchange.Routes | None
    fits: Array | None


type Requests = list[tuple[str, Int[Array, " r"]]]
"""`TableCollection.ids` of a batch."""


class ShardedTables:
    """The tables of a schema on a mesh.

    Args:
      schema: names the tables.
      dim: D.
      mesh: of `run.mesh.make_mesh`.
      config: how they are cut.
      schemes, owners: of the tables that `config.schemes` leaves open (the planner's; by rows unless given).
      optimizer: of the rows.
      l2, beta1, beta2, initial_accumulator: see `touched_rows`.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        mesh: Mesh,
        config: TablesConfig,
        *,
        schemes: Mapping[str, Scheme] | None = None,
        owners: Mapping[str, int] | None = None,
        optimizer: TableOptimizer = "rowwise_adagrad",
        l2: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        initial_accumulator: float = 0.0,
    ):
        self.schema, self.dim, self.mesh, self.config = schema, dim, mesh, config
        self.num_shards, self.num_replicas = mesh.shape[SHARD], mesh.shape[REPLICA]
        self.placement = Placement(
            schema.tables,
            self.num_shards,
            schemes={**(schemes or {}), **config.schemes},
            owners=owners,
            multiple=self.num_replicas if config.fully_sharded else 1,
        )
        self.groups = tuple(
            g for g in ("rows", "columns") if any(GROUP[p.scheme] == g for p in self.placement.places.values())
        )
        if "columns" in self.groups and dim % self.num_shards:
            raise ValueError(
                f"tables of width {dim} cannot be cut by columns over mesh.shard={self.num_shards}, which does not divide it"
            )
        self.optimizer: TableOptimizer = optimizer
        self.hyper = dict(l2=l2, beta1=beta1, beta2=beta2)
        self.initial_accumulator = initial_accumulator
        self.ragged = mesh.devices.flat[0].platform in ("gpu", "cuda")

    # --- inside the step --------------------------------------------------------------------------------------------------

    def open(self, tables: dict[str, TableState]) -> dict[str, TableState]:
        """The shard's whole rows from what this device keeps between steps."""
        if not self.config.fully_sharded:
            return tables
        return jax.tree.map(lambda x: jax.lax.all_gather(x, REPLICA, tiled=True), tables)

    def lookup(self, tables: dict[str, TableState], requests: Requests) -> tuple[Float[Array, "R D"], Lookup]:
        """The rows of all requests, in their order; zeros for ids of -1."""
        addresses = self._addresses(requests)
        parts: dict[str, Array] = {}
        routes = fits = None
        if "rows" in addresses:
            weight = tables["rows"].weight
            if self.num_shards == 1:
                parts["rows"] = lookup(weight, addresses["rows"])
            else:
                routes = exchange.route(addresses["rows"], self.num_shards, self.placement.slots)
                fits = self._everywhere(self._compact(routes, requests).fits())
                distinct = self._exchanging(fits, routes, requests, lambda way: self._serve(way, routes, weight))
                parts["rows"] = exchange.rows_of_lookups(distinct, routes)
        if "columns" in addresses:
            parts["columns"] = self._lookup_columns(tables["columns"].weight, addresses["columns"])
        return self._in_order(parts, requests), Lookup(addresses=addresses, routes=routes, fits=fits)

    def update(
        self,
        tables: dict[str, TableState],
        requests: Requests,
        found: Lookup,
        grads: Float[Array, "R D"],
        *,
        learning_rate: Float[Array, ""],
        step: Int[Array, ""],
    ) -> dict[str, TableState]:
        """The tables after a step on the gradients of the looked-up rows, which count this device's share of the loss."""
        if self.config.sync == "weights":
            grads = grads * self.num_replicas  # of the mean over the group's own batch, as in the paper
        by_group = self._by_group(grads, requests)
        options: dict[str, Any] = dict(learning_rate=learning_rate, step=step, **self.hyper)
        if self.config.sync == "weights":
            options["groups"] = self.num_replicas
        new = dict(tables)
        if "rows" in tables:
            new["rows"] = self._update_rows(tables["rows"], requests, found, by_group["rows"], options)
        if "columns" in tables:
            new["columns"] = self._update_columns(
                tables["columns"], found.addresses["columns"], by_group["columns"], options
            )
        return new

    def close(self, tables: dict[str, TableState], step: Int[Array, ""]) -> dict[str, TableState]:
        """What this device keeps between steps, replicas in step again; `step` counts the steps before this one."""
        average = self.config.sync == "weights" and self.num_replicas > 1
        if self.config.fully_sharded:
            return jax.tree.map(lambda x: self._own_part(x, average), tables)
        if not average:
            return tables
        if self.config.sync_every == 1:
            return self.average(tables)
        is_due = (step + 1) % self.config.sync_every == 0
        return jax.lax.cond(is_due, self.average, lambda t: t, tables)

    def average(self, tables: dict[str, TableState]) -> dict[str, TableState]:
        """Means over the replica groups, of weights and of optimizer state."""
        return jax.tree.map(lambda x: jax.lax.pmean(x, REPLICA), tables)

    def _own_part(self, x: Array, average: bool) -> Array:
        if average:
            return jax.lax.psum_scatter(x, REPLICA, scatter_dimension=0, tiled=True) / self.num_replicas
        part = x.shape[0] // self.num_replicas  # the groups agree to the bit
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(REPLICA) * part, part)

    # --- tables placed by rows, or whole ------------------------------------------------------------------------------------

    def _compact(self, routes: exchange.Routes, requests: Requests) -> exchange.Padded | exchange.Ragged:
        capacity = self.capacity(requests)
        return exchange.Ragged(routes, capacity) if self.ragged else exchange.Padded(routes, capacity)

    def capacity(self, requests: Requests) -> int:
        """C: places for ids from one device to another. A table has at most min(its ids, its rows) distinct ones, cut evenly
        over the shards or all on its owner."""
        most = np.zeros(self.num_shards)
        ids: dict[str, int] = {}
        for table, part in requests:
            ids[table] = ids.get(table, 0) + part.shape[0]
        for table, count in ids.items():
            place = self.placement.places[table]
            distinct = min(count, place.rows)
            if place.scheme == "rows":
                most += math.ceil(distinct / self.num_shards)
            elif place.scheme == "tables":
                most[place.shard] += distinct
        wanted = -(-math.ceil(self.config.capacity * most.max()) // 8) * 8
        return min(wanted, sum(part.shape[0] for _, part in requests))  # a device never sends more than it has

    def _exchanging(self, fits: Array, routes: exchange.Routes, requests: Requests, function):
        """`function(way)` by the compact way, or by the one that always fits."""
        return jax.lax.cond(
            fits,
            lambda: function(self._compact(routes, requests)),
            lambda: function(exchange.Gathered(routes)),
        )

    def _serve(
        self, way: exchange.Exchange, routes: exchange.Routes, weight: Float[Array, "L D"]
    ) -> Float[Array, "R D"]:
        """The rows of the distinct addresses."""
        asked = exchange.own_slots(way.to_owners(routes.distinct, -1), self.placement.slots)
        return way.to_askers(lookup(weight, asked))

    def _update_rows(self, state: TableState, requests: Requests, found: Lookup, grads: Array, options) -> TableState:
        if found.routes is None or found.fits is None:
            return self._apply(state, found.addresses["rows"], grads, options)
        routes = found.routes
        sums = exchange.sum_repeats(grads, routes)

        def learn(way: exchange.Exchange) -> TableState:
            slots = exchange.own_slots(way.to_owners(routes.distinct, -1), self.placement.slots)
            return self._apply(state, slots, way.to_owners(sums, 0.0), options)

        return self._exchanging(found.fits, routes, requests, learn)

    def _apply(self, state: TableState, slots: Int[Array, " Q"], grads: Float[Array, "Q D"], options) -> TableState:
        """Sums by slot, over the replica groups too where they exchange gradients, and updates."""
        rows, sums = touched_rows.sum_by_row(slots, grads, len(state.weight))
        if self.config.sync == "gradients" and self.num_replicas > 1:
            rows, sums = (jax.lax.all_gather(x, REPLICA, tiled=True) for x in (rows, sums))
            rows, sums = touched_rows.sum_by_row(jnp.where(rows < len(state.weight), rows, -1), sums, len(state.weight))
        return touched_rows.update(self.optimizer, state, rows, sums, **options)

    # --- tables placed by columns -------------------------------------------------------------------------------------------

    def _lookup_columns(self, weight: Float[Array, "V D/S"], rows: Int[Array, " R"]) -> Float[Array, "R D"]:
        asked = jax.lax.all_gather(rows, SHARD, tiled=True)
        return jax.lax.all_to_all(lookup(weight, asked), SHARD, 0, 1, tiled=True)

    def _update_columns(self, state: TableState, rows: Array, grads: Float[Array, "R D"], options) -> TableState:
        asked = jax.lax.all_gather(rows, SHARD, tiled=True)
        own_columns = jax.lax.all_to_all(grads, SHARD, 1, 0, tiled=True)  # [S R, D / S]

        def mean_of_all_columns(x: Float[Array, "R D/S"]) -> Float[Array, " R"]:
            return jax.lax.pmean(x.mean(axis=1), SHARD)

        return self._apply(state, asked, own_columns, options | {"row_mean": mean_of_all_columns})

    # --- requests and their groups ------------------------------------------------------------------------------------------

    def _group(self, table: str) -> str:
        return GROUP[self.placement.places[table].scheme]

    def _addresses(self, requests: Requests) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {}
        for table, ids in requests:
            parts.setdefault(self._group(table), []).append(self.placement.address(table, jnp.asarray(ids)))
        return {group: jnp.concatenate(arrays) for group, arrays in parts.items()}

    def _by_group(self, values: Float[Array, "R D"], requests: Requests) -> dict[str, Array]:
        """Values in the order of the requests, taken apart by fused array."""
        parts: dict[str, list[Array]] = {group: [] for group in self.groups}
        start = 0
        for table, ids in requests:
            parts[self._group(table)].append(values[start : start + ids.shape[0]])
            start += ids.shape[0]
        empty = values[:0]
        return {group: jnp.concatenate([empty, *arrays]) for group, arrays in parts.items()}

    def _in_order(self, parts: dict[str, Float[Array, "r D"]], requests: Requests) -> Float[Array, "R D"]:
        """The inverse of `_by_group`."""
        if not parts:  # a schema without categorical features
            return jnp.zeros((0, self.dim))
        if len(parts) == 1:
            return next(iter(parts.values()))
        start = dict.fromkeys(parts, 0)
        ordered = []
        for table, ids in requests:
            group, count = self._group(table), ids.shape[0]
            ordered.append(parts[group][start[group] : start[group] + count])
            start[group] += count
        return jnp.concatenate(ordered)

    def _everywhere(self, holds: Array) -> Array:
        """Whether it holds on all devices: they must take the same way."""
        return jax.lax.pmin(holds.astype(jnp.int32), EVERYWHERE) == 1

    # --- outside the step ---------------------------------------------------------------------------------------------------

    def stacked_ids(self, group: str) -> Array:
        """`Placement.stacked_ids` as an array on the mesh, cut as the group's weight is along its first axis."""
        spec = spec_of(f"tables/{group}/weight", fully_sharded=self.config.fully_sharded)
        sharding = NamedSharding(self.mesh, P(spec[0]))
        values = self.placement.stacked_ids(group)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    def init(self, key: jax.Array, std: float, stacked: Mapping[str, Array]) -> dict[str, TableState]:
        """New tables; a row depends on the key and its stacked id alone, so it is the same on every mesh.

        Args:
          key: seeds the rows.
          std: of their normal distribution.
          stacked: group -> `stacked_ids`, handed in so that a traced function does not hold them as constants.
        """

        def row(stacked_id: Array) -> Float[Array, " D"]:
            of_row = jax.random.fold_in(key, jnp.maximum(stacked_id, 0))
            columns = jnp.arange(self.dim, dtype=jnp.uint32)
            values = jax.vmap(lambda c: jax.random.normal(jax.random.fold_in(of_row, c), (), jnp.float32))(columns)
            return jnp.where(stacked_id >= 0, std * values, 0.0)

        weights = {group: jax.vmap(row)(stacked[group]) for group in self.groups}
        return {g: touched_rows.new_state(self.optimizer, w, self.initial_accumulator) for g, w in weights.items()}

    def export(self, tables: Mapping[str, TableState], table: str, field: str = "weight") -> np.ndarray:
        """One table as it is without a mesh: float32 [rows, D], or [rows] of an accumulator. For tables that fit a host."""
        place = self.placement.places[table]
        values = np.asarray(getattr(tables[GROUP[place.scheme]], field))
        return values[self.placement.address(table, np.arange(place.rows))]
