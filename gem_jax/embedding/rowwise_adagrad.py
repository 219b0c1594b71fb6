"""Row-wise Adagrad on the touched rows of a stacked table (the optimizer of TorchRec's `rowwise_adagrad`, in JAX).

One accumulator per row: `v += mean(g^2)`, `w -= lr * g / (sqrt(v) + eps)`, where g is the *sum* of the gradients of all lookups of
that row. Rows that no lookup touched keep weight and accumulator to the bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sum_by_row(
    ids: Int[Array, " R"], grads: Float[Array, "R D"], num_rows: int
) -> tuple[Int[Array, " R"], Float[Array, "R D"]]:
    """Gradients of equal ids summed: (rows ascending, sums).

    Ids below 0 are dropped. Unused places at the end hold row `num_rows` (out of range) and zeros.
    """
    order = jnp.argsort(jnp.where(ids >= 0, ids, num_rows))
    sorted_ids = jnp.where(ids >= 0, ids, num_rows)[order]
    first = jnp.concatenate([jnp.ones(1, bool), sorted_ids[1:] != sorted_ids[:-1]])
    segment = jnp.cumsum(first) - 1
    sums = jax.ops.segment_sum(grads[order], segment, num_segments=ids.shape[0], indices_are_sorted=True)
    # Places beyond the last distinct id get distinct out-of-range rows, so that the scatter may promise unique indices.
    beyond = num_rows + 1 + jnp.arange(ids.shape[0], dtype=ids.dtype)
    rows = beyond.at[segment].set(sorted_ids, indices_are_sorted=True)
    return rows, sums


def update(
    table: Float[Array, "V D"],
    accumulator: Float[Array, " V"],
    ids: Int[Array, " R"],
    grads: Float[Array, "R D"],
    *,
    learning_rate: Float[Array, ""] | float,
    eps: float,
    l2: float = 0.0,
) -> tuple[Float[Array, "V D"], Float[Array, " V"]]:
    """One row-wise Adagrad step; in place when table and accumulator are donated.

    Args:
      ids: looked-up rows, repeats allowed, -1 for none.
      grads: gradient of each lookup.
      l2: adds `l2 * w` to the gradient of touched rows, once per row.

    Returns:
      The new table and accumulator.
    """
    rows, sums = sum_by_row(ids, grads, table.shape[0])
    if l2:
        sums = sums + l2 * table.at[rows].get(mode="fill", fill_value=0.0)
    new = accumulator.at[rows].get(mode="fill", fill_value=0.0) + jnp.mean(jnp.square(sums), axis=1)
    steps = learning_rate * sums / (jnp.sqrt(new) + eps)[:, None]
    scatter: dict[str, Any] = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    return table.at[rows].add(-steps, **scatter), accumulator.at[rows].set(new, **scatter)
