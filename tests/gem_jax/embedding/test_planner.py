"""The planner's figures against message-by-message counting, its choices against trying the alternatives."""

import io
import itertools
import re
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gem_jax.embedding.config import Scheme
from gem_jax.embedding.planner import (
    MIN_COLUMNS,
    PlanError,
    TableLoad,
    TablesPlan,
    plan_tables,
    received_bytes,
    table_of,
)
from gem_jax.embedding.row_optimizers import Adam, RowwiseAdagrad, Sgd

SCHEMES = get_args(Scheme)

LOADS = [TableLoad(name="ad", rows=1000, ids=64), TableLoad(name="user", rows=3000, ids=32)]
ROW = 4 * 16 + 4  # bytes of 16 columns and the accumulator


@st.composite
def cases(draw) -> dict[str, Any]:
    """Arguments of `plan_tables` with a scheme for every table, any sizes."""
    shard, replica = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    tables = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.sampled_from(SCHEMES)), max_size=5))
    return {
        "loads": [TableLoad(name=f"t{i}", rows=rows, ids=ids) for i, (rows, ids, _) in enumerate(tables)],
        "overrides": {f"t{i}": scheme for i, (_, _, scheme) in enumerate(tables)},
        "dim": shard * draw(st.integers(1, 4)),
        "shard": shard,
        "num_devices": shard * replica,
        "optimizer": draw(st.sampled_from([RowwiseAdagrad(), Adam(), Sgd()])),
        "fully_sharded": draw(st.booleans()),
    }


def shards_of_row(plan: TablesPlan, table: int, row: int) -> set[int]:
    """Who has (a part of) a row; salt 0."""
    t = plan.tables[table]
    if t.scheme == "columns":
        return set(range(plan.shard))
    return {row % plan.shard} if t.scheme == "rows" else {t.owner if t.owner is not None else -1}


def count_received(plan: TablesPlan, ids: dict[tuple[int, int], list[np.ndarray]]) -> list[int]:
    """Bytes that each GPU of replica 0 receives, from every message; ids: (replica, shard) -> ids of each table."""
    received = [0] * plan.shard
    for i, t in enumerate(plan.tables):
        width = 4 * plan.dim // (plan.shard if t.scheme == "columns" else 1)
        for asker in range(plan.shard):
            asked = ids[0, asker][i] if t.scheme == "columns" else np.unique(ids[0, asker][i])
            for row in asked:
                for owner in shards_of_row(plan, i, row) - {asker}:
                    received[owner] += 4 + width  # the id, and later the gradient
                    received[asker] += width
        for replica in range(1, plan.replica):
            for row in np.unique(np.concatenate([ids[replica, s][i] for s in range(plan.shard)])):
                for owner in shards_of_row(plan, i, row):
                    received[owner] += 4 + width
    return received


def evenly_spread_ids(plan: TablesPlan) -> dict[tuple[int, int], list[np.ndarray]]:
    """Consecutive ids, each GPU's after those of the one before, so that a group touches as many rows as it can."""
    return {
        (m, s): [((m * plan.shard + s) * t.ids + np.arange(t.ids)) % t.rows for t in plan.tables]
        for m in range(plan.replica)
        for s in range(plan.shard)
    }


@settings(max_examples=150, deadline=None)
@given(cases())
def test_traffic_is_what_counting_messages_gives(case):
    # With rows and ids multiples of the shards every shard has equally many of them, and the model is exact.
    shard = case["shard"]
    case["loads"] = [TableLoad(name=t.name, rows=t.rows * shard, ids=t.ids * shard) for t in case["loads"]]
    plan = plan_tables(**case | {"fully_sharded": False})
    assert list(plan.traffic_bytes) == count_received(plan, evenly_spread_ids(plan))
    mean = sum(plan.traffic_bytes) / shard
    assert plan.imbalance == (max(plan.traffic_bytes) / mean if mean else 1.0)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_traffic_of_every_id_of_every_table_is_bounded(case):
    """Also where rows are no multiple of the shards and one of them has a row more."""
    case["loads"] = [TableLoad(name=t.name, rows=t.rows, ids=8 * t.rows) for t in case["loads"]]
    plan = plan_tables(**case | {"fully_sharded": False})
    counted = count_received(plan, evenly_spread_ids(plan))
    assert all(said >= count for said, count in zip(plan.traffic_bytes, counted, strict=True))
    if all(t.scheme != "rows" for t in plan.tables):
        assert list(plan.traffic_bytes) == counted


