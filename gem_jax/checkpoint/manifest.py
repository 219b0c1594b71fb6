"""What a checkpoint says of itself: one JSON file beside the arrays, which guards itself with a checksum."""

import dataclasses
import datetime
import hashlib
import json
from typing import Any

from gem_jax.checkpoint.errors import CheckpointError, Damage
from gem_jax.nn.parameters import Names
from gem_jax.parallel.arrays import ArraySpec

FORMAT = 1
"""Format 0, before there were manifests, kept arrays by their places on a mesh and cannot be read any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedArray:
    """An array of the checkpoint.

    Attributes:
      shape: of the whole array.
      dtype: name of its dtype.
      axes: names of the places along each axis, or None.
      checksum: of its content, see `checksums`.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[Names | None, ...]
    checksum: str

    @classmethod
    def of(cls, spec: ArraySpec, checksum: str) -> "SavedArray":
        return cls(shape=spec.shape, dtype=spec.dtype.name, axes=spec.axes, checksum=checksum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a checkpoint holds beside the numbers of its arrays.

    Attributes:
      step: optimizer steps taken.
      arrays: name -> what was saved under it.
      config: the run's config as `Config.to_dict` gives it.
      schema: the data's schema as a dict of its fields.
      mesh: the mesh it was saved from; for people, nothing depends on it.
      placement: where tables lay; for people, nothing depends on it.
      data: part of the data ('train', 'test', ...) -> {'examples': number, 'digest': text}: which data it was.
      position: where the run stands: the loader's state and what the run counts.
      versions: of jax and gem_jax, and the commit if known.
      vocabulary: version of the vocabulary that ids were looked up in; None where ids are rows themselves.
      created: when it was saved, ISO 8601 in UTC.
    """

    step: int
    arrays: dict[str, SavedArray]
    config: dict[str, Any]
    schema: dict[str, Any]
    mesh: dict[str, Any]
    placement: dict[str, Any]
    data: dict[str, dict[str, Any]]
    position: dict[str, Any]
    versions: dict[str, Any]
    vocabulary: str | None = None
    created: str = dataclasses.field(default_factory=lambda: now())

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with the format and a checksum over the rest."""
        content = as_json({"format": FORMAT, **dataclasses.asdict(self)})
        return {**content, "checksum": digest(content)}

    @classmethod
    def from_text(cls, text: str, where: str) -> "Manifest":
        """Reads what `to_json` wrote.

        Args:
          text: the file's content.
          where: how to call the checkpoint in an error.

        Raises:
          Damage: it is not what was written.
          CheckpointError: a newer gem_jax wrote it.
        """
        try:
            content = json.loads(text)
            checksum = content.pop("checksum")
            if checksum != digest(content):
                raise Damage("its manifest was changed: the manifest's checksum differs")
        except (ValueError, KeyError, AttributeError, RecursionError, TypeError) as error:
            raise Damage("its manifest is not whole JSON") from error
        if content.pop("format") != FORMAT:
            raise CheckpointError(f"checkpoint {where} was written by a newer gem_jax; install that version to read it")
        content["arrays"] = {name: _saved_array(array) for name, array in content["arrays"].items()}
        return cls(**content)


def as_json(content: Any) -> Any:
    """What reading would give after writing: lists for tuples."""
    return json.loads(_canonical(content))


def now() -> str:
    """The time of day in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _saved_array(array: dict[str, Any]) -> SavedArray:
    axes = tuple(None if names is None else tuple(names) for names in array["axes"])
    return SavedArray(shape=tuple(array["shape"]), dtype=array["dtype"], axes=axes, checksum=array["checksum"])


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
