"""Every row of every table has one place of its own, for any tables, shards and schemes."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.data.schema import Table
from gem_jax.embedding.placement import GROUP, MAX_SLOTS, Placement
from gem_jax.embedding.planner import TableLoad, plan_tables
from gem_jax.errors import UserError

SCHEMES = ("rows", "columns", "tables")


@st.composite
def cases(draw) -> tuple[list[Table], int, dict[str, str], dict[str, int], int]:
    num_shards = draw(st.sampled_from([1, 2, 3, 8]))
    rows = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    tables = [Table(name=f"t{i}", rows=n) for i, n in enumerate(rows)]
    schemes = {t.name: draw(st.sampled_from(SCHEMES)) for t in tables}
    owners = {t.name: draw(st.integers(0, num_shards - 1)) for t in tables if schemes[t.name] == "tables"}
    multiple = draw(st.sampled_from([1, 2, 4]))
    return tables, num_shards, schemes, owners, multiple


def address(placement: Placement, table: str, ids) -> tuple[np.ndarray, np.ndarray]:
    found = placement.address(table, jnp.asarray(ids, jnp.int32))
    return np.asarray(found.owner, np.int64), np.asarray(found.slot, np.int64)


def stacked_rows(placement: Placement, group: str) -> tuple[np.ndarray, np.ndarray]:
    """(row among those of all tables, whether there is one) of every slot of every shard, [S, L]."""
    slots = jnp.arange(placement.height(group), dtype=jnp.int32)
    found = [placement.stacked_rows(group, shard, slots) for shard in range(placement.num_shards)]
    low, high, used = (np.stack([np.asarray(f[i]) for f in found]) for i in range(3))
    return low.astype(np.int64) + (high.astype(np.int64) << 32), used


@given(cases())
@settings(max_examples=8, deadline=None)
def test_addresses_are_distinct_and_stacked_rows_undo_them(case):
    tables, num_shards, schemes, owners, multiple = case
    placement = Placement(tables, num_shards, schemes=schemes, owners=owners, multiple=multiple)
    assert placement.slots % multiple == 0 and placement.column_rows % multiple == 0
    assert list(placement.places) == [t.name for t in tables]
    stacked = {group: stacked_rows(placement, group) for group in placement.groups}
    stacked_start, taken = 0, dict.fromkeys(placement.groups, 0)
    for table in tables:
        ids = np.arange(-1, table.rows)
        owner, slot = address(placement, table.name, ids)
        assert slot[0] == -1
        owner, slot, ids = owner[1:], slot[1:], ids[1:]
        group = GROUP[schemes[table.name]]
        assert slot.min() >= 0 and slot.max() < placement.height(group)
        rows, used = stacked[group]
        # As every slot names one row, no two rows have one address.
        np.testing.assert_array_equal(rows[owner, slot], stacked_start + ids)
        assert used[owner, slot].all()
        if schemes[table.name] == "tables":
            assert (owner == owners[table.name]).all()
        if schemes[table.name] == "rows":
            counts = np.bincount(owner, minlength=placement.num_shards)
            assert counts.max() - counts.min() <= 1  # round robin
        taken[group] += table.rows * (placement.num_shards if group == "columns" else 1)
        stacked_start += table.rows
    for group, (_, used) in stacked.items():
        assert used.sum() == taken[group]


def test_the_hottest_rows_of_many_tables_do_not_share_a_shard():
    """Row 0 is the most popular of each; unsalted, shard 0 would own all 64."""
    tables = [Table(name=f"t{i}", rows=1000) for i in range(64)]
    placement = Placement(tables, 8)
    owners = [int(address(placement, t.name, [0])[0][0]) for t in tables]
    counts = np.bincount(owners, minlength=8)
    assert counts.min() >= 4 and counts.max() <= 16  # even would be 8


def test_eight_billion_rows_have_addresses():
    """A model of 1e12 parameters: four tables of 2e9 rows of width 128, over 64 shards."""
    num_shards, rows = 64, 2_000_000_000
    loads = [TableLoad(name=f"t{i}", rows=rows, ids=1000) for i in range(4)]
    plan = plan_tables(loads, dim=128, num_devices=num_shards, shard=num_shards)
    placement = Placement.of(plan, multiple=2)
    assert placement.num_rows == 8e9 and placement.slots == 4 * rows // num_shards
    ids = np.array([0, 1, 63, 64, 1_234_567_890, rows - 1])
    for number, load in enumerate(loads):
        place = placement.places[load.name]
        owner, slot = address(placement, load.name, ids)
        np.testing.assert_array_equal(owner, (ids + place.shard) % num_shards)
        np.testing.assert_array_equal(slot, number * rows // num_shards + ids // num_shards)
        for one_id, one_owner, one_slot in zip(ids, owner, slot, strict=True):
            low, high, used = placement.stacked_rows("rows", int(one_owner), jnp.array([one_slot], jnp.int32))
            assert int(low[0]) + (int(high[0]) << 32) == number * rows + one_id and bool(used[0])


def test_the_last_ids_of_the_largest_table_do_not_leave_int32():
    rows = 2**31 - 1
    placement = Placement([Table(name="a", rows=5), Table(name="huge", rows=rows)], 6)
    shard, first = placement.places["huge"].shard, placement.places["huge"].first
    ids = np.arange(rows - 12, rows)
    owner, slot = address(placement, "huge", ids)
    np.testing.assert_array_equal(owner, (ids + shard) % 6)
    np.testing.assert_array_equal(slot, first + ids // 6)
    unused = 6 * -(-rows // 6) - rows  # places of the last round
    used = [bool(placement.stacked_rows("rows", s, jnp.array([placement.slots - 1]))[2][0]) for s in range(6)]
    assert sum(used) == 6 - unused and unused > 0


@pytest.mark.parametrize(
    ("tables", "num_shards", "schemes", "sentence"),
    [
        ({"huge": 2**31}, 8, {}, "table 'huge' has 2,147,483,648 rows and int32 ids tell at most 2,147,483,647 apart"),
        (
            {"a": 2**30, "b": 2**30},
            1,
            {},
            f"need 2,147,483,648 slots on each of 1 shards and int32 slots address at most {MAX_SLOTS:,}",
        ),
        ({"a": 2**30, "b": 2**30}, 8, {"a": "columns", "b": "columns"}, "placed by columns have 2,147,483,648 rows"),
    ],
)
def test_more_than_int32_tells_apart_is_refused(tables, num_shards, schemes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        Placement([Table(name=n, rows=r) for n, r in tables.items()], num_shards, schemes=schemes)
