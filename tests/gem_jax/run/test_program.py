"""The jitted steps against their parts put together by hand: jax.grad, optax and an Adagrad over the whole table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gem_jax.config import Config
from gem_jax.data.batch import Batch
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.embedding.tables import Embedded
from gem_jax.models import DLRMConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.training.state import TrainState
from gem_jax.training.step import forward
from tests.gem_jax.models.batches import FULL, random_batch

MODEL = DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,))
OPTIMIZER = OptimizerConfig(
    learning_rate=0.01, weight_decay=0.1, clip_norm=0.05, table_learning_rate=0.1, table_l2=0.01, warmup=0.0
)
BASE_LOGITS = np.float32([-1.0, -3.0])
OBJECTIVE = MultiTaskConfig(task_weights={"conversion": 0.5}, domain_weights={"stories": 2.0})
PROGRESS = 0.3


def make_program(model=MODEL, objective=OBJECTIVE) -> Program:
    """On one device."""
    config = Config(
        name="program",
        data=SyntheticConfig(),  # not read
        model=model,
        batch=BatchConfig(examples=12),
        objective=objective,
        optimizer=OPTIMIZER,
        mesh=MeshConfig(replica=1, shard=1),
    )
    return Program.of(config, FULL, RunPlan.of(config, FULL))


def make_state(model=MODEL, seed: int = 0) -> tuple[Program, TrainState]:
    program = make_program(model)
    return program, program.init(seed, BASE_LOGITS)


def make_batch(num_slots: int = 12, filled: int = 9) -> Batch:
    """Random examples with unobserved labels, a weight other than 1 and empty slots."""
    batch = random_batch(FULL, num_slots, filled=filled)
    batch.labels[1, 0] = batch.labels[3, 1] = np.nan
    batch.weight[2] = 3.0
    return batch


def tables_of(program: Program, state: TrainState, slot: str = "weight") -> dict[str, np.ndarray]:
    """Every table's rows."""
    arrays = program.to_logical(state)
    return {t.name: np.asarray(arrays[f"tables/{t.name}/{slot}"]) for t in FULL.tables}


def copy(state: TrainState) -> TrainState:
    """The same values in other buffers: a step consumes the state that it is given."""
    return jax.tree.map(jnp.copy, state)


@pytest.fixture(scope="module")
def stepped():
    """program, the state before a step, the state after it, the step's outputs."""
    program, state = make_state()
    return program, state, *program.train_step(copy(state), make_batch(), PROGRESS)


def embedded_by_hand(tables: dict[str, jax.Array], batch: Batch) -> Embedded:
    """Every lookup as an ordinary index of a whole table; 0 where an id is absent, means over the ids of a feature."""

    def rows(table: str, ids: np.ndarray) -> jax.Array:
        return jnp.where((ids >= 0)[..., None], tables[table][np.maximum(ids, 0)], 0.0)

    features = {}
    for f in FULL.categoricals:
        present = np.maximum((batch.ids[f.name] >= 0).sum(axis=1), 1)
        features[f.name] = rows(f.table, batch.ids[f.name]).sum(axis=1) / present[:, None]
    events = {
        s.name: {a.name: rows(a.table, batch.sequences[s.name].ids[a.name]) for a in s.attributes}
        for s in FULL.sequences
    }
    return Embedded(features=features, events=events)


