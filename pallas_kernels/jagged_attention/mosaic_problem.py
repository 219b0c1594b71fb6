"""What the Hopper attention kernels compute: items of the work list, masks, score functions.

Layout rules of the kernels: sequences start at multiples of 8 rows (a swizzled TMA tile is 8 rows);
a tile may run past its sequence into other rows, which are masked, and zeroed in shared memory where
0 * NaN could reach a sum.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper.program import hidden_zero, iota
from pallas_kernels.jagged_attention import tiles
from pallas_kernels.jagged_attention.mask import Mask, key_bounds, visible

LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the kernels specialise on; hashable.

    Attributes:
      kind: "softmax" or an elementwise activation.
      mask: None for cross attention: every query of an example sees all its keys.
      scale: factor of the scores.
      divide_by: factor of the output (silu's max_len).
      has_targets: whether the history is shorter than the sequence.
    """

    kind: str
    mask: Mask | None
    scale: float
    divide_by: float
    has_targets: bool

    @property
    def gradient_scale(self) -> float:
        """Factor of the kernels' sums dS K and dS^T Q (see `activation_and_slope`)."""
        return self.scale if self.kind == "softmax" else self.scale / (2 * self.divide_by)

    def key_tiles(self, item: Item, rows: int, tile: int) -> tiles.Runs:
        """Tiles of keys that the queries item.row .. item.row + rows see."""
        if self.mask is None:
            return tiles.Runs(((item.row * 0, pl.cdiv(item.kv_length, tile)),))
        return tiles.key_tiles(self.mask, item.row, rows, item.q_length, item.history, tile, self.has_targets)

    def query_tiles(self, item: Item, rows: int, tile: int) -> tiles.Runs:
        """Tiles of queries that see the keys item.row .. item.row + rows."""
        if self.mask is None:
            return tiles.Runs(((item.row * 0, pl.cdiv(item.q_length, tile)),))
        return tiles.query_tiles(self.mask, item.row, rows, item.q_length, item.history, tile, self.has_targets)

    def edges(self, item: Item, row, rows: int, key, keys: int):
        """bool scalars: may one of `rows` queries not see one of `keys` keys for lying below, or beyond, its interval?"""
        if self.mask is None:
            return False, key + keys > item.kv_length
        low, _ = key_bounds(self.mask, row + rows - 1, item.history, self.has_targets)
        _, high = key_bounds(self.mask, row, item.history, self.has_targets)
        below, beyond = key < low, key + keys > high
        if self.mask.prefix:
            beyond |= row < self.mask.prefix
        return below, beyond

    def all_hidden(self, item: Item, row, rows: int, key, keys: int):
        """bool scalar: does none of `rows` queries see any of `keys` keys? May err to False."""
        outside = (row >= item.q_length) | (key >= item.kv_length)
        if self.mask is None:
            return outside
        low, _ = key_bounds(self.mask, row, item.history, self.has_targets)
        _, high = key_bounds(self.mask, row + rows - 1, item.history, self.has_targets)
        hidden = (key + keys <= low) | (key >= high)
        if self.has_targets:  # they see themselves
            hidden &= (key + keys <= row) | (key >= row + rows)
        if self.mask.prefix:
            hidden &= (row >= self.mask.prefix) & (key >= self.mask.prefix)
        return outside | hidden

    def visible(self, item: Item, query, key, edges: str):
        """bool, like query and key (positions; WGMMA layout); edges as in `mask.visible`."""
        if self.mask is None:
            return key < item.kv_length
        return visible(self.mask, query, key, item.history, self.has_targets, edges)

    @property
    def two_edges(self) -> bool:
        """Do tiles with hidden pairs mostly lie on one of two edges?"""
        return self.mask is not None and self.mask.window is not None and not (self.mask.block or self.mask.prefix)


class Item(NamedTuple):
    """A row of the work list; the fields of `worklist.FIELDS`."""

    q_start: Array
    q_length: Array
    kv_start: Array
    kv_length: Array
    history: Array
    row: Array
    head: Array


class Visit(NamedTuple):
    """An item of this program: its number, its number of steps (at least 1), and the steps before it."""

    item: Item
    steps: Array
    before: Array
    number: Array


def hide(problem: Problem, item: Item, values, blank: float, row, rows: int, key, keys: int, query_axis: int = 0):
    """values (a tuple of [rows, keys], or [keys, rows] for query_axis 1), `blank` where a query does not see a key.

    Only tiles with a hidden pair pay, and of a window's two edges for the one that they lie on. With query_axis 1,
    rows beyond the sequence see nothing (the results are sums over queries).
    """
    shape = (rows, keys) if query_axis == 0 else (keys, rows)
    below, beyond = problem.edges(item, row, rows, key, keys)
    tail = row + rows > item.q_length if query_axis == 1 else False
    if problem.two_edges and query_axis == 0:
        # As if it depended on the step: else every query's bound less every key's place is hoisted, and spilled.
        row = row + hidden_zero(item.head) * key

    def masked(edges):
        query, place = iota(shape, query_axis, row), iota(shape, 1 - query_axis, key)
        seen = problem.visible(item, query, place, edges)
        if query_axis == 1 and edges == "both":
            seen &= query < item.q_length
        return tuple(jnp.where(seen, x, blank) for x in values)

    def low_or_both():
        return lax.cond(jnp.logical_not(beyond | tail), lambda: masked("low"), lambda: masked("both"))

    def one_edge():
        return lax.cond(jnp.logical_not(below | tail), lambda: masked("high"), low_or_both)

    hidden = one_edge if problem.two_edges else lambda: masked("both")
    return lax.cond(jnp.logical_not(below | beyond | tail), lambda: tuple(values), hidden)


def masked_score(problem: Problem) -> float:
    """A score at which an elementwise activation and its derivative are exactly 0."""
    return -1e4 / problem.scale


def activation(problem: Problem, score):
    """The weight of a score (before `divide_by`), one tanh at most."""
    kind = problem.kind
    if kind == "silu":
        half = score * (0.5 * problem.scale)
        return half + half * jnp.tanh(half)
    x = score * problem.scale
    if kind == "relu":
        return jnp.maximum(x, 0.0)
    half = x * 0.5
    return half + half * jnp.tanh(x * (_GELU_1 + _GELU_3 * (x * x)))


def activation_and_slope(problem: Problem, score):
    """(weight, twice its derivative by scale * score), one tanh at most.

    Twice: an instruction a score less, made good by `Problem.gradient_scale`.
    """
    kind = problem.kind
    if kind == "silu":
        half = score * (0.5 * problem.scale)
        t = jnp.tanh(half)
        # x sigmoid(x), as sigmoid(x) = (1 + t) / 2; the slope without it, for the kernel that takes no weights
        return half + half * t, (1.0 + t) + half * (1.0 - t * t)
    x = score * problem.scale
    if kind == "relu":
        return jnp.maximum(x, 0.0), jnp.where(x > 0.0, 2.0, 0.0)
    square = x * x
    t = jnp.tanh(x * (_GELU_1 + _GELU_3 * square))
    half = x * 0.5
    return half + half * t, (1.0 + t) + (x * (1.0 - t * t)) * (_GELU_1 + 3 * _GELU_3 * square)


_GELU_1 = 0.7978845608028654  # sqrt(2 / pi)
_GELU_3 = 0.044715 * _GELU_1
