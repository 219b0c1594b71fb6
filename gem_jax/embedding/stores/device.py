"""Rows in device memory, float32 or bfloat16: one gather and one scatter of XLA's for each array.

Shape letters: L rows of the shard, Q rows that are read or written, D columns.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gem_jax.embedding.row_optimizers import Slot
from gem_jax.embedding.stores.store import WEIGHT, RowState
from gem_jax.precision.policy import Dtype
from pallas_kernels.embedding.rounding import stochastic_bfloat16

FLOAT_BYTES = 4
WRITE: dict[str, Any] = {
    "mode": "drop",
    "unique_indices": True,
    "indices_are_sorted": True,
    "wrap_negative_indices": False,
}


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """A `RowStore` of arrays: weight [L, D], and each slot, float32, under its name.

    Attributes:
      dtype: of the weights. bfloat16 ones are rounded to the nearest as they are made or restored, and at random as they learn.
    """

    dtype: Dtype = "float32"

    def init(self, weight: Float[Array, "L D"], slots: dict[str, Array]) -> RowState:
        """The arrays, weights in their dtype."""
        return {WEIGHT: weight.astype(self.dtype), **slots}

    def read(self, state: RowState, name: str, rows: Int[Array, " Q"]) -> Array:
        """Weights or a slot of some rows: float32 [Q, D] or [Q], zeros outside."""
        values = state[name].at[rows].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)
        return values.astype(jnp.float32)

    def add(
        self, state: RowState, rows: Int[Array, " Q"], change: Float[Array, "Q D"], seed: Int[Array, ""] | int
    ) -> RowState:
        """The state with `change` added to the weights of distinct rows, ascending."""
        if self.dtype == "bfloat16":
            return self.write(
                state, WEIGHT, rows, stochastic_bfloat16(self.read(state, WEIGHT, rows) + change, rows, seed)
            )
        return {**state, WEIGHT: state[WEIGHT].at[rows].add(change, **WRITE)}

    def write(self, state: RowState, name: str, rows: Int[Array, " Q"], values: Array) -> RowState:
        """The state with the values of distinct rows, ascending, replaced."""
        return {**state, name: state[name].at[rows].set(values.astype(state[name].dtype), **WRITE)}

    def row_bytes(self, width: int, slots: tuple[Slot, ...]) -> int:
        """Of the weights' dtype, and four bytes a number of a slot."""
        return jnp.dtype(self.dtype).itemsize * width + FLOAT_BYTES * sum(
            width if slot.per == "number" else 1 for slot in slots
        )
