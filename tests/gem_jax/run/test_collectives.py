"""What crosses devices in a compiled step is what theory says, operation by operation and byte by byte."""

import collections
import math
import re

import jax
import numpy as np
import pytest

from gem_jax.data.columns import empty_examples
from gem_jax.data.packing import pack
from gem_jax.embedding.sharded import TablesConfig
from gem_jax.models import ModelConfig
from gem_jax.parallel.mesh import make_mesh
from gem_jax.scale.hlo import Collective, collectives, total_received
from gem_jax.training.state import Setup, abstract_state
from gem_jax.training.step import make_train_step
from tests.gem_jax.run.steps import DATA, DLRM, OPTIMIZER

PER_DEVICE = 4
SHARD, REPLICA = ("shard",), ("replica",)


def compiled_step(replica: int, shard: int, tables: TablesConfig | None = None, model: ModelConfig = DLRM):
    """The setup, the requests of one device, and the compiled step."""
    schema = DATA.build().train.schema
    mesh = make_mesh(replica, shard)
    setup, state = abstract_state(model, schema, OPTIMIZER, mesh=mesh, tables=tables)
    tokens = {s.name: PER_DEVICE * s.max_len for s in schema.sequences}
    batch, one = (pack(empty_examples(schema), schema, PER_DEVICE, tokens, num_devices=n)[0] for n in (mesh.size, 1))
    compiled = make_train_step(setup).lower(state, batch, np.float32(0)).compile()
    return setup, setup.collection.ids(one), compiled


def listed(found: list[Collective], *, fallback: bool) -> collections.Counter:
    """(kind, axes, bytes of the result on a device) -> how often; without the few single numbers, which XLA may send along with
    the gradients or with each other."""
    arrays = [(c.kind, c.axes, c.result_bytes - singles(c)) for c in found if c.is_fallback == fallback]
    return collections.Counter(array for array in arrays if array[2])


def singles(collective: Collective) -> int:
    """Bytes of single numbers that travel in an all-reduce; whole units come in multiples of 8 numbers."""
    return collective.result_bytes % 32 if collective.kind == "all-reduce" else 0


def dense_theory(setup: Setup, replica: int, shard: int) -> collections.Counter:
    """HSDP: every unit gathered for the forward pass, its matrices again for the backward pass; gradients reduced inside the group,
    and only a device's share of all units together over the replicas."""
    expected: collections.Counter = collections.Counter()
    sizes = {name: math.prod(x.shape) * 4 for name, x in _flat(setup).items()}
    if shard > 1:
        for size in sizes.values():
            expected["all-gather", SHARD, size] += 1
            expected["reduce-scatter", SHARD, size // shard] += 1
    if replica > 1:
        expected["all-reduce", REPLICA, sum(sizes.values()) // shard] += 1
    return expected


def _flat(setup: Setup):
    return jax.eval_shape(setup.layout.flatten, setup.layout.abstract())


def table_theory(setup: Setup, requests, replica: int, shard: int) -> tuple[collections.Counter, collections.Counter]:
    """Tables by rows: ids there and rows back, ids and gradients there again; touched rows over the replicas. And the way for too
    many ids: everything to everyone of the group."""
    dim = setup.collection.dim
    asked = sum(ids.shape[0] for _, ids in requests)
    places = shard * setup.tables.capacity(requests) if shard > 1 else asked
    usual: collections.Counter = collections.Counter()
    fallback: collections.Counter = collections.Counter()
    if shard > 1:
        usual["all-to-all", SHARD, places * 4] += 2
        usual["all-to-all", SHARD, places * dim * 4] += 2
        fallback["all-gather", SHARD, shard * asked * 4] += 2
        fallback["all-gather", SHARD, shard * asked * dim * 4] += 1
        fallback["reduce-scatter", SHARD, asked * dim * 4] += 1
    if replica > 1:
        for counter, asked_of_owner in ((usual, places), (fallback, shard * asked)):
            rows = min(asked_of_owner, setup.tables.placement.slots)
            if counter is usual or shard > 1:
                counter["all-gather", REPLICA, replica * rows * 4] += 1
                counter["all-gather", REPLICA, replica * rows * dim * 4] += 1
    return usual, fallback


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), (1, 8), (8, 1)])
def test_the_step_does_what_theory_says_and_nothing_else(replica, shard):
    setup, requests, compiled = compiled_step(replica, shard)
    found = collectives(compiled.as_text(), dict(setup.mesh.shape))
    usual, fallback = table_theory(setup, requests, replica, shard)
    dense = dense_theory(setup, replica, shard)
    surplus = listed(found, fallback=False)
    surplus.subtract(dense + usual)
    regathered = {key: n for key, n in surplus.items() if n}
    # What is left is the second gather of units that the backward pass needs: at most one a unit, of whole units.
    for (kind, axes, size), count in regathered.items():
        assert (kind, axes) == ("all-gather", SHARD) and 0 < count <= dense[kind, axes, size], (kind, axes, size, count)
    assert bool(regathered) == (shard > 1)
    assert listed(found, fallback=True) == fallback
    # The batch's weight, the loss, whether ids fit, the gradient's norm.
    assert 0 < sum(map(singles, found)) <= 4 * 4


def test_replicas_exchange_shares_and_touched_rows_only():
    """Over the replicas, twice the shards is half the dense bytes, and never a whole parameter or table."""
    received = {}
    for replica, shard in ((4, 2), (2, 4)):
        setup, _, compiled = compiled_step(replica, shard)
        found = collectives(compiled.as_text(), dict(setup.mesh.shape))
        received[shard] = total_received(found, "all-reduce", REPLICA) / (2 * (replica - 1) / replica)
    assert received[2] == 2 * received[4]


@pytest.mark.parametrize("scheme", ["rows", "columns"])
@pytest.mark.parametrize("fully_sharded", [False, True], ids=["2D", "fully sharded"])
def test_no_array_of_a_tables_size_is_made(scheme, fully_sharded):
    """With 400 thousand rows a shard's weights are 6.4 MB; the step's temporary memory is far below, but for the rows that fully
    sharded tables gather for it."""
    schema = DATA.build().train.schema
    rows = 400_000
    schema = schema.replace(
        tables=tuple(t if t.name != "user" else type(t)(name="user", rows=rows) for t in schema.tables)
    )
    mesh = make_mesh(2, 4)
    config = TablesConfig(schemes={"user": scheme}, fully_sharded=fully_sharded)
    setup, state = abstract_state(DLRM, schema, OPTIMIZER, mesh=mesh, tables=config)
    tokens = {s.name: PER_DEVICE * s.max_len for s in schema.sequences}
    batch = pack(empty_examples(schema), schema, PER_DEVICE, tokens, num_devices=8)[0]
    memory = make_train_step(setup).lower(state, batch, np.float32(0)).compile().memory_analysis()
    shard_bytes = rows * DLRM.embedding_dim * 4 / 4
    # The accumulator of a table by columns is whole on each device.
    state_bytes = shard_bytes + rows * 4 / (1 if scheme == "columns" else 4)
    allowed = 1.1 * state_bytes if fully_sharded else 0.5 * shard_bytes
    assert memory.temp_size_in_bytes < allowed, (memory.temp_size_in_bytes, shard_bytes)


def test_searches_are_no_loops():
    """On a GPU a loop launches its kernels anew for each bisection; unrolled, they are one kernel."""
    compiled = compiled_step(1, 8)[2]
    assert not re.search(r'op_name="[^"]*searchsorted[^"]*/while', compiled.as_text())
