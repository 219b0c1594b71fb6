"""Tile sizes per device: JSON tables beside an operation, and the search that fills them."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pallas_kernels.common import files

MARGIN = 0.98  # a change must save 2 %: repeated timings of one kernel differ by as much


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of an operation.

    Attributes:
      folder: holds `<device>.json`, one object a device.
      default: the device whose table serves the others.
    """

    folder: pathlib.Path
    default: str

    def of(self, device_kind: str) -> dict:
        """A device's table, or else the default's, which is said once."""
        return _load(self, file_name(device_kind))

    def write(self, device_kind: str, table: dict) -> None:
        """Write a device's table."""
        files.write_json(self.folder / f"{file_name(device_kind)}.json", table)


@functools.cache
def _load(tables: Tables, name: str) -> dict:
    path = tables.folder / f"{name}.json"
    if not path.exists():
        warnings.warn(f"No tile sizes were tuned for {name}; using those of {tables.default}.", stacklevel=4)
        path = tables.folder / f"{tables.default}.json"
    return json.loads(path.read_text())


def file_name(device_kind: str) -> str:
    """ "NVIDIA H200" -> "nvidia_h200"."""
    return device_kind.lower().replace(" ", "_")


def fastest(tiling: Any, choices: Mapping[str, tuple], times: Callable[[list], list[float]]) -> Any:
    """The fastest tiling found by setting every field in turn to each of its values, from the present one on.

    Args:
      tiling: a dataclass.
      choices: values worth trying, by field.
      times: tilings -> milliseconds of each, infinite where one does not fit.
    """
    best = tiling
    [best_ms] = times([best])
    for field, values in choices.items():
        others = [dataclasses.replace(best, **{field: value}) for value in values if value != getattr(best, field)]
        ms, other = min(zip(times(others), others, strict=True), key=lambda pair: pair[0])
        if ms < MARGIN * best_ms:
            best, best_ms = other, ms
    return best