def allocate(plan: TablesPlan, optimizer, parts: int) -> tuple[list[int], int]:
    """[shard] bytes of arrays as a GPU of each shard would allocate them, and of those of the fullest when gathered."""
    stored = []
    by_columns = sum(t.rows for t in plan.tables if t.scheme == "columns")
    for shard in range(plan.shard):
        # Round robin with any salt: room for the most rows that a shard may get.
        rows = sum(len(range(0, t.rows, plan.shard)) for t in plan.tables if t.scheme == "rows")
        rows += sum(t.rows for t in plan.tables if t.owner == shard)
        stored.append(0)
        for height, width in ((rows, plan.dim), (by_columns, plan.dim // plan.shard)):
            weight = np.zeros((int(np.ceil(height / parts)), width), np.float32)
            accumulator = np.zeros(len(weight) if isinstance(optimizer, RowwiseAdagrad) else 0, np.float32)
            stored[-1] += weight.nbytes * (3 if isinstance(optimizer, Adam) else 1) + accumulator.nbytes
    return stored, parts * max(stored) if parts > 1 else 0


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 10_000))
def test_memory_is_that_of_the_arrays(case, dense_bytes):
    plan = plan_tables(**case, dense_bytes=dense_bytes)
    stored, gathered = allocate(plan, case["optimizer"], plan.replica if case["fully_sharded"] else 1)
    assert list(plan.memory_bytes) == stored
    assert plan.transient_bytes == gathered
    assert plan.dense_bytes == int(np.ceil(dense_bytes / plan.shard))
    assert plan.device_bytes == tuple(s + gathered + plan.dense_bytes for s in stored)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_fully_sharded_stores_one_part_a_replica_and_receives_the_others(case):
    replica = case["num_devices"] // case["shard"]
    case["loads"] = [TableLoad(name=t.name, rows=t.rows * case["num_devices"] ** 2, ids=t.ids) for t in case["loads"]]
    case["overrides"] = {t.name: "rows" for t in case["loads"]}
    plain = plan_tables(**case | {"fully_sharded": False})
    cut = plan_tables(**case | {"fully_sharded": True})
    assert tuple(replica * b for b in cut.memory_bytes) == plain.memory_bytes
    assert plain.transient_bytes == 0
    assert cut.transient_bytes == (max(plain.memory_bytes) if replica > 1 else 0)
    gathered = np.subtract(cut.traffic_bytes, plain.traffic_bytes)
    np.testing.assert_array_equal(gathered, np.subtract(plain.memory_bytes, cut.memory_bytes))


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 8))
def test_more_shards_never_need_more_memory_for_rows(case, more):
    case |= {"overrides": {t.name: "rows" for t in case["loads"]}, "fully_sharded": False}
    few = plan_tables(**case, dense_bytes=1001)
    shard = case["shard"] + more
    many = plan_tables(**case | {"shard": shard, "num_devices": shard}, dense_bytes=1001)
    assert max(many.device_bytes) <= max(few.device_bytes)


