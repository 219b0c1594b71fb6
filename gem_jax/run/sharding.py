"""Which array lies where: one list of rules, from an array's path in the training state to its axes on the mesh."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.run.mesh import EVERYWHERE, REPLICA, SHARD

RULES: tuple[tuple[str, P], ...] = (
    (r"^(step|base_logits|key)$", P()),
    (r"^dense/", P(SHARD)),
    (r"^dense_opt/(\d+/)*(mu|nu)/", P(SHARD)),
    (r"^dense_opt/(\d+/)*count$", P()),
    (r"^tables/rows/", P(SHARD)),
    (r"^tables/columns/(weight|mean|square)$", P(None, SHARD)),
    (r"^tables/columns/accumulator$", P()),
)
"""(pattern of the path, axes); the first match wins and a path that matches none is an error."""

RULES_FULLY_SHARDED: tuple[tuple[str, P], ...] = (
    (r"^tables/rows/", P((SHARD, REPLICA))),
    (r"^tables/columns/(weight|mean|square)$", P(REPLICA, SHARD)),
    (r"^tables/columns/accumulator$", P(REPLICA)),
    *RULES,
)
"""The third version of GEM's sparse parallelism: between steps a replica's rows are cut over the replicas as well."""


def spec_of(path: str, *, fully_sharded: bool) -> P:
    """The axes of the array at a path such as 'dense/layers/0:decay'.

    Raises:
      ValueError: no rule matches.
    """
    for pattern, spec in RULES_FULLY_SHARDED if fully_sharded else RULES:
        if re.search(pattern, path):
            return spec
    raise ValueError(f"no sharding rule for '{path}'; add one to gem_jax/run/sharding.py")


def state_specs(state: Any, *, fully_sharded: bool = False) -> Any:
    """A tree like `state` (arrays or shapes) of its arrays' axes."""

    def spec(path: Sequence[Any], _: Any) -> P:
        return spec_of(jax.tree_util.keystr(tuple(path), simple=True, separator="/"), fully_sharded=fully_sharded)

    return jax.tree_util.tree_map_with_path(spec, state)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Axes as shardings on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's device batches, concatenated along axis 0, as its part of arrays over the whole mesh."""
    sharding = NamedSharding(mesh, P(EVERYWHERE))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut along axis 0, in order: what `place_batch` put there."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
