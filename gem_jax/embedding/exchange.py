"""Ids to the shards that own them, rows back, gradients there again: the all-to-alls of the tables placed by rows.

Called inside the `shard_map` of a step, on one device of a shard group. A device first removes repeats from its ids (`route`); the
distinct ones, sorted, are grouped by owner. Three ways to move values between "a row per distinct id, at the one who asks" [R, ...]
and "what a shard was sent" [Q, ...], all exact:
- `Padded`: an all-to-all with C places per pair of devices, on any platform.
- `Ragged`: only the bytes there are, where the platform has a ragged all-to-all (GPU).
- `Gathered`: everything to everyone. S times the bytes, but it cannot overflow: it runs instead, in the same step and without
  losing an id, when some shard is asked for more than the others have places for.

Shape letters: R ids of a device, S shards, C places, Q = S C (S R where gathered), L slots of a shard.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gem_jax.embedding.placement import Addresses, Leaf
from gem_jax.parallel.mesh import SHARD
from pallas_kernels.embedding.repeats import starts_of_runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """A device's distinct addresses and where they are to be had.

    Attributes:
      distinct: addresses [R], ascending by owner, then slot; owner S and slot -1 in unused places.
      order: int32 [R], the sort of the ids.
      segment: int32 [R], the place in `distinct` of each sorted id.
      lookup: int32 [R], the place in `distinct` of each id; R for absent ids.
      start: int32 [S], where each owner's part of `distinct` begins.
      count: int32 [S], how long it is.
    """

    distinct: Addresses
    order: Leaf
    segment: Leaf
    lookup: Leaf
    start: Leaf
    count: Leaf


def route(addresses: Addresses, num_shards: int, slots: int) -> Routes:
    """Removes repeats and groups by owner.

    Args:
      addresses: of the ids [R].
      num_shards: S.
      slots: L, of a shard.
    """
    size = addresses.slot.shape[0]
    order, owner, slot = _sort(addresses, num_shards, slots)
    segment = jnp.cumsum(starts_of_runs(owner, slot), dtype=jnp.int32) - 1
    distinct = Addresses(
        owner=jnp.full(size, num_shards, jnp.int32).at[segment].set(owner, indices_are_sorted=True),
        slot=jnp.full(size, -1, jnp.int32).at[segment].set(slot, indices_are_sorted=True),
    )
    place = jnp.where(slot < 0, size, segment)
    lookup = jnp.zeros(size, jnp.int32).at[order].set(place, unique_indices=True)
    owners = jnp.arange(num_shards + 1, dtype=jnp.int32)
    edges = jnp.searchsorted(distinct.owner, owners, method="scan_unrolled").astype(jnp.int32)
    return Routes(
        distinct=distinct, order=order, segment=segment, lookup=lookup, start=edges[:-1], count=jnp.diff(edges)
    )


def _sort(
    addresses: Addresses, num_shards: int, slots: int
) -> tuple[Int[Array, " R"], Int[Array, " R"], Int[Array, " R"]]:
    """(order, owners, slots) sorted by owner, then slot; absent ids last, with owner S and slot -1."""
    absent = addresses.slot < 0
    if num_shards * slots < 2**31:  # one key is a third of the sort's time on a CPU: 15 against 45 ms for 200,000 ids
        nowhere = jnp.iinfo(jnp.int32).max
        keys = jnp.where(absent, nowhere, addresses.owner * slots + addresses.slot)
        order = jnp.argsort(keys)
        keys = keys[order]
        absent = keys == nowhere
        return order, jnp.where(absent, num_shards, keys // slots), jnp.where(absent, -1, keys % slots)
    owner = jnp.where(absent, num_shards, addresses.owner)
    numbers = jnp.arange(owner.shape[0], dtype=jnp.int32)
    owner, slot, order = jax.lax.sort((owner, addresses.slot, numbers), num_keys=2)
    return order, owner, slot


def sum_repeats(grads: Float[Array, "R D"], routes: Routes) -> Float[Array, "R D"]:
    """The gradients of all lookups of each distinct address, summed."""
    return jax.ops.segment_sum(
        grads[routes.order], routes.segment, num_segments=len(grads), indices_are_sorted=True
    ).astype(grads.dtype)


def rows_of_lookups(distinct_rows: Float[Array, "R D"], routes: Routes) -> Float[Array, "R D"]:
    """Each lookup's row from those of the distinct addresses; 0 for absent ids."""
    return distinct_rows.at[routes.lookup].get(mode="fill", fill_value=0.0)


