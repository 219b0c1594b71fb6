"""A run that goes on, compared with what it was: what may change is shown and recorded, what may not is refused by name."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.manifest import Manifest, as_json

MAY_CHANGE = {
    "name": "what the run is called",
    "runs_dir": "where it is kept",
    "train.epochs": "how long it goes on; the learning rate follows the new length",
    "train.eval_*": "when and on how much it is evaluated",
    "train.keep_best": "what the best evaluation is; by another measure it is sought anew",
    "train.patience": "when it stops before its end",
    "checkpoint.*": "when it is saved",
    "mesh.*": "where it runs: a checkpoint knows no mesh",
    "tables.*": "where rows lie, and how they travel; which slots a row has is the optimizer's",
    "batch.*": "how many examples a step takes; the position in the data is counted in examples",
    "precision.*": "what products are computed in; parameters stay float32",
    "optimizer.learning_rate": "a rate may be corrected on the way",
    "optimizer.table_learning_rate": "a rate may be corrected on the way",
    "optimizer.group_rates.*": "a rate may be corrected on the way",
    "optimizer.weight_decay": "a rate may be corrected on the way",
    "optimizer.table_l2": "a rate may be corrected on the way",
    "optimizer.clip_norm": "a bound on one step's gradient",
    "optimizer.warmup": "the learning rate's course",
    "optimizer.final": "the learning rate's course",
    "data.path": "where the data are; that they are the same is seen by their identity",
    "data.on_bad_row": "a run that a bad row ended goes on without that row",
    "data.max_bad_rows": "how many of them are too many",
    "data.columns.*": "the schema's members are found by their names",
}
"""Pattern of a config field -> why a run may go on with another value. What is not named here may not change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A field that is another than when the checkpoint was saved.

    Attributes:
      field: its dotted name.
      old: its value in the checkpoint.
      new: its value today.
    """

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old} in the checkpoint, {self.new} from here on"


def compare(manifest: Manifest, config: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> tuple[Change, ...]:
    """What has changed since the checkpoint, all of which may.

    Args:
      manifest: the checkpoint's.
      config: today's, as `Config.to_dict` gives it.
      data: part of today's data -> {'examples': number, 'digest': text}.

    Raises:
      CheckpointError: something else has changed: the sentence names it with both values.
    """
    config, data = as_json(config), as_json(data)
    _check_data(manifest.data.get("train"), data.get("train"))
    changes = [
        Change(field=f"data identity of {part}", old=manifest.data.get(part), new=data.get(part))
        for part in sorted(manifest.data.keys() | data.keys())
        if manifest.data.get(part) != data.get(part)
    ]
    for field, (old, new) in differences(as_json(manifest.config), config).items():
        if not may_change(field):
            raise CheckpointError(
                f"{field} is {old!r} in the checkpoint and {new!r} today; resume with {field}={old!r}, or start a new run, "
                "which may take this one's parameters by init_from"
            )
        changes.append(Change(field=field, old=old, new=new))
    return tuple(changes)


def differences(old: Any, new: Any, field: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (old, new) of two trees of dicts, where they differ; None for what is on one side alone. Lists are leaves."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return {} if old == new else {field: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        found |= differences(old.get(key), new.get(key), f"{field}.{key}" if field else str(key))
    return found


def may_change(field: str) -> bool:
    """Whether a run may go on with another value of the config field."""
    return any(fnmatch.fnmatchcase(field, pattern) or f"{field}.*" == pattern for pattern in MAY_CHANGE)


def _check_data(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
    """The position in the data means nothing in other data."""
    for field in sorted((old or {}).keys() | (new or {}).keys()):
        before, after = (old or {}).get(field), (new or {}).get(field)
        if before != after:
            raise CheckpointError(
                f"the training data are others than the checkpoint's: {field} is {before!r} there and {after!r} today; resume with "
                "the same data, or start a new run, which may take this one's parameters by init_from"
            )
