"""The embedding tables of a run behind two calls: `lookup` a batch's features, `update` with the loss's gradient by them.

The loss is differentiated by `Embedded`, never by a table, so no dense gradient of a table's size exists. What lies behind the
calls can be replaced part by part: places (`placement`), travel (`exchange`), form of the rows (`stores`), rule
(`row_optimizers`), how replicas are kept in step (`sharded`).

Outside the step tables are named rows: "<table>/weight" and "<table>/<slot>" (`Tables.to_logical`), the same on every mesh.

Shape letters: B examples and T packed events of a device, R looked-up ids of its batch (all features together), N bags and events
that they belong to, S shards, L slots of a shard, D width.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.logical import LogicalRows
from gem_jax.embedding.placement import GROUP, Group, Leaf, Placement
from gem_jax.embedding.pooled import read_pooled
from gem_jax.embedding.row_optimizers import RowOptimizer
from gem_jax.embedding.sharded import Found, Requests, ShardedRows, Sizes, TableState
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import WEIGHT, RowState, RowStore
from gem_jax.errors import UserError
from gem_jax.parallel.mesh import REPLICA, SHARD


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """A batch's features as vectors.

    Attributes:
      features: categorical name -> [B, D], the mean over the ids present (0 where none is).
      events: sequence -> attribute -> [T, D], 0 in padding rows and where the id is absent.
    """

    features: dict[str, Leaf]
    events: dict[str, dict[str, Leaf]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticket:
    """What `Tables.lookup` leaves for `Tables.update`; an evaluation ignores it.

    Attributes:
      ids: feature -> int32 [B, max_ids], to share out the gradient of a mean.
      opened: the shard's whole rows, gathered for the step where they are fully sharded.
      found: addresses and routes of the ids.
    """

    ids: dict[str, Leaf]
    opened: dict[Group, dict[str, Leaf]]
    found: Found

    @property
    def overflow(self) -> Float[Array, ""]:
        """1 where ids took the slower way, see `embedding.exchange`; else 0."""
        return self.found.overflow


def requests_of(schema: Schema, batch: Batch) -> Requests:
    """(table, ids with -1 where absent) of the categoricals, then of the attributes of each sequence; R ids together."""
    parts = [(f.table, batch.ids[f.name].reshape(-1)) for f in schema.categoricals]
    for sequence in schema.sequences:
        events = batch.sequences[sequence.name]
        parts += [(a.table, events.ids[a.name]) for a in sequence.attributes]
    return parts


def num_lookups(schema: Schema, batch: Batch) -> int:
    """R of a batch, or of its shapes."""
    features = sum(math.prod(batch.ids[f.name].shape) for f in schema.categoricals)
    return features + sum(len(s.attributes) * batch.sequences[s.name].age_s.shape[0] for s in schema.sequences)


def pool(schema: Schema, rows: Float[Array, "R D"], batch: Batch) -> Embedded:
    """The rows of `requests_of`, handed to the features they belong to; multi-valued features are averaged."""
    start = 0
    features = {}
    for feature in schema.categoricals:
        ids = batch.ids[feature.name]
        block = rows[start : start + ids.size].reshape(*ids.shape, rows.shape[-1])
        start += ids.size
        features[feature.name] = block.sum(axis=1) / _num_present(ids).astype(block.dtype)
    events: dict[str, dict[str, Array]] = {}
    for sequence in schema.sequences:
        num_rows = batch.sequences[sequence.name].age_s.shape[0]
        events[sequence.name] = {}
        for attribute in sequence.attributes:
            events[sequence.name][attribute.name] = rows[start : start + num_rows]
            start += num_rows
    return Embedded(features=features, events=events)


def unpool(
    schema: Schema, grads: Embedded, ids: Mapping[str, Array | np.ndarray]
) -> tuple[Float[Array, "N D"], Int[Array, " R"]]:
    """The gradient by the rows of `requests_of`, from that by their `pool`: that of lookup r is row sources[r] of values.

    The lookups of a bag share a row, so nothing of [R, D] is made.

    Args:
      schema: names the features.
      grads: by the pooled features and by the events.
      ids: feature -> [B, max_ids].

    Returns:
      (values, sources).
    """
    values, sources, start = [], [], 0
    for feature in schema.categoricals:
        gradient, (bags, size) = grads.features[feature.name], ids[feature.name].shape
        values.append(gradient / _num_present(ids[feature.name]).astype(gradient.dtype))
        sources.append(start + jnp.repeat(jnp.arange(bags, dtype=jnp.int32), size))
        start += bags
    for sequence in schema.sequences:
        values += [grads.events[sequence.name][a.name] for a in sequence.attributes]
    events = sum(len(x) for x in values) - start
    return jnp.concatenate(values), jnp.concatenate([*sources, start + jnp.arange(events, dtype=jnp.int32)])


def _num_present(ids: Int[Array, "B k"] | Int[np.ndarray, "B k"]) -> Int[Array, "B 1"]:
    return jnp.maximum((ids >= 0).sum(axis=1), 1)[:, None]


def row_values(
    key: Array, low: UInt[Array, " L"], high: UInt[Array, " L"], columns: UInt[Array, " d"]
) -> Float[Array, "L d"]:
    """New rows' columns, standard normal: a function of the key and of the rows' numbers among those of all tables.

    Threefry of the counter (row, column), one block a number: no key of a row or of an element is ever made.

    Args:
      key: of all rows.
      low: the numbers' low words.
      high: their high words, below 2^16.
      columns: which of a row's numbers, below 2^16.
    """
    shape = (len(low), len(columns))
    rows = jnp.broadcast_to(low[:, None], shape)
    places = (high << 16)[:, None] | columns
    bits, _ = threefry_2x32(jax.random.key_data(key), jnp.stack([rows, places]))
    # The middles of 2^23 equal parts of (-1, 1): symmetric, and never at the ends.
    uniform = (bits >> 9).astype(jnp.float32) * 2**-22 + (2**-23 - 1)
    return np.float32(2**0.5) * jax.lax.erf_inv(uniform)


class Tables:
    """The tables of a schema on a mesh.

    Args:
      schema: names the tables, and the features that read them.
      dim: D of every table.
      mesh: of `parallel.mesh.make_mesh`.
      config: how replica groups are kept in step.
      placement: where rows lie; made for the mesh's shards, and for its replicas where fully sharded.
      optimizer: rule and slots of a row.
      store: in which form a shard keeps its rows.
      init_std: standard deviation of new rows.

    Raises:
      UserError: tables are placed by columns and the shards do not divide their width.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        mesh: Mesh,
        config: TablesConfig,
        placement: Placement,
        optimizer: RowOptimizer,
        store: RowStore = DeviceStore(),  # noqa: B008  (frozen)
        *,
        init_std: float = 1.0,
    ):
        self.schema, self.dim, self.mesh, self.config, self.placement = schema, dim, mesh, config, placement
        self.optimizer, self.store, self.init_std = optimizer, store, init_std
        self.num_shards, self.num_replicas = mesh.shape[SHARD], mesh.shape[REPLICA]
        self.parts = self.num_replicas if config.fully_sharded else 1
        assert placement.num_shards == self.num_shards, (placement.num_shards, self.num_shards)
        assert all(placement.height(group) % self.parts == 0 for group in placement.groups), self.parts
        if "columns" in placement.groups and dim % self.num_shards:
            raise UserError(
                f"tables of width {dim} cannot be cut by columns over mesh.shard={self.num_shards}, which does not divide it; "
                "change the width, the mesh, or tables.schemes"
            )
        self.sharded = ShardedRows(dim, mesh, config, placement, optimizer, store)
        self.logical = LogicalRows(mesh, dim, placement, store, self.specs(), config.fully_sharded)

    @property
    def num_parameters(self) -> int:
        """Weights, without what pads them to the mesh."""
        return self.placement.num_rows * self.dim

    # --- inside the step's shard_map, on one device -----------------------------------------------------------------------------

    def lookup(self, state: TableState, batch: Batch) -> tuple[Embedded, Ticket]:
        """The features of this device's batch as vectors, and what `update` needs."""
        opened = self.sharded.open(state)
        requests = requests_of(self.schema, batch)
        ids = {f.name: jnp.asarray(batch.ids[f.name]) for f in self.schema.categoricals}
        weight = self.sharded.weight_for_kernels(opened)
        if weight is not None and requests:
            found = self.sharded.find_here(requests)
            features, events = read_pooled(self.schema, weight, found.addresses["rows"].slot, batch)
            return Embedded(features=features, events=events), Ticket(ids=ids, opened=opened, found=found)
        rows, found = self.sharded.lookup(opened, requests)
        return pool(self.schema, rows, batch), Ticket(ids=ids, opened=opened, found=found)

    def update(
        self,
        state: TableState,
        ticket: Ticket,
        grads: Embedded,
        *,
        learning_rate: Float[Array, ""] | float,
        step: Int[Array, ""] | int,
    ) -> TableState:
        """The tables after a step, replicas in step again where the step is one that does so.

        Args:
          state: the tables that were looked up.
          ticket: of that lookup.
          grads: of this device's share of the loss, by what was looked up.
          learning_rate: of this step.
          step: steps taken before this one.
        """
        del state  # the opened rows are it, or were gathered from it
        if not ticket.found.addresses:  # no feature reads a table
            return self.sharded.close(ticket.opened, step)
        updated = self.sharded.update(
            ticket.opened,
            self._sizes(ticket, grads),
            ticket.found,
            *unpool(self.schema, grads, ticket.ids),
            learning_rate=learning_rate,
            step=step,
        )
        return self.sharded.close(updated, step)

    def average(self, state: TableState) -> TableState:
        """Means over the replica groups, for an evaluation or a checkpoint between two averages (`sync_every` > 1)."""
        return self.sharded.average(state)

    def _sizes(self, ticket: Ticket, grads: Embedded) -> Sizes:
        """Of `requests_of`."""
        sizes = [(f.table, ticket.ids[f.name].size) for f in self.schema.categoricals]
        for sequence in self.schema.sequences:
            sizes += [(a.table, grads.events[sequence.name][a.name].shape[0]) for a in sequence.attributes]
        return sizes

    # --- outside the step: the state on the mesh --------------------------------------------------------------------------------

    def specs(self) -> dict[Group, dict[str, P]]:
        """The state's axes on the mesh."""
        shapes = jax.eval_shape(lambda: {group: self._blank(group) for group in self.placement.groups})
        return {group: {name: self._spec(group, x.ndim) for name, x in s.items()} for group, s in shapes.items()}

    def init(self, key: Array) -> TableState:
        """New tables; a row depends on the key and on its table and number alone, so it is the same on every mesh. Traceable."""

        def on_device(key: Array) -> TableState:
            return {group: self._new(group, key) for group in self.placement.groups}

        return jax.shard_map(on_device, mesh=self.mesh, in_specs=P(), out_specs=self.specs(), check_vma=False)(key)

    def bytes_per_device(self) -> dict[str, int]:
        """By kind: weights, slots (of the optimizer), and transient: what a step gathers beside them where fully sharded."""
        shapes = jax.eval_shape(lambda: {group: self._blank(group) for group in self.placement.groups})
        of_optimizer = {slot.name for slot in self.optimizer.slots}
        total = {"weights": 0, "slots": 0, "transient": 0}
        for state in shapes.values():
            for name, x in state.items():
                num_bytes = x.size * x.dtype.itemsize
                total["slots" if name in of_optimizer else "weights"] += num_bytes
                total["transient"] += self.parts * num_bytes if self.parts > 1 else 0
        return total

    def _spec(self, group: Group, ndim: int) -> P:
        if group == "rows":
            return P((SHARD, REPLICA)) if self.config.fully_sharded else P(SHARD)
        first = REPLICA if self.config.fully_sharded else None
        return P(first, SHARD) if ndim == 2 else P(first) if first else P()

    def _shape(self, group: Group) -> tuple[int, int]:
        """Rows and columns of a device's part of the weights."""
        height = self.placement.height(group) // self.parts
        return height, self.dim // self.num_shards if group == "columns" else self.dim

    def _blank(self, group: Group) -> RowState:
        height, width = self._shape(group)
        slots = {s.name: jnp.zeros((height, width) if s.per == "number" else height) for s in self.optimizer.slots}
        return self.store.init(jnp.zeros((height, width)), slots)

    def _new(self, group: Group, key: Array) -> RowState:
        """A device's part of new tables."""
        height, width = self._shape(group)
        start = jax.lax.axis_index(REPLICA) * height if self.parts > 1 else 0
        slots = start + jnp.arange(height, dtype=jnp.int32)
        me = jax.lax.axis_index(SHARD)
        low, high, used = self.placement.stacked_rows(group, me, slots)
        columns = (me * width if group == "columns" else 0) + jnp.arange(width, dtype=jnp.int32)
        columns = columns.astype(jnp.uint32)
        values = row_values(key, low, high, columns)
        weight = jnp.where(used[:, None], self.init_std * values, 0.0)
        initial = {
            s.name: jnp.full((height, width) if s.per == "number" else height, s.initial, jnp.float32)
            for s in self.optimizer.slots
        }
        return self.store.init(weight, initial)

    # --- outside the step: named rows -------------------------------------------------------------------------------------------

    def logical_specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """ "<table>/<slot>" -> float32 [rows, D] or [rows] with its sharding: weights first, tables in the schema's order."""
        specs = {}
        for table, place in self.placement.places.items():
            for slot, has_columns in self._has_columns().items():
                shape = (place.rows, self.dim) if has_columns else (place.rows,)
                sharding = NamedSharding(self.mesh, self.logical.spec(place.rows, has_columns))
                specs[f"{table}/{slot}"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return specs

    def extract(self, state: TableState, name: str) -> Array:
        """One logical array, sharded as `logical_specs` says; row r of the table at index r. Replicas must be in step."""
        table, slot = name.rsplit("/", 1)
        place = self.placement.places[table]
        return self.logical.extract(state[GROUP[place.scheme]], place, slot, self._has_columns()[slot])

    def insert(self, state: TableState, name: str, values: Array | np.ndarray) -> TableState:
        """The state with one logical array, sharded as `logical_specs` says, in its places. Donates what it replaces."""
        table, slot = name.rsplit("/", 1)
        place = self.placement.places[table]
        group = GROUP[place.scheme]
        return {**state, group: self.logical.insert(state[group], place, slot, values)}

    def to_logical(self, state: TableState) -> dict[str, Array]:
        """All logical arrays. A caller who cannot hold them beside the tables takes one after the other by `extract`."""
        return {name: self.extract(state, name) for name in self.logical_specs()}

    def from_logical(self, arrays: Mapping[str, Array | np.ndarray]) -> TableState:
        """The state that `to_logical` gives `arrays` of, from any mesh; slots that no row uses are zero.

        Reads one array after the other, so that a lazy mapping need not hold them all.
        """
        specs = self.specs()
        blank = jax.shard_map(
            lambda: {group: self._blank(group) for group in self.placement.groups},
            mesh=self.mesh,
            in_specs=(),
            out_specs=specs,
            check_vma=False,
        )
        state = jax.jit(blank)()
        for name in self.logical_specs():
            state = self.insert(state, name, arrays[name])
        return state

    def export(self, state: TableState, table: str, slot: str = WEIGHT) -> np.ndarray:
        """One logical array on the host of a run of one process: for tests and notebooks."""
        return np.asarray(self.extract(state, f"{table}/{slot}"))

    def _has_columns(self) -> dict[str, bool]:
        return {WEIGHT: True, **{slot.name: slot.per == "number" for slot in self.optimizer.slots}}
