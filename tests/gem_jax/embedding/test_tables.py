"""Sharded lookup and update on 8 devices against plain NumPy in float64, with ids that no user would wish for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Categorical, Schema, Table, Task
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.placement import Placement
from gem_jax.embedding.row_optimizers import row_optimizer
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.tables import Embedded, Tables, row_values
from gem_jax.errors import UserError
from gem_jax.parallel.mesh import EVERYWHERE, make_mesh
from gem_jax.parallel.sharding import shardings
from pallas_kernels import embedding
from tests.gem_jax.embedding.test_row_optimizers import by_loop

DIM, NUM_DEVICES, LR = 8, 8, 0.1
SHARD_OF_WHOLE = {"user": 1, "ad": 3, "hour": 0}
TABLES = (Table(name="user", rows=300), Table(name="ad", rows=64), Table(name="hour", rows=5))
SCHEMA = Schema(
    tables=TABLES,
    categoricals=tuple(Categorical(name=t.name, table=t.name, role="user") for t in TABLES),
    tasks=(Task(name="click"),),
    domains=("feed",),
)
SIZES = {"user": 40, "ad": 24, "hour": 16}
"""Ids of each table that a device looks up."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One step: ids and gradients by table [8, n(, D)], what was looked up, and the tables before and after."""

    rows: dict[str, np.ndarray]
    before: dict[str, dict[str, np.ndarray]]
    after: dict[str, dict[str, np.ndarray]]
    overflows: bool


def make_tables(replica, shard, config, *, optimizer="rowwise_adagrad", store=DeviceStore(), dim=DIM) -> Tables:  # noqa: B008
    owners = {name: owner % shard for name, owner in SHARD_OF_WHOLE.items()}
    multiple = replica if config.fully_sharded else 1
    placement = Placement(TABLES, shard, schemes=config.schemes, owners=owners, multiple=multiple)
    rule = row_optimizer(optimizer, initial_accumulator=0.5)
    return Tables(SCHEMA, dim, make_mesh(replica, shard), config, placement, rule, store)


def as_batch(ids) -> Batch:
    """One device's [n] ids of each table as a batch of a categorical each."""
    nothing = jnp.zeros(0)
    return Batch(
        ids={name: x[0][:, None] for name, x in ids.items()},
        dense=nothing,
        vectors={},
        sequences={},
        labels=nothing,
        domain=nothing,
        weight=nothing,
    )


def make_step(tables: Tables):
    """(state, ids, grads, number) -> (state, rows by table, overflow), jitted."""

    def step(state, ids, grads, number):
        embedded, ticket = tables.lookup(state, as_batch(ids))
        by_table = Embedded(features={name: grads[name][0] for name in SIZES}, events={})
        new = tables.update(state, ticket, by_table, learning_rate=LR, step=number)
        return new, {n: rows[None] for n, rows in embedded.features.items()}, ticket.overflow

    everywhere = P(EVERYWHERE)
    specs = tables.specs()
    mapped = jax.shard_map(
        step,
        mesh=tables.mesh,
        in_specs=(specs, everywhere, everywhere, P()),
        out_specs=(specs, everywhere, P()),
        check_vma=False,
    )
    return jax.jit(mapped)


def new_state(tables: Tables):
    return jax.jit(tables.init, out_shardings=shardings(tables.mesh, tables.specs()))(jax.random.key(0))


def export(tables: Tables, state) -> dict[str, dict[str, np.ndarray]]:
    slots = ["weight", *(slot.name for slot in tables.optimizer.slots)]
    return {t.name: {slot: tables.export(state, t.name, slot) for slot in slots} for t in TABLES}


def run(replica, shard, config, ids, grads, *, steps=1, ragged=False, **options) -> Run:
    tables = make_tables(replica, shard, config, **options)
    tables.sharded.ragged = ragged
    state, step = new_state(tables), make_step(tables)
    before = export(tables, state)
    for number in range(steps):
        state, rows, overflow = step(state, ids, grads, number)
    return Run(
        rows={n: np.asarray(x) for n, x in rows.items()},
        before=before,
        after=export(tables, state),
        overflows=bool(overflow),
    )


