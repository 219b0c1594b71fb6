"""What the Triton backends are asked: each operation as attention of packed queries on packed keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pallas_kernels.jagged_attention.mask import Mask
from pallas_kernels.jagged_attention.worklist import Layout


class Settings(NamedTuple):
    """Static choices of one call; hashable. `mask` None: cross attention, everything sees everything."""

    kind: str
    mask: Mask | None
    scale: float
    divide_by: float
    has_targets: bool


def operations(attend: Callable[[Array, Array, Array, Layout, Settings], Array]) -> tuple[Callable, Callable, Callable]:
    """A backend's (jagged_attention, gdpa, seed_attention), always deterministic.

    Args:
      attend: (q [Tq, H, K], k [Tk, Hkv, K], v, layout, settings) -> o [Tq, H, K].
    """

    def jagged_attention(
        q, k, v, starts, lengths, num_targets, bias, *, max_len, kind, mask, scale, deterministic, work_list
    ) -> Array:
        """See `api.jagged_attention`."""
        del bias, deterministic, work_list
        history = lengths if num_targets is None else lengths - num_targets
        layout = Layout(starts, lengths, starts, lengths, history)
        divide_by = 1.0 if kind == "softmax" else float(max_len)
        return attend(q, k, v, layout, Settings(kind, mask, scale, divide_by, num_targets is not None))

    def gdpa(q, k, v, starts, lengths, *, max_len: int, activation: str, scale: float) -> Array:
        """See `api.gdpa`."""
        del max_len
        layout = Layout(starts, lengths, *_dense(*k.shape[:2]), lengths)
        k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
        return attend(q, k, v, layout, Settings(activation, None, scale, 1.0, False))

    def seed_attention(q, k, v, starts, lengths, *, max_len: int, kind: str, scale: float) -> Array:
        """See `api.seed_attention`; q is [B, n, H, K]."""
        layout = Layout(*_dense(*q.shape[:2]), starts, lengths, lengths)
        divide_by = 1.0 if kind == "softmax" else float(max_len)
        out = attend(q.reshape(-1, *q.shape[2:]), k, v, layout, Settings(kind, None, scale, divide_by, False))
        return out.reshape(q.shape)

    return jagged_attention, gdpa, seed_attention


def _dense(batch: int, rows: int) -> tuple[Array, Array]:
    return jnp.arange(batch, dtype=jnp.int32) * rows, jnp.full((batch,), rows, jnp.int32)