def logits_by_hand(program: Program, dense: nnx.State, tables: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """Without base logits."""
    embedded = embedded_by_hand(tables, batch)
    return forward(program.parts, dense, embedded, jax.tree.map(jnp.asarray, batch), None).logits


def loss_by_hand(program: Program, dense: nnx.State, tables: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """The loss as a function of the whole tables: every lookup is an ordinary index."""
    logits = logits_by_hand(program, dense, tables, batch) + BASE_LOGITS
    observed = ~np.isnan(batch.labels)
    losses = optax.sigmoid_binary_cross_entropy(logits, np.nan_to_num(batch.labels))
    weight = batch.weight * np.array([1.0, 2.0, 1.0])[batch.domain]
    return jnp.sum(jnp.where(observed, losses, 0.0) * weight[:, None] * np.array([1.0, 0.5])) / batch.weight.sum()


def test_a_step_is_its_parts_put_together(stepped):
    program, before, after, outputs = stepped
    batch, buckets = make_batch(), program.parts.buckets
    dense = buckets.unflatten(before.dense)
    old_tables = tables_of(program, before)
    loss, (dense_grads, table_grads) = jax.jit(
        jax.value_and_grad(lambda d, t: loss_by_hand(program, d, t, batch), argnums=(0, 1))
    )(dense, jax.tree.map(jnp.asarray, old_tables))
    np.testing.assert_allclose(outputs["loss"], loss, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(dense_grads)))
    np.testing.assert_allclose(outputs["grad_norm"], norm, rtol=1e-5)
    assert norm > OPTIMIZER.clip_norm  # else this would not see the clipping

    rate = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * PROGRESS))
    np.testing.assert_allclose(outputs["learning_rate"], 0.01 * rate, rtol=1e-6)
    # Adam's first step: both means are the clipped gradient (squared), bias-corrected.
    news = jax.tree.leaves(buckets.unflatten(after.dense))
    olds, grads = jax.tree.leaves(dense), jax.tree.leaves(dense_grads)
    for member, new, old, g in zip(buckets.members, news, olds, grads, strict=True):
        g = np.float64(g) * OPTIMIZER.clip_norm / norm
        update = g / (np.abs(g) + 1e-8) + OPTIMIZER.weight_decay * buckets.buckets[member.bucket].decay * old
        # Where |g| is not far above epsilon, g / (|g| + eps) turns a float32 error of g, ~1e-9, into a part of itself.
        certain = (np.abs(g) > 1e-5) | (g == 0)
        assert certain.mean() > 0.5
        np.testing.assert_allclose(
            np.asarray(new)[certain], (old - 0.01 * rate * update)[certain], rtol=1e-5, atol=1e-6
        )

    new_tables, accumulators = tables_of(program, after), tables_of(program, after, "accumulator")
    looked_up = ids_of(batch)
    for name, old in old_tables.items():
        touched = np.isin(np.arange(len(old)), looked_up[name])
        g = np.where(touched[:, None], np.float64(table_grads[name]) + OPTIMIZER.table_l2 * np.float64(old), 0.0)
        accumulator = (g**2).mean(axis=1)
        expected = old - 0.1 * rate * g / (np.sqrt(accumulator)[:, None] + 1e-8)
        np.testing.assert_allclose(accumulators[name], accumulator, rtol=2e-4, atol=1e-12)
        np.testing.assert_allclose(new_tables[name], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(new_tables[name][~touched], old[~touched])

    assert int(after.step) == 1
    np.testing.assert_array_equal(after.base_logits, BASE_LOGITS)
    np.testing.assert_allclose(
        outputs["measures"]["loss/click"] + 0 * outputs["measures"]["loss/conversion"],
        by_task(program, before, batch)[0],
        rtol=1e-5,
    )


def by_task(program: Program, state: TrainState, batch: Batch) -> np.ndarray:
    """Each task's unweighted loss."""
    losses = optax.sigmoid_binary_cross_entropy(program.eval_step(state, batch), np.nan_to_num(batch.labels))
    losses = np.where(np.isnan(batch.labels), 0.0, losses) * batch.weight[:, None]
    return losses.sum(axis=0) / batch.weight.sum()


def ids_of(batch: Batch) -> dict[str, np.ndarray]:
    """The ids that a batch looks up in each table."""
    found: dict[str, list[np.ndarray]] = {table.name: [] for table in FULL.tables}
    for feature in FULL.categoricals:
        found[feature.table].append(batch.ids[feature.name].ravel())
    for sequence in FULL.sequences:
        for attribute in sequence.attributes:
            found[attribute.table].append(batch.sequences[sequence.name].ids[attribute.name])
    return {name: np.concatenate([*parts, [-1]]) for name, parts in found.items()}


def test_the_logits_are_those_of_the_state_before_the_step(stepped):
    program, before, _, outputs = stepped
    logits = program.eval_step(before, make_batch())
    assert logits.shape == (12, 2) and logits.dtype == jnp.float32
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-5, atol=1e-6)
    scored = program.score(before, make_batch())
    np.testing.assert_array_equal(scored.logits, logits)
    assert scored.representations["last"].shape[0] == 12


