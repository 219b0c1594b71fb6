"""Where a run writes: `<runs_dir>/<name>`, and `<name>-2`, `<name>-3`, ... for later runs of the same name."""

import pathlib
import re

from gem_jax.checkpoint.errors import CheckpointError


def new_run_folder(runs_dir: str, name: str) -> pathlib.Path:
    """The number after the highest that exists: an earlier run is never overwritten. Not created here.

    Raises:
      CheckpointError: the name is none for a folder.
    """
    taken = _numbered(runs_dir, name)
    number = max(taken, default=0) + 1
    return pathlib.Path(runs_dir) / (name if number == 1 else f"{name}-{number}")


def newest_run_folder(runs_dir: str, name: str) -> pathlib.Path:
    """The run of that name with the highest number that exists.

    Raises:
      CheckpointError: there is no run of that name, or the name is none for a folder.
    """
    folders = {number: path for number, path in _numbered(runs_dir, name).items() if path.is_dir()}
    if not folders:
        raise CheckpointError(f"there is no run '{pathlib.Path(runs_dir) / name}' to resume; start it without --resume")
    return folders[max(folders)]


def check_name(name: str) -> None:
    """A run writes in its folder and nowhere else.

    Raises:
      CheckpointError: the name leads to another folder, or to none.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise CheckpointError(
            f"name={name!r} cannot be a run's folder; give it a name without '/' that is not '.' or '..'"
        )


def _numbered(runs_dir: str, name: str) -> dict[int, pathlib.Path]:
    """What stands under the name with its numbers; the first has none."""
    check_name(name)
    folder = pathlib.Path(runs_dir)
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?", re.ASCII)
    found = ((pattern.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return {int(match[1] or 1): path for match, path in found if match}
