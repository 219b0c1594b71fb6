"""From the arrays of a checkpoint to those that a program wants, all by name.

An array of the same places is taken as it is. A table that has grown keeps its old rows. Places along a named axis are found again
by their names, wherever they stand now; new ones are initialised, and ones that are gone are dropped and reported. An optimizer's
slots are arrays like any other, with the axes of their parameter, and so follow it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.manifest import SavedArray
from gem_jax.checkpoint.store import Read
from gem_jax.parallel.arrays import ArraySpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Take:
    """How a saved array becomes one that is wanted.

    Attributes:
      spec: what is wanted.
      read: how it is read.
      rows: rows that the checkpoint has, where the array is a table's that has grown; else None.
      places: for each axis the saved place of each wanted one, -1 where it is new; None where the axis stays as it is.
      new: names of the new places.
      gone: names of the places that are dropped.
    """

    spec: ArraySpec
    read: Read
    rows: int | None = None
    places: tuple[np.ndarray | None, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def needs_new_values(self) -> bool:
        return self.rows is not None or bool(self.new)

    @property
    def as_it_is(self) -> bool:
        return self.rows is None and not self.places


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What of a checkpoint goes where.

    Attributes:
      takes: wanted name -> how it is made of the saved array.
      missing: wanted, not in the checkpoint: new values.
      gone: in the checkpoint, not wanted.
      unfit: name -> the sentence that says why the array cannot be taken.
    """

    takes: dict[str, Take]
    missing: tuple[str, ...]
    gone: tuple[str, ...]
    unfit: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was taken from a checkpoint, for the user's eyes.

    Attributes:
      taken: arrays taken as they are.
      lines: one line for everything else.
    """

    taken: int
    lines: tuple[str, ...]

    @classmethod
    def of(cls, fit: Fit) -> "Report":
        lines = []
        for name, take in sorted(fit.takes.items()):
            if take.rows is not None:
                lines.append(f"grown    {name}: {take.rows} rows taken, {take.spec.shape[0] - take.rows} new")
            elif take.places:
                parts = [f"new {_some(take.new)}"] * bool(take.new) + [f"dropped {_some(take.gone)}"] * bool(take.gone)
                lines.append(f"moved    {name}: places taken by name" + "".join(f", {part}" for part in parts))
        lines += [f"new      {name}" for name in sorted(fit.missing)]
        lines += [f"dropped  {name}" for name in sorted(fit.gone)]
        lines += [f"unfit    {name}: {why}" for name, why in sorted(fit.unfit.items())]
        return cls(taken=sum(take.as_it_is for take in fit.takes.values()), lines=tuple(lines))

    def __str__(self) -> str:
        return "\n".join([f"taken    {self.taken} arrays as they are", *self.lines])


def fit(saved: Mapping[str, SavedArray], wanted: Mapping[str, ArraySpec]) -> Fit:
    """Compares by name; reads nothing."""
    takes, unfit = {}, {}
    for name in sorted(wanted.keys() & saved.keys()):  # the same order in all processes: what follows is collective
        found = _take(name, saved[name], wanted[name])
        if isinstance(found, Take):
            takes[name] = found
        else:
            unfit[name] = found
    return Fit(
        takes=takes,
        missing=tuple(sorted(wanted.keys() - saved.keys())),
        gone=tuple(sorted(saved.keys() - wanted.keys())),
        unfit=unfit,
    )


def check_positions(positional: Mapping[str, str], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses members of the schema that changed where the model knows them by their position alone.

    Args:
      positional: kind of members -> a parameter that knows them by position.
      old: the checkpoint's schema as a dict.
      new: today's.

    Raises:
      CheckpointError: names, or their order, differ.
    """
    for kind, parameter in sorted(positional.items()):
        assert kind == "attributes" or kind in new, (kind, new.keys())
        before, after = members(old, kind), members(new, kind)
        if before != after:
            raise CheckpointError(
                f"{kind} of the schema changed from ({', '.join(before)}) to ({', '.join(after)}), and the model's parameter "
                f"'{parameter}' knows them by their order alone; go back to the old ones, or train anew"
            )


