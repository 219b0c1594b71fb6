"""A student that learns from labels and from a teacher's logits, and serves as if it had never had a teacher.

With h the binary cross-entropy, y the labels, p_T the teacher's probability, f = `representations["hidden"]`, what the student's
last linear map reads, and s its logits, ExFM (arXiv 2502.17494, equations 3 to 7) trains

    h(s, y) + w h(d, min(1, a p_T)) + v h(d', sg(p_A)),      d = H_d(G_b(f)),  d' = H_d'(G_b(f)),      p_A = sigmoid(MLP(z_T))

G_b is the identity whose gradient is multiplied by b, sg stops gradients. So the teacher shapes what the student's layers make of
an example, and the linear map that serves learns from labels alone (Rec-Distill, 2605.29755, calls the two towers). The adapter MLP
is fitted to the labels by h(p_A, y), which reaches nothing else: it follows the truth where a teacher lags behind it. Within a step
its answer is the one from before its update, so that no label reaches the student through an adapter that has been fitted to it.

Plain distillation, h(s, y) + l h(s, p_T), is the same objective with the serving logits in the place of d, and needs no tower.

Shape letters: B examples, N tasks, H hidden units.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.errors import UserError
from gem_jax.models.outputs import TRAINING_ONLY, Model, ModelConfig, Outputs
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Axis, Names
from gem_jax.precision.policy import Policy
from gem_jax.training.objective import MultiTask, MultiTaskConfig, binary_cross_entropy
from gem_jax.transfer import TEACHER
from gem_jax.transfer.extended import extended

AUXILIARY, ADAPTED, ADAPTER = "auxiliary", "adapted", "adapter"
"""Representations that are logits too: of the head that learns from the teacher, of the one that learns from the adapter, and of
the adapter itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledConfig:
    """A student with a head that learns from a teacher, and one more that learns from an adapter of the teacher.

    The student's parameters keep their names; those of the heads and of the adapter lie in `training_only`.
    """

    student: ModelConfig
    """The model that serves; it must return `representations["hidden"]`."""
    hidden: tuple[int, ...] = (32,)
    """Hidden sizes of the head H_d that learns from the teacher, and of H_d'."""
    gradient_scale: float = 1.0
    """b: the gradient of these heads is multiplied by it where it enters the student."""
    adapter_hidden: tuple[int, ...] = ()
    """Hidden sizes of the adapter; none for no adapter."""

    @property
    def embedding_dim(self) -> int | None:
        """Width of the student's embedding tables."""
        return self.student.embedding_dim

    def serving(self) -> ModelConfig:
        """The student alone."""
        return self.student

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> Model:
        """The student, its heads and its adapter with random weights.

        Raises:
          UserError: the student does not say what its last linear map reads.
        """
        student = self.student.build(schema, policy=policy, rngs=rngs)
        axis = getattr(student, "hidden_axis", None)
        if axis is None:
            raise UserError(
                f"model.student is a '{type(self.student).__name__}', whose model has no hidden_axis for the teacher's head; "
                'use one that returns representations["hidden"], such as DLRMConfig'
            )
        tasks = tuple(task.name for task in schema.tasks)
        model = extended(student, _answer)
        setattr(model, TRAINING_ONLY, Towers(self, axis, tasks, policy=policy, rngs=rngs))
        return model


def _answer(model: Any, outputs: Outputs, batch: Batch) -> Outputs:
    """The student's outputs and the towers'."""
    found = getattr(model, TRAINING_ONLY)(outputs.representations["hidden"], batch)
    return dataclasses.replace(
        outputs, representations=outputs.representations | found, more_logits=tuple(sorted(found))
    )


class Towers(nnx.Module):
    """The heads that learn from the teacher, and the adapter.

    Args:
      config: their sizes.
      axis: of the student's hidden representation.
      tasks: names of the N tasks.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, config: DistilledConfig, axis: Axis, tasks: Names, *, policy: Policy, rngs: nnx.Rngs):
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.gradient_scale = config.gradient_scale
        self.policy = policy
        self.auxiliary = MLP(axis, config.hidden, tasks, **make)
        has_adapter = bool(config.adapter_hidden)
        self.adapted = MLP(axis, config.hidden, tasks, **make) if has_adapter else None
        self.adapter = MLP(tasks, config.adapter_hidden, tasks, **make) if has_adapter else None

    def __call__(self, hidden: Float[Array, "B H"], batch: Batch) -> dict[str, Float[Array, "B N"]]:
        """Logits by name. The adapter reads the teacher's; where these are unknown its answer means nothing."""
        shared = scale_gradient(hidden, self.gradient_scale)
        with jax.named_scope("auxiliary"):
            found = {AUXILIARY: self.auxiliary(shared)}
        if self.adapted is not None and self.adapter is not None:
            with jax.named_scope("adapter"):
                found |= {ADAPTED: self.adapted(shared), ADAPTER: self.adapter(jnp.nan_to_num(batch.training[TEACHER]))}
        return {name: self.policy.to_reduce(logits) for name, logits in found.items()}


