"""The fused arrays of a mesh inside a step: rows looked up and updated by id. 2D sparse parallelism.

Over `shard` the tables are cut (`placement`); over `replica` every group has them, kept in step in one of two ways:
- sync "gradients": each shard collects from the other groups the rows they touched with their gradients, and every group makes
  the same update: exactly the run on one device.
- sync "weights" (arXiv 2508.03854): each group updates with its own batch's gradient, row-wise Adagrad scaled by the number of
  groups (`StepContext.groups`), and every `sync_every` steps weights and slots are averaged over the groups.

With `fully_sharded` (GEM's third version) a shard's rows and slots are cut over the replicas between steps, and gathered for
the step.

Everything here runs inside the `shard_map` of a step, on one device.

Shape letters: R looked-up ids of a device, N rows of their gradients, S shards, G replica groups, L slots of a shard,
D width, d = D / S.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gem_jax.embedding import exchange
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.learning import learn
from gem_jax.embedding.placement import GROUP, Addresses, Group, Leaf, Placement
from gem_jax.embedding.row_optimizers import RowOptimizer, StepContext
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import WEIGHT, RowState, RowStore
from gem_jax.parallel.mesh import EVERYWHERE, REPLICA, SHARD
from pallas_kernels import embedding
from pallas_kernels.embedding.repeats import sum_by_row

type Requests = list[tuple[str, Int[Array, "_"] | Int[np.ndarray, "_"]]]
"""(table, ids with -1 where absent) of each feature in turn; their sizes add up to R."""

type Sizes = list[tuple[str, int]]
"""(table, number of ids) of each feature in turn."""

type TableState = dict[Group, RowState]
"""The fused arrays with their slots, as their store keeps them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a lookup leaves for the update.

    Attributes:
      addresses: of the ids, by fused array.
      routes: of the rows array, where it has more than one shard.
      overflow: float32 [], 1 where ids took the slower way because some shard was asked for more than it has places for.
    """

    addresses: dict[Group, Addresses]
    routes: exchange.Routes | None
    overflow: Leaf


class ShardedRows:
    """Rows of the fused arrays of a placement on a mesh.

    Args:
      dim: D.
      mesh: of `parallel.mesh.make_mesh`.
      config: how replica groups are kept in step.
      placement: where rows lie.
      optimizer: of the rows.
      store: in which form the shard keeps them.

    Attributes:
      ragged: whether ids and rows travel by a ragged all-to-all, which only GPUs have.
    """

    def __init__(
        self,
        dim: int,
        mesh: Mesh,
        config: TablesConfig,
        placement: Placement,
        optimizer: RowOptimizer,
        store: RowStore,
    ):
        self.dim, self.config, self.placement, self.optimizer, self.store = dim, config, placement, optimizer, store
        self.num_shards, self.num_replicas = mesh.shape[SHARD], mesh.shape[REPLICA]
        self.ragged = mesh.devices.flat[0].platform in ("gpu", "cuda")

    def open(self, state: TableState) -> TableState:
        """The shard's whole rows from what this device keeps between steps."""
        if not self.config.fully_sharded:
            return state
        return jax.tree.map(lambda x: jax.lax.all_gather(x, REPLICA, tiled=True), state)

    def weight_for_kernels(self, opened: TableState) -> Float[Array, "L D"] | None:
        """The weights, where they all lie on this device as the table kernels take them and it has the kernels; else None."""
        if self.num_shards > 1 or opened.keys() != {"rows"} or not isinstance(self.store, DeviceStore):
            return None
        weight = opened["rows"][WEIGHT]
        return weight if embedding.is_fused(weight, weight) else None

    def find_here(self, requests: Requests) -> Found:
        """Where the ids lie, if all rows are on this device."""
        return Found(addresses=self._addresses(requests), routes=None, overflow=jnp.float32(0))

    def lookup(self, opened: TableState, requests: Requests) -> tuple[Float[Array, "R D"], Found]:
        """The rows of all requests, in their order; zeros for ids of -1."""
        addresses = self._addresses(requests)
        sizes = [(table, ids.shape[0]) for table, ids in requests]
        parts: dict[Group, Array] = {}
        routes, overflow = None, jnp.float32(0)
        if "rows" in addresses:
            state = opened["rows"]
            if self.num_shards == 1:
                parts["rows"] = self.store.read(state, WEIGHT, addresses["rows"].slot)
            else:
                routes = exchange.route(addresses["rows"], self.num_shards, self.placement.slots)
                fits = self._everywhere(self._compact(routes, sizes).fits())
                distinct = self._exchanging(fits, routes, sizes, lambda way: self._serve(way, routes, state))
                parts["rows"] = exchange.rows_of_lookups(distinct, routes)
                overflow = 1.0 - fits.astype(jnp.float32)
        if "columns" in addresses:
            parts["columns"] = self._lookup_columns(opened["columns"], addresses["columns"].slot)
        return self._in_order(parts, sizes), Found(addresses=addresses, routes=routes, overflow=overflow)

    def update(
        self,
        opened: TableState,
        sizes: Sizes,
        found: Found,
        grads: Float[Array, "N D"],
        sources: Int[Array, " R"],
        *,
        learning_rate: Float[Array, ""] | float,
        step: Int[Array, ""] | int,
    ) -> TableState:
        """The opened rows after a step on the gradients of the looked-up rows, which count this device's share of the loss.

        That of lookup r is row sources[r] of the gradients.
        """
        groups = 1
        if self.config.sync == "weights":
            groups = self.num_replicas
            grads = grads * groups  # of the mean over the group's own batch, as in the paper
        by_group = self._by_group(sources, sizes)
        context = StepContext(learning_rate=learning_rate, step=step, groups=groups)
        new = dict(opened)
        if "rows" in found.addresses:
            new["rows"] = self._update_rows(opened["rows"], sizes, found, grads, by_group["rows"], context)
        if "columns" in found.addresses:
            slots = found.addresses["columns"].slot
            new["columns"] = self._update_columns(opened["columns"], slots, grads[by_group["columns"]], context)
        return new

    def close(self, opened: TableState, step: Int[Array, ""] | int) -> TableState:
        """What this device keeps between steps, replicas in step again; `step` counts the steps before this one."""
        average = self.config.sync == "weights" and self.num_replicas > 1
        if self.config.fully_sharded:
            return jax.tree.map(lambda x: self._own_part(x, average), opened)
        if not average:
            return opened
        if self.config.sync_every == 1:
            return self.average(opened)
        is_due = (step + 1) % self.config.sync_every == 0
        return jax.lax.cond(is_due, self.average, lambda t: t, opened)

    def average(self, state: TableState) -> TableState:
        """Means over the replica groups, of weights and of slots."""
        return jax.tree.map(lambda x: jax.lax.pmean(x, REPLICA), state)

    def _own_part(self, x: Array, average: bool) -> Array:
        if average:
            return jax.lax.psum_scatter(x, REPLICA, scatter_dimension=0, tiled=True) / self.num_replicas
        part = x.shape[0] // self.num_replicas  # the groups agree to the bit
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(REPLICA) * part, part)

    # --- tables placed by rows, or whole ------------------------------------------------------------------------------------

    def _compact(self, routes: exchange.Routes, sizes: Sizes) -> exchange.Padded | exchange.Ragged:
        capacity = self.capacity(sizes)
        return exchange.Ragged(routes, capacity) if self.ragged else exchange.Padded(routes, capacity)

    def capacity(self, sizes: Sizes) -> int:
        """C: places for ids from one device to another. A table has at most min(its ids, its rows) distinct ones, cut evenly
        over the shards or all on its owner."""
        most = np.zeros(self.num_shards)
        ids: dict[str, int] = {}
        for table, size in sizes:
            ids[table] = ids.get(table, 0) + size
        for table, count in ids.items():
            place = self.placement.places[table]
            distinct = min(count, place.rows)
            if place.scheme == "rows":
                most += math.ceil(distinct / self.num_shards)
            elif place.scheme == "tables":
                most[place.shard] += distinct
        wanted = -(-math.ceil(self.config.capacity * most.max()) // 8) * 8
        return min(wanted, sum(size for _, size in sizes))  # a device never sends more than it has

    def _exchanging(self, fits: Bool[Array, ""], routes: exchange.Routes, sizes: Sizes, function):
        """`function(way)` by the compact way, or by the one that always fits."""
        return jax.lax.cond(
            fits,
            lambda: function(self._compact(routes, sizes)),
            lambda: function(exchange.Gathered(routes)),
        )

    def _serve(self, way: exchange.Exchange, routes: exchange.Routes, state: RowState) -> Float[Array, "R D"]:
        """The rows of the distinct addresses."""
        return way.to_askers(self.store.read(state, WEIGHT, way.asked_slots()))

    def _update_rows(
        self,
        state: RowState,
        sizes: Sizes,
        found: Found,
        grads: Float[Array, "N D"],
        sources: Int[Array, " R"],
        context: StepContext,
    ) -> RowState:
        if found.routes is None:
            return self._apply("rows", state, found.addresses["rows"].slot, grads, context, sources)
        routes = found.routes
        sums = exchange.sum_repeats(grads[sources], routes)

        def learn(way: exchange.Exchange) -> RowState:
            return self._apply("rows", state, way.asked_slots(), way.to_owners(sums), context)

        return self._exchanging(found.overflow == 0, routes, sizes, learn)

    def _apply(
        self,
        group: Group,
        state: RowState,
        slots: Int[Array, " Q"],
        grads: Float[Array, "N D"],
        context: StepContext,
        sources: Int[Array, " Q"] | None = None,
    ) -> RowState:
        """Sums by slot, over the replica groups too where they exchange gradients, and updates."""
        if self.config.sync == "gradients" and self.num_replicas > 1:
            slots, grads = sum_by_row(slots, grads, self.placement.height(group), sources)
            slots, grads = (jax.lax.all_gather(x, REPLICA, tiled=True) for x in (slots, grads))
            sources = None
        return learn(self.store, self.optimizer, state, slots, grads, sources, context)

    # --- tables placed by columns -------------------------------------------------------------------------------------------

    def _lookup_columns(self, state: RowState, slots: Int[Array, " R"]) -> Float[Array, "R D"]:
        asked = jax.lax.all_gather(slots, SHARD, tiled=True)
        return jax.lax.all_to_all(self.store.read(state, WEIGHT, asked), SHARD, 0, 1, tiled=True)

    def _update_columns(
        self, state: RowState, slots: Int[Array, " R"], grads: Float[Array, "R D"], context: StepContext
    ) -> RowState:
        asked = jax.lax.all_gather(slots, SHARD, tiled=True)
        own_columns = jax.lax.all_to_all(grads, SHARD, 1, 0, tiled=True)  # [S R, d]

        def mean_of_all_columns(x: Float[Array, "R d"]) -> Float[Array, " R"]:
            return jax.lax.pmean(x.mean(axis=1), SHARD)

        context = dataclasses.replace(context, row_mean=mean_of_all_columns)
        return self._apply("columns", state, asked, own_columns, context)

    # --- requests and their groups ------------------------------------------------------------------------------------------

    def _group(self, table: str) -> Group:
        return GROUP[self.placement.places[table].scheme]

    def _addresses(self, requests: Requests) -> dict[Group, Addresses]:
        parts: dict[Group, list[Addresses]] = {}
        for table, ids in requests:
            parts.setdefault(self._group(table), []).append(self.placement.address(table, jnp.asarray(ids)))
        return {group: jax.tree.map(lambda *x: jnp.concatenate(x), *several) for group, several in parts.items()}

    def _by_group(self, values: Int[Array, " R"], sizes: Sizes) -> dict[Group, Array]:
        """Values in the order of the sizes, taken apart by fused array."""
        parts: dict[Group, list[Array]] = {group: [] for group in self.placement.groups}
        start = 0
        for table, size in sizes:
            parts[self._group(table)].append(values[start : start + size])
            start += size
        empty = values[:0]
        return {group: jnp.concatenate([empty, *arrays]) for group, arrays in parts.items()}

    def _in_order(self, parts: dict[Group, Array], sizes: Sizes) -> Float[Array, "R D"]:
        """The inverse of `_by_group`."""
        if not parts:  # a schema without categorical features
            return jnp.zeros((0, self.dim))
        if len(parts) == 1:
            return next(iter(parts.values()))
        start = dict.fromkeys(parts, 0)
        ordered = []
        for table, count in sizes:
            group = self._group(table)
            ordered.append(parts[group][start[group] : start[group] + count])
            start[group] += count
        return jnp.concatenate(ordered)

    def _everywhere(self, holds: Array) -> Array:
        """Whether it holds on all devices: they must take the same way."""
        return jax.lax.pmin(holds.astype(jnp.int32), EVERYWHERE) == 1
