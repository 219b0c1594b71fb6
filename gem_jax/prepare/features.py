"""What each column of a log becomes: the guess, which features.json holds for the user to edit.

    {
      "features": [
        {"column": "ad_id", "kind": "categorical", "role": "ad", "event": true, "why": "..."},
        {"column": "price", "kind": "dense", "role": "ad", "log": true, "why": "..."},
        {"column": "session", "kind": "ignore", "why": "..."}
      ],
      "events": {"views": [{"column": "page", "kind": "categorical", "role": "event", "table": "page"}]}
    }

| kind | keys beside `column`, `why` and `look` | becomes |
|---|---|---|
| categorical | `name`, `role`, `table`, `max_ids`, `event` | ids of the vocabulary `table`; of a list the first `max_ids` |
| dense | `name`, `role`, `log` | a number of order one, after a signed logarithm where `log` is true |
| vector | `name`, `role`, `dim` | numbers as they are, a pretrained embedding |
| ignore | | nothing |

`event`: the feature is also an attribute of the user's past rows. `name` is the column unless given, `table` the name; features of
one `table` share it. `why` says what the guess is made of, and `look` why it may be wrong; both are ignored when the file is read.
"""

import dataclasses
import difflib
import json
import pathlib
import re
import typing
from collections.abc import Collection, Iterable
from typing import Any, Literal

from gem_jax.data.schema import Role
from gem_jax.data.source import DataError

Kind = Literal["categorical", "dense", "vector", "ignore"]

_KEYS: dict[str, tuple[str, ...]] = {
    "categorical": ("name", "role", "table", "max_ids", "event"),
    "dense": ("name", "role", "log"),
    "vector": ("name", "role", "dim"),
    "ignore": (),
}
_REMARKS = ("why", "look")
_TYPES: dict[str, type] = {"max_ids": int, "dim": int, "event": bool, "log": bool}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """What one column becomes; which fields count depends on the kind (see the module)."""

    column: str
    """Column of the raw log."""
    kind: Kind
    """What it becomes."""
    name: str = ""
    """Name in the schema."""
    role: Role = "context"
    """Which part of an ads example it describes."""
    table: str = ""
    """Embedding table, and vocabulary, of a categorical."""
    max_ids: int = 1
    """Ids that a categorical keeps of a list."""
    event: bool = False
    """Whether a categorical is an attribute of past rows too."""
    log: bool = False
    """Whether a dense number's signed logarithm is taken."""
    dim: int = 0
    """Numbers of a vector."""
    why: str = ""
    """What the guess is made of."""
    look: str = ""
    """Why it may be wrong."""

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or self.column)
        object.__setattr__(self, "table", self.table or self.name)

    def to_json(self) -> dict[str, Any]:
        """The keys that count."""
        keys = ("column", "kind", *_KEYS[self.kind], *(key for key in _REMARKS if getattr(self, key)))
        return {key: getattr(self, key) for key in keys}

    @property
    def decision(self) -> dict[str, Any]:
        """The keys that count, without the remarks."""
        return {key: value for key, value in self.to_json().items() if key not in _REMARKS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What every column of the log and of the other sources of events becomes."""

    log: tuple[Feature, ...]
    events: dict[str, tuple[Feature, ...]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What features.json holds."""
        return {
            "features": [feature.to_json() for feature in self.log],
            "events": {name: [feature.to_json() for feature in features] for name, features in self.events.items()},
        }

    @property
    def decisions(self) -> dict[str, Any]:
        """The same without remarks: two that agree in it prepare the same data."""
        return {
            "features": [feature.decision for feature in self.log],
            "events": {name: [feature.decision for feature in features] for name, features in self.events.items()},
        }


def read_features(file: pathlib.Path) -> Features:
    """A features.json, perhaps edited.

    Raises:
      DataError: it cannot be read, or has an unknown key, kind or role, or a value of the wrong type.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}); correct it, or prepare without --schema") from error
    return features_from_json(tree, str(file))


def features_from_json(tree: Any, where: str) -> Features:
    """What `Features.to_json` made, perhaps edited.

    Raises:
      DataError: see `read_features`.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("events", {}), dict):
        raise DataError(f'{where} must hold {{"features": [...], "events": {{...}}}}')
    _check_known(tree, ("features", "events"), where)
    events = {name: _list(inner, f"{where}, events '{name}'") for name, inner in tree.get("events", {}).items()}
    return Features(log=_list(tree.get("features"), where), events=events)


def _list(entries: Any, where: str) -> tuple[Feature, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f'{where} needs a list of features, each {{"column": ..., "kind": ..., ...}}')
    features = tuple(_feature(entry, where) for entry in entries)
    columns = [feature.column for feature in features]
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{where} has column '{column}' twice; keep one")
    return features


def _feature(entry: dict[str, Any], where: str) -> Feature:
    column = entry.get("column")
    if not isinstance(column, str):
        raise DataError(f'{where} has a feature without "column": {json.dumps(entry)}; name its column')
    where = f"{where}, column '{column}'"
    kind = entry.get("kind")
    if kind not in _KEYS:
        raise DataError(f"{where}: kind {json.dumps(kind)} is unknown; there are {', '.join(_KEYS)}")
    _check_known(entry, ("column", "kind", *_KEYS[kind], *_REMARKS), f"{where}, of kind '{kind}'")
    for key, value in entry.items():
        wanted = _TYPES.get(key, str)
        if type(value) is not wanted:
            raise DataError(f"{where}: {key} is {json.dumps(value)}; it must be a {wanted.__name__}")
    roles = typing.get_args(Role)
    if entry.get("role", roles[0]) not in roles:
        raise DataError(f"{where}: role '{entry['role']}' is unknown; there are {', '.join(roles)}")
    feature = Feature(**{"max_ids": 1, **entry})
    if feature.max_ids < 1 or (kind == "vector" and feature.dim < 1):
        raise DataError(f"{where}: max_ids and dim must be 1 or more")
    if feature.event and feature.max_ids > 1:
        raise DataError(f"{where}: an attribute of events has one id; set event to false, or max_ids to 1")
    return feature


def _check_known(tree: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in tree:
        if key not in known:
            raise DataError(f"{where}: unknown key '{key}'; {nearest(key, known)}")


def free_name(text: str, taken: Collection[str]) -> str:
    """A name for the schema, which has no separators, that is not taken: `text` as nearly as can be."""
    name = re.sub(r"[./:,=]", "_", text).strip() or "_"
    while name in taken:
        name += "_"
    return name


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ..? there are ..', for messages about a name that is not among the known ones."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(names[:12]) + (", .." if len(names) > 12 else "")
    return f"{hint}there are {shown or 'none'}"
