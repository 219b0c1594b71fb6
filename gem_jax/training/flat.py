"""Dense parameters as a few flat vectors, one per unit of the model and optimizer group.

A GEM has hundreds of small arrays. Flat, the optimizer is a handful of operations instead of ten per array (a third of the
compiled step of `gem_debug`), and a unit's vector can be cut evenly over any number of devices: HSDP gathers a unit at a time.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.training.optimizer import group_of, path_name

type FlatState = dict[str, Float[Array, " P"]]
"""'<unit>:<optimizer group>' -> vector, zeros at its end to make its size a multiple of `FlatLayout.multiple`."""

DIVISOR = 1024
"""Vectors are cut over any power of two of devices up to this without changing their size, so checkpoints fit all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatLayout:
    """Which arrays of an `nnx.State` lie in which vector, in which order.

    names: the vector of each leaf, in the order of `jax.tree.leaves`; shapes: of each leaf; multiple: of which every vector's
    size is one.
    """

    treedef: jax.tree_util.PyTreeDef
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    multiple: int = DIVISOR

    @classmethod
    def of(cls, state: nnx.State, num_shards: int = 1) -> "FlatLayout":
        """The layout of a state, abstract or not, whose vectors `num_shards` divides.

        Raises:
          ValueError: a parameter has no optimizer group.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        names = tuple(f"{unit_of(path_name(path))}:{group_of(path_name(path))}" for path, _ in leaves)
        shapes = tuple(leaf.shape for _, leaf in leaves)
        return cls(treedef=treedef, names=names, shapes=shapes, multiple=math.lcm(DIVISOR, num_shards))

    @property
    def num_parameters(self) -> int:
        """Without the zeros at the vectors' ends."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, state: nnx.State) -> FlatState:
        parts: dict[str, list[Array]] = {}
        for name, leaf in zip(self.names, jax.tree.leaves(state), strict=True):
            parts.setdefault(name, []).append(leaf.reshape(-1))
        flat = {name: jnp.concatenate(arrays) for name, arrays in parts.items()}
        return {name: jnp.pad(vector, (0, -len(vector) % self.multiple)) for name, vector in flat.items()}

    def abstract(self) -> nnx.State:
        """The state's shapes."""
        leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    def unflatten(self, flat: FlatState) -> nnx.State:
        start = dict.fromkeys(flat, 0)
        leaves = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = math.prod(shape)
            leaves.append(flat[name][start[name] : start[name] + size].reshape(shape))
            start[name] += size
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


def unit_of(path: str) -> str:
    """'layers/0' for a parameter of the first layer, otherwise the path's first part, e.g. 'tokens'."""
    first, *rest = path.split("/")
    return f"{first}/{rest[0]}" if rest and rest[0].isdecimal() else first
