"""Writing files so that a reader sees the old content or the whole new one, never a part."""

import json
import pathlib
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name beside `path` and moves it there; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes strict JSON.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
