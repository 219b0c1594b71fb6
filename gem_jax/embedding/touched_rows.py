"""Optimizers of embedding tables: only rows that a batch looked up are read or written, in place where buffers are donated.

The gradient of a row is the *sum* over all its lookups. Rows that no lookup touched keep weight and state to the bit, Adam's
moments included (as in FBGEMM's fused Adam: a moment decays only when its row is seen).

Shape letters: R ids with repeats, Q distinct rows, V rows of the table, D columns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TableOptimizer = Literal["rowwise_adagrad", "adam", "sgd"]

EPS = 1e-8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableState:
    """One fused array of tables, or a device's part of it, with its optimizer state.

    weight: float32 [V, D]; accumulator: [V] of row-wise Adagrad; mean, square: [V, D] of Adam; None where the optimizer has none.
    """

    weight: Array
    accumulator: Array | None = None
    mean: Array | None = None
    square: Array | None = None


def new_state(optimizer: TableOptimizer, weight: Float[Array, "V D"], initial_accumulator: float) -> TableState:
    """The state before the first step."""
    if optimizer == "rowwise_adagrad":
        return TableState(weight=weight, accumulator=jnp.full(weight.shape[0], initial_accumulator, jnp.float32))
    if optimizer == "adam":
        return TableState(weight=weight, mean=jnp.zeros_like(weight), square=jnp.zeros_like(weight))
    return TableState(weight=weight)


def lookup(weight: Float[Array, "V D"], rows: Int[Array, "*s"]) -> Float[Array, "*s D"]:
    """Rows of the table, zeros for row -1."""
    return weight.at[rows].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)


def sum_by_row(
    rows: Int[Array, " R"], grads: Float[Array, "R D"], num_rows: int
) -> tuple[Int[Array, " Q"], Float[Array, "Q D"]]:
    """Gradients of equal rows summed: (distinct rows ascending, sums), of which there are at most Q = min(R, num_rows).

    Rows below 0 are dropped. Unused places at the end hold distinct rows beyond the table and zeros.
    """
    size = min(rows.shape[0], num_rows)
    order = jnp.argsort(jnp.where(rows >= 0, rows, num_rows))
    sorted_rows = jnp.where(rows >= 0, rows, num_rows)[order]
    segment = jnp.cumsum(starts_of_runs(sorted_rows)) - 1
    # What is dropped comes last; where every row of the table is there, it falls outside and is dropped here.
    sums = jax.ops.segment_sum(grads[order], segment, num_segments=size, indices_are_sorted=True)
    # Distinct places beyond the table, so that the scatter may promise unique indices.
    beyond = num_rows + 1 + jnp.arange(size, dtype=rows.dtype)
    return beyond.at[segment].set(sorted_rows, mode="drop", indices_are_sorted=True), sums


def starts_of_runs(values: Int[Array, " R"]) -> Array:
    """Which of sorted values differ from the one before: bool [R]."""
    return jnp.concatenate([jnp.ones(1, bool), values[1:] != values[:-1]])


def update(
    optimizer: TableOptimizer,
    state: TableState,
    rows: Int[Array, " Q"],
    sums: Float[Array, "Q D"],
    *,
    learning_rate: Float[Array, ""] | float,
    step: Int[Array, ""] | int = 0,
    l2: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    groups: int = 1,
    row_mean: Callable[[Array], Array] = lambda x: x.mean(axis=1),
) -> TableState:
    """One step on the rows of `sum_by_row`.

    rowwise_adagrad: v += mean(g^2), w -= lr g / (sqrt(v / groups) + eps)   TorchRec's; `groups`: arXiv 2508.03854
    adam:            the usual moments, with the bias correction of `step`
    sgd:             w -= lr g

    Args:
      rows: distinct, ascending; those beyond the table are dropped.
      sums: each row's gradient.
      learning_rate: of this step.
      step: steps taken before this one.
      l2: adds `l2 * w` to the gradient of touched rows, once per row.
      beta1, beta2: of Adam.
      groups: c of the momentum scaling: how many replica groups average what they learned each for itself.
      row_mean: mean over a row's columns; of all columns, where a device holds some.
    """
    weight = state.weight
    if l2:
        sums = sums + l2 * weight.at[rows].get(mode="fill", fill_value=0.0)
    write: dict[str, Any] = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    if optimizer == "sgd":
        return dataclasses.replace(state, weight=weight.at[rows].add(-learning_rate * sums, **write))

    def old(values: Array | None) -> Array:
        assert values is not None
        return values.at[rows].get(mode="fill", fill_value=0.0)

    if optimizer == "rowwise_adagrad":
        assert state.accumulator is not None
        new = old(state.accumulator) + row_mean(jnp.square(sums))
        change = sums / (jnp.sqrt(new / groups) + EPS)[:, None]
        return TableState(
            weight=weight.at[rows].add(-learning_rate * change, **write),
            accumulator=state.accumulator.at[rows].set(new, **write),
        )
    assert state.mean is not None and state.square is not None
    mean = beta1 * old(state.mean) + (1 - beta1) * sums
    square = beta2 * old(state.square) + (1 - beta2) * jnp.square(sums)
    count = jnp.asarray(step + 1, jnp.float32)
    change = mean / (1 - beta1**count) / (jnp.sqrt(square / (1 - beta2**count)) + EPS)
    return TableState(
        weight=weight.at[rows].add(-learning_rate * change, **write),
        mean=state.mean.at[rows].set(mean, **write),
        square=state.square.at[rows].set(square, **write),
    )
