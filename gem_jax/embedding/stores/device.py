"""Rows in device memory, float32: one gather and one scatter of XLA's for each array.

Shape letters: L rows of the shard, Q rows that are read or written, D columns.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Int

from gem_jax.embedding.row_optimizers import Slot
from gem_jax.embedding.stores.store import WEIGHT, RowState

FLOAT_BYTES = 4
WRITE: dict[str, Any] = {
    "mode": "drop",
    "unique_indices": True,
    "indices_are_sorted": True,
    "wrap_negative_indices": False,
}


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """A `RowStore` of float32 arrays: weight [L, D], and each slot under its name."""

    def init(self, weight: Float[Array, "L D"], slots: dict[str, Array]) -> RowState:
        """The arrays as they are."""
        return {WEIGHT: weight, **slots}

    def read(self, state: RowState, name: str, rows: Int[Array, " Q"]) -> Array:
        """Weights or a slot of some rows: float32 [Q, D] or [Q], zeros outside."""
        return state[name].at[rows].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)

    def add(self, state: RowState, rows: Int[Array, " Q"], change: Float[Array, "Q D"]) -> RowState:
        """The state with `change` added to the weights of distinct rows, ascending."""
        return {**state, WEIGHT: state[WEIGHT].at[rows].add(change, **WRITE)}

    def write(self, state: RowState, name: str, rows: Int[Array, " Q"], values: Array) -> RowState:
        """The state with the values of distinct rows, ascending, replaced."""
        return {**state, name: state[name].at[rows].set(values, **WRITE)}

    def row_bytes(self, width: int, slots: tuple[Slot, ...]) -> int:
        """Four bytes a number."""
        return FLOAT_BYTES * (width + sum(width if slot.per == "number" else 1 for slot in slots))
