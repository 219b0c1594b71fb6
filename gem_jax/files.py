"""Writing files so that a reader sees the old content or the whole new one, never a part; and files of measured rows."""

import json
import pathlib
import subprocess
from collections.abc import Iterable
from typing import Any

from gem_jax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name beside `path` and moves it there; the folder is made if missing.

    Raises:
      UserError: the file cannot be written: no right to, a full disk, a file where a folder should be.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror}); name a place that can") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes strict JSON.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Writes measured rows as a JSON list, one row a line, so that a diff shows what was measured anew."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n")


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as measured rows ({error}); name a file that --json wrote") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "config" in row for row in rows):
        raise UserError(f"'{path}' holds no measured rows; name a file that --json wrote")
    return rows


def commit() -> str | None:
    """The checkout's commit, for measured rows to name; None outside one."""
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def named_paths(texts: Iterable[str]) -> dict[str, str]:
    """Name -> path of the command line's `--events name=path`.

    Raises:
      UserError: one is not of that form, or a name stands twice.
    """
    paths: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or name in paths:
            raise UserError(f"--events {text} must be name=path, each name once")
        paths[name] = path
    return paths