def draw(kind: str, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """ids [8, n] and gradients [8, n, D] by table."""
    rng = np.random.default_rng(seed)
    ids = {}
    for table in TABLES:
        shape = NUM_DEVICES, SIZES[table.name]
        if kind == "all equal":
            values = np.full(shape, table.rows // 2)
        elif kind == "all distinct":  # on a device, and among devices as far as there are rows
            values = (np.arange(np.prod(shape)) % table.rows).reshape(shape)
        elif kind == "all on one shard":  # round robin over 2, 4 or 8 shards: multiples of 8 share one
            values = rng.integers(0, -(-table.rows // 8), shape) * 8
        elif kind == "empty":
            values = np.full(shape, -1)
        elif kind == "one device only":
            values = np.full(shape, -1)
            values[3] = rng.integers(0, table.rows, shape[1])
        else:
            values = rng.integers(-1, table.rows, shape)
        ids[table.name] = values.astype(np.int32)
    grads = {n: rng.normal(size=(*x.shape, DIM)).astype(np.float32) for n, x in ids.items()}
    return ids, grads


def check(result: Run, ids, grads):
    for name, values in ids.items():
        weight = result.before[name]["weight"]
        expected = np.where((values >= 0)[..., None], weight[values], 0)
        np.testing.assert_array_equal(result.rows[name], expected)
        flat_ids, flat_grads = values.reshape(-1), grads[name].reshape(-1, DIM)
        wanted = by_loop("rowwise_adagrad", result.before[name], flat_ids, flat_grads, lr=LR, l2=0.0, step=0, groups=1)
        for field, numbers in wanted.items():
            # Up to 320 gradients of order 1 a row: sqrt(320) eps of their absolute sum, about 2e-6 of 300.
            np.testing.assert_allclose(result.after[name][field], numbers, rtol=3e-5, atol=1e-5)
        untouched = np.setdiff1d(np.arange(len(weight)), flat_ids)
        np.testing.assert_array_equal(result.after[name]["weight"][untouched], weight[untouched])


KINDS = ("random", "all equal", "all distinct", "all on one shard", "empty", "one device only")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("replica", "shard"), [(1, 8), (2, 4), (8, 1)])
def test_any_ids_by_rows(kind, replica, shard):
    ids, grads = draw(kind)
    check(run(replica, shard, TablesConfig(), ids, grads), ids, grads)


SCHEMES = {
    "columns": dict.fromkeys(SIZES, "columns"),
    "tables": dict.fromkeys(SIZES, "tables"),
    "mixed": {"user": "rows", "ad": "columns", "hour": "tables"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schemes", SCHEMES.values(), ids=SCHEMES.keys())
def test_any_ids_by_other_schemes(kind, schemes):
    ids, grads = draw(kind)
    check(run(2, 4, TablesConfig(schemes=schemes), ids, grads), ids, grads)


@pytest.mark.parametrize("schemes", [{}, SCHEMES["mixed"]], ids=["rows", "mixed"])
@pytest.mark.parametrize(("replica", "shard"), [(2, 4), (8, 1)])
def test_rows_cut_over_the_replicas_too(schemes, replica, shard):
    ids, grads = draw("random")
    check(run(replica, shard, TablesConfig(schemes=schemes, fully_sharded=True), ids, grads), ids, grads)


@pytest.mark.parametrize("kind", ["random", "all on one shard", "all distinct"])
def test_ten_times_the_expected_ids_lose_nothing(kind):
    """Places for a tenth of what an even share would need: the slower way runs, is exact, and says so."""
    ids, grads = draw(kind)
    result = run(2, 4, TablesConfig(capacity=0.1), ids, grads)
    assert result.overflows
    check(result, ids, grads)


def test_what_fits_is_not_counted_as_overflow():
    for kind in ("random", "all equal", "empty"):
        ids, grads = draw(kind)
        assert not run(1, 8, TablesConfig(), ids, grads).overflows


def test_one_hot_shard_overflows_and_is_exact():
    ids, grads = draw("all on one shard")
    ids["user"] = (
        ((np.arange(NUM_DEVICES * 40) * 8) % 296).reshape(8, 40).astype(np.int32)
    )  # 37 distinct ids, one owner
    result = run(1, 8, TablesConfig(), ids, grads)
    assert result.overflows
    check(result, ids, grads)


def emulated_ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What JAX documents of the operation, which XLA has for GPUs and not for CPUs: this device's slice for device i goes to
    `output_offsets[i]` of the output of i."""
    del recv_sizes
    everyone = [jax.lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)]
    me = jax.lax.axis_index(axis_name)
    place = jnp.arange(output.shape[0])
    for sent, start, size, to in zip(*everyone, strict=True):
        inside = (place >= to[me]) & (place < to[me] + size[me])
        values = sent[jnp.clip(start[me] + place - to[me], 0, len(sent) - 1)]
        output = jnp.where(inside.reshape(-1, *[1] * (output.ndim - 1)), values, output)
    return output


def test_the_emulation_is_as_documented():
    """The example of jax.lax.ragged_all_to_all's docstring."""
    numbers = [
        ([1, 2, 2], [0, 1], [1, 2], [0, 0], [1, 1]),
        ([3, 4, 0], [0, 1], [1, 1], [1, 2], [2, 1]),
    ]
    columns = [np.array(column, np.int32) for column in zip(*numbers, strict=True)]

    def exchange(operand, *sizes):
        return emulated_ragged_all_to_all(operand, jnp.zeros(4, jnp.int32), *sizes, axis_name="x")

    np.testing.assert_array_equal(jax.vmap(exchange, axis_name="x")(*columns), [[1, 3, 0, 0], [2, 2, 4, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_by_a_ragged_exchange(kind, monkeypatch):
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated_ragged_all_to_all)
    ids, grads = draw(kind)
    result = run(2, 4, TablesConfig(), ids, grads, ragged=True)
    check(result, ids, grads)
    assert result.overflows == (kind == "all on one shard")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schemes", [{}, SCHEMES["columns"]], ids=["rows", "columns"])
def test_other_optimizers_agree_with_one_device(optimizer, schemes):
    ids, grads = draw("random")
    config = TablesConfig(schemes=schemes)
    sharded = run(2, 4, config, ids, grads, optimizer=optimizer, steps=3)
    on_one = run(1, 1, TablesConfig(), *_on_one_device(ids, grads), optimizer=optimizer, steps=3)
    for table in SIZES:
        for field, numbers in on_one.after[table].items():
            np.testing.assert_allclose(sharded.after[table][field], numbers, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("replica", "shard"), [(1, 1), (2, 4)])
def test_the_table_kernels_way(replica, shard, monkeypatch):
    """What a GPU does, with XLA in the place of its kernels."""
    monkeypatch.setattr(embedding, "is_fused", lambda rows, grads: True)
    calls = []
    update = embedding.update
    monkeypatch.setattr(embedding, "update", lambda *a, **options: calls.append(options) or update(*a, **options))
    ids, grads = draw("random")
    if shard == 1:
        ids, grads = _on_one_device(ids, grads)
    check(run(replica, shard, TablesConfig(), ids, grads), ids, grads)
    assert calls


def _on_one_device(ids, grads):
    """The same lookups as one device's."""
    return {n: x.reshape(1, -1) for n, x in ids.items()}, {n: x.reshape(1, -1, DIM) for n, x in grads.items()}


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_averaged_weights_follow_the_papers_update(fully_sharded):
    """arXiv 2508.03854: each group updates on its own mean gradient with v / c, then weights and v are averaged."""
    ids, grads = draw("random")
    groups, shard = 4, 2
    result = run(groups, shard, TablesConfig(sync="weights", fully_sharded=fully_sharded), ids, grads)
    for name in SIZES:
        weights, sums = [], []
        for group in range(groups):
            own = slice(group * shard, (group + 1) * shard)
            new = by_loop(
                "rowwise_adagrad",
                result.before[name],
                ids[name][own].reshape(-1),
                groups * grads[name][own].reshape(-1, DIM),
                lr=LR,
                l2=0.0,
                step=0,
                groups=groups,
            )
            weights.append(new["weight"])
            sums.append(new["accumulator"])
        np.testing.assert_allclose(result.after[name]["weight"], np.mean(weights, axis=0), rtol=3e-5, atol=1e-5)
        np.testing.assert_allclose(result.after[name]["accumulator"], np.mean(sums, axis=0), rtol=3e-5, atol=1e-5)


def test_averaging_every_third_step_leaves_replicas_apart_in_between():
    ids, grads = draw("random")
    config = TablesConfig(sync="weights", sync_every=3)
    due, not_due = (run(4, 2, config, ids, grads, steps=n).after["user"]["weight"] for n in (3, 2))
    every = run(4, 2, TablesConfig(sync="weights"), ids, grads, steps=3).after["user"]["weight"]
    assert not np.allclose(due, every, atol=1e-4) and not np.allclose(due, not_due, atol=1e-4)
    np.testing.assert_allclose(due, every, atol=4 * LR)  # each step moves a weight by about LR at most


def test_new_tables_are_the_same_on_every_mesh():
    ids, grads = draw("empty")
    one = run(1, 1, TablesConfig(), *_on_one_device(ids, grads)).before
    for replica, shard, config in (
        (2, 4, TablesConfig(schemes=SCHEMES["mixed"])),
        (4, 2, TablesConfig(fully_sharded=True)),
    ):
        other = run(replica, shard, config, ids, grads).before
        jax.tree.map(np.testing.assert_array_equal, one, other)
    values = np.concatenate([one[name]["weight"] for name in SIZES])
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1 and len(np.unique(values, axis=0)) == len(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sync_every=0), "tables.sync_every=0 must be at least 1"),
        (dict(sync_every=2), "tables.sync_every=2 needs tables.sync=weights and tables.fully_sharded=False"),
        (dict(capacity=0.0), "tables.capacity=0.0 must be positive"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(UserError, match=message):
        TablesConfig(**change)


def test_columns_must_divide():
    with pytest.raises(UserError, match="width 6 cannot be cut by columns over mesh.shard=4"):
        make_tables(2, 4, TablesConfig(schemes={"user": "columns"}), dim=6)


def test_rows_beyond_32_bits_have_values_of_their_own():
    """The high word tells rows apart whose low words agree, and no row's number is another row's."""
    columns, low = jnp.arange(4, dtype=jnp.uint32), jnp.array([7, 7, 7, 8, 1 << 16], jnp.uint32)
    high = jnp.array([0, 1, 2**16 - 1, 0, 0], jnp.uint32)
    values = row_values(jax.random.key(1), low, high, columns)
    assert len(np.unique(values)) == values.size


def test_rows_are_standard_normal():
    """By Kolmogorov and Smirnov's test of 400,000 numbers of one seed, in all, and of neighbours' correlation."""
    rows, columns = jnp.arange(50_000, dtype=jnp.uint32), jnp.arange(8, dtype=jnp.uint32)
    values = np.asarray(row_values(jax.random.key(3), rows, jnp.zeros_like(rows), columns))
    assert scipy.stats.kstest(values.ravel(), "norm").pvalue > 0.01
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(values.size)


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_bytes_are_those_of_the_arrays(fully_sharded):
    tables = make_tables(2, 4, TablesConfig(schemes=SCHEMES["mixed"], fully_sharded=fully_sharded))
    state, said = new_state(tables), tables.bytes_per_device()
    device = tables.mesh.devices.flat[0]

    def held(names) -> int:
        arrays = [x for group in state.values() for name, x in group.items() if name in names]
        return sum(s.data.nbytes for x in arrays for s in x.addressable_shards if s.device == device)

    assert (said["weights"], said["slots"]) == (held(["weight"]), held(["accumulator"]))
    assert said["transient"] == (2 * (said["weights"] + said["slots"]) if fully_sharded else 0)


def test_no_table_needs_a_feature():
    """Tables that nothing reads stay as they are, and a schema without categoricals has a step all the same."""
    tables = make_tables(2, 4, TablesConfig(schemes=SCHEMES["mixed"]))
    for categoricals in (SCHEMA.categoricals[1:2], ()):
        tables.schema = SCHEMA.replace(categoricals=categoricals)

        def step(state):
            ids = {f.name: jnp.zeros((1, 2), jnp.int32) for f in tables.schema.categoricals}
            embedded, ticket = tables.lookup(state, as_batch(ids))
            return tables.update(state, ticket, embedded, learning_rate=LR, step=0)

        specs = tables.specs()
        before = new_state(tables)
        after = jax.jit(jax.shard_map(step, mesh=tables.mesh, in_specs=(specs,), out_specs=specs, check_vma=False))(
            before
        )
        changed = {n: bool((tables.export(before, n) != tables.export(after, n)).any()) for n in SIZES}
        assert changed == {"user": False, "ad": bool(categoricals), "hour": False}
