"""A teacher's labels on disk: Parquet files keyed by `example_id`, and a manifest that says whose labels they are.

    manifest.json
    train.000000000000-000000065536.parquet       of examples 0 .. 65,536 of the order in which the teacher met this part
    train.000000065536-000000131072.parquet       rows in ascending order of id; files appear whole

| column | type | meaning |
|---|---|---|
| `example_id` | int64 | of the example |
| `user`, `time_s` | int64 | its user and time, -1 unknown |
| `logit.<task>` | float32 | the teacher's, base logits included |
| `embedding` | list of numbers | the teacher's vector of the example as stored (`quantize`); optional |
| `embedding_scale` | float32 | its scale, where the storage has one |

A pass over a part of the data (`Pass`) is made by one teacher. One that was interrupted goes on at the first example that no file
has; labels of another teacher or of other data are refused by name.

Shape letters: n labels, N tasks, d components of an embedding.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from gem_jax.data.columns_file import read_columns, write_columns
from gem_jax.transfer.histories import UserEmbeddings
from gem_jax.transfer.manifest import FILE_NAME, LabelError, Manifest, Pass, read_manifest
from gem_jax.transfer.quantize import Loss, compress, expand

_FILE = re.compile(r"(?P<part>[a-z]+)\.(?P<start>\d{12})-(?P<stop>\d{12})\.parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What a teacher says of n examples.

    Attributes:
      example_id: int64 [n].
      user: int64 [n], -1 unknown.
      time_s: int64 [n], -1 unknown.
      logits: float32 [n, N].
      embedding: float32 [n, d]; None where none is kept.
    """

    example_id: Int[np.ndarray, " n"]
    user: Int[np.ndarray, " n"]
    time_s: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n N"]
    embedding: Float[np.ndarray, "n d"] | None

    def __len__(self) -> int:
        return len(self.example_id)


class LabelWriter:
    """Writes one pass into a store, from where an earlier attempt stopped.

    Args:
      folder: of the store; made if missing.
      part: of the data: train, valid or test.
      manifest: of the store as it would be with this pass alone.

    Raises:
      LabelError: the folder has labels of another teacher, of other data or of another kind, or cannot be written.
    """

    def __init__(self, folder: pathlib.Path, part: str, manifest: Manifest):
        known = read_manifest(folder).with_pass(part, manifest, str(folder)) if _is_store(folder) else manifest
        self._folder, self._part, self._manifest = folder, part, known
        self._loss = Loss()
        known.write(folder)

    @property
    def position(self) -> int:
        """Examples from the first on that are labelled without a gap."""
        position = 0
        for start, stop, _ in _files_of(self._folder, self._part):
            if start > position:
                break
            position = max(position, stop)
        return position

    def forget_from(self, position: int) -> None:
        """Removes labels of examples from a position on: the teacher goes on from there and will label them again.

        Raises:
          LabelError: a file has examples on both sides of the position.
        """
        for start, stop, path in _files_of(self._folder, self._part):
            if start < position < stop:
                raise LabelError(
                    f"{path} has labels of examples on both sides of example {position}, where the teacher goes on; remove "
                    f"{self._folder} and label anew"
                )
            if start >= position:
                path.unlink()

    def write(self, start: int, stop: int, labels: Labels) -> None:
        """A file of the labels of examples `start .. stop` of the teacher's order, some of which may have none.

        Raises:
          DataError: it cannot be written.
        """
        order = np.argsort(labels.example_id, kind="stable")
        columns = {name: getattr(labels, name)[order] for name in ("example_id", "user", "time_s")}
        columns |= {f"logit.{task}": labels.logits[order, n] for n, task in enumerate(self._manifest.tasks)}
        kept = self._manifest.embedding
        if kept is not None and labels.embedding is not None:
            values = labels.embedding[order]
            stored, scale = compress(values, kept.storage)
            self._loss.add(values, expand(stored, scale, kept.storage, values.shape[1]))
            columns["embedding"] = stored
            if scale is not None:
                columns["embedding_scale"] = scale
        write_columns(self._folder / f"{self._part}.{start:012d}-{stop:012d}.parquet", columns)

    def finish(self) -> Pass:
        """Notes in the manifest how many examples are labelled, and what their embeddings lost by this writer's storage of them."""
        known = self._manifest.passes[self._part]
        loss = self._loss.relative if self._loss.total else known.embedding_loss
        done = dataclasses.replace(known, examples=self.position, embedding_loss=loss)
        passes = self._manifest.passes | {self._part: done}
        self._manifest = dataclasses.replace(self._manifest, passes=passes)
        self._manifest.write(self._folder)
        return done


