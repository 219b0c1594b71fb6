"""A model of another's class that answers more, or reads less, while its parameters keep their names."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from gem_jax.data.batch import Batch
from gem_jax.embedding.tables import Embedded
from gem_jax.models.outputs import Outputs

type Answer = Callable[[Any, Outputs, Batch], Outputs]
"""(model, its own outputs, batch) -> what it returns."""

type Reading = Callable[[Any, Embedded], Embedded]
"""(model, embedded ids) -> what it is given of them."""


def extended(model: Any, answer: Answer | None = None, reading: Reading | None = None) -> Any:
    """The same object, an `nnx.Module`, as an instance of a subclass whose call is wrapped.

    A module around the model would put its own name before every parameter's; by their names runs, servers and other models find
    them, so the model is extended in place.

    Args:
      model: just built.
      answer: makes the outputs from the model's own.
      reading: is asked for the embedded ids first.
    """
    kind: Any = type(model)
    model.__class__ = _subclass(kind, answer, reading)
    return model


@functools.cache
def _subclass(kind: type, answer: Answer | None, reading: Reading | None) -> type:
    class Extended(kind):  # type: ignore[misc, valid-type]
        def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
            embedded = embedded if reading is None else reading(self, embedded)
            outputs = super().__call__(batch, embedded, key)
            return outputs if answer is None else answer(self, outputs, batch)

    Extended.__name__ = Extended.__qualname__ = f"Extended{kind.__name__}"
    return Extended