def test_whole_tables_are_balanced_as_longest_processing_time_does():
    """At most 4/3 of the best of all assignments (Graham 1969)."""
    rng = np.random.default_rng(0)
    shard, dim = 3, 8
    for _ in range(20):
        loads = [TableLoad(name=f"t{i}", rows=100, ids=int(ids)) for i, ids in enumerate(rng.integers(1, 100, 6))]
        plan = plan_tables(loads, dim=dim, num_devices=shard, shard=shard, overrides={t.name: "tables" for t in loads})
        # An owner receives ids and gradients of two others; all but the owner receive rows.
        extra = np.array([2 * t.ids * (4 + 4 * dim) - 4 * dim * t.ids for t in loads])
        base = sum(4 * dim * t.ids for t in loads)
        best = min(
            np.bincount(owners, weights=extra, minlength=shard).max()
            for owners in itertools.product(range(shard), repeat=len(loads))
        )
        assert base + best <= max(plan.traffic_bytes) <= base + 4 / 3 * best


def test_an_owner_needs_room_and_where_traffic_leaves_none_tables_go_by_size():
    def owners(memory: int | None, **sizes: tuple[int, int]) -> list[int | None]:
        loads = [TableLoad(name=name, rows=rows, ids=ids) for name, (rows, ids) in sizes.items()]
        plan = plan_tables(
            loads,
            dim=4,
            num_devices=2,
            shard=2,
            overrides={name: "tables" for name in sizes},
            memory_bytes_per_device=memory,
            optimizer=Sgd(),
        )
        return [t.owner for t in plan.tables]

    row = 16
    assert owners(None, hot=(100, 9), warm=(100, 5), cool=(100, 3)) == [0, 1, 1]
    assert owners(100 * row, hot=(50, 9), warm=(100, 5), cool=(50, 3)) == [0, 1, 0]  # no room beside `warm`
    # By traffic, a and b take half of either shard and c fits on neither.
    assert owners(None, a=(4, 4), b=(4, 4), c=(8, 1)) == [0, 1, 0]
    assert owners(8 * row, a=(4, 4), b=(4, 4), c=(8, 1)) == [1, 1, 0]


def test_room_is_what_columns_the_dense_share_and_gathered_shards_leave():
    loads = [TableLoad(name=name, rows=rows, ids=ids) for name, rows, ids in (("a", 4, 4), ("b", 4, 4), ("c", 8, 0))]
    loads.append(TableLoad(name="wide", rows=60, ids=1))
    overrides = {"a": "tables", "b": "tables", "c": "tables", "wide": "columns"}
    mesh = {"dim": 4, "num_devices": 4, "shard": 2, "optimizer": Sgd(), "fully_sharded": True}
    # Half of 8 rows of 16 bytes and of 60 of 8 is stored, and the whole gathered; `dense` has 400 of 800 bytes.
    memory = 3 * (4 * 16 + 30 * 8) + 400
    plan = plan_tables(loads, **mesh, overrides=overrides, dense_bytes=800, memory_bytes_per_device=memory)
    assert [t.owner for t in plan.tables] == [1, 1, 0, None]
    assert plan.device_bytes == (memory, memory)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_room_for_the_best_plan_to_the_byte_suffices(case, dense_bytes):
    best = plan_tables(**case, dense_bytes=dense_bytes)
    room = max(best.device_bytes)
    assert plan_tables(**case, dense_bytes=dense_bytes, memory_bytes_per_device=room + 7, reserved_bytes=7) == best
    try:
        tighter = plan_tables(**case, dense_bytes=dense_bytes, memory_bytes_per_device=room - 1)
    except PlanError:
        return
    assert max(tighter.device_bytes) < room


def test_an_owner_is_charged_for_gathering_its_table():
    loads = [TableLoad(name=name, rows=rows, ids=ids) for name, rows, ids in (("a", 1000, 1), ("b", 9, 9), ("c", 9, 8))]
    overrides = {t.name: "tables" for t in loads}
    mesh = {"dim": 4, "num_devices": 4, "shard": 2}
    assert [t.owner for t in plan_tables(loads, **mesh, overrides=overrides).tables] == [1, 0, 1]
    assert [t.owner for t in plan_tables(loads, **mesh, overrides=overrides, fully_sharded=True).tables] == [0, 1, 1]


