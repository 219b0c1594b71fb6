"""The reference: a dense gradient of the table's size, every row computed and the touched ones taken; any float dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from pallas_kernels.embedding.rounding import stochastic_bfloat16
from pallas_kernels.embedding.rules import Rule, Step


def lookup(rows: Array, ids: Array, *, mean: bool, dtype: Any) -> Array:
    """See `api.lookup`."""
    inside = (ids >= 0) & (ids < rows.shape[0])
    values = jnp.where(inside[..., None], rows[jnp.where(inside, ids, 0)], 0)
    if ids.ndim == 1:
        return values.astype(dtype)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    count = jnp.maximum((ids >= 0).sum(axis=1, keepdims=True), 1) if mean else 1
    return (values.astype(wide).sum(axis=1) / count).astype(dtype)


def update(
    rows: Array, slots: tuple[Array, ...], ids: Array, sources: Array, grads: Array, rule: Rule, step: Step
) -> tuple[Array, tuple[Array, ...]]:
    """See `api.update`."""
    height = rows.shape[0]
    inside = (ids >= 0) & (ids < height)
    at = jnp.where(inside, ids, height)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    each = jnp.where(inside[:, None], grads[sources].astype(wide), 0)
    sums = jnp.zeros((height + 1, rows.shape[1]), wide).at[at].add(each)[:height]
    touched = jnp.zeros(height + 1, bool).at[at].set(True)[:height]
    new, new_slots = rule.learn(rows.astype(wide), slots, sums, step)
    if rows.dtype == jnp.bfloat16:
        new = stochastic_bfloat16(new, jnp.arange(height), step.seed)
    chosen = tuple(_where(touched, x, slot) for x, slot in zip(new_slots, slots, strict=True))
    return _where(touched, new, rows), chosen


def _where(touched: Array, new: Array, old: Array) -> Array:
    return jnp.where(touched.reshape(-1, *[1] * (old.ndim - 1)), new, old)
