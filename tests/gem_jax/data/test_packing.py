"""Packing against a plain per-example layout, budgets, truncation, balance, padding."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.data.columns import empty_examples, join_examples, slice_examples, take_examples
from gem_jax.data.packing import BatchConfig, attention_cost, pack
from gem_jax.errors import UserError
from tests.gem_jax.data.random_examples import TAUGHT as SCHEMA
from tests.gem_jax.data.random_examples import assert_same_examples, events_of, random_examples

MAX_LEN = {"clicks": 20, "views": 5}


def _padded(length: int) -> int:
    return (length + 7) // 8 * 8


def _check_device(batch, columns, examples, num_slots, tokens, device, users):
    """One device's part of a batch against the examples whose user ids stand in its slots."""
    slots = slice(device * num_slots, (device + 1) * num_slots)
    for slot, user in enumerate(users):
        row = device * num_slots + slot
        if user < 0:
            assert batch.weight[row] == 0 and np.isnan(batch.labels[row]).all() and batch.domain[row] == 0
            assert (columns.example_id[row], columns.time_s[row]) == (-1, -1)
            assert all((column[row] == 0).all() for column in batch.training.values())
            assert (batch.dense[row] == 0).all() and (batch.vectors["image"][row] == 0).all()
            assert all((ids[row] == -1).all() for ids in batch.ids.values())
            continue
        np.testing.assert_array_equal(batch.labels[row], examples.labels[user])
        np.testing.assert_array_equal(batch.dense[row], examples.dense[user])
        np.testing.assert_array_equal(batch.ids["topics"][row], examples.ids["topics"][user])
        np.testing.assert_array_equal(columns.true_probability[row], examples.true_probability[user])
        for name in ("teacher", "margin"):
            np.testing.assert_array_equal(batch.training[name][row], examples.training[name][user])
        assert columns.example_id[row] == examples.example_id[user] and columns.time_s[row] == examples.time_s[user]
        assert batch.weight[row] == examples.weight[user] and batch.domain[row] == examples.domain[user]
    for name, rows in tokens.items():
        events = batch.sequences[name]
        offsets = events.offsets.reshape(-1, num_slots + 1)[device]
        lengths = events.lengths[slots]
        ages = events.age_s.reshape(-1, rows)[device]
        end, covered = 0, np.zeros(rows, bool)
        for slot, user in enumerate(users):
            assert offsets[slot] == end
            expected = events_of(examples.sequences[name], user) if user >= 0 else {"age_s": np.zeros(0, np.int32)}
            newest = {key: column[-MAX_LEN[name] :] for key, column in expected.items()}
            assert lengths[slot] == len(newest["age_s"])
            here = slice(end, end + lengths[slot])
            np.testing.assert_array_equal(ages[here], newest.pop("age_s"))
            for key, column in newest.items():
                np.testing.assert_array_equal(events.ids[key].reshape(-1, rows)[device][here], column)
            covered[here] = True
            end += _padded(int(lengths[slot]))
        assert offsets[num_slots] == end <= rows
        assert (ages[~covered] == 0).all()
        assert all((ids.reshape(-1, rows)[device][~covered] == -1).all() for ids in events.ids.values())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 30),
    num_slots=st.integers(1, 12),
    num_devices=st.integers(1, 4),
    clicks=st.integers(24, 150),
    views=st.integers(8, 60),
    seed=st.integers(0, 10**6),
)
def test_every_example_taken_stands_complete_in_one_slot(n, num_slots, num_devices, clicks, views, seed):
    examples = random_examples(n, seed)
    tokens = {"clicks": clicks, "views": views}
    batch, columns = pack(examples, SCHEMA, num_slots, tokens, num_devices=num_devices, position=100)
    users = columns.user.reshape(num_devices, num_slots)
    taken = columns.num_examples
    assert sorted(users[users >= 0]) == list(range(taken))
    np.testing.assert_array_equal(columns.user[columns.slots], np.arange(taken))  # in the order of the stream
    assert columns.position == 100 + taken
    assert taken >= min(n, num_devices)
    for device in range(num_devices):
        _check_device(batch, columns, examples, num_slots, tokens, device, users[device])
    for name, limit in MAX_LEN.items():
        dropped = np.maximum(examples.sequences[name].lengths[:taken] - limit, 0).sum()
        assert columns.truncated[name] == dropped


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), clicks=st.integers(24, 200), seed=st.integers(0, 10**6))
def test_one_device_takes_the_most_examples_that_fit(n, clicks, seed):
    examples = random_examples(n, seed)
    _, columns = pack(examples, SCHEMA, 32, {"clicks": clicks, "views": 10**4})
    rows = np.cumsum([_padded(min(int(k), 20)) for k in examples.sequences["clicks"].lengths])
    assert columns.num_examples == min(n, 32, int((rows <= clicks).sum()))


