"""From axes to arrays on the mesh, and back to this process's rows."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.parallel.mesh import EVERYWHERE


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