def test_the_state_is_donated():
    program, state = make_state()
    table = state.tables["rows"]["weight"]
    program.train_step(state, make_batch(), PROGRESS)
    assert table.is_deleted() and all(x.is_deleted() for x in state.dense.values())


def test_signals_are_summed(stepped):
    program, before, _, outputs = stepped
    np.testing.assert_array_equal(outputs["signals"], 0)
    signals = jnp.array([[1, 250, 0, 1]], jnp.int32)
    np.testing.assert_array_equal(
        program.train_step(copy(before), make_batch(), PROGRESS, signals)[1]["signals"], signals[0]
    )


def test_empty_slots_and_padding_rows_change_nothing(stepped):
    program, before, after, outputs = stepped
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
    same, same_outputs = program.train_step(copy(before), poisoned, PROGRESS)
    jax.tree.map(np.testing.assert_array_equal, same.dense, after.dense)
    jax.tree.map(np.testing.assert_array_equal, same.tables, after.tables)
    assert same_outputs["loss"] == outputs["loss"]
    np.testing.assert_array_equal(same_outputs["logits"][~empty], outputs["logits"][~empty])


def test_dropout_differs_by_step_and_is_off_in_evaluation():
    program, state = make_state(dataclasses.replace(MODEL, dropout=0.5))
    batch = make_batch()
    filled = batch.weight > 0
    evaluated = program.eval_step(state, batch)

    dense = program.parts.buckets.unflatten(state.dense)
    tables = jax.tree.map(jnp.asarray, tables_of(program, state))
    plain = jax.jit(lambda d, t: logits_by_hand(program, d, t, batch))(dense, tables)
    np.testing.assert_allclose(evaluated, plain + BASE_LOGITS, rtol=1e-5, atol=1e-6)

    def logits_at(number: int) -> np.ndarray:
        at = dataclasses.replace(copy(state), step=jnp.int32(number))
        return np.asarray(program.train_step(at, batch, PROGRESS)[1]["logits"])[filled]

    first, again, second = logits_at(0), logits_at(0), logits_at(1)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-3)
    assert not np.allclose(first, np.asarray(evaluated)[filled], atol=1e-3)


def test_a_new_state_is_a_function_of_its_seed():
    (program, one), (_, same), (_, other) = make_state(seed=3), make_state(seed=3), make_state(seed=4)
    jax.tree.map(np.testing.assert_array_equal, (one.tables, one.dense), (same.tables, same.dense))
    table = np.concatenate(list(tables_of(program, one).values()))
    assert not np.array_equal(table, np.concatenate(list(tables_of(program, other).values())))
    assert table.shape == (77, 8) and abs(table.std() - 0.05) < 0.01 and abs(table.mean()) < 0.01
    counted = program.count_parameters()
    dense = sum(x.size for x in jax.tree.leaves(program.parts.buckets.abstract()))
    assert counted == {"dense": dense, "tables": 77 * 8}


def test_the_shapes_are_those_of_the_state(stepped):
    program, before, *_ = stepped
    shapes = program.shapes()
    assert jax.tree.structure(shapes) == jax.tree.structure(before)
    for shape, x in zip(jax.tree.leaves(shapes), jax.tree.leaves(before), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (x.shape, x.dtype, x.sharding)


def test_by_name_and_back_is_the_same_state(stepped):
    program, _, after, _ = stepped
    arrays = program.to_logical(after)
    specs = program.logical_specs()
    assert arrays.keys() == specs.keys()
    for name, x in arrays.items():
        assert (x.shape, x.dtype) == (specs[name].shape, specs[name].dtype), name
    back = program.from_logical(arrays)
    assert jax.tree.structure(back) == jax.tree.structure(after)
    states = [dataclasses.replace(s, key=jax.random.key_data(s.key)) for s in (back, after)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    slots = {name.rsplit("/", 1)[1] for name in arrays if name.startswith("dense/")}
    assert slots == {"value", "mu", "nu"} and {"step", "key", "base_logits", "optimizer/count"} <= arrays.keys()


def test_no_parameter_depends_on_the_order_of_the_schema(stepped):
    assert stepped[0].positional == {}
