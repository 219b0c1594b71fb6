"""What is known of a named array before there is one."""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """A named array of a run's state, as a checkpoint holds it.

    Attributes:
      shape: on any mesh.
      dtype: of its numbers.
      sharding: on this mesh, while it is by name.
      axes: names of the places along each axis (`nn.parameters.Names`), or None where they have none.
      grows: whether axis 0 may have become longer since a checkpoint was made (the rows of a table).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: jax.sharding.Sharding
    axes: tuple[tuple[str, ...] | None, ...]
    grows: bool = False

    def __post_init__(self):
        assert len(self.axes) == len(self.shape), (self.axes, self.shape)