def test_one_device_keeps_the_stream_order():
    _, columns = pack(random_examples(6), SCHEMA, 8, BatchConfig(examples=8).budgets(SCHEMA))
    np.testing.assert_array_equal(columns.user, [0, 1, 2, 3, 4, 5, -1, -1])


def test_devices_share_the_attention_cost_evenly():
    examples = random_examples(1024, max_events=20)
    budgets = BatchConfig(examples=128).budgets(SCHEMA)
    batch, columns = pack(examples, SCHEMA, 128, budgets, num_devices=8)
    lengths = {name: events.lengths for name, events in batch.sequences.items()}
    per_device = attention_cost(lengths, 1024).reshape(8, 128).sum(axis=1)
    in_order = attention_cost({n: examples.sequences[n].lengths for n in lengths}, 1024).reshape(8, 128).sum(axis=1)
    # Back-and-forth dealing of k sorted costs leaves at most one largest cost between any two devices.
    largest = attention_cost(lengths, 1024).max()
    assert per_device.max() - per_device.min() <= largest
    assert per_device.max() / per_device.mean() < 1.01 < in_order.max() / in_order.mean()
    assert columns.num_examples == 1024


def test_columns_beyond_those_taken_do_not_leak():
    examples = random_examples(10)
    examples.dense[4:] = np.nan
    examples.weight[4:] = np.nan
    batch, columns = pack(examples, SCHEMA, 4, BatchConfig(examples=4).budgets(SCHEMA))
    assert columns.num_examples == 4 and np.isfinite(batch.dense).all() and np.isfinite(batch.weight).all()


def test_no_examples_make_a_batch_of_the_same_shapes():
    budgets = BatchConfig(examples=4).budgets(SCHEMA)
    full, _ = pack(random_examples(4), SCHEMA, 4, budgets, num_devices=2)
    empty, columns = pack(empty_examples(SCHEMA), SCHEMA, 4, budgets, num_devices=2)
    assert columns.num_examples == 0 and (empty.weight == 0).all()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), full) == jax.tree.map(lambda x: (x.shape, x.dtype), empty)


def test_default_budget_holds_full_histories():
    assert BatchConfig(examples=10).budgets(SCHEMA) == {"clicks": 240, "views": 80}
    assert BatchConfig(examples=10, tokens={"clicks": 64}).budgets(SCHEMA) == {"clicks": 64, "views": 80}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tokens": {"clicks": 23}}, r"batch.tokens\['clicks'\] is 23, less than the 24 rows"),
        ({"tokens": {"likes": 64}}, r"batch.tokens names source 'likes'; the data has"),
        ({"examples": 0}, "batch.examples is 0; it needs at least 1"),
        ({"tokens": {"clicks": 7}}, r"batch.tokens\['clicks'\] is 7; a history takes 8 rows or more"),
    ],
)
def test_impossible_batches_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        BatchConfig(**{"examples": 4, **fields}).budgets(SCHEMA)


def test_take_slice_and_join_agree():
    examples = random_examples(20)
    parts = [slice_examples(examples, 0, 7), slice_examples(examples, 7, 7), slice_examples(examples, 7, 20)]
    assert_same_examples(join_examples(parts), examples)
    picked = np.array([3, 3, 19, 0])
    singles = [slice_examples(examples, i, i + 1) for i in picked.tolist()]
    assert_same_examples(take_examples(examples, picked), join_examples(singles))
    assert_same_examples(take_examples(examples, np.zeros(0, np.int64)), empty_examples(SCHEMA))
