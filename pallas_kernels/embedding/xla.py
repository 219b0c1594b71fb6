"""The XLA backend, for every device: gathers, a segment sum and a scatter at distinct rows.

An update holds a gradient of all lookups [R, D].
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from pallas_kernels.embedding.repeats import sum_by_row
from pallas_kernels.embedding.rounding import stochastic_bfloat16
from pallas_kernels.embedding.rules import Rule, Step

WRITE: dict[str, Any] = {
    "mode": "drop",
    "unique_indices": True,
    "indices_are_sorted": True,
    "wrap_negative_indices": False,
}


def read(rows: Array, ids: Array) -> Array:
    """Some rows, zeros for ids outside."""
    return rows.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def lookup(rows: Array, ids: Array, *, mean: bool, dtype: Any) -> Array:
    """See `api.lookup`."""
    values = read(rows, ids)
    if ids.ndim == 1:
        return values.astype(dtype)
    total = values.astype(jnp.float32).sum(axis=1)
    if mean:
        total = total / jnp.maximum((ids >= 0).sum(axis=1), 1).astype(jnp.float32)[:, None]
    return total.astype(dtype)


def update(
    rows: Array, slots: tuple[Array, ...], ids: Array, sources: Array, grads: Array, rule: Rule, step: Step
) -> tuple[Array, tuple[Array, ...]]:
    """See `api.update`."""
    touched, sums = sum_by_row(ids, grads.astype(jnp.float32), rows.shape[0], sources)
    old = read(rows, touched).astype(jnp.float32)
    new, new_slots = rule.learn(old, tuple(read(slot, touched) for slot in slots), sums, step)
    if rows.dtype == jnp.bfloat16:
        new = stochastic_bfloat16(new, touched, step.seed)
    written = tuple(slot.at[touched].set(x, **WRITE) for slot, x in zip(slots, new_slots, strict=True))
    return rows.at[touched].set(new, **WRITE), written