def test_a_small_table_goes_whole_where_only_that_fits():
    loads = [TableLoad(name="big", rows=100, ids=0), TableLoad(name="small", rows=7, ids=99)]
    for rows, scheme in ((101, "rows"), (100, "tables")):
        plan = plan_tables(
            loads, dim=16, num_devices=8, shard=8, overrides={"big": "tables"}, memory_bytes_per_device=rows * ROW
        )
        assert plan.tables[1].scheme == scheme


def max_traffic(loads, overrides=None, **mesh) -> int:
    return max(plan_tables(loads, **mesh, overrides=overrides).traffic_bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 100)), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_the_choice_is_the_best_cutoff_of_small_tables_and_never_worse_than_rows(tables, shard, replica):
    loads = [TableLoad(name=f"t{i}", rows=rows, ids=ids) for i, (rows, ids) in enumerate(tables)]
    mesh = {"dim": 8, "num_devices": shard * replica, "shard": shard}  # too narrow for columns
    plan = plan_tables(loads, **mesh)
    assert plan == plan_tables(loads, **mesh)
    assert all(t.scheme == "rows" or t.rows < shard for t in plan.tables)
    assert all((t.owner is not None) == (t.scheme == "tables") for t in plan.tables)
    for cutoff in range(shard):
        overrides = {t.name: "tables" if t.rows <= cutoff else "rows" for t in loads}
        assert max(plan.traffic_bytes) <= max_traffic(loads, overrides, **mesh)


def test_many_tables_of_a_row_go_whole_and_a_hot_wide_one_goes_by_rows():
    flags = [TableLoad(name=f"flag{i}", rows=1, ids=1000) for i in range(8)]
    plan = plan_tables([*flags, TableLoad(name="ad", rows=10_000, ids=4000)], dim=64, num_devices=8, shard=8)
    assert sorted(t.owner for t in plan.tables[:-1] if t.owner is not None) == list(range(8))
    assert (plan.tables[-1].scheme, plan.tables[-1].owner) == ("rows", None)
    assert plan.imbalance == 1.0
    # One table of seven rows alone would burden one shard of eight with all seven.
    assert plan_tables([TableLoad(name="t", rows=7, ids=99)], dim=64, num_devices=8, shard=8).tables[0].scheme == "rows"


def test_columns_are_proposed_only_where_they_are_cheaper_and_wide_enough():
    rare = [TableLoad(name="rare", rows=2, ids=8)]  # whose rows 127 other replicas touch as well
    mesh = {"num_devices": 1024, "shard": 8}
    assert plan_tables(rare, dim=8 * MIN_COLUMNS, **mesh).tables[0].scheme == "columns"
    assert max_traffic(rare, dim=128, **mesh) < max_traffic(rare, {"rare": "rows"}, dim=128, **mesh)
    assert plan_tables(rare, dim=8 * (MIN_COLUMNS - 1), **mesh).tables[0].scheme != "columns"
    assert plan_tables(rare, dim=8 * MIN_COLUMNS + 1, **mesh).tables[0].scheme != "columns"


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.integers(2, 64), st.integers(1, 8))
def test_without_replicas_columns_never_win(rows, ids, shard, pieces):
    load = [TableLoad(name="t", rows=rows, ids=ids)]
    mesh = {"dim": shard * MIN_COLUMNS * pieces, "num_devices": shard, "shard": shard}
    assert plan_tables(load, **mesh).tables[0].scheme != "columns"
    assert max_traffic(load, {"t": "rows"}, **mesh) <= max_traffic(load, {"t": "columns"}, **mesh)


def test_one_gpu_has_no_traffic():
    plan = plan_tables([TableLoad(name="ad", rows=10, ids=5)], dim=4, num_devices=1)
    assert (plan.replica, plan.shard, plan.traffic_bytes, plan.imbalance) == (1, 1, (0,), 1.0)
    assert plan.memory_bytes == (10 * (16 + 4),)
    whole = plan_tables([TableLoad(name="ad", rows=10, ids=5)], dim=4, num_devices=1, overrides={"ad": "tables"})
    assert received_bytes(whole.tables[0], "tables", 4, 1, 1) == (0, 0) == (*whole.traffic_bytes, 0)
    nothing = plan_tables([], dim=4, num_devices=4, shard=2, dense_bytes=3)
    assert (nothing.tables, nothing.memory_bytes, nothing.imbalance, nothing.dense_bytes) == ((), (0, 0), 1.0, 2)


