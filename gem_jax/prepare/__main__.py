"""The command line: a raw log to a folder that trains with one more command.

    python -m gem_jax.prepare log.parquet --label click --time ts --user uid --item ad_id
    python -m gem_jax.prepare clicks/ --label click --label buy --time ts --user uid --events views=views.csv --out prepared
    python -m gem_jax.prepare log.csv --label click --time ts --user uid --schema prepared/log/features.json     after editing it

What is wrong with the log is said in one line; GEM_TRACEBACK=1 in the environment shows its traceback too.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated

import tyro

from gem_jax.errors import UserError
from gem_jax.files import named_paths
from gem_jax.prepare.pipeline import prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Prepare a raw log for training: features, vocabularies, scalings, histories, parts by time."""

    log: Annotated[str, tyro.conf.Positional]
    """CSV or Parquet: a file, or a folder of files."""
    label: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Column of 0, 1 and null (unobserved); a task each, so perhaps several times."""
    time: str
    """Column of times."""
    user: str
    """Column of the user's id."""
    item: str | None = None
    """Column of what was shown, e.g. the ad."""
    events: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """name=path of another source of events with the same time and user columns; perhaps several times."""
    domain: str | None = None
    """Column of the delivery channel."""
    out: str | None = None
    """Folder to make; prepared/<name of the log> unless given."""
    min_count: int = 5
    """Training rows that a value needs for an id of its own."""
    test_share: float = 0.1
    """Share of the rows, the last in time, for test."""
    valid_share: float = 0.1
    """Share of the rows before those, for validation."""
    max_len: int = 100
    """Newest events of a history."""
    schema: str | None = None
    """An edited features.json, in place of the guess."""


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, or 2 where the user's input is wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m gem_jax.prepare", config=(tyro.conf.FlagConversionOff,))
    try:
        given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        out = options.out or pathlib.Path("prepared") / pathlib.Path(options.log).name.partition(".")[0]
        prepare(**given | {"out": out, "events": named_paths(options.events)})
    except UserError as error:
        if os.environ.get("GEM_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the folder is not whole; prepare again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
