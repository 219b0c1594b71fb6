"""What crosses devices in a compiled step is what theory says, operation by operation and byte by byte."""

import collections
import dataclasses
import re

import jax
import pytest

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.embedding.config import TablesConfig
from gem_jax.embedding.tables import requests_of
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.run.memory import device_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.scale.hlo import Collective, collectives, total_received
from tests.gem_jax.run.steps import DATA, DLRM, OPTIMIZER, SCHEMA

PER_DEVICE = 4
SHARD, REPLICA = ("shard",), ("replica",)


def program_of(replica: int, shard: int, schema=SCHEMA, tables: TablesConfig | None = None) -> Program:
    """The DLRM's program, with every table by rows unless `tables` says otherwise."""
    by_rows = dict.fromkeys((table.name for table in schema.tables), "rows")
    tables = tables or TablesConfig()
    config = Config(
        name="collectives",
        data=DATA,
        model=DLRM,
        batch=BatchConfig(examples=PER_DEVICE, tokens={s.name: PER_DEVICE * s.max_len for s in schema.sequences}),
        optimizer=OPTIMIZER,
        mesh=MeshConfig(replica=replica, shard=shard),
        tables=dataclasses.replace(tables, schemes=by_rows | tables.schemes),
    )
    return Program.of(config, schema, RunPlan.of(config, schema, jax.devices()[: replica * shard]))


def listed(found: list[Collective], *, fallback: bool) -> collections.Counter:
    """(kind, axes, bytes of the result on a device) -> how often; without the few single numbers, which XLA may send along with
    the gradients or with each other."""
    arrays = [(c.kind, c.axes, c.result_bytes - singles(c)) for c in found if c.is_fallback == fallback]
    return collections.Counter(array for array in arrays if array[2])


def singles(collective: Collective) -> int:
    """Bytes of single numbers that travel in an all-reduce; buckets and their shares come in multiples of 128 numbers."""
    return collective.result_bytes % 512 if collective.kind == "all-reduce" else 0


def dense_theory(program: Program, replica: int, shard: int) -> collections.Counter:
    """HSDP: every unit gathered for the forward pass, its matrices again for the backward pass; gradients reduced inside the group,
    and only a device's share of all units together over the replicas."""
    expected: collections.Counter = collections.Counter()
    sizes = {name: bucket.size * 4 for name, bucket in program.parts.buckets.buckets.items()}
    if shard > 1:
        for size in sizes.values():
            expected["all-gather", SHARD, size] += 1
            expected["reduce-scatter", SHARD, size // shard] += 1
    if replica > 1:
        expected["all-reduce", REPLICA, sum(sizes.values()) // shard] += 1
    return expected


def table_theory(program: Program, replica: int, shard: int) -> tuple[collections.Counter, collections.Counter]:
    """Tables by rows: ids there and rows back, ids and gradients there again; touched rows over the replicas. And the way for too
    many ids: everything to everyone of the group."""
    tables = program.parts.tables
    requests = requests_of(program.schema, device_batch(program.config, program.schema))
    sizes = [(table, ids.shape[0]) for table, ids in requests]
    dim, asked = tables.dim, sum(size for _, size in sizes)
    places = shard * tables.sharded.capacity(sizes) if shard > 1 else asked
    usual: collections.Counter = collections.Counter()
    fallback: collections.Counter = collections.Counter()
    if shard > 1:
        usual["all-to-all", SHARD, places * 4] += 2
        usual["all-to-all", SHARD, places * dim * 4] += 2
        fallback["all-gather", SHARD, shard * asked * 4] += 4  # owner and slot of each id, twice
        fallback["all-gather", SHARD, shard * asked * dim * 4] += 1
        fallback["reduce-scatter", SHARD, asked * dim * 4] += 1
    if replica > 1:
        for counter, asked_of_owner in ((usual, places), (fallback, shard * asked)):
            rows = min(asked_of_owner, tables.placement.slots)
            if counter is usual or shard > 1:
                counter["all-gather", REPLICA, replica * rows * 4] += 1
                counter["all-gather", REPLICA, replica * rows * dim * 4] += 1
    return usual, fallback


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), (1, 8), (8, 1)])
def test_the_step_does_what_theory_says_and_nothing_else(replica, shard):
    program = program_of(replica, shard)
    found = collectives(program.lower().compile().as_text(), dict(program.mesh.shape))
    usual, fallback = table_theory(program, replica, shard)
    dense = dense_theory(program, replica, shard)
    surplus = listed(found, fallback=False)
    surplus.subtract(dense + usual)
    regathered = {key: n for key, n in surplus.items() if n}
    # What is left is the second gather of units that the backward pass needs: at most one a unit, of whole units.
    for (kind, axes, size), count in regathered.items():
        assert (kind, axes) == ("all-gather", SHARD) and 0 < count <= dense[kind, axes, size], (kind, axes, size, count)
    assert bool(regathered) == (shard > 1)
    assert listed(found, fallback=True) == fallback
    # The batch's weight, the loss and its part of each task, whether ids fit, the gradient's norm, four signals.
    assert 0 < sum(map(singles, found)) <= 4 * (1 + 1 + 2 + 1 + 1 + 4)


def test_replicas_exchange_shares_and_touched_rows_only():
    """Over the replicas, twice the shards is half the dense bytes, and never a whole parameter or table."""
    received = {}
    for replica, shard in ((4, 2), (2, 4)):
        program = program_of(replica, shard)
        found = collectives(program.lower().compile().as_text(), dict(program.mesh.shape))
        received[shard] = total_received(found, "all-reduce", REPLICA) / (2 * (replica - 1) / replica)
    assert received[2] == 2 * received[4]


@pytest.mark.parametrize("scheme", ["rows", pytest.param("columns", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fully_sharded", [False, True], ids=["2D", "fully sharded"])
def test_no_array_of_a_tables_size_is_made(scheme, fully_sharded):
    """With 400 thousand rows a shard's weights are 6.4 MB; the step's temporary memory is far below, but for the rows that fully
    sharded tables gather for it."""
    rows = 400_000
    schema = SCHEMA.replace(
        tables=tuple(t if t.name != "user" else type(t)(name="user", rows=rows) for t in SCHEMA.tables)
    )
    config = TablesConfig(schemes={"user": scheme}, fully_sharded=fully_sharded)
    memory = program_of(2, 4, schema, config).lower().compile().memory_analysis()
    shard_bytes = rows * DLRM.embedding_dim * 4 / 4
    # The accumulator of a table by columns is whole on each device.
    state_bytes = shard_bytes + rows * 4 / (1 if scheme == "columns" else 4)
    allowed = 1.1 * state_bytes if fully_sharded else 0.5 * shard_bytes
    assert memory.temp_size_in_bytes < allowed, (memory.temp_size_in_bytes, shard_bytes)


def test_searches_are_no_loops():
    """On a GPU a loop launches its kernels anew for each bisection; unrolled, they are one kernel."""
    text = program_of(1, 8).lower().compile().as_text()
    assert not re.search(r'op_name="[^"]*searchsorted[^"]*/while', text)