@settings(deadline=None)
@given(st.integers(4000 * ROW // 12, 5000 * ROW), st.integers(0, 1000), st.integers(0, 100), st.booleans())
def test_a_free_split_has_the_fewest_shards_that_fit(memory, dense_bytes, reserved_bytes, fully_sharded):
    args = {"dim": 16, "num_devices": 12, "memory_bytes_per_device": memory, "fully_sharded": fully_sharded}
    args |= {"dense_bytes": dense_bytes, "reserved_bytes": reserved_bytes}

    def fits(shard: int) -> bool:
        replica = 12 // shard
        parts = replica if fully_sharded else 1
        rows = np.ceil((np.ceil(1000 / shard) + np.ceil(3000 / shard)) / parts)
        need = (1 + (parts if parts > 1 else 0)) * rows * ROW + np.ceil(dense_bytes / shard) + reserved_bytes
        return need <= memory

    fitting = [shard for shard in (1, 2, 3, 4, 6, 12) if fits(shard)]
    if fitting:
        plan = plan_tables(LOADS, **args)
        assert (plan.replica, plan.shard) == (12 // fitting[0], fitting[0])
        assert plan == plan_tables(LOADS, **args, shard=fitting[0]) == plan_tables(LOADS, **args, replica=plan.replica)
    else:
        with pytest.raises(PlanError, match="replica=1 x shard=12 needs"):
            plan_tables(LOADS, **args)


def test_without_a_limit_every_gpu_has_all_tables():
    assert plan_tables(LOADS, dim=16, num_devices=8).shard == 1


def test_given_splits_are_kept():
    for given_split in ({"replica": 2}, {"shard": 4}, {"replica": 2, "shard": 4}):
        plan = plan_tables(LOADS, dim=16, num_devices=8, **given_split)
        assert (plan.replica, plan.shard, len(plan.memory_bytes), len(plan.traffic_bytes)) == (2, 4, 4, 4)


def test_overrides_win_and_a_free_split_suits_columns():
    plan = plan_tables(LOADS, dim=6, num_devices=12, shard=3, overrides={"ad": "columns", "user": "tables"})
    assert [t.scheme for t in plan.tables] == ["columns", "tables"]
    # Columns of the ad table: 1000 x (72 / S + 4) bytes; rows of the other: 3000 / S x 76.
    for memory, shard in ((154_000, 2), (153_999, 3), (104_000, 3), (103_999, 6)):  # never 4, which does not divide 18
        limit = {"memory_bytes_per_device": memory}
        assert plan_tables(LOADS, dim=18, num_devices=12, overrides={"ad": "columns"}, **limit).shard == shard


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"overrides": {"page": "rows"}}, "there is no table 'page' to give a scheme; the tables are ['ad', 'user']"),
        ({"overrides": {"ad": "row"}}, "table 'ad' has the scheme 'row'; choose one of ['rows', 'columns', 'tables']"),
        (
            {"overrides": {"ad": "columns"}, "dim": 6, "shard": 4},
            "table 'ad' cannot go by columns: dim=6 is not a multiple of shard=4; change one of them, or its scheme to 'rows'",
        ),
        ({"loads": [LOADS[0], LOADS[0]]}, "the tables are ['ad', 'ad']; give each a name of its own"),
        (
            {"loads": [TableLoad(name="ad", rows=0, ids=1)]},
            "table 'ad' has rows=0, ids=1; it needs rows >= 1 and ids >= 0",
        ),
        (
            {"shard": 3},
            "replica=None x shard=3 cannot make 8 GPUs; choose from [1, 2, 4, 8] so that the product is 8, or change the "
            "number of GPUs",
        ),
        ({"replica": 5}, "replica=5 x shard=None cannot make 8 GPUs; choose from [1, 2, 4, 8]"),
        ({"replica": 2, "shard": 2}, "replica=2 x shard=2 cannot make 8 GPUs"),
        ({"replica": 0}, "replica=0 x shard=None cannot make 8 GPUs"),
    ],
)
def test_errors_say_what_to_change(changes, sentence):
    with pytest.raises(PlanError, match=re.escape(sentence)):
        plan_tables(**{"loads": LOADS, "dim": 16, "num_devices": 8} | changes)


