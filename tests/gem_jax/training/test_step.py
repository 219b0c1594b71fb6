"""The jitted steps against their parts put together by hand: jax.grad, optax and an Adagrad over the whole table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.models import DLRMConfig
from gem_jax.training.optimizer import OptimizerConfig, group_of, path_name
from gem_jax.training.state import Setup, TrainState, count_parameters, init_state
from gem_jax.training.step import forward, make_eval_step, make_train_step
from tests.gem_jax.models.batches import FULL, random_batch, stacked_ids

MODEL = DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,))
OPTIMIZER = OptimizerConfig(
    learning_rate=0.01, weight_decay=0.1, clip_norm=0.05, table_learning_rate=0.1, table_l2=0.01, warmup=0.0
)
BASE_LOGITS = np.float32([-1.0, -3.0])
TASK_WEIGHTS, DOMAIN_WEIGHTS = {"conversion": 0.5}, {"stories": 2.0}
PROGRESS = np.float32(0.3)


def make_state(model=MODEL, seed: int = 0) -> tuple[Setup, TrainState]:
    return init_state(model, FULL, OPTIMIZER, seed=seed, base_logits=BASE_LOGITS)


def make_batch(num_slots: int = 12, filled: int = 9) -> Batch:
    """Random examples with unobserved labels, a weight other than 1 and empty slots."""
    batch = random_batch(FULL, num_slots, filled=filled)
    batch.labels[1, 0] = batch.labels[3, 1] = np.nan
    batch.weight[2] = 3.0
    return batch


def stacked(setup: Setup, state: TrainState, field: str = "weight") -> np.ndarray:
    """All tables one after the other."""
    return np.concatenate([setup.tables.export(state.tables, t.name, field) for t in FULL.tables])


def copy(state: TrainState) -> TrainState:
    """The same values in other buffers: a step consumes the state that it is given."""
    return jax.tree.map(jnp.copy, state)


@pytest.fixture(scope="module")
def stepped():
    """setup, the state before a step, the state after it, the step's outputs."""
    setup, state = make_state()
    step = make_train_step(setup, task_weights=TASK_WEIGHTS, domain_weights=DOMAIN_WEIGHTS)
    return setup, state, *step(copy(state), make_batch(), PROGRESS), step


def loss_by_hand(setup: Setup, dense: nnx.State, table: jax.Array, batch: Batch) -> jax.Array:
    """The loss as a function of the whole table: every lookup is an ordinary index."""
    ids = stacked_ids(FULL, batch)
    rows = jnp.where((ids >= 0)[:, None], table[jnp.maximum(ids, 0)], 0.0)
    logits = forward(setup, dense, rows, batch, None) + BASE_LOGITS
    observed = ~np.isnan(batch.labels)
    losses = optax.sigmoid_binary_cross_entropy(logits, np.nan_to_num(batch.labels))
    weight = batch.weight * np.array([1.0, 2.0, 1.0])[batch.domain]
    return jnp.sum(jnp.where(observed, losses, 0.0) * weight[:, None] * np.array([1.0, 0.5])) / batch.weight.sum()


def test_a_step_is_its_parts_put_together(stepped):
    setup, before, after, outputs, _ = stepped
    batch = make_batch()
    dense = setup.layout.unflatten(before.dense)
    loss, (dense_grads, table_grads) = jax.jit(
        jax.value_and_grad(lambda d, t: loss_by_hand(setup, d, t, batch), argnums=(0, 1))
    )(dense, jnp.asarray(stacked(setup, before)))
    np.testing.assert_allclose(outputs["loss"], loss, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(dense_grads)))
    np.testing.assert_allclose(outputs["grad_norm"], norm, rtol=1e-5)
    assert norm > OPTIMIZER.clip_norm  # else this would not see the clipping

    rate = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * PROGRESS))
    np.testing.assert_allclose(outputs["learning_rate"], 0.01 * rate, rtol=1e-6)
    # Adam's first step: both means are the clipped gradient (squared), bias-corrected.
    flat_after = jax.tree_util.tree_flatten_with_path(setup.layout.unflatten(after.dense))[0]
    for (path, new), old, g in zip(flat_after, jax.tree.leaves(dense), jax.tree.leaves(dense_grads), strict=True):
        g = np.float64(g) * OPTIMIZER.clip_norm / norm
        update = g / (np.abs(g) + 1e-8) + OPTIMIZER.weight_decay * (group_of(path_name(path)) == "decay") * old
        # Where |g| is not far above epsilon, g / (|g| + eps) turns a float32 error of g, ~1e-9, into a part of itself.
        certain = (np.abs(g) > 1e-5) | (g == 0)
        assert certain.mean() > 0.5
        np.testing.assert_allclose(
            np.asarray(new)[certain], (old - 0.01 * rate * update)[certain], rtol=1e-5, atol=1e-6
        )

    touched = np.asarray(jnp.abs(table_grads).sum(axis=1) > 0)
    ids = stacked_ids(FULL, batch)
    assert set(np.flatnonzero(touched)) <= set(ids)
    old_table, table = stacked(setup, before), stacked(setup, after)
    looked_up = np.isin(np.arange(len(old_table)), ids)
    grads = np.where(looked_up[:, None], np.float64(table_grads) + OPTIMIZER.table_l2 * np.float64(old_table), 0.0)
    accumulator = (grads**2).mean(axis=1)
    new_table = old_table - 0.1 * rate * grads / (np.sqrt(accumulator)[:, None] + 1e-8)
    np.testing.assert_allclose(stacked(setup, after, "accumulator"), accumulator, rtol=2e-4, atol=1e-12)
    np.testing.assert_allclose(table, new_table, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(table[~looked_up], old_table[~looked_up])

    assert int(after.step) == 1
    np.testing.assert_array_equal(after.base_logits, BASE_LOGITS)


def test_the_logits_are_those_of_the_state_before_the_step(stepped):
    setup, before, _, outputs, _ = stepped
    logits = make_eval_step(setup)(before, make_batch())
    assert logits.shape == (12, 2) and logits.dtype == jnp.float32
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-5, atol=1e-6)


