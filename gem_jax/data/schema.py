"""What an ads example is, declared once: readers fill it, packing lays it out, models are built from it.

A `Schema` names every feature with its role, so the same model code serves the synthetic stream, Criteo, MovieLens or a
company's own Parquet files.

Names become columns of files, paths of parameters and fields of the command line, so what would be ambiguous there is refused here.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, get_args

from gem_jax.errors import UserError

Role = Literal["user", "context", "ad", "goal", "format", "measurement", "surface", "event"]
"""Which part of an ads example a feature describes.

`goal`: what the advertiser optimises for; `format`: the creative's form; `measurement`: which conversion signals the
advertiser sends; `surface`: the delivery channel; `event`: an attribute of a history event.
"""

RESERVED = ("domain", "weight", "example_id", "time_s", "label", "true_probability", "training")
"""Columns that readers keep for themselves; `user` is one too, but may also be a categorical feature: the user's id."""

_SEPARATORS = "./:,="


class SchemaError(UserError):
    """The schema contradicts itself; the message is one sentence naming the feature and what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """An embedding table; features that name the same table share its rows."""

    name: str
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical:
    """A feature of integer ids in `[0, rows of its table)`; -1 means absent.

    Up to `max_ids` ids an example (or an event): 1 for ordinary features, more for multi-valued ones, whose embeddings are
    averaged over the ids present.
    """

    name: str
    table: str
    role: Role
    max_ids: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A real number per example; readers deliver it finite and of order one."""

    name: str
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """A pretrained embedding per example, e.g. of the creative's image."""

    name: str
    dim: int
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """A source of past events, oldest first; the newest `max_len` are kept.

    Each event has one id per attribute and a time.
    """

    name: str
    attributes: tuple[Categorical, ...]
    max_len: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A label from 0 to 1, soft ones between. NaN means *unobserved*, which is not a zero: it adds nothing to loss or metrics."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingColumn:
    """`dim` numbers per example that objectives may read and models never see, e.g. a teacher's logits; NaN means unknown."""

    name: str
    dim: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """All features, histories, labels and domains of a data set.

    Raises:
      SchemaError: a name stands twice, is reserved or ambiguous, a feature has a task's name, an unknown role or an unknown table,
        or a size is not positive.
    """

    tables: tuple[Table, ...]
    categoricals: tuple[Categorical, ...]
    tasks: tuple[Task, ...]
    domains: tuple[str, ...]
    dense: tuple[Dense, ...] = ()
    vectors: tuple[Vector, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    training: tuple[TrainingColumn, ...] = ()

    def __post_init__(self):
        self._check_names()
        self._check_roles()
        self._check_sizes()

    def _check_names(self) -> None:
        _check_unique("table", (t.name for t in self.tables))
        features: tuple[Categorical | Dense | Vector, ...] = (*self.categoricals, *self.dense, *self.vectors)
        _check_unique("feature", (f.name for f in features))
        _check_unique("sequence", (s.name for s in self.sequences))
        _check_unique("task", (t.name for t in self.tasks))
        _check_unique("domain", self.domains)
        _check_unique("training column", (t.name for t in self.training))
        for sequence in self.sequences:
            _check_unique(f"attribute of sequence '{sequence.name}'", (a.name for a in sequence.attributes))
        sequences = {s.name for s in self.sequences}
        for what, name in (*(("feature", f.name) for f in features), *(("sequence", name) for name in sequences)):
            if name in RESERVED:
                raise SchemaError(
                    f"{what} '{name}' has the name of a column that readers keep for themselves; rename it"
                )
        tasks = {t.name for t in self.tasks}
        for feature in features:
            if feature.name in tasks:  # most likely the label itself, which a model must not see
                raise SchemaError(
                    f"feature '{feature.name}' has the name of a task; rename it, or remove it if it is the label"
                )
            if feature.name in sequences:
                raise SchemaError(f"feature '{feature.name}' has the name of a sequence; rename one of them")
            if feature.name == "user" and not (isinstance(feature, Categorical) and feature.max_ids == 1):
                raise SchemaError(
                    "feature 'user' is the user's id: make it a categorical feature with max_ids=1, or rename it"
                )
        for sequence in self.sequences:
            if sequence.name == "user":
                raise SchemaError("sequence 'user' has the name of the user's id; rename it")
            if any(a.name == "age_s" for a in sequence.attributes):
                raise SchemaError(
                    f"attribute 'age_s' of sequence '{sequence.name}' has the name of its events' age; rename it"
                )

    def _check_roles(self) -> None:
        attributes = (a for s in self.sequences for a in s.attributes)
        described: tuple[Categorical | Dense | Vector, ...]
        described = (*self.categoricals, *self.dense, *self.vectors, *attributes)
        for feature in described:
            if feature.role not in get_args(Role):
                raise SchemaError(
                    f"feature '{feature.name}' has the role '{feature.role}'; roles are {', '.join(get_args(Role))}"
                )

    def _check_sizes(self) -> None:
        if not self.tasks or not self.domains:
            raise SchemaError("the schema needs at least one task and one domain; add them")
        for table in self.tables:
            if table.rows < 1:
                raise SchemaError(f"table '{table.name}' has rows={table.rows}; it needs at least 1")
        for feature in (*self.categoricals, *(a for s in self.sequences for a in s.attributes)):
            if feature.table not in {t.name for t in self.tables}:
                raise SchemaError(
                    f"feature '{feature.name}' names table '{feature.table}', which the schema does not declare"
                )
            if feature.max_ids < 1:
                raise SchemaError(f"feature '{feature.name}' has max_ids={feature.max_ids}; it needs at least 1")
        for sequence in self.sequences:
            if sequence.max_len < 1 or not sequence.attributes:
                raise SchemaError(f"sequence '{sequence.name}' needs max_len >= 1 and at least one attribute")
            for attribute in sequence.attributes:
                if attribute.max_ids != 1:
                    raise SchemaError(f"attribute '{attribute.name}' of sequence '{sequence.name}' must have max_ids=1")
        sized: tuple[Vector | TrainingColumn, ...] = (*self.vectors, *self.training)
        for column in sized:
            if column.dim < 1:
                raise SchemaError(f"'{column.name}' has dim={column.dim}; it needs at least 1")

    def table(self, name: str) -> Table:
        return next(t for t in self.tables if t.name == name)

    def sequence(self, name: str) -> Sequence:
        return next(s for s in self.sequences if s.name == name)

    def replace(self, **changes) -> "Schema":
        return dataclasses.replace(self, **changes)


def _check_unique(what: str, names: Iterable[str]) -> None:
    """Refuses a name that stands twice or that a path, a column or a command line could not hold."""
    seen = set()
    for name in names:
        if not name or name != name.strip() or any(c in _SEPARATORS for c in name):
            raise SchemaError(
                f"{what} '{name}' needs another name: not empty, without {' '.join(_SEPARATORS)} and spaces at its ends"
            )
        if name in seen:
            raise SchemaError(f"{what} '{name}' is declared twice")
        seen.add(name)
