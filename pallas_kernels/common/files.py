"""Writing JSON so that a reader sees the old content or the whole new one, never a part."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write `value`, indented; the folder is made if missing."""
    _write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Write a list of objects, one a line, so that versions can be compared line by line."""
    _write(path, "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n")


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
