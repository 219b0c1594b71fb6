"""Which optimizer each parameter gets, by its path; the learning rate's course over the run.

Embedding tables: `gem_jax.embedding.touched_rows`, row-wise Adagrad unless configured. Everything dense: Adam, with decoupled
weight decay on matrices only.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gem_jax.embedding.touched_rows import TableOptimizer

DENSE_GROUPS = (
    (r"(^|/)(scale|seeds|domain_gate|places|position|time|(\w+_)?bias)$", "no_decay"),
    (r"(^|/)(kernel|weight|tower|readout|w|w1|w2|y|z)$", "decay"),
)
"""(pattern of the parameter's path, group); the first match wins and a path that matches none is an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
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

    def __post_init__(self):
        for name in ("learning_rate", "table_learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be positive")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optimizer.warmup={self.warmup} is a fraction of the run; it must lie in [0, 1)")


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


def path_name(path: tuple) -> str:
    """'layers/0/cross/kernel' for a tree path; NNX's own last step, to a variable's value, is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def group_of(path: str) -> str:
    """The optimizer group of a dense parameter.

    Raises:
      ValueError: no pattern matches the path.
    """
    for pattern, group in DENSE_GROUPS:
        if re.search(pattern, path):
            return group
    raise ValueError(f"no optimizer for parameter '{path}'; name it after a pattern in DENSE_GROUPS or add one")


def dense_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam(W) for `flat.FlatState`s, without clipping and learning rate: the step multiplies by both.

    Elementwise, so it works as well on a device's share of the vectors.
    """
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2)

    def decays(flat):
        return {name: name.endswith(":decay") for name in flat}

    return optax.chain(adam, optax.add_decayed_weights(config.weight_decay, mask=decays))


def clip_factor(config: OptimizerConfig, norm: Float[Array, ""]) -> Float[Array, ""]:
    """What dense gradients of this global norm are multiplied by: 1 up to `clip_norm`."""
    return config.clip_norm / jnp.maximum(norm, config.clip_norm)
