"""The multi-task objective against its equation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.data.batch import Batch
from gem_jax.errors import UserError
from gem_jax.models.outputs import Outputs
from gem_jax.training.objective import MultiTask, MultiTaskConfig, binary_cross_entropy
from tests.gem_jax.models.batches import FULL

EPS = np.finfo(np.float32).eps


def multitask_loss(logits, labels, weight, domain, by_task, by_domain):
    """The objective's sum, as a function of arrays."""
    return objective(by_task, by_domain)(Outputs(logits=jnp.asarray(logits)), batch_of(labels, weight, domain))[0]


def objective(by_task, by_domain) -> MultiTask:
    names = tuple(f"task{n}" for n in range(len(by_task)))
    return MultiTask(tasks=names, task_weights=tuple(by_task.tolist()), domain_weights=tuple(by_domain.tolist()))


def batch_of(labels, weight, domain) -> Batch:
    none = np.zeros((len(weight), 0), np.float32)
    columns = dict(labels=jnp.asarray(labels), domain=jnp.asarray(domain), weight=jnp.asarray(weight))
    return Batch(ids={}, dense=none, vectors={}, sequences={}, **columns)


def example(num_slots: int = 50, filled: int = 43):
    """logits, labels, weight, domain, task weights, domain weights; the slots from `filled` on are empty."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (num_slots, 3))
    labels = rng.integers(0, 2, (num_slots, 3)).astype(np.float64)
    labels[rng.random(labels.shape) < 0.4] = np.nan
    labels[filled:] = np.nan
    weight = rng.uniform(0, 3, num_slots)
    weight[7] = 0
    weight[filled:] = 0
    columns = (logits, labels, weight, np.array([0.5, 1, 3.0]), np.array([1, 0, 2.0, 0.25]))
    logits, labels, weight, by_task, by_domain = (np.float32(c) for c in columns)
    return logits, labels, weight, rng.integers(0, 4, num_slots).astype(np.int32), by_task, by_domain


def reference(logits, labels, weight, domain, by_task, by_domain) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss, its gradient by the logits and each label's factor, one example and task after the other."""
    z, y, w, t, d = (np.asarray(a, np.float64) for a in (logits, labels, weight, by_task, by_domain))
    total, gradient, factors = 0.0, np.zeros_like(z), np.zeros_like(z)
    for b, n in np.ndindex(z.shape):
        if np.isnan(y[b, n]):
            continue
        p = 1 / (1 + np.exp(-z[b, n]))
        factor = factors[b, n] = w[b] * d[domain[b]] * t[n]
        total -= factor * (np.log(p) if y[b, n] == 1 else np.log1p(-p))
        gradient[b, n] = factor * (p - y[b, n])
    return total, gradient, factors


def test_loss_and_gradient_match_the_equation():
    arguments = example()
    loss, gradient = jax.value_and_grad(multitask_loss)(*arguments)
    expected, expected_gradient, factors = reference(*arguments)
    # All terms are positive, so the sum's relative error is that of a term, a few roundings, plus log2(150) of the sum.
    np.testing.assert_allclose(loss, expected, rtol=16 * EPS)
    # Factor times p - y: two numbers of up to 1 that may cancel, each a few roundings off.
    assert (np.abs(gradient - expected_gradient) <= 8 * EPS * factors).all()


def test_unobserved_labels_and_empty_slots_have_a_gradient_of_exactly_zero():
    logits, labels, weight, *rest = example()
    silent = np.isnan(labels) | (weight == 0)[:, None]
    logits[silent] = 1e30  # nor may a huge logit come back as inf * 0
    loss, gradient = jax.value_and_grad(multitask_loss)(logits, labels, weight, *rest)
    assert np.isfinite(loss)
    assert (np.asarray(gradient)[silent] == 0).all() and (np.asarray(gradient)[~silent] != 0).any()


def test_every_observed_label_counts_the_same():
    logits, weight, domain = np.zeros((4, 1), np.float32), np.ones(4, np.float32), np.zeros(4, np.int32)
    one = np.ones(1, np.float32)
    full = multitask_loss(logits, np.ones((4, 1), np.float32), weight, domain, one, one)
    half = multitask_loss(logits, np.float32([[1], [np.nan], [1], [np.nan]]), weight, domain, one, one)
    np.testing.assert_allclose([full, half], [4 * np.log(2), 2 * np.log(2)], rtol=4 * EPS)


def test_an_empty_batch_has_no_loss():
    none = np.full((4, 2), np.nan, np.float32)
    two = np.ones(2, np.float32)
    zeros = np.zeros(4, np.float32)
    loss, gradient = jax.value_and_grad(multitask_loss)(
        np.zeros((4, 2), np.float32), none, zeros, np.zeros(4, np.int32), two, two
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 2)))


def test_cross_entropy_is_finite_for_any_logit():
    logits = jnp.array([-1e4, -100.0, 100.0, 1e4])
    np.testing.assert_allclose(binary_cross_entropy(logits, jnp.ones(4)), [1e4, 100, 0, 0], rtol=EPS, atol=1e-37)
    np.testing.assert_allclose(binary_cross_entropy(logits, jnp.zeros(4)), [0, 0, 100, 1e4], rtol=EPS, atol=1e-37)


def test_the_measures_are_each_tasks_own_loss():
    logits, labels, weight, domain, by_task, by_domain = example()
    _, measures = objective(by_task, by_domain)(Outputs(logits=jnp.asarray(logits)), batch_of(labels, weight, domain))
    assert list(measures) == ["loss/task0", "loss/task1", "loss/task2"]
    for n in range(3):
        only = np.where(np.arange(3) == n, np.float32(1), np.float32(0))
        expected, _, _ = reference(logits, labels, weight, domain, only, np.ones_like(by_domain))
        np.testing.assert_allclose(measures[f"loss/task{n}"], expected, rtol=16 * EPS)


def test_weights_by_name():
    config = MultiTaskConfig(task_weights={"conversion": 0.5}, domain_weights={"stories": 2.0})
    built = config.build(FULL)
    assert built.tasks == tuple(t.name for t in FULL.tasks)
    assert dict(zip(built.tasks, built.task_weights, strict=True)) == {"click": 1.0, "conversion": 0.5}
    weights = dict(zip(FULL.domains, built.domain_weights, strict=True))
    assert weights.pop("stories") == 2.0 and set(weights.values()) == {1.0}


@pytest.mark.parametrize(
    ("field", "known"), [("task_weights", "click, conversion"), ("domain_weights", ", ".join(FULL.domains))]
)
def test_weights_of_what_is_not_there_are_refused(field, known):
    with pytest.raises(
        UserError, match=f"objective.{field} names 'like', which the data does not have; it has {known}"
    ):
        MultiTaskConfig(**{field: {"like": 2.0}}).build(FULL)