class LabelStore:
    """All labels of a store, in memory: ids, users, times and logits as they are, embeddings as they are stored.

    Args:
      folder: of the store.

    Raises:
      LabelError: it holds no labels, or an example twice.
      DataError: a file cannot be read.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.manifest = folder, read_manifest(folder)
        files = [path for part in self.manifest.passes for _, _, path in _files_of(folder, part)]
        if not files:
            raise LabelError(f"{folder} holds no labels yet; let the teacher label some data into it first")
        parts = [read_columns(path) for path in files]
        order = np.argsort(np.concatenate([p["example_id"] for p in parts]), kind="stable")
        columns = {name: np.concatenate([p.pop(name) for p in parts])[order] for name in list(parts[0])}
        self.example_id, self.user, self.time_s = (columns[name] for name in ("example_id", "user", "time_s"))
        self.logits = np.stack([columns[f"logit.{task}"] for task in self.manifest.tasks], axis=1)
        self._embedding, self._scale = columns.get("embedding"), columns.get("embedding_scale")
        twice = np.flatnonzero(self.example_id[1:] == self.example_id[:-1])
        if len(twice):
            raise LabelError(
                f"{folder} has two labels of example {self.example_id[twice[0]]}; remove the folder and label anew"
            )

    def __len__(self) -> int:
        return len(self.example_id)

    def find(self, example_id: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The row of each example's label, -1 where it has none."""
        rows = np.minimum(np.searchsorted(self.example_id, example_id), len(self) - 1)
        return np.where(self.example_id[rows] == example_id, rows, -1)

    def embeddings(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """The embeddings of rows, float32; zeros for row -1.

        Raises:
          LabelError: the store keeps none.
        """
        kept = self.manifest.embedding
        if kept is None or self._embedding is None:
            raise LabelError(f"{self.folder} keeps no embeddings; label with an embedding, or join logits alone")
        scale = None if self._scale is None else self._scale[rows]
        found = expand(self._embedding[rows], scale, kept.storage, self.manifest.width)
        found[rows < 0] = 0
        return found

    def by_user(self) -> UserEmbeddings:
        """The embeddings by user and time, to be pooled over a user's past; raises LabelError as `embeddings` does."""
        return UserEmbeddings(self.user, self.time_s, self.embeddings, self.manifest.width)

    def logits_of(self, rows: Int[np.ndarray, " m"], tasks: Sequence[str]) -> Float[np.ndarray, "m K"]:
        """The logits of rows for named tasks; NaN for row -1, and for a task that the teacher does not score."""
        found = np.full((len(rows), len(tasks)), np.nan, np.float32)
        for k, task in enumerate(tasks):
            if task in self.manifest.tasks:
                found[:, k] = np.where(rows >= 0, self.logits[rows, self.manifest.tasks.index(task)], np.nan)
        return found


def _is_store(folder: pathlib.Path) -> bool:
    return (folder / FILE_NAME).exists()


def _files_of(folder: pathlib.Path, part: str) -> Iterator[tuple[int, int, pathlib.Path]]:
    """(start, stop, path) of a part's files, in the order of their names."""
    for path in sorted(folder.glob(f"{part}.*.parquet")):
        if (found := _FILE.fullmatch(path.name)) is not None:
            yield int(found["start"]), int(found["stop"]), path
