"""Packed-row operations against plain Python lists of histories."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_jax.nn import jagged
from tests.gem_jax.models.batches import packed_offsets

LENGTHS = (3, 0, 8, 1, 13, 0)  # of 6 examples; the last rows of the array belong to none
NUM_ROWS = 44
MAX_LEN = 14
WIDTH = 3


def make(lengths=LENGTHS, num_rows=NUM_ROWS, max_len=MAX_LEN):
    lengths = np.asarray(lengths, np.int32)
    return jagged.Layout.make(jnp.asarray(packed_offsets(lengths)), jnp.asarray(lengths), num_rows, max_len)


def pack(histories, layout, padding=np.nan):
    """Histories [l_b, D] as packed rows, `padding` elsewhere."""
    x = np.full((layout.num_rows, histories[0].shape[1]), padding, np.float32)
    for history, start in zip(histories, layout.offsets[:-1], strict=True):
        x[start : start + len(history)] = history
    return jnp.asarray(x)


def random_histories(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in lengths]


def check_packed(y, layout, expected):
    """`y` holds the expected histories at starts that are multiples of 8, zeros elsewhere."""
    assert [len(h) for h in expected] == list(layout.lengths)
    assert not np.any(np.asarray(layout.offsets) % 8)
    assert layout.offsets[-1] <= layout.num_rows == len(y)
    assert max(layout.lengths) <= layout.max_len
    assert np.all(np.diff(layout.offsets) >= layout.lengths)
    np.testing.assert_allclose(y, pack(expected, layout, padding=0.0), rtol=1e-6)


def check_gradient(operation, layout, x):
    """The gradient of <operation(x), w> is the transposed Jacobian times w.

    Every operation is linear in x, so the Jacobian is what it makes of unit rows. Padding rows are NaN.
    """
    y = operation(x)
    w = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.vdot(operation(x), w))(x)
    mask = np.asarray(layout.row_mask())
    assert np.all(np.asarray(gradient)[~mask] == 0)
    units = np.eye(layout.num_rows, dtype=np.float32)[:, :, None] * np.ones(WIDTH, np.float32)
    jacobian = np.stack([operation(unit) for unit in units])
    expected = (jacobian * w).reshape(len(x), -1, WIDTH).sum(axis=1) * mask[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_layout_names_each_row():
    layout = make()
    example = np.full(NUM_ROWS, len(LENGTHS))
    position = np.zeros(NUM_ROWS, int)
    distance = np.full(NUM_ROWS, -1)
    for b, (start, length) in enumerate(zip(packed_offsets(np.array(LENGTHS))[:-1], LENGTHS, strict=True)):
        example[start : start + length] = b
        position[start : start + length] = np.arange(length)
        distance[start : start + length] = np.arange(length)[::-1]
    np.testing.assert_array_equal(layout.example, example)
    np.testing.assert_array_equal(layout.position, position)
    np.testing.assert_array_equal(layout.row_mask(), example < len(LENGTHS))
    np.testing.assert_array_equal(layout.distance_to_end(), distance)


@pytest.mark.parametrize("n", [9])
def test_prepend(n):
    layout, histories = make(), random_histories()
    tokens = jnp.asarray(np.random.default_rng(2).normal(size=(len(LENGTHS), n, WIDTH)), jnp.float32)
    x = pack(histories, layout)
    y, new = jagged.prepend(x, layout, tokens)
    check_packed(y, new, [np.concatenate([t, h]) for t, h in zip(tokens, histories, strict=True)])
    check_gradient(jax.jit(lambda x: jagged.prepend(x, layout, jnp.zeros_like(tokens))[0]), layout, x)
    to_tokens = jax.grad(lambda t: jagged.prepend(jnp.asarray(x), layout, t)[0].sum())(tokens)
    np.testing.assert_array_equal(to_tokens, np.ones_like(tokens))
    np.testing.assert_array_equal(jagged.first(y, new, n), tokens)


@pytest.mark.parametrize("n", [3, 10])
def test_first_and_recent(n):
    layout, histories = make(), random_histories()
    x = pack(histories, layout)
    rows, filled = jagged.recent(x, layout, n)
    oldest = jagged.first(x, layout, n)
    for b, history in enumerate(histories):
        have = min(n, len(history))
        np.testing.assert_array_equal(filled[b], np.arange(n) >= n - have)
        np.testing.assert_array_equal(rows[b], np.pad(history[len(history) - have :], ((n - have, 0), (0, 0))))
        np.testing.assert_array_equal(oldest[b], np.pad(history[:have], ((0, n - have), (0, 0))))
    check_gradient(jax.jit(lambda x: jagged.recent(x, layout, n)[0]), layout, x)
    check_gradient(jax.jit(lambda x: jagged.first(x, layout, n)), layout, x)


def test_recent_skips_tokens_that_are_not_events():
    layout, histories = make(), random_histories()
    rows, filled = jagged.recent(pack(histories, layout), layout, 2, skip=2)
    for b, history in enumerate(histories):
        have = min(2, max(len(history) - 2, 0))
        assert filled[b].sum() == have
        np.testing.assert_array_equal(rows[b, 2 - have :], history[len(history) - have :])
        np.testing.assert_array_equal(rows[b, : 2 - have], 0)


@pytest.mark.parametrize("n", [5, 30])
def test_take_recent(n):
    layout, histories = make(), random_histories()
    x = pack(histories, layout)
    y, new = jagged.take_recent(x, layout, n)
    check_packed(y, new, [h[-n:] for h in histories])
    assert new.num_rows <= layout.num_rows
    check_gradient(jax.jit(lambda x: jagged.take_recent(x, layout, n)[0]), layout, x)


@pytest.mark.parametrize("stride", [1, 5])
def test_pool_groups_from_the_newest(stride):
    layout, histories = make(), random_histories()
    x = pack(histories, layout)
    y, new = jagged.pool(x, layout, stride)
    expected = []
    for history in histories:
        groups = [history[max(end - stride, 0) : end].mean(0) for end in range(len(history), 0, -stride)]
        expected.append(np.stack(groups[::-1]) if groups else history)
    check_packed(y, new, expected)
    check_gradient(jax.jit(lambda x: jagged.pool(x, layout, stride)[0]), layout, x)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8), stride=st.integers(1, 50))
def test_pooled_histories_fit_in_the_rows_allotted(lengths, stride):
    rows = sum(jagged.round_up(n) for n in lengths)
    needed = sum(jagged.round_up(-(-n // stride)) for n in lengths)
    assert needed <= jagged.pooled_rows(len(lengths), rows, 40, stride)


def test_rows_of_examples_and_sums():
    layout, histories = make(), random_histories()
    vectors = np.random.default_rng(3).normal(size=(len(LENGTHS), WIDTH)).astype(np.float32)
    broadcast = [np.tile(v, (n, 1)) for v, n in zip(vectors, LENGTHS, strict=True)]
    check_packed(jagged.rows_of_examples(jnp.asarray(vectors), layout), layout, broadcast)
    x = pack(histories, layout)
    np.testing.assert_allclose(jagged.history_sum(x, layout), [h.sum(0) for h in histories], rtol=1e-5, atol=1e-6)
    means = [h.mean(0) if len(h) else np.zeros(WIDTH) for h in histories]
    np.testing.assert_allclose(jagged.history_mean(x, layout), means, rtol=1e-5, atol=1e-6)
    check_gradient(jax.jit(lambda x: jagged.history_mean(x, layout)), layout, x)
    # The gradient of a broadcast is the sum over the history, and the other way round; incoming NaN in padding is cut.
    gradient = jax.vjp(lambda v: jagged.rows_of_examples(v, layout), jnp.asarray(vectors))[1](jnp.asarray(x))[0]
    np.testing.assert_allclose(gradient, [h.sum(0) for h in histories], rtol=1e-5, atol=1e-6)


def test_merge_orders_events_by_time():
    rng = np.random.default_rng(4)
    layouts = [make(), make((0, 0, 5, 9, 2, 1), NUM_ROWS + 3, 10)]
    histories = [random_histories(np.asarray(layout.lengths), seed) for seed, layout in enumerate(layouts)]
    ages = [[np.sort(rng.integers(0, 9, len(h)))[::-1] for h in source] for source in histories]
    age_rows = [
        pack([a[:, None] for a in source], layout, padding=10**6)[:, 0].astype(np.int32)
        for source, layout in zip(ages, layouts, strict=True)
    ]
    xs = [pack(source, layout) for source, layout in zip(histories, layouts, strict=True)]
    y, new, age = jax.jit(jagged.merge)(xs, layouts, age_rows)

    expected, expected_ages = [], []
    for b in range(len(LENGTHS)):
        rows = np.concatenate([source[b] for source in histories])
        all_ages = np.concatenate([source[b] for source in ages])
        order = np.argsort(-all_ages, kind="stable")
        expected.append(rows[order])
        expected_ages.append(all_ages[order][:, None])
    check_packed(y, new, expected)
    np.testing.assert_array_equal(age, pack(expected_ages, new, padding=0)[:, 0])
    operation = jax.jit(lambda x: jagged.merge([x, xs[1] * 0], layouts, age_rows)[0])
    check_gradient(lambda x: jnp.nan_to_num(operation(x)), layouts[0], xs[0])


def test_tokens_as_rows():
    tokens = np.random.default_rng(5).normal(size=(4, 3, WIDTH)).astype(np.float32)
    x, layout = jagged.tokens_as_rows(jnp.asarray(tokens))
    check_packed(x, layout, list(tokens))


def test_layout_travels_through_jit():
    layout = make()
    out = jax.jit(lambda layout: dataclasses.replace(layout, lengths=layout.lengths + 1))(layout)
    assert out.max_len == layout.max_len and out.num_rows == layout.num_rows
