"""The public functions: what they mean, what they check, and which backend runs them.

Shape letters: V rows of the table, D columns, R lookups, B bags of k lookups, N rows of gradients.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental import checkify

from pallas_kernels.common import dispatch
from pallas_kernels.embedding import backends
from pallas_kernels.embedding.backends import Request
from pallas_kernels.embedding.rules import Rule, Step


def lookup(
    rows: Array, ids: Array, *, pooling: str = "sum", dtype: Any = None, implementation: str | None = None
) -> Array:
    """Rows of a table, or sums or means of bags of them; not differentiable, `update` takes the gradient.

    An id of -1 is absent: it reads nothing and counts in no mean. Ids below -1 and from V on are outside: they read as zeros;
    `count_outside` counts them, and `check_inside` makes them an error.

    Args:
      rows: [V, D] float32 or bfloat16.
      ids: int32 [R], or [B, k] for bags; uneven bags end in -1.
      pooling: "sum" or "mean" (over the ids that are not negative) of a bag.
      dtype: of the result; None: that of the rows.
      implementation: None takes the fastest backend that has the case on this device: triton on a GPU from Ampere on, xla
        everywhere. A name runs that backend or raises.

    Returns:
      [R, D] or [B, D]; sums are kept in float32.

    Raises:
      ValueError: an argument is wrong.
      NotImplementedError: the named implementation cannot do this case.
    """
    _check_table(rows)
    _check_ids(ids, (1, 2))
    if pooling not in ("sum", "mean"):
        raise ValueError(f'pooling must be "sum" or "mean", got {pooling!r}.')
    dtype = rows.dtype if dtype is None else jnp.dtype(dtype)
    if ids.size == 0 or rows.size == 0:
        return jnp.zeros((ids.shape[0], rows.shape[1]), dtype)
    run = _backend("lookup", Request(rows.dtype, rows.shape[1]), implementation)
    return run(rows, ids, mean=pooling == "mean", dtype=dtype)


def update(
    rows: Array,
    slots: tuple[Array, ...],
    ids: Array,
    grads: Array,
    *,
    rule: Rule,
    step: Step,
    sources: Array | None = None,
    implementation: str | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """The table after a step on the rows that were looked up, each on the sum of its lookups' gradients.

    Other rows and their slots keep their bits. Donate rows and slots to `jax.jit` and they are written in place. bfloat16 rows
    are rounded stochastically (`rounding`), their slots stay float32. Ids that are absent or outside (`lookup`) learn nothing, and
    their gradients are not read: they may hold anything, NaN included.

    What does not change the result, to the bit: "triton": running it again, and the order of the (id, gradient) pairs, while
    gradients are below 2^31 over the number of a row's lookups; numbers below 2^-29 in gradients are
    rounded to multiples of 2^-51.
    "xla": on a CPU running it again; sums depend on the order of a row's lookups.

    Args:
      rows: [V, D] float32 or bfloat16.
      slots: float32 [V] or [V, D] each, those of `rule.slots`.
      ids: int32 [R], or [B, k] for bags whose k lookups share a gradient.
      grads: [R, D], or [B, D] of the bags' sums (of means: divided by the number of ids first); float32 or bfloat16.
      rule: how a row learns.
      step: what changes from step to step.
      sources: int32 [R], which row of grads [N, D] each id of [R] has, in [0, N) where the id is in the table; None: as ids say.
      implementation: as in `lookup`.

    Returns:
      (rows, slots), of the same dtypes.

    Raises:
      ValueError, NotImplementedError: as in `lookup`.
    """
    _check_table(rows)
    _check_ids(ids, (1,) if sources is not None else (1, 2))
    _check_slots(rows, slots, rule)
    if grads.ndim != 2 or grads.shape[1] != rows.shape[1]:
        raise ValueError(f"grads must be [N, {rows.shape[1]}] with the table's columns, got {grads.shape}.")
    if sources is None:
        if grads.shape[0] != ids.shape[0]:
            raise ValueError(
                f"grads must have one row for each of the {ids.shape[0]} ids or bags, got {grads.shape[0]}."
            )
        sources = jnp.arange(ids.size, dtype=jnp.int32) // max(ids[0:1].size, 1)
    elif sources.shape != ids.shape or sources.dtype != jnp.int32:
        raise ValueError(f"sources must be int32 {ids.shape} as ids are, got {sources.dtype} {sources.shape}.")
    if ids.size == 0 or rows.size == 0:
        return rows, slots
    run = _backend("update", Request(rows.dtype, rows.shape[1], grads.dtype), implementation)
    return run(rows, slots, ids.reshape(-1), sources, grads, rule, step)


def count_outside(ids: Array, num_rows: int) -> Array:
    """int32 []: how many ids are neither in the table nor -1 (absent)."""
    return ((ids < -1) | (ids >= num_rows)).sum(dtype=jnp.int32)


def check_inside(ids: Array, num_rows: int) -> None:
    """An error where an id is neither in the table nor -1, in a function under `jax.experimental.checkify.checkify`.

    For debugging, so no call does it unasked: a check in a compiled program makes each of its starts slower (NOTES.md).
    """
    outside = count_outside(ids, num_rows)
    checkify.check(outside == 0, "{n} ids lie outside a table of " + f"{num_rows} rows.", n=outside)


def is_fused(rows: Array, grads: Array) -> bool:
    """Whether `update` of such arrays runs on a backend that makes no gradient of all lookups."""
    request = Request(rows.dtype, rows.shape[1], grads.dtype)
    return dispatch.choose("embedding.update", backends.BACKENDS, request).name == "triton"


def _backend(operation: str, request: Request, implementation: str | None):
    """The function of the backend that runs this call."""
    chosen = dispatch.choose(f"embedding.{operation}", backends.BACKENDS, request, implementation)
    return getattr(chosen.load(), operation)


def _check_table(rows):
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(f"rows must be floating [V, D], got {rows.dtype} {rows.shape}.")


def _check_ids(ids, dims):
    if ids.ndim not in dims or ids.dtype != jnp.int32:
        shapes = " or ".join({1: "[R]", 2: "[B, k]"}[n] for n in dims)
        raise ValueError(f"ids must be int32 {shapes}, got {ids.dtype} {ids.shape}.")


def _check_slots(rows, slots, rule):
    expected = tuple(rows.shape if per == "number" else rows.shape[:1] for per in rule.slots)
    if tuple(slot.shape for slot in slots) != expected:
        raise ValueError(f"{rule.kind} keeps slots of shapes {expected}, got {tuple(slot.shape for slot in slots)}.")
