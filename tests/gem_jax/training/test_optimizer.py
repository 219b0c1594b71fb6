"""The schedule, and clipped AdamW on buckets against a float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.errors import UserError
from gem_jax.training.buckets import Bucket, Buckets
from gem_jax.training.optimizer import (
    OptimizerConfig,
    averaged,
    clip_factor,
    dense_optimizer,
    group_rate,
    learning,
    schedule,
)

EPS = np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.01),  # the first step is not wasted
        (0.0005, 0.01),
        (0.1, 0.5 * (0.1 + 0.9 * (1 + np.cos(np.pi * 0.1)) / 2)),
        (0.2, 0.1 + 0.9 * (1 + np.cos(np.pi * 0.2)) / 2),
        (0.5, 0.1 + 0.9 / 2),
        (1.0, 0.1),
        (1.7, 0.1),  # the last batch may go beyond the end
        (-0.1, 0.01),
    ],
)
def test_schedule(progress, expected):
    config = OptimizerConfig(warmup=0.2, final=0.1)
    # Around the floor the cosine is 1 to within (pi 0.0005)^2.
    np.testing.assert_allclose(schedule(config, jnp.float32(progress)), expected, rtol=1e-5)


def test_schedule_without_warmup_starts_at_the_peak():
    assert schedule(OptimizerConfig(warmup=0.0), jnp.float32(0)) == 1.0


def test_schedule_rises_and_falls():
    config = OptimizerConfig(warmup=0.25, final=0.0)
    factors = np.array([schedule(config, jnp.float32(p)) for p in np.linspace(0, 1, 101)])
    top = int(factors.argmax())
    assert 20 <= top <= 25 and (np.diff(factors[1 : top + 1]) > 0).all() and (np.diff(factors[top:]) < 0).all()
    assert (factors >= 0).all() and factors[-1] == pytest.approx(0, abs=1e-6)


def buckets_of(params, group: str = "dense") -> Buckets:
    """Buckets of these vectors, which decay where their names say so."""
    kinds = {n: Bucket(size=len(x), decay=n.endswith(":decay"), exact=False, group=group) for n, x in params.items()}
    return Buckets(treedef=jax.tree.structure(0), members=(), buckets=kinds)


class AdamW:
    """Clipped Adam with decoupled decay on the vectors named ':decay', in float64."""

    def __init__(self, config: OptimizerConfig):
        self.config = config
        self.step = 0
        self.mean: dict[str, np.ndarray] = {}
        self.square: dict[str, np.ndarray] = {}

    def __call__(self, grads, params):
        c = self.config
        self.step += 1
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        updates = {}
        for name, g in grads.items():
            g = g.astype(np.float64) * min(1.0, c.clip_norm / norm)
            self.mean[name] = c.beta1 * self.mean.get(name, 0.0) + (1 - c.beta1) * g
            self.square[name] = c.beta2 * self.square.get(name, 0.0) + (1 - c.beta2) * g**2
            mean = self.mean[name] / (1 - c.beta1**self.step)
            square = self.square[name] / (1 - c.beta2**self.step)
            updates[name] = mean / (np.sqrt(square) + 1e-8)
            if name.endswith(":decay"):
                updates[name] = updates[name] + c.weight_decay * params[name]
        return updates


@pytest.mark.parametrize("clip_norm", [0.5, 1e6], ids=["clipped", "not clipped"])
def test_dense_optimizer_matches_adamw(clip_norm):
    config = OptimizerConfig(beta1=0.8, beta2=0.95, weight_decay=0.3, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    sizes = {"tokens:decay": 7, "tokens:no_decay": 3, "layers/0:decay": 5}
    params = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    optimizer, reference = dense_optimizer(config, buckets_of(params)), AdamW(config)
    state = optimizer.init(params)
    for _ in range(3):
        grads = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
        clip = clip_factor(config, jnp.float32(norm))
        updates, state = optimizer.update({name: g * clip for name, g in grads.items()}, state, params)
        expected = reference(grads, params)
        for name in sizes:
            # The bias corrections divide by 1 - beta^t, as small as 0.05: that loses a factor 20 of the precision.
            np.testing.assert_allclose(updates[name], expected[name], rtol=60 * EPS, atol=20 * EPS)
        params = {name: params[name] - np.float32(0.1) * np.asarray(updates[name]) for name in sizes}


def test_what_is_kept_is_the_running_mean_and_what_learns_is_not_moved_by_it():
    rng = np.random.default_rng(1)
    config = OptimizerConfig(average=0.6)
    sizes = {"tokens:decay": 7, "layers/0:decay": 5}
    mean = {name: jnp.float32(rng.normal(size=size)) for name, size in sizes.items()}
    optimizer = dense_optimizer(config, buckets_of(mean))
    state = optimizer.init(jax.tree.map(jnp.zeros_like, mean))  # as a program makes it, before there are values
    expected = {name: np.asarray(w, np.float64) for name, w in mean.items()}
    plain = dict(expected)
    for step in range(6):
        weights = learning(config, mean, state)
        for name in sizes:
            np.testing.assert_allclose(weights[name], plain[name], rtol=8 * EPS, atol=8 * EPS)
        updates, state = optimizer.update(
            {name: jnp.float32(rng.normal(size=size)) for name, size in sizes.items()}, state, weights
        )
        weights = {name: w - np.float32(0.1) * updates[name] for name, w in weights.items()}
        mean, state = averaged(config, jnp.int32(step), mean, weights, state)
        decay = min(0.6, step / (step + 1))  # the first step replaces the initial values
        for name in sizes:
            plain[name] = np.asarray(weights[name], np.float64)
            expected[name] = decay * expected[name] + (1 - decay) * plain[name]
            np.testing.assert_allclose(mean[name], expected[name], rtol=40 * EPS, atol=40 * EPS)


def test_without_averaging_what_learns_is_kept():
    config, weights = OptimizerConfig(), {"tokens:decay": jnp.ones(1)}
    state = dense_optimizer(config, buckets_of(weights)).init(weights)
    assert learning(config, weights, state) is weights
    assert averaged(config, jnp.int32(3), weights, weights, state) == (weights, state)


def test_only_the_decay_vectors_decay():
    params = {"head:decay": np.float32([2.0]), "head:no_decay": np.float32([2.0])}
    optimizer = dense_optimizer(OptimizerConfig(weight_decay=0.5), buckets_of(params))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert (updates["head:decay"], updates["head:no_decay"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(learning_rate=0.0), "optimizer.learning_rate=0.0 must be positive"),
        (dict(table_learning_rate=-1.0), "optimizer.table_learning_rate=-1.0 must be positive"),
        (dict(clip_norm=0.0), "optimizer.clip_norm=0.0 must be positive"),
        (dict(warmup=1.0), r"optimizer.warmup=1.0 is a fraction; it must lie in \[0, 1\)"),
        (dict(beta2=1.0), "optimizer.beta2=1.0 is a fraction"),
        (dict(average=1.0), "optimizer.average=1.0 is a fraction"),
        (dict(learning_rate=float("nan")), "optimizer.learning_rate=nan must be positive"),
        (dict(weight_decay=float("nan")), "optimizer.weight_decay=nan must not be negative"),
        (dict(group_rates={"adapter": -1.0}), "optimizer.group_rates.adapter=-1.0 must not be negative"),
        (dict(warmup=-0.1), "optimizer.warmup=-0.1 is a fraction"),
    ],
)
def test_wrong_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**change)


def test_a_groups_rate_is_found_and_an_unknown_group_refused():
    params = {"adapter:decay": np.float32([1.0])}
    buckets = buckets_of(params, group="adapter")
    config = OptimizerConfig(group_rates={"adapter": 0.1})
    dense_optimizer(config, buckets)
    assert group_rate(config, buckets.buckets["adapter:decay"]) == 0.1
    assert group_rate(OptimizerConfig(), buckets.buckets["adapter:decay"]) == 1.0
    with pytest.raises(
        UserError, match="group_rates names the group 'adapter', which no parameter is in; there are dense"
    ):
        dense_optimizer(config, buckets_of(params))