def test_the_state_is_donated():
    setup, state = make_state()
    table = state.tables["rows"].weight
    make_train_step(setup)(state, make_batch(), PROGRESS)
    assert table.is_deleted() and all(x.is_deleted() for x in state.dense.values())


def test_empty_slots_and_padding_rows_change_nothing(stepped):
    _, before, after, outputs, step = stepped
    batch = make_batch()
    empty = batch.weight == 0
    sequences = {}
    for name, events in batch.sequences.items():
        padding = next(iter(events.ids.values())) < 0
        inside = np.zeros(len(padding), bool)
        for start, length in zip(events.offsets[:-1], events.lengths, strict=True):
            inside[start : start + length] = True
        padding &= ~inside
        assert padding.any()
        sequences[name] = dataclasses.replace(events, age_s=np.where(padding, 2**31 - 1, events.age_s))
    poisoned = dataclasses.replace(
        batch,
        sequences=sequences,
        domain=np.where(empty, 2, batch.domain).astype(np.int32),
        dense=np.where(empty[:, None], np.float32(1e3), batch.dense),
    )
    same, same_outputs = step(copy(before), poisoned, PROGRESS)
    jax.tree.map(np.testing.assert_array_equal, same.dense, after.dense)
    jax.tree.map(np.testing.assert_array_equal, same.tables, after.tables)
    assert same_outputs["loss"] == outputs["loss"]
    np.testing.assert_array_equal(same_outputs["logits"][~empty], outputs["logits"][~empty])


def test_dropout_differs_by_step_and_is_off_in_evaluation():
    setup, state = make_state(dataclasses.replace(MODEL, dropout=0.5))
    step, batch = make_train_step(setup), make_batch()
    filled = batch.weight > 0
    evaluated = make_eval_step(setup)(state, batch)

    dense = setup.layout.unflatten(state.dense)
    ids = stacked_ids(FULL, batch)
    rows = jnp.where((ids >= 0)[:, None], stacked(setup, state)[np.maximum(ids, 0)], 0.0)
    plain = jax.jit(lambda d, r: forward(setup, d, r, batch, None))(dense, rows)
    np.testing.assert_allclose(evaluated, plain + BASE_LOGITS, rtol=1e-5, atol=1e-6)

    def logits_at(number: int) -> np.ndarray:
        at = dataclasses.replace(copy(state), step=jnp.int32(number))
        return np.asarray(step(at, batch, PROGRESS)[1]["logits"])[filled]

    first, again, second = logits_at(0), logits_at(0), logits_at(1)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-3)
    assert not np.allclose(first, np.asarray(evaluated)[filled], atol=1e-3)


def test_a_new_state_is_a_function_of_its_seed():
    (setup, one), (_, same), (_, other) = make_state(seed=3), make_state(seed=3), make_state(seed=4)
    jax.tree.map(np.testing.assert_array_equal, (one.tables, one.dense), (same.tables, same.dense))
    table = stacked(setup, one)
    assert not np.array_equal(table, stacked(setup, other))
    assert table.shape == (77, 8) and abs(table.std() - 0.05) < 0.01 and abs(table.mean()) < 0.01
    counted = count_parameters(setup)
    assert counted == {"dense": sum(x.size for x in jax.tree.leaves(setup.layout.abstract())), "tables": 77 * 8}
