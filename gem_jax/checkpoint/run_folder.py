"""Where a run writes: `<runs_dir>/<name>`, and `<name>-2`, `<name>-3`, ... for later runs of the same name."""

import pathlib

from gem_jax.checkpoint.checkpoint import CheckpointError


def new_run_folder(runs_dir: str, name: str) -> pathlib.Path:
    """The first of `<name>`, `<name>-2`, ... that does not exist: an earlier run is never overwritten. Not created here."""
    folder = pathlib.Path(runs_dir) / name
    number = 2
    while folder.exists():
        folder = pathlib.Path(runs_dir) / f"{name}-{number}"
        number += 1
    return folder


def newest_run_folder(runs_dir: str, name: str) -> pathlib.Path:
    """The run of that name with the highest number.

    Raises:
      CheckpointError: there is no run of that name.
    """
    following = new_run_folder(runs_dir, name)
    number = 1 if following.name == name else int(following.name.removeprefix(f"{name}-"))
    if number == 1:
        raise CheckpointError(f"there is no run '{following}' to resume; start it without --resume")
    return following.with_name(name if number == 2 else f"{name}-{number - 1}")
