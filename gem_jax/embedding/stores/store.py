"""Where the rows of a shard lie and in which form: the contract, and the one update that all stores share.

Shape letters: L rows of the shard, Q rows that are read or written, D columns.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from gem_jax.embedding.row_optimizers import RowOptimizer, Slot, StepContext

WEIGHT = "weight"
"""The name of the weights in a table's state and among its logical arrays; the other names are the optimizer's slots."""

type RowState = dict[str, Array]
"""A shard's rows as the store keeps them: arrays whose first axis is L and whose second, where there is one, is the columns'."""


@runtime_checkable
class RowStore(Protocol):
    """Keeps weights and slots of the rows of a shard; everything that enters or leaves it is float32.

    Rows are int32 [Q]. What is written is distinct and ascending; rows below 0 and from L on are read as zeros and not written.
    """

    def init(self, weight: Float[Array, "L D"], slots: dict[str, Array]) -> RowState:
        """The state of new rows; slots are float32 [L, D] or [L]."""
        ...

    def read(self, state: RowState, name: str, rows: Int[Array, " Q"]) -> Array:
        """Weights or a slot of some rows: float32 [Q, D] or [Q]."""
        ...

    def add(
        self, state: RowState, rows: Int[Array, " Q"], change: Float[Array, "Q D"], seed: Int[Array, ""] | int
    ) -> RowState:
        """The state with `change` added to the weights of some rows; `seed` of the step is for a store that rounds at random."""
        ...

    def write(self, state: RowState, name: str, rows: Int[Array, " Q"], values: Array) -> RowState:
        """The state with the weights or a slot of some rows replaced."""
        ...

    def row_bytes(self, width: int, slots: tuple[Slot, ...]) -> int:
        """Device memory of one row of `width` columns with its slots."""
        ...


def update_rows(
    store: RowStore,
    optimizer: RowOptimizer,
    state: RowState,
    rows: Int[Array, " Q"],
    sums: Float[Array, "Q D"],
    context: StepContext,
) -> RowState:
    """One step on the rows of `sum_by_row`: distinct, ascending; those beyond the table are dropped."""
    if optimizer.l2:
        sums = sums + optimizer.l2 * store.read(state, WEIGHT, rows)
    old = {slot.name: store.read(state, slot.name, rows) for slot in optimizer.slots}
    change, new = optimizer.rule(old, sums, context)
    state = store.add(state, rows, change, context.step)
    for name, values in new.items():
        state = store.write(state, name, rows, values)
    return state
