"""Tiles that a Hopper program visits, and the balanced work list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged_attention import Mask, make_work_list, tiles, worklist
from pallas_kernels.jagged_attention.mask import visible
from pallas_kernels.jagged_attention.mosaic_problem import Item, Problem
from tests.pallas_kernels.jagged_attention.cases import MASKS


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_targets", [None, 0, 5, 130])
def test_tiles_cover_what_is_visible(name, num_targets):
    """Each visible pair lies in a visited tile, no tile is visited twice, and without targets and prefix
    no tile is visited in vain."""
    mask, targets = MASKS[name], num_targets is not None
    for length in (1, 129, 300):
        history = length - min(num_targets or 0, length)
        place = np.arange(length)
        seen = np.asarray(visible(mask, place[:, None], place, history, targets))
        for first in range(0, length, 128):
            row = jnp.int32(first)
            keys = tiles.key_tiles(mask, row, 128, jnp.int32(length), jnp.int32(history), 64, targets)
            queries = tiles.query_tiles(mask, row, 128, jnp.int32(length), jnp.int32(history), 64, targets)
            own = slice(first, first + 128)
            for runs, rows in ((keys, seen[own].any(0)), (queries, seen[:, own].any(1))):
                visited = np.asarray(runs.tile(jnp.arange(int(runs.steps)))).tolist()
                needed = set((np.nonzero(rows)[0] // 64).tolist())
                assert visited == sorted(set(visited)) and needed <= set(visited)
                if not targets and not mask.prefix:
                    assert needed == set(visited)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_targets", [None, 0, 5, 130])
def test_hidden_tiles_hold_no_visible_pair(name, num_targets):
    """A warpgroup skips what `all_hidden` says: never a visible pair, and without targets and prefix all else."""
    mask, targets = MASKS[name], num_targets is not None
    problem = Problem("silu", mask, 1.0, 1.0, targets)
    skipped = 0
    for length in (1, 65, 300):
        history = length - min(num_targets or 0, length)
        place = np.arange(384)
        seen = np.array(visible(mask, place[:, None], place, history, targets))
        seen &= (place < length) & (place[:, None] < length)
        item = Item(*(jnp.int32(x) for x in (0, length, 0, length, history, 0, 0)))
        for row in range(0, 320, 64):
            for key in range(0, 320, 64):
                hidden = bool(problem.all_hidden(item, jnp.int32(row), 64, jnp.int32(key), 64))
                some = seen[row : row + 64, key : key + 64].any()
                assert not (hidden and some), (length, row, key)
                if not targets and not mask.prefix:
                    assert hidden or some, (length, row, key)
                skipped += hidden
    assert skipped


@pytest.mark.parametrize("mask", [Mask(), Mask(window=100)])
def test_work_list_has_each_tile_once_and_is_balanced(mask):
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(size=32) * 0.8) * 600, 0, 2048).astype(np.int32)
    lengths[3] = 0
    offsets = np.concatenate([[0], np.cumsum(-(-lengths // 8) * 8)]).astype(np.int32)
    heads, kv_heads, programs = 4, 2, 12
    made = make_work_list(
        offsets, lengths, num_rows=int(offsets[-1]) + 40, heads=heads, kv_heads=kv_heads, mask=mask, programs=programs
    )
    for table, count in ((made.by_query, heads), (made.by_key, kv_heads)):
        table = np.asarray(table)
        rows = dict(zip(worklist.FIELDS, table, strict=True))
        used = rows["q_length"] > 0
        items = {tuple(x) for x in table[[0, 5, 6]][:, used].T.tolist()}
        expected = {
            (int(start), row, head)
            for start, length in zip(offsets, lengths, strict=False)
            for row in range(0, length, worklist.TILE)
            for head in range(count)
        }
        assert items == expected and used.sum() == len(expected)
        cost = np.where(used, worklist.ITEM_OVERHEAD + rows["row"] + worklist.TILE, 0).reshape(-1, programs).sum(0)
        if table is made.by_query and mask.window is None:
            assert cost.max() < 1.02 * cost.mean()
        by_program = used.reshape(-1, programs)
        assert np.all(by_program[:-1] >= by_program[1:])  # a program stops at its first empty column
    gaps = np.asarray(made.q_gaps)
    assert gaps[0] == 5 and np.all(gaps[1:6] == offsets[-1] // 8 + np.arange(5))


def test_cross_work_list_has_each_tile_once_and_empty_columns_last():
    lengths = jnp.array([0, 500, 129, 1000, 1], jnp.int32)
    starts = jnp.array([0, 0, 504, 640, 1640], jnp.int32)
    keys = 256
    layout = worklist.Layout(starts, lengths, jnp.arange(5) * keys, jnp.where(lengths > 0, keys, 0), lengths)
    programs, heads = 12, 3
    made = worklist.work_list_of(
        layout, q_rows=1648, kv_rows=5 * keys, heads=heads, kv_heads=heads,
        mask=None, has_targets=False, programs=programs,
    )  # fmt: skip
    rows_of = {"by_query": lengths, "by_key": layout.kv_length}
    for name, counts in rows_of.items():
        table = np.asarray(getattr(made, name))
        used = table[1] > 0
        expected = {
            (int(layout.q_start[b]), row, head)
            for b, count in enumerate(counts)
            for row in range(0, int(count), worklist.TILE)
            for head in range(heads)
        }
        items = [tuple(x) for x in table[[0, 5, 6]][:, used].T.tolist()]
        assert len(items) == len(expected) and set(items) == expected
        by_program = used.reshape(-1, programs)
        assert np.all(by_program[:-1] >= by_program[1:])  # a program stops at its first empty column


def test_work_list_is_built_under_jit():
    offsets = jnp.array([0, 8, 32])
    eager = make_work_list(offsets, num_rows=32, heads=2)
    jitted = jax.jit(lambda o: make_work_list(o, num_rows=32, heads=2))(offsets)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