@runtime_checkable
class Exchange(Protocol):
    """How values travel; `to_owners` and `to_askers` are inverse, but for what repeats at an owner."""

    def asked_slots(self) -> Int[Array, " Q"]:
        """The slots of this shard that are asked for; -1 in unused places."""
        ...

    def to_owners(self, values: Float[Array, "R D"]) -> Float[Array, "Q D"]:
        """[R, D] by distinct address -> [Q, D] at the owners, zeros in unused places."""
        ...

    def to_askers(self, values: Float[Array, "Q D"]) -> Float[Array, "R D"]:
        """[Q, D] at the owners, zeros in unused places -> [R, D] by distinct address."""
        ...


class Padded:
    """C places for every pair of devices."""

    def __init__(self, routes: Routes, capacity: int):
        self.routes, self.capacity = routes, capacity

    def fits(self) -> Bool[Array, ""]:
        """On this device; all devices of the group must agree before this is used."""
        return (self.routes.count <= self.capacity).all()

    def asked_slots(self):
        return self._send(self.routes.distinct.slot, -1)

    def to_owners(self, values):
        return self._send(values, 0.0)

    def _send(self, values: Array, empty: int | float) -> Array:
        place = jnp.arange(self.capacity, dtype=jnp.int32)
        index = jnp.where(place < self.routes.count[:, None], self.routes.start[:, None] + place, values.shape[0])
        sent = values.at[index].get(mode="fill", fill_value=empty)  # [S, C, ...]
        received = jax.lax.all_to_all(sent, SHARD, 0, 0)
        return received.reshape(-1, *values.shape[1:])

    def to_askers(self, values):
        num_shards = self.routes.start.shape[0]
        returned = jax.lax.all_to_all(values.reshape(num_shards, self.capacity, *values.shape[1:]), SHARD, 0, 0)
        place = jnp.arange(self.routes.order.shape[0], dtype=jnp.int32)
        owner = jnp.searchsorted(self.routes.start + self.routes.count, place, side="right", method="scan_unrolled")
        index = owner * self.capacity + place - self.routes.start[jnp.minimum(owner, num_shards - 1)]
        index = jnp.where(owner < num_shards, index, values.shape[0])
        return returned.reshape(values.shape).at[index].get(mode="fill", fill_value=0.0)


class Ragged:
    """Only the values there are, into Q = S C places that an owner's askers share."""

    def __init__(self, routes: Routes, capacity: int):
        self.routes, self.size = routes, routes.start.shape[0] * capacity
        counts = jax.lax.all_gather(routes.count, SHARD)  # [asker, owner]
        me = jax.lax.axis_index(SHARD)
        places = jnp.cumsum(counts, axis=0) - counts  # where each asker's part begins at each owner
        self.asked = counts[:, me]
        self.asked_at = places[:, me]
        self.mine_at = places[me]
        self.start_at_askers = jax.lax.all_gather(routes.start, SHARD)[:, me]

    def fits(self) -> Bool[Array, ""]:
        """On this device, as an owner."""
        return self.asked.sum() <= self.size

    def asked_slots(self):
        return self._send(self.routes.distinct.slot, -1)

    def to_owners(self, values):
        return self._send(values, 0.0)

    def _send(self, values: Array, empty: int | float) -> Array:
        out = jnp.full((self.size, *values.shape[1:]), empty, values.dtype)
        sizes = self.routes.start, self.routes.count, self.mine_at, self.asked
        return jax.lax.ragged_all_to_all(values, out, *sizes, axis_name=SHARD)

    def to_askers(self, values):
        out = jnp.zeros((self.routes.order.shape[0], *values.shape[1:]), values.dtype)
        sizes = self.asked_at, self.asked, self.start_at_askers, self.routes.count
        return jax.lax.ragged_all_to_all(values, out, *sizes, axis_name=SHARD)


class Gathered:
    """Every device of the group sees what all ask for; the owner answers, the others add zeros."""

    def __init__(self, routes: Routes):
        self.routes = routes

    def asked_slots(self):
        owner, slot = (self.to_owners(x) for x in (self.routes.distinct.owner, self.routes.distinct.slot))
        return jnp.where(owner == jax.lax.axis_index(SHARD), slot, -1)

    def to_owners(self, values):
        return jax.lax.all_gather(values, SHARD, tiled=True)

    def to_askers(self, values):
        return jax.lax.psum_scatter(values, SHARD, scatter_dimension=0, tiled=True)
