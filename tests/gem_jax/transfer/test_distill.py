"""What each term of the distillation moves, and what it does not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.data.schema import TrainingColumn
from gem_jax.errors import UserError
from gem_jax.models import DCNv2Config, DLRMConfig, InterFormerConfig, LogisticRegressionConfig
from gem_jax.models.gem import GemConfig
from gem_jax.models.outputs import TRAINING_ONLY, Outputs
from gem_jax.nn.parameters import path_name
from gem_jax.precision.policy import Policy
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.transfer.distill import DistillationConfig, DistilledConfig, scale_gradient
from tests.gem_jax.models.batches import FULL, embed, random_batch

TAUGHT = FULL.replace(training=(TrainingColumn(name="teacher", dim=2),))
SMALL = DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,))
STUDENTS = (
    SMALL,
    DCNv2Config(embedding_dim=4, num_cross_layers=1, hidden=(8,)),
    DCNv2Config(embedding_dim=4, num_cross_layers=1, hidden=(8,), structure="stacked"),
    InterFormerConfig(
        embedding_dim=4, num_layers=1, num_heads=1, interaction="dot", interaction_hidden=(4,), head_hidden=(8,)
    ),
    GemConfig(embedding_dim=4, num_layers=1, num_heads=1, fmb_hidden=(4,)),
)


def batch_with_teacher(num_slots=12, filled=10, seed=0):
    """Labels and the teacher's logits are unknown for some, not the same ones; what empty slots hold is wild."""
    batch, rng = random_batch(FULL, num_slots, filled=filled, seed=seed), np.random.default_rng(seed + 1)
    labels = np.where(rng.random((num_slots, 2)) < 0.3, np.nan, batch.labels).astype(np.float32)
    teacher = rng.normal(-1, 2, (num_slots, 2)).astype(np.float32)
    teacher[rng.random((num_slots, 2)) < 0.3] = np.nan
    teacher[filled:] = 50.0
    weight = (batch.weight * rng.uniform(0.5, 2, num_slots)).astype(np.float32)
    batch = dataclasses.replace(batch, labels=labels, weight=weight, training={"teacher": teacher})
    return jax.tree.map(jnp.asarray, batch)


def build(student=SMALL, **fields):
    config = DistilledConfig(student=student, hidden=(5,), **({"adapter_hidden": (3,)} | fields))
    return config.build(TAUGHT, policy=Policy(), rngs=nnx.Rngs(0))


def gradients(model, objective: DistillationConfig, batch) -> dict[str, np.ndarray]:
    """Of the loss by every parameter, and by the embedded features under 'embedded'."""
    graph, state = nnx.split(model)
    _, embedded = embed(FULL, batch, 4)
    loss_of = objective.build(TAUGHT)

    def loss(state, embedded):
        outputs = nnx.merge(graph, state)(batch, embedded).with_base(jnp.array([-1.0, -2.0]))
        return loss_of(outputs, batch)[0]

    of_state, of_embedded = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, embedded)
    flat = {path_name(path): np.asarray(v) for path, v in jax.tree_util.tree_flatten_with_path(of_state)[0]}
    return flat | {"embedded": np.concatenate([np.ravel(x) for x in jax.tree.leaves(of_embedded.features)])}


def less(a, b):
    return {name: a[name] - b[name] for name in a}


LABELS = DistillationConfig()


@functools.cache
def of_labels():
    return gradients(build(), LABELS, batch_with_teacher())


def test_the_serving_head_never_sees_the_teacher():
    both = gradients(build(), DistillationConfig(auxiliary_weight=3.0, adapted_weight=2.0), batch_with_teacher())
    readout = [n for n in both if n.startswith("head/mlp/layers/1/")]
    shaped = [n for n in both if n.startswith(("head/mlp/layers/0/", "tokens/", "embedded"))]
    assert len(readout) == 2 and len(shaped) > 4
    for name in readout:
        np.testing.assert_array_equal(both[name], of_labels()[name])
    for name in shaped:
        assert np.abs(both[name] - of_labels()[name]).max() > 1e-4, name
    towers = [n for n in both if n.startswith(f"{TRAINING_ONLY}/")]
    assert len(towers) == 12 and all(not of_labels()[n].any() and both[n].any() for n in towers)


def test_the_adapters_loss_reaches_only_the_adapter_and_nothing_else_does():
    weighed = {
        v: gradients(build(), DistillationConfig(auxiliary_weight=1.0, adapted_weight=v), batch_with_teacher())
        for v in (1.0, 1e-3)
    }
    adapter = [n for n in weighed[1.0] if n.startswith(f"{TRAINING_ONLY}/adapter/")]
    assert len(adapter) == 4
    for name in adapter:  # the loss of the head that learns from it does not come back
        np.testing.assert_array_equal(weighed[1.0][name], weighed[1e-3][name])
        assert weighed[1.0][name].any()
    # The rest of the student's gradient is that of the head alone: it vanishes with its weight, though the adapter's loss stays.
    without = gradients(build(), DistillationConfig(auxiliary_weight=1.0), batch_with_teacher())
    for name in of_labels():
        if name not in adapter:
            small, whole = weighed[1e-3][name] - without[name], weighed[1.0][name] - without[name]
            np.testing.assert_allclose(small, 1e-3 * whole, atol=1e-5 * max(1, np.abs(without[name]).max()))


