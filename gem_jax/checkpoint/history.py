"""What happened to a run: `<run>/history.jsonl` has one JSON object for each start and each continuation."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from gem_jax import files
from gem_jax.checkpoint.manifest import now
from gem_jax.checkpoint.resume import Change

FILE = "history.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A start of a run, or a continuation.

    Attributes:
      step: optimizer steps taken before; 0 for a start.
      changes: what has changed since the checkpoint, field -> [old, new].
      mesh: where it runs from here on.
      versions: of jax and gem_jax, and the commit if known.
      time: ISO 8601 in UTC.
    """

    step: int
    changes: dict[str, list[Any]]
    mesh: dict[str, Any]
    versions: dict[str, Any]
    time: str = dataclasses.field(default_factory=now)


def record(
    run_dir: pathlib.Path, step: int, changes: Iterable[Change], mesh: dict[str, Any], versions: dict[str, Any]
) -> None:
    """Adds an event to the run's history; by one process."""
    event = Event(step=step, changes={c.field: [c.old, c.new] for c in changes}, mesh=mesh, versions=versions)
    path = run_dir / FILE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    files.write_text(path, before + json.dumps(dataclasses.asdict(event), allow_nan=False) + "\n")


def history(run_dir: pathlib.Path) -> list[Event]:
    """The run's events, oldest first."""
    path = run_dir / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Event(**json.loads(line)) for line in lines]
