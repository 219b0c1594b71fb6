"""Every row of every table has one place of its own, for any tables, shards and schemes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.data.schema import Table
from gem_jax.embedding.placement import GROUP, Placement

SCHEMES = ("rows", "columns", "tables")


@st.composite
def placements(draw) -> tuple[list[Table], Placement, dict[str, str], dict[str, int], int]:
    num_shards = draw(st.sampled_from([1, 2, 3, 8]))
    rows = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    tables = [Table(name=f"t{i}", rows=n) for i, n in enumerate(rows)]
    schemes = {t.name: draw(st.sampled_from(SCHEMES)) for t in tables}
    owners = {t.name: draw(st.integers(0, num_shards - 1)) for t in tables if schemes[t.name] == "tables"}
    multiple = draw(st.sampled_from([1, 2, 4]))
    placement = Placement(tables, num_shards, schemes=schemes, owners=owners, multiple=multiple)
    return tables, placement, schemes, owners, multiple


@given(placements())
@settings(max_examples=200, deadline=None)
def test_addresses_are_distinct_and_stacked_ids_undo_them(case):
    tables, placement, schemes, owners, multiple = case
    assert placement.slots % multiple == 0 and placement.column_rows % multiple == 0
    stacked_start, taken = 0, {"rows": [], "columns": []}
    for table in tables:
        ids = np.arange(table.rows)
        address = placement.address(table.name, ids)
        group = GROUP[schemes[table.name]]
        size = placement.num_shards * placement.slots if group == "rows" else placement.column_rows
        assert address.min() >= 0 and address.max() < size
        np.testing.assert_array_equal(placement.stacked_ids(group)[address], stacked_start + ids)
        shard = address // placement.slots if group == "rows" else None
        if schemes[table.name] == "tables":
            assert (shard == owners[table.name]).all()
        if schemes[table.name] == "rows":
            counts = np.bincount(shard, minlength=placement.num_shards)
            assert counts.max() - counts.min() <= 1  # round robin
        taken[group].append(address)
        stacked_start += table.rows
    for group, addresses in taken.items():
        flat = np.concatenate(addresses) if addresses else np.zeros(0, int)
        assert len(np.unique(flat)) == len(flat)
        assert (placement.stacked_ids(group) >= 0).sum() == len(flat)


@given(placements())
@settings(max_examples=30, deadline=None)
def test_traced_and_numpy_addresses_agree_and_absent_stays_absent(case):
    tables, placement, *_ = case
    for table in tables:
        ids = np.concatenate([[-1], np.arange(table.rows)]).astype(np.int32)
        address = placement.address(table.name, ids)
        assert address[0] == -1
        np.testing.assert_array_equal(placement.address(table.name, jnp.asarray(ids)), address)


def test_the_hottest_rows_of_many_tables_do_not_share_a_shard():
    """Row 0 is the most popular of each; unsalted, shard 0 would own all 64."""
    tables = [Table(name=f"t{i}", rows=1000) for i in range(64)]
    placement = Placement(tables, 8)
    owners = [int(placement.address(t.name, np.array([0]))[0]) // placement.slots for t in tables]
    counts = np.bincount(owners, minlength=8)
    assert counts.min() >= 4 and counts.max() <= 16  # even would be 8


def test_ids_beyond_int32_are_refused():
    with pytest.raises(ValueError, match=r"2147483648 rows together; int32 ids address at most 2\^31 - 1"):
        Placement([Table(name="huge", rows=2**31)], 8)
