"""A student's data with a teacher's labels joined to them by `example_id`, in whatever order the student reads.

The labels are read once, when the data are opened; a batch's are then found by bisection, so that the join costs next to nothing
beside a training step, and any number of students may read one store.

Shape letters: n examples, N tasks, d components of an embedding.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.identity import digest
from gem_jax.data.loader import OrdersItself
from gem_jax.data.schema import Schema, TrainingColumn, Vector
from gem_jax.data.source import PARTS, DataConfig, Source, Splits
from gem_jax.transfer import HISTORY, TEACHER
from gem_jax.transfer.histories import Reach, UserEmbeddings
from gem_jax.transfer.labels import LabelStore
from gem_jax.transfer.manifest import LabelError, Manifest, read_manifest

Wanted = Literal["none", "current", "history"]

_LOOKED_AT = 4
"""Stretches of the training part that are compared with the labels when the data are opened."""
_STRETCH = 256
"""Examples of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedConfig:
    """Another data set with a teacher's labels: see `gem_jax.transfer` for what that adds to a batch."""

    data: DataConfig
    """The student's data."""
    labels: str
    """Folder of the teacher's labels (`gem_jax.transfer.labels`)."""
    embedding: Wanted = "none"
    """Which embeddings a student reads: none, current (of the example itself) or history (of its user's earlier examples)."""
    history_len: int = 200
    """Newest embeddings of a user that a history pools."""
    max_age_days: float = 30.0
    """No embedding that is older is in a history."""

    def __post_init__(self):
        Reach(max_events=self.history_len, max_age_days=self.max_age_days)

    @property
    def folder(self) -> pathlib.Path:
        """Of the labels."""
        return pathlib.Path(self.labels).expanduser()

    def schema(self) -> Schema:
        """The data's schema with the teacher's columns.

        Raises:
          LabelError: the labels are not there, or keep no embeddings where some are wanted, or score none of the tasks.
        """
        return self._extended(self.data.schema(), read_manifest(self.folder))

    def build(self) -> Splits:
        """Opens the data and reads the labels.

        Raises:
          LabelError: as for `schema`, or the labels are of other data.
        """
        splits, join = self.data.build(), self._join()
        schema = self._extended(splits.schema, join.store.manifest)
        check_same_data(splits.train, join.store, needs_labels="training")
        if self.embedding == "current":
            check_same_data(splits.test, join.store, needs_labels="test")
        parts = {name: getattr(splits, name) for name in PARTS}
        return Splits(**{name: join.to(part, schema) for name, part in parts.items() if part is not None})

    def join(self, source: Source) -> Source:
        """Examples to score, of the data's schema, with what the store knows of them and of their users.

        Raises:
          LabelError: as for `schema`, or a label is of other data.
        """
        join = self._join()
        check_same_data(source, join.store, needs_labels=None)
        return join.to(source, self._extended(source.schema, join.store.manifest))

    def preparation(self) -> Any:
        """What was learned of a raw log, to be kept with the run; None where the data were not prepared from one."""
        made = getattr(self.data, "preparation", None)
        return None if made is None else made()

    def _join(self) -> "_Join":
        store = LabelStore(self.folder)
        return _Join(config=self, store=store, of_user=store.by_user() if self.embedding == "history" else None)

    def _extended(self, schema: Schema, manifest: Manifest) -> Schema:
        tasks = tuple(task.name for task in schema.tasks)
        if not set(tasks) & set(manifest.tasks):
            raise LabelError(
                f"{self.labels} has labels of {', '.join(manifest.tasks)} and the student learns {', '.join(tasks)}; "
                "give labels of one of its tasks"
            )
        training = (*schema.training, TrainingColumn(name=TEACHER, dim=len(tasks)))
        if self.embedding == "none":
            return schema.replace(training=training)
        if manifest.embedding is None:
            raise LabelError(f"{self.labels} keeps no embeddings; label with an embedding, or set data.embedding=none")
        vector = (
            Vector(name=TEACHER, dim=manifest.width, role="context")
            if self.embedding == "current"
            else Vector(name=HISTORY, dim=manifest.width, role="user")
        )
        return schema.replace(training=training, vectors=(*schema.vectors, vector))


def check_same_data(source: Source, store: LabelStore, *, needs_labels: str | None) -> None:
    """Compares some of a part's examples with their labels.

    Args:
      source: a part of the student's data.
      store: the labels.
      needs_labels: the part's name where at least one of these examples must have a label.

    Raises:
      LabelError: a label has another user or time than the example of its id, or no example has one.
    """
    starts = np.unique(np.linspace(0, max(len(source) - _STRETCH, 0), _LOOKED_AT).astype(np.int64))
    examples = [source.read(np.arange(s, min(s + _STRETCH, len(source)))) for s in starts]
    ids, users, times = (np.concatenate([getattr(e, c) for e in examples]) for c in ("example_id", "user", "time_s"))
    rows = store.find(ids)
    found = rows >= 0
    for what, given, labelled in (("user", users, store.user[rows]), ("time_s", times, store.time_s[rows])):
        other = np.flatnonzero(found & (given != labelled))
        if len(other):
            first = other[0]
            raise LabelError(
                f"the labels in {store.folder} are of other data: example {ids[first]} has {what} {labelled[first]} there and "
                f"{given[first]} here; join labels of these data"
            )
    if needs_labels and not found.any():
        raise LabelError(
            f"{store.folder} has labels of other data: none is of one of {len(ids)} {needs_labels} examples looked at; let the "
            "teacher label these"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Join:
    """What all parts of the data share."""

    config: JoinedConfig
    store: LabelStore
    of_user: UserEmbeddings | None

    def to(self, source: Source, schema: Schema) -> "JoinedSource":
        kind = SelfOrderedJoinedSource if isinstance(source, OrdersItself) else JoinedSource
        return kind(source, schema, self)

    def columns(self, examples: Examples, schema: Schema) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits [n, N] and vectors [n, d] by name."""
        rows = self.store.find(examples.example_id)
        logits = self.store.logits_of(rows, [task.name for task in schema.tasks])
        if self.config.embedding == "current":
            return logits, {TEACHER: self.store.embeddings(rows)}
        if self.of_user is None:
            return logits, {}
        reach = Reach(max_events=self.config.history_len, max_age_days=self.config.max_age_days)
        return logits, {HISTORY: self.of_user.pooled(examples.user, examples.time_s, reach)[0]}

    def identity(self) -> str:
        """Digest of whose labels they are and what of them is read."""
        read = (self.config.embedding, self.config.history_len, self.config.max_age_days)
        passes = {part: [p.teacher, p.state, p.data] for part, p in self.store.manifest.passes.items()}
        return digest(passes, len(self.store), list(read))


class JoinedSource:
    """A source whose examples have the teacher's columns."""

    def __init__(self, source: Source, schema: Schema, join: _Join):
        self.schema = schema
        self._source, self._join = source, join

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]), in that order."""
        examples = self._source.read(indices)
        logits, vectors = self._join.columns(examples, self.schema)
        return dataclasses.replace(
            examples,
            training=examples.training | {TEACHER: logits},
            vectors=examples.vectors | vectors,
        )

    def identity(self) -> str:
        """Digest of the examples and of the labels."""
        return digest(self._source.identity(), self._join.identity())


class SelfOrderedJoinedSource(JoinedSource):
    """A joined source whose storage prefers a shuffle of its own."""

    def shuffled_indices(self, positions: range, seed: int, epoch: int) -> np.ndarray:
        """As of the source below."""
        assert isinstance(self._source, OrdersItself)
        return self._source.shuffled_indices(positions, seed, epoch)
