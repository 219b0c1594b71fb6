"""How a layer makes a parameter: the array together with what the optimizer, HSDP and checkpoints must know of it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Task, Vector
from gem_jax.nn.initializers import Initializer

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
    init: Initializer,
    shape: tuple[int, ...],
    rngs: nnx.Rngs | None = None,
    *,
    decay: bool,
    exact: bool | None = None,
    group: str = "dense",
    axes: tuple[Names | None, ...] | None = None,
) -> nnx.Param:
    """A trained float32 array with its metadata.

    Args:
      init: what the values are drawn from. `Program.init` draws them by the parameter's name and the run's seed.
      shape: of the array.
      rngs: draws the value that the parameter holds in a module that is built by itself; a constant needs none.
      decay: whether weight decay applies: matrices yes; biases, norms, gates, seeds no.
      exact: whether it travels in float32 where HSDP gathers it; as `not decay` unless given, since what is small is sensitive.
      group: optimizer group; `OptimizerConfig.group_rates` scales a group's learning rate.
      axes: for each axis the names of its places, or None where they mean nothing outside the layer. An axis whose size follows
        from the schema (dense features, tokens, sources, tasks, domains) must be named: a checkpoint then finds each place again
        after features were added, removed or reordered.

    Raises:
      AssertionError: `axes` do not fit the shape, or a name stands twice on an axis.
    """
    axes = axes or (None,) * len(shape)
    assert len(axes) == len(shape), (axes, shape)
    for names, size in zip(axes, shape, strict=True):
        assert names is None or len(set(names)) == len(names) == size, (names, size)
    exact = not decay if exact is None else exact
    return nnx.Param(_value(init, shape, rngs), init=init, decay=decay, exact=exact, group=group, axes=axes)


def _value(init: Initializer, shape: tuple[int, ...], rngs: nnx.Rngs | None) -> jax.Array:
    """A draw. The host makes it, so nothing is compiled; a module that is built as shapes (`nnx.eval_shape`) makes none."""

    def draw(words: jax.Array) -> np.ndarray:
        key = int.from_bytes(np.asarray(words).tobytes(), "little")
        return init.draw(key, 0, math.prod(shape)).reshape(shape)

    words = jnp.zeros(2, jnp.uint32) if rngs is None else jax.random.key_data(rngs.params())
    return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, jnp.float32), words)


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


def positional_kinds(build: Callable[[Schema], Any], schema: Schema) -> dict[str, str]:
    """Which kinds of a schema's members a model tells apart by their place alone, so that none may be added, removed or reordered.

    The model is built, without arrays, for the schema with one more member of a kind in front of the others. Then every parameter
    must still be there; an axis whose size changed must be named, and by the names it had and new ones; and a parameter that
    came along must be the new member's own, called after it. A kind of which the schema has no member yet may bring any.

    Args:
      build: makes the model, an `nnx.Module`, for a schema.
      schema: the one that the model is meant for.

    Returns:
      kind ("categoricals", "dense", "vectors", "sequences", "attributes", "tasks", "domains") -> path of a parameter that shows it;
      empty where everything is named.
    """
    before = _abstract_parameters(build, schema)
    found = {}
    for kind, grown in _grown(schema).items():
        after = _abstract_parameters(build, grown)
        is_first = not getattr(schema, kind, True)
        stray = [path for path in after if path not in before and not is_first and _NEW not in path]
        stray += [path for path, p in before.items() if path not in after or not _keeps_names(p, after[path])]
        if stray:
            found[kind] = "/".join(map(str, stray[0]))
    return found


_NEW = "(one more)"


def _abstract_parameters(build: Callable[[Schema], Any], schema: Schema) -> dict[tuple, nnx.Variable]:
    return dict(nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(schema)))))


def _keeps_names(before: nnx.Variable, after: nnx.Variable) -> bool:
    """Whether every place of every axis can be found again by its name, or by its number where the axis has none."""
    if len(before.shape) != len(after.shape):
        return False
    return all(
        old_size == new_size if old is None or new is None else set(old) <= set(new)
        for old, new, old_size, new_size in zip(
            before.get_metadata("axes"), after.get_metadata("axes"), before.shape, after.shape, strict=True
        )
    )


def _grown(schema: Schema) -> dict[str, Schema]:
    """The schema with one more member in front, for each kind; the attribute comes to every sequence."""
    # A table that events read as well, since models may compare such a feature with the events.
    tables = [a.table for s in schema.sequences for a in s.attributes] or [t.name for t in schema.tables]
    one = Categorical(name=_NEW, table=tables[0], role="ad")
    sequences = tuple(dataclasses.replace(s, attributes=(one, *s.attributes)) for s in schema.sequences)
    grown = {
        "categoricals": schema.replace(categoricals=(one, *schema.categoricals)),
        "dense": schema.replace(dense=(Dense(name=_NEW, role="ad"), *schema.dense)),
        "vectors": schema.replace(vectors=(Vector(name=_NEW, dim=3, role="ad"), *schema.vectors)),
        "sequences": schema.replace(sequences=(Sequence(name=_NEW, attributes=(one,), max_len=8), *schema.sequences)),
        "tasks": schema.replace(tasks=(Task(name=_NEW), *schema.tasks)),
        "domains": schema.replace(domains=(_NEW, *schema.domains)),
    }
    return grown | ({"attributes": schema.replace(sequences=sequences)} if sequences else {})
