"""How a layer makes a parameter: the array together with what the optimizer, HSDP and checkpoints must know of it."""

import jax
from flax import nnx

type Names = tuple[str, ...]
"""What the places along an axis stand for, e.g. the tokens of a linear map over tokens."""

type Axis = int | Names
"""An axis of a layer: its size, or the names of its places where they mean something outside the layer."""


def size_of(axis: Axis) -> int:
    """How many places an axis has."""
    return axis if isinstance(axis, int) else len(axis)


def names_of(axis: Axis) -> Names | None:
    """The names of an axis's places, or None where it is a mere size."""
    return None if isinstance(axis, int) else axis


def parameter(
    value: jax.Array,
    *,
    decay: bool,
    exact: bool | None = None,
    group: str = "dense",
    axes: tuple[Names | None, ...] | None = None,
) -> nnx.Param:
    """A trained float32 array with its metadata.

    Args:
      value: the initial value.
      decay: whether weight decay applies: matrices yes; biases, norms, gates, seeds no.
      exact: whether it travels in float32 where HSDP gathers it; as `not decay` unless given, since what is small is sensitive.
      group: optimizer group; `OptimizerConfig.group_rates` scales a group's learning rate.
      axes: for each axis the names of its places, or None where they mean nothing outside the layer. An axis whose size follows
        from the schema (dense features, tokens, sources, tasks, domains) must be named: a checkpoint then finds each place again
        after features were added, removed or reordered.

    Raises:
      AssertionError: `axes` do not fit the value's shape, or a name stands twice on an axis.
    """
    axes = axes or (None,) * value.ndim
    assert len(axes) == value.ndim, (axes, value.shape)
    for names, size in zip(axes, value.shape, strict=True):
        assert names is None or len(set(names)) == len(names) == size, (names, size)
    return nnx.Param(value, decay=decay, exact=not decay if exact is None else exact, group=group, axes=axes)


def joined(*parts: Names) -> Names:
    """Names of every combination, the last part fastest: those of a flattened block."""
    names: Names = ("",)
    for part in parts:
        names = tuple(f"{a}/{b}" if a else b for a in names for b in part)
    return names


def numbered(prefix: str, count: int) -> Names:
    """'prefix0', 'prefix1', ...: names of places that a layer makes up itself."""
    return tuple(f"{prefix}{i}" for i in range(count))


def flattened(tokens: Names, width: int) -> Names:
    """Names of tokens [n, D] laid out in one vector."""
    return joined(tokens, numbered("", width))


def pairs(tokens: Names) -> Names:
    """Names of the unordered pairs i < j of tokens, row by row; a pair's name does not depend on which of the two comes first."""
    return tuple("*".join(sorted((first, second))) for i, first in enumerate(tokens) for second in tokens[i + 1 :])


def path_name(path: tuple) -> str:
    """'layers/0/cross/kernel' for a tree path; NNX's own last step, to a variable's value, is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
