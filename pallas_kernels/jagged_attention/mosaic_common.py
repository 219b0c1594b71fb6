"""Pieces shared by the Hopper kernels: items of the work list, masks, score functions.

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
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention import tiles
from pallas_kernels.jagged_attention.mask import Mask, key_bounds, visible

WARPGROUPS = 2  # compute warpgroups of a program, 64 rows each; a third one moves data
ROWS = 64  # rows of a warpgroup: the M of a wgmma
# Registers a thread of (compute, copy) warpgroups. A program of three warpgroups starts with 3 * 168;
# asking for more than those 504 in all hangs.
FORWARD_REGISTERS = 232, 40
BACKWARD_REGISTERS = 240, 24
LOG2_E = 1.4426950408889634
PARAMS = plgpu.CompilerParams(
    approx_math=True,
    # No warpgroup barrier around every store to shared memory (four of a backward step's seven). Safe, since what a
    # warpgroup stores there other threads read only after `commit_smem` and a barrier, and it stores there again
    # only after they have arrived at another.
    unsafe_no_auto_barriers=True,
    lowering_semantics=plgpu.LoweringSemantics.Lane,
    reduction_scratch_bytes=0,  # row reductions of a wgmma accumulator stay inside a warp
)


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
    """A row of the work list; the fields of `plan.FIELDS`."""

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


def _reader(table, problem: Problem, programs: int):
    """number -> this program's item of that number (the last one beyond the table).

    Fields that the problem cannot tell apart are read once, to save registers.
    """
    rounds = table.shape[1] // programs
    program = lax.axis_index("program")

    def read(number):
        column = jnp.minimum(number, rounds - 1) * programs + program
        q_start, q_length = table[0, column], table[1, column]
        kv_start, kv_length = q_start, q_length
        if problem.mask is None:
            kv_start, kv_length = table[2, column], table[3, column]
        history = table[4, column] if problem.has_targets else q_length
        return Item(q_start, q_length, kv_start, kv_length, history, table[5, column], table[6, column])

    return read, rounds


def item_loop(table, problem: Problem, programs: int, steps_of, body):
    """body(visit) for each item of this program; the next one's row of the table is read before."""
    read, rounds = _reader(table, problem, programs)

    def step(number, carry):
        item, before = carry
        following = read(number + 1)
        steps = jnp.where(item.q_length > 0, steps_of(item), 0)
        pl.when(steps > 0)(lambda: body(Visit(item, steps, before, number)))
        return following, before + steps

    lax.fori_loop(0, rounds, step, (read(0), jnp.int32(0)))


def linked_item_loop(table, problem: Problem, programs: int, steps_of, begin, body):
    """As `item_loop`, for items that overlap: state = begin(first visit), then state = body(visit, next visit,
    state) for each; the visit after the last one has 0 steps.

    A loop of its own, since the compiler serialises the matmuls of the other kernels in this form, and these
    in the other.
    """
    read, rounds = _reader(table, problem, programs)

    def visit_of(number, before):
        item = read(number)
        exists = (number < rounds) & (item.q_length > 0)  # empty columns come last
        return Visit(item, jnp.where(exists, steps_of(item), 0), before, number)

    def step(carry):
        visit, state = carry
        following = visit_of(visit.number + 1, visit.before + visit.steps)
        return following, body(visit, following, state)

    first = visit_of(jnp.int32(0), jnp.int32(0))

    @pl.when(first.steps > 0)
    def _():
        lax.while_loop(lambda carry: carry[0].steps > 0, step, (first, begin(first)))


def working_steps(steps, nothing, first_hidden, last_hidden):
    """(first, end) of the steps in which a warpgroup has work; in the others it only keeps the barriers going.

    At a mask's edges a step may be the other warpgroup's alone, and the last rows of a sequence may fill one.

    Args:
      steps: of the item, for both.
      nothing: has this warpgroup no rows in the sequence?
      first_hidden, last_hidden: does it see nothing in the first, in the last step?
    """
    first = jnp.where(nothing, steps, jnp.where(first_hidden, 1, 0))
    return first, jnp.maximum(first, steps - jnp.where(last_hidden, 1, 0))


def loop_over_steps(steps, first, end, work, idle):
    """work(step) from `first` to `end`, idle(step) before and after: three loops, so that the middle one has no branch."""

    def plain(action):
        def body(step, carry):
            action(step)
            return carry

        return body

    lax.fori_loop(0, first, plain(idle), ())
    lax.fori_loop(first, end, plain(work), ())
    lax.fori_loop(end, steps, plain(idle), ())


def hidden_zero(item: Item):
    """0 that the compiler cannot see. Addresses that include it are recomputed where they are used;
    otherwise dozens of shared-memory descriptors are hoisted out of the loops and spilled (444 bytes of
    spills in the backward kernel cost 30 % of its speed)."""
    return lax.shift_right_logical(item.head, 24)


def iota(shape, axis: int, start=0):
    return start + plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


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
        row = row + hidden_zero(item) * key

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
