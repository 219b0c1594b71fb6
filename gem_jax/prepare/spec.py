"""All that a preparation says about a log, but for the vocabularies and the last events: what preparation.json holds."""

import dataclasses
import json
import pathlib
from typing import Any

from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, Vector
from gem_jax.data.source import DataError
from gem_jax.files import write_json
from gem_jax.prepare.features import Feature, Features, features_from_json
from gem_jax.prepare.scaling import Scaling
from gem_jax.prepare.values import Clock

FORMAT = 1
"""Version of the folder's format: a reader refuses those that it does not know."""

FILE = "preparation.json"

PAST = "past"
"""The sequence of a user's earlier rows of the log itself."""

DOMAIN = "domain"
"""The vocabulary of the domains' names."""

OTHER = "other"
"""The domain of rows whose own is rare or unknown: place 0, as the id is in every vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the raw log mean what.

    Attributes:
      label: one a task.
      time: when the row happened.
      user: whose it is.
      item: what was shown, if said.
      domain: the delivery channel, if any.
    """

    label: tuple[str, ...]
    time: str
    user: str
    item: str | None = None
    domain: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """How raw rows become examples.

    Attributes:
      columns: which of them mean what.
      clock: what times count.
      max_len: newest events of a history.
      max_kept: newest events that are kept of every user before `complete_from`; a run may look at fewer.
      complete_from: tick from which on the events that are kept for scoring give whole histories: the test part's first.
      min_count: training rows that a value needs for an id of its own.
      features: what every column becomes.
      rows: table or `DOMAIN` -> ids of its vocabulary, the unknown one too.
      families: table -> family of its vocabulary's values.
      scalings: dense feature -> its scaling.
      missing: vectors that are null in some training row.
      tasks: a name each label.
      domains: their names.
    """

    columns: Columns
    clock: Clock
    max_len: int
    max_kept: int
    complete_from: int
    min_count: int
    features: Features
    rows: dict[str, int]
    families: dict[str, str]
    scalings: dict[str, Scaling]
    missing: tuple[str, ...]
    tasks: tuple[str, ...]
    domains: tuple[str, ...]

    def of_kind(self, kind: str) -> tuple[Feature, ...]:
        """Features of the log of one kind, in the schema's order."""
        return tuple(f for f in self.features.log if f.kind == kind)

    def attributes(self, source: str) -> tuple[Feature, ...]:
        """Categoricals that are attributes of a source's events; those of `PAST` have the labels beside them."""
        features = self.features.log if source == PAST else self.features.events[source]
        return tuple(f for f in features if f.kind == "categorical" and (f.event or source != PAST))

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of events, the log's own rows first."""
        return (PAST, *self.features.events)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Dense features, in the schema's order: each number, then the 0/1 of those that can be missing."""
        numbers = tuple(f.name for f in self.of_kind("dense"))
        return numbers + tuple(f"{name}_missing" for name in self.missing_names)

    @property
    def missing_names(self) -> tuple[str, ...]:
        """Dense features and vectors that have a 0/1 feature which says that they are missing."""
        return tuple(name for name, scaling in self.scalings.items() if scaling.has_missing) + self.missing

    def schema(self) -> Schema:
        """The schema of the prepared examples.

        Raises:
          SchemaError: names of features contradict each other.
        """
        roles = {f.name: f.role for f in self.features.log}
        roles |= {f"{name}_missing": roles[name] for name in self.missing_names}
        tables = [Table(name=name, rows=rows) for name, rows in self.rows.items() if name != DOMAIN]
        return Schema(
            tables=(*tables, *(Table(name=label_table(task), rows=2) for task in self.tasks)),
            categoricals=tuple(
                Categorical(name=f.name, table=f.table, role=f.role, max_ids=f.max_ids)
                for f in self.of_kind("categorical")
            ),
            dense=tuple(Dense(name=name, role=roles[name]) for name in self.dense_names),
            vectors=tuple(Vector(name=f.name, dim=f.dim, role=f.role) for f in self.of_kind("vector")),
            sequences=tuple(self._sequence(source) for source in self.sources),
            tasks=tuple(Task(name=task) for task in self.tasks),
            domains=self.domains,
        )

    def _sequence(self, source: str) -> Sequence:
        attributes = [Categorical(name=f.name, table=f.table, role="event") for f in self.attributes(source)]
        if source == PAST:
            attributes += [Categorical(name=task, table=label_table(task), role="event") for task in self.tasks]
        return Sequence(name=source, attributes=tuple(attributes), max_len=self.max_len)

    def save(self, folder: pathlib.Path) -> None:
        """Writes preparation.json."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tree |= {
            "columns": dataclasses.asdict(self.columns),
            "clock": dataclasses.asdict(self.clock),
            "features": self.features.to_json(),
            "scalings": {name: dataclasses.asdict(scaling) for name, scaling in self.scalings.items()},
        }
        write_json(folder / FILE, {"format": FORMAT, **tree})

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Spec":
        """What `save` wrote.

        Raises:
          DataError: the folder holds no preparation, a damaged one, or one of another version.
        """
        file = folder / FILE
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"{folder} is no prepared folder: {file.name} cannot be read ({error.strerror}); "
                "make it with python -m gem_jax.prepare"
            ) from error
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}); prepare the log again") from error
        version = tree.pop("format", None) if isinstance(tree, dict) else None
        if version != FORMAT:
            raise DataError(f"{file} has format {version}; this version reads {FORMAT}, so prepare the log again")
        try:
            return cls._from_json(tree, str(file))
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error}); prepare the log again") from error

    @classmethod
    def _from_json(cls, tree: dict[str, Any], where: str) -> "Spec":
        columns = tree["columns"]
        others: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items() if k not in _BUILT}
        return cls(
            columns=Columns(**{**columns, "label": tuple(columns["label"])}),
            clock=Clock(**tree["clock"]),
            features=features_from_json(tree["features"], where),
            scalings={name: Scaling(**scaling) for name, scaling in tree["scalings"].items()},
            **others,
        )


_BUILT = ("columns", "clock", "features", "scalings")
"""Fields of `Spec` that are objects of their own."""


def label_table(task: str) -> str:
    """Table of a task's outcomes in past rows: 0 and 1."""
    return f"label_{task}"
