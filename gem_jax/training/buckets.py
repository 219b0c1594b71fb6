"""Dense parameters as a few flat vectors, the buckets: how they lie on devices and travel; by name is how they are saved.

A GEM has hundreds of small arrays. In buckets the optimizer is a handful of operations instead of ten per array (a third of the
compiled step of `gem_debug`), and a bucket can be cut evenly over any number of devices: HSDP gathers a unit at a time.

Shape letters: P numbers of a bucket, zeros at its end included.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from gem_jax.nn.initializers import Initializer, key_of
from gem_jax.nn.parameters import Names

type Vectors = dict[str, Float[Array, " P"]]
"""Bucket -> its numbers."""

DIVISOR = 1024
"""Buckets are cut over any power of two of devices up to this without changing their size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """A flat vector: the parameters of one unit of the model that are treated alike.

    Attributes:
      size: P.
      decay: whether weight decay applies.
      exact: whether it travels in float32 rather than in the compute dtype.
      group: optimizer group.
    """

    size: int
    decay: bool
    exact: bool
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """Where one parameter lies in its bucket.

    Attributes:
      path: its name, e.g. 'layers/0/fmb/y'.
      shape: of the array.
      axes: names of the places along each axis, or None where they have none.
      bucket: name of the bucket.
      start: place of its first number there.
      init: what its numbers are drawn from.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[Names | None, ...]
    bucket: str
    start: int
    init: Initializer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """Which parameter of a model lies in which bucket, and where.

    Attributes:
      treedef: of the model's `nnx.State`.
      members: in the order of `jax.tree.leaves`.
      buckets: by name, '<unit>:<decay or no_decay>' and more where a parameter is treated unlike the others.
    """

    treedef: jax.tree_util.PyTreeDef
    members: tuple[Member, ...]
    buckets: dict[str, Bucket]

    @classmethod
    def of(cls, state: nnx.State, num_shards: int = 1) -> "Buckets":
        """The buckets of a model's state, abstract or not; `num_shards` divides every size.

        Every parameter must have been made by `gem_jax.nn.parameters.parameter`, which gives it its metadata.
        """
        multiple = math.lcm(DIVISOR, num_shards)
        members: list[Member] = []
        filled: dict[str, int] = {}
        kinds: dict[str, dict[str, Any]] = {}
        variables, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        for path, variable in variables:
            name, kind = jax.tree_util.keystr(path, simple=True, separator="/"), variable.get_metadata()
            assert "decay" in kind, f"parameter '{name}' was not made by nn.parameters.parameter"
            bucket = _bucket_name(name, kind)
            start = filled.get(bucket, 0)
            shape = tuple(variable.get_value().shape)
            members.append(
                Member(path=name, shape=shape, axes=kind["axes"], bucket=bucket, start=start, init=kind["init"])
            )
            filled[bucket] = start + math.prod(shape)
            kinds[bucket] = kind
        return cls(
            treedef=jax.tree.structure(state),
            members=tuple(members),
            buckets={
                name: Bucket(
                    size=-(-size // multiple) * multiple, **{k: kinds[name][k] for k in ("decay", "exact", "group")}
                )
                for name, size in filled.items()
            },
        )

    @property
    def num_parameters(self) -> int:
        """Numbers of all parameters, without the zeros at the buckets' ends."""
        return sum(math.prod(member.shape) for member in self.members)

    @property
    def num_stored(self) -> int:
        """Numbers of all buckets."""
        return sum(bucket.size for bucket in self.buckets.values())

    def abstract(self) -> nnx.State:
        """The model's state as shapes."""
        return jax.tree.unflatten(self.treedef, [jax.ShapeDtypeStruct(m.shape, jnp.float32) for m in self.members])

    def flatten(self, state: nnx.State) -> Vectors:
        """The buckets that hold a state."""
        return self.from_named({m.path: x for m, x in zip(self.members, jax.tree.leaves(state), strict=True)})

    def unflatten(self, vectors: Vectors) -> nnx.State:
        """The state that the buckets hold."""
        return jax.tree.unflatten(self.treedef, list(self.named(vectors).values()))

    def draw(self, seed: int, bucket: str, start: int, stop: int) -> Float32[np.ndarray, " n"]:
        """Numbers `start` to `stop` of a new bucket; each depends on the seed, its parameter's name and its place there."""
        numbers = np.zeros(stop - start, np.float32)
        for member in self.members:
            first, last = max(start, member.start), min(stop, member.start + math.prod(member.shape))
            if member.bucket == bucket and first < last:
                key = key_of(seed, member.path)
                numbers[first - start : last - start] = member.init.draw(key, first - member.start, last - member.start)
        return numbers

    def named(self, vectors: Vectors) -> dict[str, Array]:
        """Each parameter's array, or that of one of its optimizer slots, by the parameter's name."""
        return {
            m.path: vectors[m.bucket][m.start : m.start + math.prod(m.shape)].reshape(m.shape) for m in self.members
        }

    def from_named(self, arrays: dict[str, Array]) -> Vectors:
        """The inverse of `named`; what pads a bucket is zero."""
        parts: dict[str, list[Array]] = {}
        for member in self.members:
            parts.setdefault(member.bucket, []).append(arrays[member.path].reshape(-1))
        vectors = {name: jnp.concatenate(arrays) for name, arrays in parts.items()}
        return {name: jnp.pad(v, (0, self.buckets[name].size - v.shape[0])) for name, v in vectors.items()}


def unit_of(path: str) -> str:
    """'layers/0' for a parameter of the first layer, otherwise the path's first part, e.g. 'tokens'."""
    first, *rest = path.split("/")
    return f"{first}/{rest[0]}" if rest and rest[0].isdecimal() else first


def _bucket_name(path: str, kind: dict) -> str:
    parts = [unit_of(path), "decay" if kind["decay"] else "no_decay"]
    if kind["exact"] == kind["decay"]:  # the other way round than usual
        parts.append("exact" if kind["exact"] else "inexact")
    if kind["group"] != "dense":
        parts.append(kind["group"])
    return ":".join(parts)
