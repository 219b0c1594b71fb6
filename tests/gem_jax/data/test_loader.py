"""The loader delivers every example once an epoch, in an order that a restored loader continues byte for byte."""

import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from gem_jax.data.columns import MemorySource
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.errors import UserError
from tests.gem_jax.data.random_examples import SCHEMA, random_examples

NUM = 101
BATCH = BatchConfig(examples=8, tokens={"clicks": 96})
"""About one batch in two is cut short by the token budget, so batches do not end where chunks do."""


def _source(n: int = NUM) -> MemorySource:
    return MemorySource(schema=SCHEMA, examples=random_examples(n))


def _users(columns) -> list[int]:
    return columns.user[columns.weight > 0].tolist()


def _assert_same(batches, expected):
    assert len(batches) == len(expected)
    for (batch, columns), (other, other_columns) in zip(batches, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)
        np.testing.assert_array_equal(columns.user, other_columns.user)
        np.testing.assert_array_equal(columns.example_id, other_columns.example_id)
        assert (columns.position, columns.truncated) == (other_columns.position, other_columns.truncated)


def test_in_order_pass_delivers_every_example_once_with_empty_slots_at_the_end():
    loader = Loader(_source(), BatchConfig(examples=8), seed=None, num_epochs=1)
    columns = [c for _, c in loader]
    assert sum((_users(c) for c in columns), []) == list(range(NUM))
    assert [c.num_examples for c in columns] == [8] * 12 + [5]
    assert [c.position for c in columns] == [*range(8, NUM, 8), NUM]


def test_a_second_iteration_is_a_second_pass():
    loader = Loader(_source(), BATCH, seed=None, num_epochs=1)
    _assert_same(list(loader), list(loader))


@pytest.mark.parametrize("num_devices", [1, 3])
def test_each_epoch_is_another_order_of_all_examples(num_devices):
    loader = Loader(_source(), BATCH, seed=3, num_epochs=2, num_devices=num_devices)
    batches = [c for _, c in loader]
    assert any(c.num_examples < 8 * num_devices for c in batches[:-1])
    stream = sum((_users(c) for c in batches), [])
    assert len(stream) == 2 * NUM and sorted(stream) == sorted([*range(NUM)] * 2)
    if num_devices == 1:
        first, second = stream[:NUM], stream[NUM:]
        assert sorted(first) == list(range(NUM)) and first != second


def test_neighbouring_seeds_share_no_epoch():
    def stream(seed):
        return sum((_users(c) for _, c in Loader(_source(), BATCH, seed=seed, num_epochs=2)), [])

    assert stream(0)[NUM:] != stream(1)[:NUM]


@pytest.mark.parametrize("seed", [None, 7])
def test_hosts_split_every_epoch(seed):
    streams = []
    for shard in range(3):
        loader = Loader(_source(), BATCH, seed=seed, num_epochs=2, shard_index=shard, shard_count=3)
        streams.append(sum((_users(c) for _, c in loader), []))
    halves = [[s[: len(s) // 2] for s in streams], [s[len(s) // 2 :] for s in streams]]
    for epoch in halves:
        assert sorted(sum(epoch, [])) == list(range(NUM))
    assert max(map(len, streams)) - min(map(len, streams)) <= 2


@pytest.mark.parametrize("num_devices, prefetch, read_threads", [(1, 2, 2), (2, 0, 0)])
def test_a_restored_loader_continues_byte_for_byte(num_devices, prefetch, read_threads):
    def loader():
        return Loader(
            _source(),
            BATCH,
            seed=1,
            num_epochs=3,
            num_devices=num_devices,
            prefetch=prefetch,
            read_threads=read_threads,
        )

    whole, states = [], []
    running = loader()
    for item in running:
        whole.append(item)
        states.append(json.loads(json.dumps(running.position_state(item[1].position))))
    assert any(s["position"] % (8 * num_devices) for s in states)
    for step in [0, 3, len(whole) // 2, len(whole) - 2, len(whole) - 1]:
        resumed = loader()
        resumed.restore(states[step])
        _assert_same(list(resumed), whole[step + 1 :])


def test_an_endless_stream_goes_on_and_stops_cleanly():
    before = threading.active_count()
    loader = Loader(_source(20), BATCH, seed=0, num_epochs=None)
    stream = []
    for _, columns in loader:
        stream += _users(columns)
        if len(stream) > 100:
            break
    for epoch in range(5):
        assert sorted(stream[20 * epoch : 20 * epoch + 20]) == list(range(20))
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=5)
    assert threading.active_count() <= before


def test_the_process_ends_while_batches_are_in_flight():
    code = (
        "from tests.gem_jax.data.test_loader import _source, BATCH, Loader\n"
        "batches = iter(Loader(_source(), BATCH, seed=0, num_epochs=None))\n"
        "next(batches)\n"
        "raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt"), done.stderr


class _Failing(MemorySource):
    def read(self, indices):
        if 50 in indices:
            raise ValueError("row 50 is bad")
        return super().read(indices)


def test_a_reading_error_reaches_the_consumer():
    source = _Failing(schema=SCHEMA, examples=random_examples(NUM))
    with pytest.raises(ValueError, match="row 50 is bad"):
        list(Loader(source, BATCH, seed=None, num_epochs=1))


def test_empty_batch_has_the_shapes_of_the_others():
    loader = Loader(_source(), BATCH, seed=None, num_epochs=1, num_devices=2)
    batch, _ = next(iter(loader))
    empty, columns = loader.empty_batch()
    assert jax.tree.map(np.shape, empty) == jax.tree.map(np.shape, batch)
    assert columns.num_examples == 0 and (empty.weight == 0).all()


def test_state_of_another_stream_is_refused():
    state = Loader(_source(), BATCH, seed=0, num_epochs=1).position_state(16)
    with pytest.raises(UserError, match="the checkpoint's data position has seed=0, this run has seed=1"):
        Loader(_source(), BATCH, seed=1, num_epochs=1).restore(state)
    with pytest.raises(UserError, match="has shard_count=1, this run has shard_count=2"):
        Loader(_source(), BATCH, seed=0, num_epochs=1, shard_count=2).restore(state)


def test_batches_pulled_ahead_do_not_move_the_state():
    """A consumer that stands two batches ahead of what it trained on resumes after the batch it trained on."""
    loader = Loader(_source(), BATCH, seed=4, num_epochs=1)
    running = iter(loader)
    whole = [next(running) for _ in range(5)]
    state = loader.position_state(whole[2][1].position)
    whole += list(running)
    resumed = Loader(_source(), BATCH, seed=4, num_epochs=1)
    resumed.restore(state)
    _assert_same(list(resumed), whole[3:])


def test_impossible_loaders_are_refused():
    with pytest.raises(UserError, match=r"batch.tokens\['clicks'\] is 8"):
        Loader(_source(), BatchConfig(examples=8, tokens={"clicks": 8}), seed=0, num_epochs=1)
    with pytest.raises(UserError, match="0 examples for 1 hosts"):
        Loader(_source(0), BATCH, seed=0, num_epochs=1)
