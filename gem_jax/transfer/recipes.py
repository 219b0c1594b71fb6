"""What a recipe makes of a student's config."""

import dataclasses

from gem_jax.config import Config
from gem_jax.models.outputs import ModelConfig
from gem_jax.train import Options
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.transfer.config import Recipe, Strength
from gem_jax.transfer.distill import DistillationConfig, DistilledConfig
from gem_jax.transfer.joined import JoinedConfig
from gem_jax.transfer.sharing import FrozenConfig, with_rates

DISTILLS: dict[Recipe, tuple[str, ...]] = {
    "kd": ("serving",),
    "auxiliary": ("auxiliary",),
    "adapter": ("auxiliary", "adapted"),
    "full": ("auxiliary", "adapted"),
    "stale_kd": ("serving",),
    "stale_full": ("auxiliary", "adapted"),
    "hierarchical": ("auxiliary", "adapted"),
}
"""Recipe -> which terms its objective has beside the labels'."""

READS: tuple[Recipe, ...] = ("representation", "full", "stale_full", "hierarchical")
"""Recipes whose students read a teacher's embeddings."""

SHARES: tuple[Recipe, ...] = ("sharing", "full", "stale_full", "hierarchical")
"""Recipes whose students begin with a teacher's parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught:
    """By whom a student is taught.

    Attributes:
      run: folder of the teacher's run.
      labels: folder of its labels.
    """

    run: str
    labels: str


def student_run(student: Config, recipe: Recipe, strength: Strength, by: Taught) -> tuple[Config, Options]:
    """A student's config by a recipe, and what its run begins with.

    Args:
      student: as it would be from scratch.
      recipe: how it learns.
      strength: what the recipes share.
      by: the teacher; of no meaning for scratch.
    """
    if recipe == "scratch":
        return student, Options()
    config, options = student, Options()
    reads = strength.reads if recipe in READS else "none"
    if recipe in DISTILLS or recipe in READS:
        config = config.replace(data=JoinedConfig(data=student.data, labels=by.labels, embedding=reads))
    if recipe in SHARES:
        options = Options(init_from=by.run, init_only=strength.shared)
        if strength.frozen:
            config = with_rates(config.replace(model=FrozenConfig(student=config.model, frozen=strength.frozen)))
    terms = DISTILLS.get(recipe, ())
    if terms:
        config = config.replace(
            objective=_objective(student, terms, strength), model=_model(config.model, terms, strength)
        )
    return config, options


def _objective(student: Config, terms: tuple[str, ...], strength: Strength) -> DistillationConfig:
    labels = student.objective if isinstance(student.objective, MultiTaskConfig) else MultiTaskConfig()
    return DistillationConfig(
        labels=labels,
        serving_weight=strength.kd_weight if "serving" in terms else 0.0,
        auxiliary_weight=strength.auxiliary_weight if "auxiliary" in terms else 0.0,
        adapted_weight=strength.adapted_weight if "adapted" in terms else 0.0,
        label_scale=strength.label_scale,
    )


def _model(model: ModelConfig, terms: tuple[str, ...], strength: Strength) -> ModelConfig:
    if "auxiliary" not in terms:
        return model
    return DistilledConfig(
        student=model,
        hidden=strength.hidden,
        gradient_scale=strength.gradient_scale,
        adapter_hidden=strength.adapter_hidden if "adapted" in terms else (),
    )