def scale_gradient(x: Float[Array, "*s"], scale: float) -> Float[Array, "*s"]:
    """x, whose gradient is multiplied by `scale`."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: ((gradient * scale).astype(gradient.dtype),))
    return identity(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Cross-entropy to labels and to a teacher, see `gem_jax.transfer.distill`; a weight of 0 leaves its term out."""

    labels: MultiTaskConfig = dataclasses.field(default_factory=MultiTaskConfig)
    """The loss to the labels, whose weights of tasks and domains the teacher's terms have too."""
    serving_weight: float = 0.0
    """l: of the teacher's probability as a label of the serving logits, which is plain distillation."""
    auxiliary_weight: float = 0.0
    """w: of the head that learns from the teacher."""
    adapted_weight: float = 0.0
    """v: of the head that learns from the adapter, which then learns too."""
    label_scale: float = 1.0
    """a: the auxiliary head learns min(1, a p_T); more than 1 spreads the labels of rare events."""
    negatives_kept: dict[str, float] = dataclasses.field(default_factory=dict)
    """Task -> the share of negatives that the student's data keep of the teacher's; the teacher's odds are divided by it."""

    def __post_init__(self):
        for name in ("serving_weight", "auxiliary_weight", "adapted_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"objective.{name}={getattr(self, name)} must not be negative")
        if not self.label_scale > 0:
            raise UserError(f"objective.label_scale={self.label_scale} must be positive")
        for task, share in self.negatives_kept.items():
            if not 0 < share <= 1:
                raise UserError(f"objective.negatives_kept.{task}={share} is a share; it must lie in (0, 1]")

    def build(self, schema: Schema) -> "Distillation":
        """The objective for a schema.

        Raises:
          UserError: the data have no teacher's logits, or a weight names what they do not have.
        """
        tasks = tuple(task.name for task in schema.tasks)
        if TEACHER not in {column.name for column in schema.training}:
            raise UserError(
                "the objective learns from a teacher, and the data have no labels of one; use a JoinedConfig"
            )
        for name in self.negatives_kept:
            if name not in tasks:
                raise UserError(
                    f"objective.negatives_kept names '{name}', which the data does not have; it has {', '.join(tasks)}"
                )
        shift = tuple(-float(np.log(self.negatives_kept.get(name, 1.0))) for name in tasks)
        return Distillation(config=self, labels=self.labels.build(schema), shift=shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Sum over tasks and examples; the measures are those of the labels' loss and, by term, `teacher/<term>` of all tasks.

    Beside an adapter's own loss to the labels, `teacher/adapter`, stands that of the teacher on the same labels, `teacher/raw`.

    A teacher's logit that is NaN is unknown: its terms add nothing for that example and task, as a NaN label adds nothing to the
    labels' loss. The teacher's terms need no label.
    """

    config: DistillationConfig
    labels: MultiTask
    shift: tuple[float, ...]

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        config = self.config
        total, measures = self.labels(outputs, batch)
        teacher = jax.lax.stop_gradient(batch.training[TEACHER])
        known = ~jnp.isnan(teacher)
        logits = jnp.where(known, teacher, 0.0) + jnp.array(self.shift, jnp.float32)
        p = jax.nn.sigmoid(logits)
        terms = {}
        if config.serving_weight:
            terms["serving"] = (config.serving_weight, outputs.logits, p, known)
        if config.auxiliary_weight:
            terms[AUXILIARY] = (
                config.auxiliary_weight,
                _head(outputs, AUXILIARY),
                jnp.minimum(1.0, config.label_scale * p),
                known,
            )
        if config.adapted_weight:
            observed = known & ~jnp.isnan(batch.labels)
            adapter = _head(outputs, ADAPTER)
            adapted = jax.lax.stop_gradient(jax.nn.sigmoid(adapter))
            labels = jnp.where(observed, batch.labels, 0.0)
            terms["raw"] = (0.0, logits, labels, observed)  # what the adapter has to better
            terms[ADAPTER] = (1.0, adapter, labels, observed)
            terms[ADAPTED] = (config.adapted_weight, _head(outputs, ADAPTED), adapted, known)
        for name, (weight, predicted, target, counts) in terms.items():
            loss, unweighted = self._sums(predicted, target, counts, batch)
            total += weight * loss
            measures[f"teacher/{name}"] = unweighted
        return total, measures

    def _sums(
        self, logits: Float[Array, "B N"], target: Float[Array, "B N"], counts: Bool[Array, "B N"], batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The cross-entropy summed with the weights of tasks and domains, and without."""
        losses = jnp.where(counts, binary_cross_entropy(logits, target), 0.0) * batch.weight[:, None]
        domain = jnp.array(self.labels.domain_weights, jnp.float32)[batch.domain]
        weighted = losses * domain[:, None] * np.array(self.labels.task_weights, np.float32)
        return jnp.sum(weighted), jnp.sum(losses)


def _head(outputs: Outputs, name: str) -> Float[Array, "B N"]:
    if name not in outputs.representations:
        needed = "adapter_hidden of at least one size" if name in (ADAPTED, ADAPTER) else "one"
        raise UserError(
            f"the objective has a term for the head '{name}', which the model lacks; use a DistilledConfig with {needed}"
        )
    return outputs.representations[name]