def members(schema: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Names of the schema's members of a kind, in their order; "attributes" are those of all sequences."""
    if kind == "attributes":
        return tuple(f"{s['name']}.{a['name']}" for s in schema.get("sequences", ()) for a in s["attributes"])
    return tuple(m["name"] if isinstance(m, Mapping) else m for m in schema.get(kind, ()))


def check_strictly(fitted: Fit, *, schema_changed: bool) -> None:
    """Refuses what a run that goes on cannot bear: everything that the schema's own changes do not explain.

    Raises:
      CheckpointError: an array does not fit, or is on one side alone although the schema is the same.
    """
    if fitted.unfit:
        name = min(fitted.unfit)
        raise CheckpointError(f"{fitted.unfit[name]}; go back to the old config, or start a new run with init_from")
    if schema_changed:
        return
    for names, here, there in ((fitted.missing, "model", "checkpoint"), (fitted.gone, "checkpoint", "model")):
        if names:
            raise CheckpointError(
                f"{_some(names)} is in the {here} and not in the {there}; go back to the config that the run began with, or "
                "start a new run with init_from"
            )


def apply(
    takes: Mapping[str, Take], read: dict[str, jax.Array], fresh: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The wanted arrays.

    Args:
      takes: as `fit` says.
      read: the saved arrays, read as the takes say; emptied on the way, since few devices hold them twice.
      fresh: initialised arrays; needed for grown ones and new places.
    """
    return {name: _merged(takes[name], read.pop(name), fresh.get(name)) for name in list(read)}


def _take(name: str, saved: SavedArray, wanted: ArraySpec) -> Take | str:
    if saved.dtype != wanted.dtype.name:
        return f"'{name}' is {saved.dtype} in the checkpoint and {wanted.dtype.name} in the model"
    if len(saved.shape) != len(wanted.shape):
        return f"'{name}' has shape {saved.shape} in the checkpoint and {wanted.shape} in the model"
    if saved.shape == wanted.shape and saved.axes == wanted.axes:
        return Take(spec=wanted, read=_read(wanted.shape, wanted))
    if wanted.grows and saved.shape[1:] == wanted.shape[1:] and saved.axes[1:] == wanted.axes[1:]:
        if saved.shape[0] <= wanted.shape[0]:
            return Take(spec=wanted, read=_read(wanted.shape, wanted), rows=saved.shape[0])
        return f"{_table(name)} has {saved.shape[0]} rows in the checkpoint and {wanted.shape[0]} in the schema"
    return _take_places(name, saved, wanted)


def _take_places(name: str, saved: SavedArray, wanted: ArraySpec) -> Take | str:
    places: list[np.ndarray | None] = []
    new: list[str] = []
    gone: list[str] = []
    for axis, (before, after) in enumerate(zip(saved.axes, wanted.axes, strict=True)):
        if before is None and after is None and saved.shape[axis] == wanted.shape[axis]:
            places.append(None)
        elif before is None and after is None:
            return f"'{name}' has shape {saved.shape} in the checkpoint and {wanted.shape} in the model"
        elif before is None or after is None:
            side = "checkpoint" if before is None else "model"
            return f"'{name}' of shape {saved.shape} has places on axis {axis} without names in the {side}"
        elif before == after:
            places.append(None)
        else:
            index = {place: i for i, place in enumerate(before)}
            places.append(np.array([index.get(place, -1) for place in after], np.int32))
            new += [place for place in after if place not in index]
            gone += [place for place in before if place not in set(after)]
    read = _read(saved.shape, wanted, everywhere=True)
    return Take(spec=wanted, read=read, places=tuple(places), new=tuple(new), gone=tuple(gone))


def _read(shape: tuple[int, ...], wanted: ArraySpec, *, everywhere: bool = False) -> Read:
    """Over the devices as wanted; on all of them where the shape is another and the cut may not divide it."""
    sharding = wanted.sharding
    if everywhere and isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return Read(shape=shape, dtype=wanted.dtype, sharding=sharding)


def _merged(take: Take, saved: jax.Array, fresh: jax.Array | None) -> jax.Array:
    if take.as_it_is:
        return saved
    if take.rows is not None:
        assert fresh is not None
        return _grow(take.spec.sharding)(saved, fresh, np.int32(take.rows))
    places = [None if p is None else jnp.asarray(p) for p in take.places]
    if fresh is None:
        return _move(take.spec.sharding)(saved, places)
    return _move_among(take.spec.sharding)(saved, places, fresh)


@functools.cache
def _grow(sharding: jax.sharding.Sharding):
    def grow(saved, fresh, rows):
        row = jax.lax.broadcasted_iota(jnp.int32, saved.shape, 0)
        return jnp.where(row < rows, saved, fresh)

    return jax.jit(grow, out_shardings=sharding)


@functools.cache
def _move(sharding: jax.sharding.Sharding):
    return jax.jit(_taken, out_shardings=sharding)


@functools.cache
def _move_among(sharding: jax.sharding.Sharding):
    def move_among(saved, places, fresh):
        old = jnp.ones(fresh.shape, bool)
        for axis, place in enumerate(places):
            if place is not None:
                old &= (place >= 0).reshape([-1 if a == axis else 1 for a in range(fresh.ndim)])
        return jnp.where(old, _taken(saved, places), fresh)

    return jax.jit(move_among, out_shardings=sharding)


def _taken(saved: jax.Array, places: list[jax.Array | None]) -> jax.Array:
    for axis, place in enumerate(places):
        if place is not None:
            saved = jnp.take(saved, jnp.maximum(place, 0), axis=axis, mode="clip")
    return saved


def _table(name: str) -> str:
    """'tables/ad/weight' as a user calls it."""
    parts = name.split("/")
    return f"table '{parts[1]}'" if parts[0] == "tables" and len(parts) > 2 else f"'{name}'"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