def test_the_gradient_into_the_student_is_scaled_and_the_heads_is_not():
    objective = DistillationConfig(auxiliary_weight=1.0)
    once, thrice = (
        less(gradients(build(gradient_scale=b), objective, batch_with_teacher()), of_labels()) for b in (1.0, 3.0)
    )
    for name, gradient in once.items():
        factor = 1 if name.startswith(TRAINING_ONLY) else 3
        np.testing.assert_allclose(thrice[name], factor * gradient, rtol=1e-4, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(jax.grad(lambda x: (scale_gradient(x, 0.0) ** 2).sum())(jnp.ones(3)), np.zeros(3))


def test_plain_distillation_reaches_the_serving_head():
    plain = gradients(build(), DistillationConfig(serving_weight=1.0), batch_with_teacher())
    assert np.abs(plain["head/mlp/layers/1/kernel"] - of_labels()["head/mlp/layers/1/kernel"]).max() > 1e-3
    assert not any(plain[n].any() for n in plain if n.startswith(TRAINING_ONLY))


def bce(z, y):
    z = np.asarray(z, np.float64)
    return -y * -np.logaddexp(0, -z) - (1 - y) * -np.logaddexp(0, z)


def test_the_sum_is_that_of_the_equations():
    rng, batch = np.random.default_rng(3), batch_with_teacher(seed=5)
    heads = {n: rng.normal(0, 2, (12, 2)).astype(np.float32) for n in ("serving", "auxiliary", "adapted", "adapter")}
    heads = {name: jnp.asarray(x) for name, x in heads.items()}
    outputs = Outputs(logits=heads["serving"], representations=heads)
    config = DistillationConfig(
        labels=MultiTaskConfig(task_weights={"conversion": 3.0}, domain_weights={"stories": 0.5}),
        serving_weight=0.7,
        auxiliary_weight=2.0,
        adapted_weight=0.3,
        label_scale=4.0,
        negatives_kept={"conversion": 0.25},
    )
    total, measures = config.build(TAUGHT)(outputs, batch)
    expected, parts = 0.0, dict.fromkeys(("serving", "auxiliary", "raw", "adapter", "adapted"), 0.0)
    for b in range(10):
        for n in range(2):
            weight = float(batch.weight[b]) * (1, 3.0)[n] * (1, 0.5, 1)[int(batch.domain[b])]
            y, z = float(batch.labels[b, n]), float(batch.training["teacher"][b, n])
            own = {name: float(x[b, n]) for name, x in heads.items()}
            expected += 0 if np.isnan(y) else weight * bce(own["serving"], y)
            if np.isnan(z):
                continue
            odds = np.exp(z) / (1, 0.25)[n]  # of a stream with a quarter of the negatives
            p = odds / (1 + odds)
            of = {
                "serving": (0.7, bce(own["serving"], p)),
                "auxiliary": (2.0, bce(own["auxiliary"], min(1, 4 * p))),
                "raw": (0.0, 0.0 if np.isnan(y) else bce(np.log(odds), y)),
                "adapter": (1.0, 0.0 if np.isnan(y) else bce(own["adapter"], y)),
                "adapted": (0.3, bce(own["adapted"], 1 / (1 + np.exp(-own["adapter"])))),
            }
            for name, (factor, loss) in of.items():
                expected += factor * weight * loss
                parts[name] += float(batch.weight[b]) * loss
    np.testing.assert_allclose(total, expected, rtol=3e-6)
    for name, part in parts.items():
        np.testing.assert_allclose(measures[f"teacher/{name}"], part, rtol=3e-6)


@pytest.mark.parametrize("student", STUDENTS, ids=lambda s: type(s).__name__)
def test_any_student_keeps_its_names_and_gives_what_the_heads_read(student):
    plain, taught = (
        nnx.eval_shape(lambda c=c: c.build(TAUGHT, policy=Policy(), rngs=nnx.Rngs(0)))
        for c in (student, DistilledConfig(student=student, hidden=(5,), adapter_hidden=(3,)))
    )
    paths = [{path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(nnx.state(m))[0]} for m in (plain, taught)]
    assert paths[0] == {p for p in paths[1] if not p.startswith(f"{TRAINING_ONLY}/")} and paths[0] != paths[1]
    batch = batch_with_teacher()
    _, embedded = embed(FULL, batch, 4)
    outputs = jax.eval_shape(lambda m, b, e: m(b, e), taught, batch, embedded)
    assert outputs.more_logits == ("adapted", "adapter", "auxiliary")
    assert {outputs.representations[name].shape for name in outputs.more_logits} == {(12, 2)}


def test_the_student_answers_as_it_would_alone():
    batch = batch_with_teacher()
    plain, taught = SMALL.build(TAUGHT, policy=Policy(), rngs=nnx.Rngs(0)), build()
    nnx.update(taught, nnx.state(plain))
    _, embedded = embed(FULL, batch, 4)
    own, its = jax.jit(lambda m, n: (m(batch, embedded), n(batch, embedded)))(plain, taught)
    np.testing.assert_array_equal(own.logits, its.logits)
    base = jnp.array([-1.0, 2.0])
    raw = its.representations["auxiliary"]
    np.testing.assert_array_equal(its.with_base(base).representations["auxiliary"], raw + base)


def test_errors():
    with pytest.raises(UserError, match="LogisticRegression.*no hidden_axis"):
        build(LogisticRegressionConfig())
    with pytest.raises(UserError, match="no labels of one; use a JoinedConfig"):
        DistillationConfig(auxiliary_weight=1.0).build(FULL)
    with pytest.raises(UserError, match="negatives_kept names 'sale'"):
        DistillationConfig(negatives_kept={"sale": 0.5}).build(TAUGHT)
    with pytest.raises(UserError, match="must lie in"):
        DistillationConfig(negatives_kept={"click": 0.0})
    with pytest.raises(UserError, match="auxiliary_weight=-1"):
        DistillationConfig(auxiliary_weight=-1.0)
    with pytest.raises(UserError, match="'adapter', which the model lacks"):
        gradients(build(adapter_hidden=()), DistillationConfig(adapted_weight=1.0), batch_with_teacher())
