"""What a transfer is: a teacher, students, and the recipes by which they learn from it."""

import dataclasses
from typing import Literal, get_args

from gem_jax.config import Config
from gem_jax.errors import UserError
from gem_jax.transfer.manifest import EmbeddingConfig

Recipe = Literal[
    "scratch",
    "kd",
    "auxiliary",
    "adapter",
    "representation",
    "sharing",
    "full",
    "stale_kd",
    "stale_full",
    "hierarchical",
]
"""How a student learns.

scratch         from labels alone
kd              plain distillation: the teacher's probability is a second label of the serving logits
auxiliary       a head learns from the teacher
adapter         and another one from the adapter
representation  from labels, reading the teacher's embeddings
sharing         from labels, beginning with what is taken of the teacher's parameters
full            adapter, representation and sharing
stale_kd, stale_full    as kd and full, from a teacher that stopped learning before the end and labels all examples afterwards
hierarchical    as full, from a domain's foundation model that itself learned from the teacher
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strength:
    """What the recipes share."""

    kd_weight: float = 1.0
    """Of plain distillation, `DistillationConfig.serving_weight`."""
    auxiliary_weight: float = 1.0
    """Of the head that learns from the teacher."""
    adapted_weight: float = 1.0
    """Of the head that learns from the adapter."""
    label_scale: float = 1.0
    """Of the teacher's probabilities for the auxiliary head."""
    gradient_scale: float = 1.0
    """Of these heads' gradient where it enters the student."""
    hidden: tuple[int, ...] = (32,)
    """Hidden sizes of these heads."""
    adapter_hidden: tuple[int, ...] = (16,)
    """Hidden sizes of the adapter."""
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    """What of the teacher's representations is kept."""
    reads: Literal["current", "history"] = "history"
    """Which of the kept embeddings a student reads: the example's own, or those of its user's earlier examples."""
    shared: tuple[str, ...] = ("tables",)
    """Which parameters a student begins with, by patterns of their names."""
    frozen: tuple[str, ...] = ()
    """Which of a student's parameters do not learn once shared, by patterns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Everything about a transfer. Runs and labels are kept in <runs_dir>/<name>."""

    name: str
    """Name of the folder."""
    teacher: Config
    """The teacher's run."""
    students: dict[str, Config]
    """Name -> a student's run, as it would be from scratch; its data are a part of the teacher's."""
    recipes: tuple[Recipe, ...] = get_args(Recipe)
    """Recipes to train; scratch always is."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of `train.seed`, of the teacher and its students alike."""
    strength: Strength = dataclasses.field(default_factory=Strength)
    """What the recipes share."""
    stale_examples: int | None = None
    """Training examples that a stale teacher learns from, the first ones; half of all unless given."""
    domain_models: dict[str, Config] = dataclasses.field(default_factory=dict)
    """Student -> the foundation model of its domain, between the teacher and the student; needed for hierarchical."""
    results: str | None = None
    """Write the rows to this file."""
    runs_dir: str = "runs/transfer"
    """Folder that holds transfers."""

    def __post_init__(self):
        if not self.students:
            raise UserError("students is empty; name at least one")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds} must be some different numbers")
        for name in self.domain_models:
            if name not in self.students:
                raise UserError(
                    f"domain_models names '{name}', which is no student; there are {', '.join(self.students)}"
                )
        if "hierarchical" in self.recipes and not self.domain_models:
            raise UserError(
                "the recipe 'hierarchical' needs a model between teacher and student; give domain_models one"
            )

    @property
    def folder(self) -> str:
        """Of everything that the transfer keeps."""
        return f"{self.runs_dir}/{self.name}"

    def all_recipes(self) -> tuple[Recipe, ...]:
        """The recipes in their order, scratch and kd first, which others are measured by."""
        known: tuple[Recipe, ...] = get_args(Recipe)
        return tuple(r for r in known if r in self.recipes or r == "scratch")
