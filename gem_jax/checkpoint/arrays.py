"""What a program and its checkpoints say to each other: a run's state as named arrays in which no mesh shows.

Names are paths: `dense/layers/0/fmb/y/value` with the optimizer's `.../mu` and `.../nu` beside it, `tables/ad/weight` with
`tables/ad/accumulator`, `optimizer/count`, `step`, `key` (the random key's numbers), `base_logits`.
"""

import fnmatch
from typing import Any, Protocol, runtime_checkable

import jax

from gem_jax.parallel.arrays import ArraySpec


@runtime_checkable
class Program(Protocol):
    """The part of a run's program that checkpoints need."""

    @property
    def positional(self) -> dict[str, str]:
        """Kind of schema members that the model knows by position alone -> a parameter that does (`nn.positional_kinds`)."""
        ...

    def logical_specs(self) -> dict[str, ArraySpec]:
        """Name -> what the array must be; the same on every mesh but for the shardings."""
        ...

    def to_logical(self, state: Any) -> dict[str, jax.Array]:
        """The state as named arrays."""
        ...

    def from_logical(self, arrays: dict[str, jax.Array]) -> Any:
        """The state of these named arrays, exact to the last bit."""
        ...

    def init(self, seed: int) -> Any:
        """A new state."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able: `config`, `schema`, `mesh`, `placement`, `versions`."""
        ...


def is_value(name: str) -> bool:
    """Whether the array is part of what the model knows: not optimizer state, nor the run's step and key."""
    return name.endswith(("/value", "/weight")) or name == "base_logits"


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns (of the shell's kind; `*` passes over slashes) matches the name, or a folder that it lies in."""
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p.rstrip('/')}/*") for p in patterns)
