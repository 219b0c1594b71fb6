"""The optimizer of the dense parameters, and the learning rates' course over the run.

Adam with decoupled weight decay on what is marked for it (`gem_jax.nn.parameters`). Embedding tables have optimizers of their own:
`gem_jax.embedding.row_optimizers`.

With `average` the parameters of a run are the running mean of those that learn (Polyak and Juditsky 1992, exponential), and the
optimizer keeps how far the learning ones lead. Who evaluates, saves, scores or starts from a run takes the mean and need not know.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gem_jax.embedding.row_optimizers import RowOptimizer, TableOptimizer, row_optimizer
from gem_jax.errors import UserError
from gem_jax.training.buckets import Bucket, Buckets, Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How dense parameters and embedding tables start and learn."""

    learning_rate: float = 1e-3
    """Peak learning rate of the dense parameters (Adam)."""
    beta1: float = 0.9
    """Adam: decay of the gradient's running mean."""
    beta2: float = 0.999
    """Adam: decay of the squared gradient's running mean."""
    weight_decay: float = 0.0
    """Decoupled decay of dense matrices, times the learning rate; biases, norms and seeds have none."""
    clip_norm: float = 1.0
    """Dense gradients are scaled down to this global norm; tables are not clipped (Adagrad normalises each row)."""
    group_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Optimizer group of parameters -> factor on their learning rate; 1 for a group not named, 0 freezes it."""
    table_optimizer: TableOptimizer = "rowwise_adagrad"
    """Of the embedding tables, on the rows that a batch touches; Adam keeps two more numbers for each, Adagrad one for each row."""
    table_learning_rate: float = 0.05
    """Peak learning rate of the embedding tables."""
    table_init_std: float = 0.05
    """Standard deviation of a new table's rows."""
    table_init_accumulator: float = 0.0
    """What Adagrad's squared sums start from; larger damps the first updates of a row."""
    table_l2: float = 0.0
    """L2 penalty on the rows that a batch touches."""
    warmup: float = 0.05
    """Fraction of the run over which the learning rates rise linearly from 0."""
    final: float = 0.05
    """Learning rate at the end, as a fraction of the peak; falls along a half cosine."""
    average: float = 0.0
    """Decay, a step, of the running mean of dense parameters that a run evaluates and keeps, e.g. 0.98; 0 keeps the last ones."""

    def __post_init__(self):
        for name in ("learning_rate", "table_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be positive")
        for name in ("weight_decay", "table_init_std", "table_init_accumulator", "table_l2", "final"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2", "warmup", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name}={getattr(self, name)} is a fraction; it must lie in [0, 1)")
        for group, rate in self.group_rates.items():
            if not rate >= 0:
                raise UserError(f"optimizer.group_rates.{group}={rate} must not be negative")


def table_optimizer(config: OptimizerConfig) -> RowOptimizer:
    """The optimizer of the embedding tables' rows."""
    return row_optimizer(
        config.table_optimizer,
        l2=config.table_l2,
        beta1=config.beta1,
        beta2=config.beta2,
        initial_accumulator=config.table_init_accumulator,
    )


def schedule(config: OptimizerConfig, progress: Float[Array, ""]) -> Float[Array, ""]:
    """Factor on the peak learning rates at `progress` in [0, 1], the fraction of the run's examples already trained on.

    By examples rather than steps, since a packed batch holds a varying number of them.
    """
    progress = jnp.clip(progress, 0.0, 1.0)
    cosine = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if config.warmup == 0:
        return cosine
    # The first step starts at progress 0: a floor of 1 % of the warm-up keeps it from being wasted.
    return cosine * jnp.clip(progress / config.warmup, 0.01, 1.0)


def dense_optimizer(config: OptimizerConfig, buckets: Buckets) -> optax.GradientTransformation:
    """Adam(W) of a model's buckets, without clipping and learning rate: the step multiplies by both.

    Elementwise, so it works as well on a device's share of the vectors.

    Raises:
      UserError: `group_rates` names an optimizer group that no parameter of the model is in.
    """
    groups = {bucket.group for bucket in buckets.buckets.values()}
    for name in config.group_rates:
        if name not in groups:
            raise UserError(
                f"optimizer.group_rates names the group '{name}', which no parameter is in; there are {', '.join(sorted(groups))}"
            )
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2)
    decays = {name: bucket.decay for name, bucket in buckets.buckets.items()}
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    return optax.chain(adam, decay, _KEEP_LEAD) if config.average else optax.chain(adam, decay)


class Lead(NamedTuple):
    """What averaging adds to the optimizer's state, its last part.

    Attributes:
      lead: bucket -> float32 [P], the learning parameters less their running mean.
    """

    lead: Vectors


_KEEP_LEAD = optax.GradientTransformation(
    lambda params: Lead(jax.tree.map(jnp.zeros_like, params)), lambda updates, state, params=None: (updates, state)
)


def learning(config: OptimizerConfig, dense: Vectors, dense_opt: Any) -> Vectors:
    """The parameters that learn, of a state that keeps their running mean."""
    return {name: w + dense_opt[-1].lead[name] for name, w in dense.items()} if config.average else dense


def averaged(
    config: OptimizerConfig, step: Int[Array, ""], mean: Vectors, learning: Vectors, dense_opt: Any
) -> tuple[Vectors, Any]:
    """What a state keeps of the parameters after a step: their running mean, and the optimizer's state with the lead.

    mean' = d mean + (1 - d) learning with d = min(average, step / (step + 1)): over all steps at first, so that nothing of the
    initial values stays.

    Args:
      config: with `average`; without, what learns is kept.
      step: taken before this one.
      mean: bucket -> float32 [P], before the step.
      learning: after it.
      dense_opt: the optimizer's state after it, with the lead before it.
    """
    if not config.average:
        return learning, dense_opt
    decay = jnp.minimum(config.average, step / (step + 1.0))
    mean = {name: w + decay * (mean[name] - w) for name, w in learning.items()}
    lead = {name: w - mean[name] for name, w in learning.items()}
    return mean, (*dense_opt[:-1], Lead(lead))


def group_rate(config: OptimizerConfig, bucket: Bucket) -> float:
    """The factor on a bucket's learning rate."""
    return config.group_rates.get(bucket.group, 1.0)


def clip_factor(config: OptimizerConfig, norm: Float[Array, ""]) -> Float[Array, ""]:
    """What dense gradients of this global norm are multiplied by: 1 up to `clip_norm`."""
    return config.clip_norm / jnp.maximum(norm, config.clip_norm)
