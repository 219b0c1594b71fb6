"""Parts of a teacher, or of another student, that a student takes as they are and does not train.

    model=FrozenConfig(student=DLRMConfig(), frozen=("tables/ad", "dense/tokens"))
    train(with_rates(config), Options(init_from="runs/teacher", init_only=("tables/ad", "dense/tokens")))

What `init_from` takes is said array by array: taken, moved, grown, new, or unfit and why. Two models share an array where its name
and its shape are the same, so a student that is to have a teacher's tables has its embedding_dim. Without `frozen` what was taken
is only where training begins.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from gem_jax.checkpoint.arrays import matches
from gem_jax.config import Config
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.models.outputs import Model, ModelConfig
from gem_jax.nn.parameters import path_name
from gem_jax.precision.policy import Policy
from gem_jax.transfer.extended import extended

FROZEN = "frozen"
"""The optimizer group of dense parameters that do not learn."""

_FROZEN_TABLES = "frozen_tables"
"""The attribute of a model with the names of the features and of the (sequence, attribute) pairs that read frozen tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """A model some of whose parameters do not learn."""

    student: ModelConfig
    """The model."""
    frozen: tuple[str, ...]
    """Patterns of names as checkpoints have them, such as tables/ad or dense/layers; a folder's name stands for all in it."""

    @property
    def embedding_dim(self) -> int | None:
        """Width of the model's embedding tables."""
        return self.student.embedding_dim

    def serving(self) -> ModelConfig:
        """The model itself."""
        return self.student

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> Model:
        """The model with random weights, its frozen parameters in the optimizer group `frozen` and no gradient to frozen tables.

        Raises:
          UserError: a pattern matches nothing.
        """
        model = self.student.build(schema, policy=policy, rngs=rngs)
        variables = {
            f"dense/{path_name(path)}/value": v for path, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)
        }
        tables = {f"tables/{table.name}/weight": table.name for table in schema.tables}
        for pattern in self.frozen:
            if not any(matches(name, (pattern,)) for name in (*variables, *tables)):
                raise UserError(
                    f"model.frozen names '{pattern}', which no parameter or table has; there are e.g. {min(tables)} and "
                    f"{min(variables)}"
                )
        for name, variable in variables.items():
            if matches(name, self.frozen):
                variable.set_metadata(group=FROZEN)
        frozen = {table for name, table in tables.items() if matches(name, self.frozen)}
        features = tuple(f.name for f in schema.categoricals if f.table in frozen)
        events = tuple((s.name, a.name) for s in schema.sequences for a in s.attributes if a.table in frozen)
        setattr(model, _FROZEN_TABLES, (features, events))
        return extended(model, reading=_read)


def _read(model: Any, embedded: Embedded) -> Embedded:
    """What is read of frozen tables, without a gradient: their rows' optimizers see zeros, which move nothing."""
    features, events = getattr(model, _FROZEN_TABLES)
    stop = jax.lax.stop_gradient
    return Embedded(
        features={name: stop(x) if name in features else x for name, x in embedded.features.items()},
        events={
            source: {name: stop(x) if (source, name) in events else x for name, x in of_source.items()}
            for source, of_source in embedded.events.items()
        },
    )


def with_rates(config: Config) -> Config:
    """The config of a model with frozen dense parameters, their learning rate 0.

    Raises:
      UserError: the rows of frozen tables would decay.
    """
    if config.optimizer.table_l2 > 0:
        raise UserError(
            f"optimizer.table_l2={config.optimizer.table_l2} would shrink the rows of frozen tables; set it to 0"
        )
    rates = config.optimizer.group_rates | {FROZEN: 0.0}
    return config.replace(optimizer=dataclasses.replace(config.optimizer, group_rates=rates))
