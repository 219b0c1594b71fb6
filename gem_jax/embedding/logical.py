"""Tables as named rows, whatever the mesh: row r of a table at index r, and back to where a placement puts it.

A logical array is [rows, D], or [rows] of a slot that a row has once. It lies evenly on the mesh: cut over `shard` by rows where
those divide, else by columns, else (small or odd) alike on all devices. Nothing but a table that a shard holds whole anyway is ever
whole on a device: rows travel by one all-to-all, a table's one array at a time. Bits move; no number is calculated with.

Between the two stands a *block*: device d of a group has the rows [d n, (d + 1) n), n = ceil(rows / S), zeros beyond the last.

Shape letters: S shards, n rows of a block, c places of an owner's rows in a block, h slots of a table on a shard, D width,
d = D / S.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from gem_jax.embedding.placement import GROUP, Group, Placement, Scheme, TablePlace
from gem_jax.embedding.stores.store import RowState, RowStore
from gem_jax.parallel.mesh import REPLICA, SHARD


class LogicalRows:
    """Moves a table's arrays between their places and logical order. Called outside the step; every process must call alike.

    Args:
      mesh: of the state.
      dim: D.
      placement: where rows lie.
      store: reads and writes them.
      specs: group -> the state's axes.
      fully_sharded: whether a shard's slots are cut over the replicas.
    """

    def __init__(
        self,
        mesh: Mesh,
        dim: int,
        placement: Placement,
        store: RowStore,
        specs: dict[Group, dict[str, P]],
        fully_sharded: bool,
    ):
        self.mesh, self.dim, self.placement, self.store, self.specs = mesh, dim, placement, store, specs
        self.num_shards = mesh.shape[SHARD]
        self.parts = mesh.shape[REPLICA] if fully_sharded else 1
        # Tables of the same rows and scheme share a program: where they lie is an argument.
        self._extracting = functools.cache(self._make_extracting)
        self._inserting = functools.cache(self._make_inserting)

    def spec(self, rows: int, has_columns: bool) -> P:
        """How a logical array is cut."""
        if rows % self.num_shards == 0:
            return P(SHARD)
        return P(None, SHARD) if has_columns and self.dim % self.num_shards == 0 else P()

    def extract(self, state: RowState, place: TablePlace, slot: str, has_columns: bool) -> Array:
        """The logical array of a table's weights or slot, from the state of its group."""
        return self._extracting(place.scheme, place.rows, slot, has_columns)(state, place.first, place.shard)

    def insert(self, state: RowState, place: TablePlace, slot: str, values: Array | np.ndarray) -> RowState:
        """The state of the table's group, which is donated, with the table's weights or slot replaced."""
        return self._inserting(place.scheme, place.rows, slot, values.ndim == 2)(
            state, values, place.first, place.shard
        )

    def _make_extracting(self, scheme: Scheme, rows: int, slot: str, has_columns: bool) -> Callable[..., Array]:
        group = GROUP[scheme]

        def extract(state: RowState, first: Int[Array, ""], shard: Int[Array, ""]) -> Array:
            slots = self._own_slots(group, first, self._num_slots(scheme, rows))
            values = self._sum_bits(self.store.read(state, slot, slots), self.parts)
            block = {"rows": self._block_of_rows, "tables": self._block_of_whole, "columns": self._block_of_columns}
            return self._from_block(block[scheme](values, rows, shard), rows)

        return self._jit(extract, (self.specs[group], P(), P()), self.spec(rows, has_columns))

    def _make_inserting(self, scheme: Scheme, rows: int, slot: str, has_columns: bool) -> Callable[..., RowState]:
        group = GROUP[scheme]

        def insert(state: RowState, logical: Array, first: Int[Array, ""], shard: Int[Array, ""]) -> RowState:
            slots = self._own_slots(group, first, self._num_slots(scheme, rows))
            block = self._to_block(logical, rows)
            if scheme == "rows":
                values = self._rows_of_block(block, rows, shard)
            elif scheme == "columns" and has_columns:
                values = jax.lax.all_to_all(block, SHARD, 1, 0, tiled=True)[:rows]
            else:
                values = jax.lax.all_gather(block, SHARD, tiled=True)[:rows]
            if scheme == "tables":  # slots below 0 are not written
                slots = jnp.where(jax.lax.axis_index(SHARD) == shard, slots, jnp.arange(rows, dtype=jnp.int32) - rows)
            return self.store.write(state, slot, slots, values)

        specs = self.specs[group]
        return self._jit(insert, (specs, self.spec(rows, has_columns), P(), P()), specs, donate_argnums=0)

    def _jit(self, function, in_specs, out_specs, **options):
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

        def placed(specs):
            return jax.tree.map(lambda s: NamedSharding(self.mesh, s), specs, is_leaf=lambda s: isinstance(s, P))

        return jax.jit(mapped, in_shardings=placed(in_specs), out_shardings=placed(out_specs), **options)

    # --- one device: its slots of a table -------------------------------------------------------------------------------------

    def _num_slots(self, scheme: Scheme, rows: int) -> int:
        return self._block_rows(rows) if scheme == "rows" else rows

    def _block_rows(self, rows: int) -> int:
        return -(-rows // self.num_shards)

    def _own_slots(self, group: Group, first: Int[Array, ""], count: int) -> Int[Array, " h"]:
        """A table's slots, counted from the first that this device keeps; those of other replicas lie below 0 or beyond."""
        part = self.placement.height(group) // self.parts
        start = jax.lax.axis_index(REPLICA) * part if self.parts > 1 else 0
        return first - start + jnp.arange(count, dtype=jnp.int32)

    def _sum_bits(self, values: Array, parts: int) -> Array:
        """Values of which one replica has the bits and the others zeros; as integers, since -0.0 + 0.0 is 0.0."""
        if parts == 1:
            return values
        return _as_floats(jax.lax.psum(_as_bits(values), REPLICA))

    # --- one device: slots <-> block --------------------------------------------------------------------------------------------

    def _block_of_rows(self, values: Array, rows: int, shard: Int[Array, ""]) -> Array:
        """[h, ...] dealt round robin -> [n, ...]: an owner sends each block the at most ceil(n / S) rows it has of it."""
        s, n = self.num_shards, self._block_rows(rows)
        me = jax.lax.axis_index(SHARD)
        block = jnp.arange(s, dtype=jnp.int32)[:, None]
        offset = self._offsets(me, block, n, shard)
        row = block * n + offset
        sent = _take(values, row // s, (offset < n) & (row >= 0) & (row < rows))
        received = jax.lax.all_to_all(sent, SHARD, 0, 0)  # [owner, c, ...]
        place = jnp.arange(n, dtype=jnp.int32)
        return received[((me * n + place) % s + shard) % s, place // s]

    def _rows_of_block(self, block: Array, rows: int, shard: Int[Array, ""]) -> Array:
        """The inverse; zeros in the slots of a last round that lacks this shard."""
        s, n = self.num_shards, self._block_rows(rows)
        me = jax.lax.axis_index(SHARD)
        owner = jnp.arange(s, dtype=jnp.int32)[:, None]
        offset = self._offsets(owner, me, n, shard)
        received = jax.lax.all_to_all(_take(block, offset, offset < n), SHARD, 0, 0)  # [block, c, ...]
        row = jnp.arange(n, dtype=jnp.int32) * s + (me - shard) % s
        used = (row >= 0) & (row < rows)
        row = jnp.where(used, row, 0)
        values = received[row // n, row % n // s]
        return jnp.where(used.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)

    def _offsets(self, owner: Array, block: Array, n: int, shard: Int[Array, ""]) -> Int[Array, "s c"]:
        """Where in a block an owner's rows stand; from n on there are none."""
        s = self.num_shards
        first = ((owner - shard) % s - block * n % s) % s
        return first + s * jnp.arange(-(-n // s), dtype=jnp.int32)

    def _block_of_whole(self, values: Array, rows: int, shard: Int[Array, ""]) -> Array:
        bits = jnp.where(jax.lax.axis_index(SHARD) == shard, _as_bits(self._padded(values, rows)), 0)
        return _as_floats(jax.lax.psum_scatter(bits, SHARD, scatter_dimension=0, tiled=True))

    def _block_of_columns(self, values: Array, rows: int, shard: Int[Array, ""]) -> Array:
        del shard
        padded = self._padded(values, rows)
        if values.ndim == 2:
            return jax.lax.all_to_all(padded, SHARD, 0, 1, tiled=True)
        return self._own_block(padded, rows)

    # --- one device: block <-> logical array ------------------------------------------------------------------------------------

    def _from_block(self, block: Array, rows: int) -> Array:
        spec = self.spec(rows, block.ndim == 2)
        if spec == P(SHARD):
            return block
        if spec == P(None, SHARD):
            return jax.lax.all_to_all(block, SHARD, 1, 0, tiled=True)[:rows]
        return jax.lax.all_gather(block, SHARD, tiled=True)[:rows]

    def _to_block(self, logical: Array, rows: int) -> Array:
        spec = self.spec(rows, logical.ndim == 2)
        if spec == P(SHARD):
            return logical
        padded = self._padded(logical, rows)
        if spec == P(None, SHARD):
            return jax.lax.all_to_all(padded, SHARD, 0, 1, tiled=True)
        return self._own_block(padded, rows)

    def _padded(self, values: Array, rows: int) -> Array:
        """Zeros after [rows, ...] up to S blocks."""
        missing = self.num_shards * self._block_rows(rows) - rows
        return jnp.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)])

    def _own_block(self, padded: Array, rows: int) -> Array:
        n = self._block_rows(rows)
        return jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(SHARD) * n, n)


def _take(values: Array, index: Array, used: Array) -> Array:
    """values[index], zeros where not used."""
    return values.at[jnp.where(used, index, values.shape[0])].get(mode="fill", fill_value=0.0)


def _as_bits(values: Array) -> Array:
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def _as_floats(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
