"""What a run minimises: an objective turns a model's outputs into a sum over examples and named measures.

Shape letters: B examples, N tasks.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.errors import UserError
from gem_jax.models.outputs import Outputs


@runtime_checkable
class Objective(Protocol):
    """A pure function of one device's outputs and batch."""

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """(sum, measures): the loss summed over the device's examples, and sums of other numbers by name.

        The step adds both over all devices and divides them by the weight of all examples. Empty slots have weight 0 and must add
        nothing; the base logits are already in `outputs.logits`.
        """
        ...


@runtime_checkable
class ObjectiveConfig(Protocol):
    """A frozen dataclass that names an objective in a config; a config file may bring its own."""

    def build(self, schema: Schema) -> Objective:
        """The objective for a schema; raises UserError where it names what the schema does not have."""
        ...


def binary_cross_entropy(logits: Float[Array, "*s"], labels: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """-log p(label), nats; stable for any logit: softplus(x) - y x."""
    return jax.nn.softplus(logits) - labels * logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTaskConfig:
    """Binary cross-entropy of every task, weighted by task and by domain."""

    task_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of a task's loss; 1 for a task not named."""
    domain_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of a domain's examples in the loss; 1 for a domain not named."""

    def build(self, schema: Schema) -> "MultiTask":
        """The objective for a schema.

        Raises:
          UserError: a weight names a task or domain that the data does not have: it would do nothing.
        """
        tasks = tuple(task.name for task in schema.tasks)
        for field, given, known in (
            ("task_weights", self.task_weights, tasks),
            ("domain_weights", self.domain_weights, schema.domains),
        ):
            for name in given:
                if name not in known:
                    raise UserError(
                        f"objective.{field} names '{name}', which the data does not have; it has {', '.join(known)}"
                    )
        return MultiTask(
            tasks=tasks,
            task_weights=tuple(self.task_weights.get(name, 1.0) for name in tasks),
            domain_weights=tuple(self.domain_weights.get(name, 1.0) for name in schema.domains),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTask:
    """Sum over tasks and examples of the weighted cross-entropy; the measures are each task's unweighted part, `loss/<task>`.

    A NaN label is unobserved and adds nothing. Dividing by the examples' weight, not by the number of observed labels, keeps each
    label's say the same whatever batch it falls into.
    """

    tasks: tuple[str, ...]
    task_weights: tuple[float, ...]
    domain_weights: tuple[float, ...]

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        observed = ~jnp.isnan(batch.labels)
        losses = binary_cross_entropy(outputs.logits, jnp.where(observed, batch.labels, 0.0))
        losses = jnp.where(observed, losses, 0.0)
        example = batch.weight * jnp.array(self.domain_weights, jnp.float32)[batch.domain]
        total = jnp.sum(losses * example[:, None] * np.array(self.task_weights, np.float32))
        by_task = jnp.sum(losses * batch.weight[:, None], axis=0)
        return total, {f"loss/{name}": by_task[n] for n, name in enumerate(self.tasks)}
