"""The state by name: `dense/<parameter>/<slot>`, `tables/<table>/<slot>`, and a few numbers of the whole.

Slots are what is kept for a parameter: "value" and the optimizer's, which so lie beside what they belong to.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from gem_jax.data.schema import Schema
from gem_jax.nn.parameters import Names
from gem_jax.parallel.arrays import ArraySpec
from gem_jax.parallel.mesh import SHARD
from gem_jax.training.buckets import Buckets, Vectors
from gem_jax.training.state import TrainState
from gem_jax.training.step import Parts

SMALL = 2**16
"""Parameters of fewer numbers lie whole on every device while they are by name."""


def abstract_vectors(buckets: Buckets) -> dict[str, jax.ShapeDtypeStruct]:
    """The buckets as shapes."""
    return {name: jax.ShapeDtypeStruct((bucket.size,), jnp.float32) for name, bucket in buckets.buckets.items()}


def specs(
    shapes: TrainState, parts: Parts, schema: Schema, mesh: Mesh, table_columns: Names | None = None
) -> dict[str, ArraySpec]:
    """Every named array of a state.

    Args:
      shapes: as of `Program.shapes`.
      parts: of the program.
      schema: of its data.
      mesh: on which the arrays lie.
      table_columns: what the columns of the tables stand for; None where they are learned.
    """
    whole = NamedSharding(mesh, P())
    found = {}
    slots, numbers = _slots(shapes.dense_opt, parts.buckets)
    for member in parts.buckets.members:
        for slot in ("value", *slots):
            found[f"dense/{member.path}/{slot}"] = ArraySpec(
                shape=member.shape,
                dtype=np.dtype(np.float32),
                sharding=_sharding(member.shape, mesh),
                axes=member.axes,
            )
    for name, shape in parts.tables.logical_specs().items():
        found[f"tables/{name}"] = ArraySpec(
            shape=shape.shape,
            dtype=np.dtype(shape.dtype),
            sharding=shape.sharding,
            axes=(None, table_columns)[: len(shape.shape)],
            grows=True,
        )
    tasks = tuple(task.name for task in schema.tasks)
    key = jax.eval_shape(jax.random.key_data, shapes.key)
    rest = {**numbers, "step": shapes.step, "key": key, "base_logits": shapes.base_logits}
    for name, x in rest.items():
        axes = (tasks,) if name == "base_logits" else (None,) * len(x.shape)
        found[name] = ArraySpec(shape=tuple(x.shape), dtype=np.dtype(x.dtype), sharding=whole, axes=axes)
    return found


def to_logical(state: TrainState, parts: Parts) -> dict[str, Array]:
    """The state's arrays by name. Traceable: one program for all of them, since a GPU compiles each anew for seconds."""
    slots, numbers = _slots(state.dense_opt, parts.buckets)
    dense = {
        f"dense/{path}/{slot}": x
        for slot, vectors in {"value": state.dense, **slots}.items()
        for path, x in parts.buckets.named(vectors).items()
    }
    tables = {f"tables/{name}": x for name, x in parts.tables.to_logical(state.tables).items()}
    rest = {"step": state.step, "key": jax.random.key_data(state.key), "base_logits": state.base_logits}
    return dense | tables | numbers | rest


def from_logical(arrays: dict[str, Array], parts: Parts, dense_opt: Any) -> TrainState:
    """The state that these named arrays make. Traceable.

    Args:
      arrays: all that `to_logical` gives.
      parts: of the program.
      dense_opt: the structure of the dense optimizer's state, e.g. as shapes.
    """
    slots, _ = _slots(dense_opt, parts.buckets)
    tables = {name.removeprefix("tables/"): x for name, x in arrays.items() if name.startswith("tables/")}

    def vectors(slot: str) -> Vectors:
        return parts.buckets.from_named({m.path: arrays[f"dense/{m.path}/{slot}"] for m in parts.buckets.members})

    return TrainState(
        step=arrays["step"],
        dense=vectors("value"),
        dense_opt=_with_slots(dense_opt, parts.buckets, {slot: vectors(slot) for slot in slots}, arrays),
        tables=parts.tables.from_logical(tables),
        base_logits=arrays["base_logits"],
        key=jax.random.wrap_key_data(arrays["key"]),
    )


def _sharding(shape: tuple[int, ...], mesh: Mesh) -> Sharding:
    """Large arrays are cut along their first axis where the shards divide it."""
    is_cut = math.prod(shape) >= SMALL and shape[0] % mesh.shape[SHARD] == 0
    return NamedSharding(mesh, P(SHARD) if is_cut else P())


def _slots(dense_opt: Any, buckets: Buckets) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """An optimizer's state taken apart: slot -> what it keeps for every bucket, and name -> its other numbers."""
    slots: dict[str, dict[str, Any]] = {}
    numbers = {}
    for path, x in jax.tree_util.tree_flatten_with_path(dense_opt)[0]:
        slot, bucket = _place(path, buckets)
        if bucket is None:
            numbers[slot] = x
        else:
            slots.setdefault(slot, {})[bucket] = x
    return slots, numbers


def _with_slots(dense_opt: Any, buckets: Buckets, slots: dict[str, Vectors], numbers: dict[str, Array]):
    """The inverse of `_slots`, in the structure of `dense_opt`."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(dense_opt)
    places = [_place(path, buckets) for path, _ in paths]
    return jax.tree.unflatten(treedef, [numbers[s] if b is None else slots[s][b] for s, b in places])


def _place(path: tuple, buckets: Buckets) -> tuple[str, str | None]:
    """(slot, bucket) of an array of an optimizer's state, e.g. ('mu', 'layers/0:decay'); (name, None) of one of the whole."""
    last = path[-1]
    if isinstance(last, jax.tree_util.DictKey) and last.key in buckets.buckets:
        return jax.tree_util.keystr(path[-2:-1], simple=True), last.key
    return "optimizer/" + jax.tree_util.keystr(path[-1:], simple=True), None
