"""What a checkpoint says of its run, as a config and a program that only score.

A run's data need not be there any more, and classes of the user's own in `data` and `objective` are not needed: the manifest has
the schema. The model must be known.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from gem_jax.checkpoint.manifest import Manifest
from gem_jax.config import Config, ConfigError, from_dict
from gem_jax.data.schema import Schema
from gem_jax.embedding.config import TablesConfig
from gem_jax.models.outputs import serving_model
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.run.checks import check_platform
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.training.optimizer import OptimizerConfig

SPARED = ("data", "objective")
"""Sections of a config that scoring does without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unloaded:
    """A section of a run's config whose class is the user's own and was not given.

    Attributes:
      tree: the section, as `to_dict` gave it.
      columns: the run's schema.
    """

    tree: dict[str, Any]
    columns: Schema

    def schema(self) -> Schema:
        """The run's schema."""
        return self.columns

    def build(self, *_: Any) -> Any:
        """Raises ConfigError, which says how to have the class."""
        raise ConfigError(_advice("this section of the config", self.tree))


def saved_schema(manifest: Manifest) -> Schema:
    """The schema of the run's data."""
    return from_dict(manifest.schema)


def saved_config(manifest: Manifest, classes: Sequence[type] = ()) -> Config:
    """The run's config; its `data` and `objective` are `Unloaded` where they are of an unknown class.

    Raises:
      ConfigError: the model is of an unknown class of the user's own, or the config is none of this gem_jax.
    """
    tree = dict(manifest.config)
    known = {kind.__name__ for kind in classes}
    for section, value in tree.items():
        unknown = next(_unknown(value, known), None)
        if unknown is not None and section not in SPARED:
            raise ConfigError(_advice(f"the run's {section}", unknown))
        if unknown is not None:
            tree[section] = Unloaded(tree=value, columns=saved_schema(manifest))
    return from_dict(tree, classes)


def scoring_program(config: Config, schema: Schema, devices: Iterable[jax.Device] | None) -> Program:
    """The run's program on today's devices, with nothing that only training needs: no tables' slots, no objective of its own, and
    of a model that was taught (`models.outputs.TaughtConfig`) the one that serves.

    Raises:
      UserError: the model does not fit the devices' memory, or cannot run on them.
    """
    check_platform(config)
    to_score = config.replace(
        model=serving_model(config.model),
        mesh=MeshConfig(),
        tables=TablesConfig(),
        objective=MultiTaskConfig(),
        optimizer=OptimizerConfig(table_optimizer="sgd"),  # keeps nothing beside a table's rows
    )
    schema = schema.replace(training=())
    return Program.of(to_score, schema, RunPlan.of(to_score, schema, devices))


def classes_of(config: Any) -> tuple[type, ...]:
    """The user's own classes in a config: what `from_dict` must be given to make it again."""
    found: dict[type, None] = {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        if not type(config).__module__.startswith("gem_jax."):
            found[type(config)] = None
        members: Iterable[Any] = (getattr(config, field.name) for field in dataclasses.fields(config))
    elif isinstance(config, dict):
        members = config.values()
    else:
        members = config if isinstance(config, tuple | list) else ()
    for member in members:
        found |= dict.fromkeys(classes_of(member))
    return tuple(found)


def _unknown(tree: Any, known: set[str]) -> Iterator[dict[str, Any]]:
    """Every part of a config as dicts that is of a class of the user's own, and of none that is known."""
    if isinstance(tree, dict):
        if "defined_in" in tree and tree.get("kind") not in known:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _unknown(value, known)


def _advice(what: str, tree: dict[str, Any]) -> str:
    kind, file = tree.get("kind"), tree.get("defined_in")
    return (
        f"{what} is a '{kind}', which is defined in {file} and not in gem_jax; give the class, by "
        f"load_run(folder, classes=({kind},)) or predict --config {file}"
    )
