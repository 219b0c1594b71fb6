"""Sums over repeated rows: the gradient of a row is the sum over all its lookups.

Shape letters: R ids with repeats, Q distinct rows, N rows of gradients, D columns.
"""

import jax
import jax.numpy as jnp
from jax import Array


def sum_by_row(rows: Array, grads: Array, num_rows: int, sources: Array | None = None) -> tuple[Array, Array]:
    """Gradients of equal rows summed: (distinct rows ascending int32 [Q], sums [Q, D]), Q = min(R, num_rows).

    Rows below 0 and from num_rows on are dropped. Unused places at the end hold distinct rows beyond the table and zeros.

    Args:
      rows: int32 [R].
      grads: [N, D].
      num_rows: of the table.
      sources: int32 [R], which row of `grads` each lookup has; None: its own, so that N = R.
    """
    size = min(rows.shape[0], num_rows)
    kept = jnp.where((rows >= 0) & (rows < num_rows), rows, num_rows)
    order = jnp.argsort(kept)
    sorted_rows = kept[order]
    segment = jnp.cumsum(starts_of_runs(sorted_rows)) - 1
    # What is dropped comes last; where every row of the table is there, it falls outside and is dropped here.
    from_rows = order if sources is None else sources[order]
    sums = jax.ops.segment_sum(grads[from_rows], segment, num_segments=size, indices_are_sorted=True)
    # Distinct places beyond the table, so that the scatter may promise unique indices.
    beyond = num_rows + 1 + jnp.arange(size, dtype=rows.dtype)
    return beyond.at[segment].set(sorted_rows, mode="drop", indices_are_sorted=True), sums


def starts_of_runs(*values: Array) -> Array:
    """bool [R]: which places of arrays [R] sorted together differ from the one before."""
    differs = [array[1:] != array[:-1] for array in values]
    changed = differs[0]
    for other in differs[1:]:
        changed |= other
    return jnp.concatenate([jnp.ones(1, bool), changed])[: values[0].shape[0]]