def test_the_error_where_nothing_fits_has_the_numbers():
    def error(loads=LOADS, **changes) -> str:
        args = {"dim": 16, "num_devices": 8, "dense_bytes": 801, "reserved_bytes": 10} | changes
        with pytest.raises(PlanError) as caught:
            plan_tables(loads, **args)
        return str(caught.value)

    need = 500 * ROW + 101 + 10
    assert plan_tables(LOADS, dim=16, num_devices=8, memory_bytes_per_device=need - 111).shard == 8
    assert error(memory_bytes_per_device=need - 1) == (
        "replica=1 x shard=8 needs 34,111 bytes per GPU (tables 34,000, gathered 0, dense 101, reserved 10) and there are "
        "34,110; the largest table is 'user' (3,000 rows, 192,000 bytes); use more GPUs or smaller tables"
    )
    assert error(memory_bytes_per_device=1, shard=2).endswith("use a larger shard or smaller tables")
    # A gathered shard lies beside the stored part, so that during the step fully sharded tables need more.
    cut = error(memory_bytes_per_device=1, shard=2, fully_sharded=True, reserved_bytes=0, dense_bytes=0)
    assert "needs 170,000 bytes per GPU (tables 34,000, gathered 136,000, dense 0, reserved 0)" in cut
    assert cut.endswith("use a larger shard, fully_sharded=False or smaller tables")
    assert "scheme 'rows' for 'user'" in error(memory_bytes_per_device=3000 * ROW, overrides={"user": "tables"})
    assert error([], memory_bytes_per_device=0).endswith("there are 0; use more GPUs or smaller tables")


def test_the_printed_table_has_the_numbers():
    loads = [TableLoad(name="ad[v2]", rows=2**20, ids=4096), TableLoad(name="page", rows=50_000, ids=2048)]
    plan = plan_tables(
        loads,
        dim=64,
        num_devices=8,
        shard=4,
        dense_bytes=2**25,
        fully_sharded=True,
        overrides={"ad[v2]": "rows", "page": "tables"},
    )
    out = io.StringIO()
    Console(file=out, width=80).print(table_of(plan))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert "Embedding tables of width 64 on replica=2 x shard=4" in out.getvalue()
    # rows: 3/4 of 4096 x (4 + 256 + 256), and 4096 x 260 of the other replica; whole: (3 x 2048 + 8192) x 260.
    ad, page = 3 * 4096 * 516 // 4 + 4096 * 260, (3 * 2048 + 8192) * 260
    assert ["ad[v2]", "1,048,576", "256.00", "rows", "4,096", f"{ad / 2**20:.2f}"] in lines
    assert ["page", "50,000", "12.21", "tables", "0", "2,048", f"{page / 2**20:.2f}"] in lines
    stored, gathered = (2**17 + 25_000) * 260 / 2**20, (2**18 + 50_000) * 260 / 2**20
    least = 2**17 * 260 / 2**20 + gathered + 8
    traffic = (ad + page) / 2**20 + gathered / 2
    text = " ".join(out.getvalue().split())
    assert f"memory per GPU: {least:.2f} to {stored + gathered + 8:.2f} MiB" in text
    assert f"at most: tables {stored:.2f}, gathered {gathered:.2f}, dense 8.00" in text
    assert f"traffic per GPU: at most {traffic:.2f} MiB/step, max / mean {plan.imbalance:.2f}" in text
