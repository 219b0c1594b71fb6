"""ESMM, the entire-space multi-task model (arXiv 1804.07931): the probability of a conversion is that of the click times that of a
conversion after it, both learned on all impressions.

A task's label is for the whole space: 0 where the event that it presupposes did not happen. Then the usual cross-entropy of every
task is the paper's loss (Eq 3), since the outputs' logits are those of the products.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.models.outputs import Outputs
from gem_jax.nn.bags import PooledFeatures
from gem_jax.nn.dropout import split_key
from gem_jax.nn.mlp import MLP
from gem_jax.precision.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ESMMConfig:
    """ESMM on the features and the mean-pooled histories."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    parents: dict[str, str] = dataclasses.field(default_factory=dict)
    """Task -> the task whose event it presupposes, e.g. conversion=click; a task not named presupposes none."""
    tower_hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of each task's MLP."""
    likeness: bool = False
    """The mean likeness of each history to the candidate is an input (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    dropout: float = 0.0
    """Dropout rate of the towers."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "ESMMModel":
        """The model with random weights.

        Raises:
          UserError: `parents` names a task that the data does not have, or leads from a task back to itself.
        """
        return ESMMModel(self, schema, policy=policy, rngs=rngs)


class ESMMModel(nnx.Module):
    """An MLP of its own for each task on one embedding of the features, its logit conditional on the task's parent. Domains are not
    used."""

    def __init__(self, config: ESMMConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        self.tasks = tasks = tuple(task.name for task in schema.tasks)
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.parents = parents_of(config.parents, tasks)
        self.features = PooledFeatures(schema, config.embedding_dim, likeness=config.likeness, **make)
        self.towers = nnx.Dict(
            {
                name: MLP(self.features.names, config.tower_hidden, 1, dropout_rate=config.dropout, **make)
                for name in tasks
            }
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Conditional logits with their parents; "last": the embedding that the towers share."""
        feature_key, *tower_keys = split_key(key, 1 + len(self.towers))
        x = self.features(batch, embedded, feature_key)
        with jax.named_scope("heads"):
            logits = [self.towers[name](x, k) for name, k in zip(self.tasks, tower_keys, strict=True)]
        return Outputs(
            logits=self.policy.to_reduce(jnp.concatenate(logits, axis=1)),
            representations={"last": x},
            parents=self.parents,
        )


def parents_of(named: dict[str, str], tasks: tuple[str, ...]) -> tuple[int | None, ...]:
    """For each task the place of the task that it presupposes, or None.

    Raises:
      UserError: a name is no task, or a task presupposes itself through others.
    """
    for name in (*named, *named.values()):
        if name not in tasks:
            raise UserError(
                f"model.parents names the task '{name}', which the data does not have; it has {', '.join(tasks)}"
            )
    for name in named:
        seen = [name]
        while seen[-1] in named:
            seen.append(named[seen[-1]])
            if seen[-1] in seen[:-1]:
                raise UserError(
                    f"model.parents leads from '{seen[-1]}' back to itself; a task must presuppose an earlier one"
                )
    return tuple(tasks.index(named[name]) if name in named else None for name in tasks)
