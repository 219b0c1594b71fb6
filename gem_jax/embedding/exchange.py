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
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gem_jax.embedding.touched_rows import starts_of_runs
from gem_jax.parallel.mesh import SHARD


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """A device's distinct addresses and where they are to be had.

    distinct: int32 [R], ascending, so grouped by owner; NOWHERE in unused places.
    order, segment: int32 [R], the sort of the ids and the place in `distinct` of each sorted id.
    lookup: int32 [R], the place in `distinct` of each id; R for absent ids.
    start, count: int32 [S], where each owner's part of `distinct` begins and how long it is.
    """

    distinct: Array
    order: Array
    segment: Array
    lookup: Array
    start: Array
    count: Array


NOWHERE = jnp.iinfo(jnp.int32).max


def route(addresses: Int[Array, " R"], num_shards: int, slots: int) -> Routes:
    """Removes repeats and groups by owner; addresses are shard * slots + slot, -1 where absent."""
    size = addresses.shape[0]
    keys = jnp.where(addresses >= 0, addresses, NOWHERE)
    order = jnp.argsort(keys)
    sorted_keys = keys[order]
    segment = jnp.cumsum(starts_of_runs(sorted_keys)) - 1
    distinct = jnp.full(size, NOWHERE, jnp.int32).at[segment].set(sorted_keys, indices_are_sorted=True)
    place = jnp.where(sorted_keys == NOWHERE, size, segment)
    lookup = jnp.zeros(size, jnp.int32).at[order].set(place, unique_indices=True)
    firsts = slots * jnp.arange(num_shards + 1, dtype=jnp.int32)
    edges = jnp.searchsorted(distinct, firsts, method="scan_unrolled").astype(jnp.int32)
    return Routes(
        distinct=distinct, order=order, segment=segment, lookup=lookup, start=edges[:-1], count=jnp.diff(edges)
    )


def sum_repeats(grads: Float[Array, "R D"], routes: Routes) -> Float[Array, "R D"]:
    """The gradients of all lookups of each distinct address, summed."""
    return jax.ops.segment_sum(
        grads[routes.order], routes.segment, num_segments=len(grads), indices_are_sorted=True
    ).astype(grads.dtype)


def rows_of_lookups(distinct_rows: Float[Array, "R D"], routes: Routes) -> Float[Array, "R D"]:
    """Each lookup's row from those of the distinct addresses; 0 for absent ids."""
    return distinct_rows.at[routes.lookup].get(mode="fill", fill_value=0.0)


def own_slots(addresses: Int[Array, " Q"], slots: int) -> Int[Array, " Q"]:
    """Addresses as slots of this shard; -1 for those of other shards and for none."""
    own = addresses // slots == jax.lax.axis_index(SHARD)
    return jnp.where(own & (addresses >= 0) & (addresses != NOWHERE), addresses % slots, -1)


class Exchange(Protocol):
    """How values travel; `to_owners` and `to_askers` are inverse, but for what repeats at an owner."""

    def to_owners(self, values: Array, empty: int | float) -> Array:
        """[R, ...] by distinct address -> [Q, ...] at the owners, `empty` in unused places."""
        ...

    def to_askers(self, values: Array) -> Array:
        """[Q, ...] at the owners, zeros in unused places -> [R, ...] by distinct address."""
        ...


class Padded:
    """C places for every pair of devices."""

    def __init__(self, routes: Routes, capacity: int):
        self.routes, self.capacity = routes, capacity

    def fits(self) -> Bool[Array, ""]:
        """On this device; all devices of the group must agree before this is used."""
        return (self.routes.count <= self.capacity).all()

    def to_owners(self, values, empty):
        place = jnp.arange(self.capacity, dtype=jnp.int32)
        index = jnp.where(place < self.routes.count[:, None], self.routes.start[:, None] + place, values.shape[0])
        sent = values.at[index].get(mode="fill", fill_value=empty)  # [S, C, ...]
        received = jax.lax.all_to_all(sent, SHARD, 0, 0)
        return received.reshape(-1, *values.shape[1:])

    def to_askers(self, values):
        num_shards = self.routes.start.shape[0]
        returned = jax.lax.all_to_all(values.reshape(num_shards, self.capacity, *values.shape[1:]), SHARD, 0, 0)
        place = jnp.arange(self.routes.distinct.shape[0], dtype=jnp.int32)
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

    def to_owners(self, values, empty):
        out = jnp.full((self.size, *values.shape[1:]), empty, values.dtype)
        sizes = self.routes.start, self.routes.count, self.mine_at, self.asked
        return jax.lax.ragged_all_to_all(values, out, *sizes, axis_name=SHARD)

    def to_askers(self, values):
        out = jnp.zeros((self.routes.distinct.shape[0], *values.shape[1:]), values.dtype)
        sizes = self.asked_at, self.asked, self.start_at_askers, self.routes.count
        return jax.lax.ragged_all_to_all(values, out, *sizes, axis_name=SHARD)


class Gathered:
    """Every device of the group sees what all ask for; the owner answers, the others add zeros."""

    def __init__(self, routes: Routes):
        self.routes = routes

    def to_owners(self, values, empty):
        del empty  # nothing is padded; places without an id hold NOWHERE and zeros
        return jax.lax.all_gather(values, SHARD, tiled=True)

    def to_askers(self, values):
        return jax.lax.psum_scatter(values, SHARD, scatter_dimension=0, tiled=True)
