"""Work lists for persistent GPU kernels: which program does which tiles, balanced by work.

Built once a batch, on the device, and shared by all layers and both passes. A list is an int32 table
[fields, rounds * programs]: column r * programs + p is program p's r-th tile, or empty (length 0).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.common import dispatch
from pallas_kernels.jagged_attention import tiles
from pallas_kernels.jagged_attention.mask import Mask

PROGRAMS = 132  # multiprocessors of an H100 or H200 (SXM)
TILE = 128  # rows of q (forward, dq) or of k and v (dk, dv) per item
SECTION_ROWS = 8192  # sequences are walked in groups whose K and V (8 MiB at 4 x 128) stay in L2
MOST_PAIRED = 4096  # values
MENDED_ROUNDS = 4  # rounds dealt anew after folding: takes the heaviest program from 1-3 % over the mean to under 1 %
ITEM_OVERHEAD = 256  # fixed cost of an item, in key rows: prologue, epilogue, pipeline fill


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
    """Work lists of one batch layout.

    Attributes:
      by_query: int32 [fields, rounds * programs], tiles of queries (forward, dq).
      by_key: likewise, tiles of keys (dk, dv).
      q_gaps: int32 [1 + T / 8]: how many groups of 8 rows of q belong to no sequence, then their numbers; results there
        are set to 0.
      kv_gaps: likewise of k and v.
      programs: multiprocessors it was made for (static).
      mask: what it was made for (static); None is cross attention.
    """

    by_query: Any  # of the array fields: transformations also put cotangents and tracers there
    by_key: Any
    q_gaps: Any
    kv_gaps: Any
    programs: int = dataclasses.field(metadata=dict(static=True))
    mask: Mask | None = dataclasses.field(metadata=dict(static=True))


class Layout(NamedTuple):
    """Per sequence, int32 [B]: where its queries and its keys are, and how many are history."""

    q_start: Array
    q_length: Array
    kv_start: Array
    kv_length: Array
    history: Array


FIELDS = (*Layout._fields, "row", "head")


@functools.partial(
    jax.jit, static_argnames=("q_rows", "kv_rows", "heads", "kv_heads", "mask", "has_targets", "programs")
)
def work_list_of(layout: Layout, *, q_rows, kv_rows, heads, kv_heads, mask, has_targets, programs) -> WorkList:
    """`make_work_list` for any layout; mask None is cross attention."""
    common = dict(mask=mask, has_targets=has_targets)
    by_query = tile_table(layout, tiled="q", num_rows=q_rows, heads=heads, **common)
    by_key = tile_table(layout, tiled="kv", num_rows=kv_rows, heads=kv_heads, **common)
    q_gaps = _gaps(layout.q_start, layout.q_length, q_rows)
    same = mask is not None
    kv_gaps = q_gaps if same else _gaps(layout.kv_start, layout.kv_length, kv_rows)
    by_query, by_key = (_balance if same else _in_turns)([by_query, by_key], programs)
    return WorkList(by_query, by_key, q_gaps, kv_gaps, programs, mask)


def _gaps(starts, lengths, num_rows):
    """int32 [1 + groups]: the number of groups of 8 rows between sequences, then which ones."""
    groups = num_rows // 8  # sequences start at multiples of 8
    first = jnp.concatenate([starts[:1] * 0, -(-(starts + lengths) // 8)])
    sizes = jnp.maximum(jnp.concatenate([starts // 8, starts[:1] * 0 + groups]) - first, 0)
    ends = jnp.cumsum(sizes)
    place = jnp.arange(groups, dtype=jnp.int32)
    own = jnp.searchsorted(ends, place, side="right", method="compare_all")
    numbers = jnp.where(place < ends[-1], (first - ends + sizes)[jnp.minimum(own, starts.shape[0])] + place, 0)
    return jnp.concatenate([ends[-1:], numbers]).astype(jnp.int32)


def make_work_list(
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    num_rows: int,
    heads: int,
    kv_heads: int | None = None,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    num_targets: Array | None = None,
    programs: int | None = None,
) -> WorkList:
    """Work lists for `jagged_attention(..., work_list=)` with the same arguments.

    Args:
      offsets, lengths, num_targets, mask: as given to `jagged_attention`.
      num_rows: T, rows of q.
      heads, kv_heads: H and Hkv (None: H).
      programs: multiprocessors of the GPU; None: of this process's GPU, or 132 (H100 and H200 SXM).
    """
    has_targets = num_targets is not None
    offsets = jnp.asarray(offsets, jnp.int32)
    starts = offsets[:-1]
    lengths = jnp.diff(offsets) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if starts.shape[0] == 0:  # as one empty sequence
        starts, lengths, num_targets = (jnp.zeros(1, jnp.int32) for _ in range(3))
    history = lengths
    if num_targets is not None:
        history = lengths - jnp.clip(jnp.asarray(num_targets, jnp.int32), 0, lengths)
    layout = Layout(starts, lengths, starts, lengths, history)
    return work_list_of(
        layout,
        q_rows=padded_rows(num_rows),
        kv_rows=padded_rows(num_rows),
        heads=heads,
        kv_heads=kv_heads or heads,
        mask=mask,
        has_targets=has_targets,
        programs=programs or getattr(dispatch.default_device(), "core_count", PROGRAMS),
    )


def padded_rows(num_rows: int) -> int:
    """Rows that the kernels see: whole groups of 8, at least one tile."""
    return max(TILE, -(-num_rows // 8) * 8)


def tile_table(layout: Layout, *, tiled: str, num_rows: int, heads: int, mask: Mask | None, has_targets: bool) -> Array:
    """int32 [len(FIELDS) + 1, tiles]: the tiles of one side of the attention, and their work, in the order
    in which they should run.

    Args:
      tiled: "q" or "kv": whose rows are cut into tiles.
      num_rows: T of that side (bounds the number of tiles).
      heads: programs per tile.
      mask: None for cross attention, where everything sees everything.
    """
    lengths = layout.q_length if tiled == "q" else layout.kv_length
    counts = -(-lengths // TILE)
    ends = jnp.cumsum(counts)
    number = jnp.arange(-(-num_rows // TILE) + lengths.shape[0], dtype=jnp.int32)
    own = jnp.minimum(jnp.searchsorted(ends, number, side="right", method="compare_all"), lengths.shape[0] - 1)
    used = number < ends[-1]
    row = (number - (ends - counts)[own]) * TILE
    fields = [jnp.where(used, x[own], 0) for x in layout]
    work = jnp.where(used, _work(layout, own, row, tiled, mask, has_targets), 0)
    order = _sorted(_sort_key(lengths, own, used, work))
    table = jnp.stack([*fields, jnp.where(used, row, 0), work])[:, order].astype(jnp.int32)
    table = jnp.repeat(table, heads, axis=1)
    head = jnp.tile(jnp.arange(heads, dtype=jnp.int32), number.shape[0])
    return jnp.concatenate([table[:-1], head[None], table[-1:]])


def _work(layout, own, row, tiled, mask, has_targets):
    """Estimated cost of each tile, in key (or query) rows."""
    if mask is None:
        return ITEM_OVERHEAD + (layout.kv_length if tiled == "q" else layout.q_length)[own]
    visit = tiles.key_tiles if tiled == "q" else tiles.query_tiles
    runs = visit(mask, row, TILE, layout.q_length[own], layout.history[own], 64, has_targets)
    return ITEM_OVERHEAD + 64 * runs.steps


def _sort_key(lengths, own, used, work):
    """Longest sequences first, in sections that fit the L2 cache; inside a section heavy tiles first."""
    order = _sorted(-lengths)
    descending = lengths[order]
    section = (jnp.cumsum(descending) - descending) // SECTION_ROWS
    section = jnp.zeros_like(lengths).at[order].set(section)
    heavy_first = (1 << 20) - 1 - jnp.minimum(work, (1 << 20) - 1)
    return jnp.where(used, (section[own] << 20) + heavy_first, jnp.iinfo(jnp.int32).max)


def _balance(tables, programs):
    """Deal the columns of each table to programs, `programs` a round, so that all get about the same work.

    The work is the last row. Rounds are folded in pairs, one's heaviest column with the other's lightest, then the
    pairs in pairs, until one row of loads is left: as many steps as the logarithm of the rounds, where dealing round
    by round takes one each (0.7 ms on a GPU at 32 rounds). What is left uneven, the last rounds are dealt anew to
    mend. All tables share the steps; columns move once, at the end.
    """
    rounds = max(-(-table.shape[1] // programs) for table in tables)
    tables = jnp.stack([jnp.pad(t, ((0, 0), (0, rounds * programs - t.shape[1]))) for t in tables])
    by_round = tables.reshape(*tables.shape[:2], rounds, programs)
    work = by_round[:, -1]
    choice = _mend(work, *_fold(work))
    dealt = jnp.take_along_axis(by_round, choice[:, None], axis=-1)
    return [t[:-1] for t in dealt.reshape(tables.shape)]


def _fold(work):
    """-> choice [..., rounds, programs], the column of each round that each program gets, and the programs' loads."""
    *tables, rounds, programs = work.shape
    size, padded = 1, 1 << (rounds - 1).bit_length()
    loads = jnp.pad(work, [(0, 0)] * len(tables) + [(0, padded - rounds), (0, 0)])
    choice = jnp.broadcast_to(jnp.arange(programs), loads.shape)
    while padded > size:
        order = _order(loads)
        backwards = (jnp.arange(padded // size) % 2 == 1)[:, None]
        order = jnp.where(backwards, order[..., ::-1], order)
        choice = choice.reshape(*tables, -1, size, programs)
        choice = jnp.take_along_axis(choice, order[..., None, :], axis=-1).reshape(*tables, padded, programs)
        loads = jnp.take_along_axis(loads, order, axis=-1).reshape(*tables, -1, 2, programs).sum(axis=-2)
        size *= 2
    return choice[..., :rounds, :], loads[..., 0, :]


def _mend(work, choice, loads):
    """choice, with its last rounds that have work dealt anew: the heaviest column to the least loaded program."""
    count = jnp.sum(work.max(axis=-1) > 0, axis=-1, keepdims=True)  # rounds with work; the others come last
    number = jnp.arange(work.shape[-2])
    for back in range(MENDED_ROUNDS, 0, -1):
        here = number == jnp.maximum(count - back, 0)
        own = jnp.sum(jnp.where(here[..., None], work, 0), axis=-2)
        chosen = jnp.sum(jnp.where(here[..., None], choice, 0), axis=-2)
        loads = loads - jnp.take_along_axis(own, chosen, axis=-1)
        chosen = jnp.take_along_axis(_order(-own), _rank(loads), axis=-1)
        loads = loads + jnp.take_along_axis(own, chosen, axis=-1)
        choice = jnp.where(here[..., None], chosen[..., None, :], choice)
    return choice


def _in_turns(tables, programs):
    """Deal the columns in turns, every second round backwards: enough for cross attention, whose tiles cost the same
    (queries) or come sorted (keys), and free."""
    dealt = []
    for table in tables:
        rounds = -(-table.shape[1] // programs)
        table = jnp.pad(table[:-1], ((0, 0), (0, rounds * programs - table.shape[1])))
        by_round = table.reshape(-1, rounds, programs)
        backwards = (jnp.arange(rounds) % 2 == 1)[:, None]
        dealt.append(jnp.where(backwards, by_round[..., ::-1], by_round).reshape(table.shape))
    return dealt


def _rank(values):
    """Place of each value in its row, ascending; equal ones in order. Compares all pairs."""
    number = jnp.arange(values.shape[-1])
    one, other = values[..., None], values[..., None, :]
    before = (other < one) | ((other == one) & (number < number[:, None]))
    return before.sum(axis=-1, dtype=jnp.int32)


def _order(values):
    """Columns of each row by ascending value: the inverse of `_rank`."""
    number = jnp.arange(values.shape[-1], dtype=jnp.int32)
    here = _rank(values)[..., None, :] == number[:, None]
    return jnp.where(here, number, 0).sum(axis=-1)


def _sorted(values):
    """Stable argsort of a vector. A few thousand values are sorted faster by comparing all pairs, in two GPU kernels."""
    if values.shape[0] > MOST_PAIRED:
        return jnp.argsort(values)
    number = jnp.arange(values.shape[0], dtype=jnp.int32)
    return number.at[_rank(values)].set(number, unique_indices=True)
