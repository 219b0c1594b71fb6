"""A prepared folder as the data of a run."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.checks import existing_path
from gem_jax.data.event_log import EventLog
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Splits
from gem_jax.prepare.preparation import Preparation
from gem_jax.prepare.records import event_dtype, example_dtype, examples_of, log_of, open_records
from gem_jax.prepare.spec import Spec

EXAMPLES, EVENTS, PARTS_FILE = "examples", "events", "parts.json"
"""Names in a prepared folder: a file of records per part, one per source of events, and how many and which the parts are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedConfig:
    """A folder that `python -m gem_jax.prepare` made: its parts, in order of time, with histories from its event logs."""

    path: str
    """The folder."""
    max_len: int | None = None
    """Newest events of a history that the model sees; None takes all that were prepared (`--max-len`)."""

    def schema(self) -> Schema:
        """The data's schema, from preparation.json alone.

        Raises:
          DataError: the folder is missing, or no prepared one.
        """
        return self._spec().schema()

    def build(self) -> Splits:
        """Opens the files, as memory maps.

        Raises:
          DataError: the folder is missing or no prepared one, or a file is damaged.
        """
        folder = self._folder()
        spec = self._spec()
        schema, ticks_per_s = spec.schema(), spec.clock.ticks_per_s
        logs = {
            name: log_of(open_records(folder / EVENTS / f"{name}.npy", event_dtype(schema.sequence(name))), ticks_per_s)
            for name in spec.sources
        }
        parts = _read_parts(folder / PARTS_FILE)
        sources = {}
        for part, said in parts.items():
            records = open_records(file := folder / EXAMPLES / f"{part}.npy", example_dtype(schema))
            if len(records) != said["rows"]:
                raise DataError(f"{file} has {len(records)} rows, not {said['rows']}; prepare the log again")
            sources[part] = PreparedSource(spec, records, logs, said["digest"])
        return Splits(**sources)

    def preparation(self) -> Preparation:
        """What was learned from the log: it scores raw rows, also beside a trained model."""
        return dataclasses.replace(Preparation.load(self._folder()), spec=self._spec())

    def _spec(self) -> Spec:
        spec = Spec.load(self._folder())
        return spec if self.max_len is None else dataclasses.replace(spec, max_len=min(self.max_len, spec.max_len))

    def _folder(self) -> pathlib.Path:
        return existing_path(self.path, "a folder that python -m gem_jax.prepare made")


class PreparedSource:
    """One part of a prepared folder.

    Args:
      spec: how rows became examples.
      records: [n] of `example_dtype`, a memory map.
      logs: sequence -> its events.
      digest: of the files' content.
    """

    def __init__(self, spec: Spec, records: np.ndarray, logs: dict[str, EventLog], digest: str):
        self.schema = spec.schema()
        self._spec = spec
        self._records = records
        self._logs = logs
        self._digest = digest

    def __len__(self) -> int:
        return len(self._records)

    def identity(self) -> str:
        """Digest of the part's records and of all events, taken when they were written."""
        return self._digest

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order."""
        return examples_of(np.asarray(self._records[indices]), self._spec, self.schema, self._logs)


def _read_parts(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); prepare the log again") from error
