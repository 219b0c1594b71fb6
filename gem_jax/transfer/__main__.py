"""Train a teacher, its labels and students that learn from it; one table at the end.

    python -m gem_jax.transfer configs/transfer/stream.py                        every recipe of every student, by seed
    python -m gem_jax.transfer configs/transfer/stream.py seeds=0 recipes=kd,full      with fields changed

Killed, the same command goes on where it stopped; a finished stage is not repeated.
"""

import dataclasses
import pathlib
import shlex
import sys
from typing import Any

from gem_jax.cli import Command, Request, run
from gem_jax.files import write_rows
from gem_jax.parallel import xla_flags
from gem_jax.transfer.config import TransferConfig
from gem_jax.transfer.fleet import Fleet, rows_of
from gem_jax.transfer.table import markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command takes beside a config and its fields: nothing."""


COMMAND = Command(
    name="gem_jax.transfer",
    about="Train a teacher and students that learn from it, and compare the ways in which they do.",
    options=Options,
    config=TransferConfig,
)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 2 (the user's input is wrong), 130 (interrupted)."""

    def body(request: Request) -> int:
        xla_flags.set_flags()
        command = shlex.join(["python", "-m", "gem_jax.transfer", *arguments])
        print(markdown(transfer(request.config, command)))
        return 0

    return run(COMMAND, arguments, body)


def transfer(config: TransferConfig, command: str) -> list[dict[str, Any]]:
    """All rows of a transfer (`fleet.rows_of`); written to `config.results` as they come.

    Raises:
      UserError: a config or its data is wrong.
    """
    rows: list[dict[str, Any]] = []
    for found in Fleet(config, lambda line: print(line, flush=True)).students():
        rows += rows_of(found, command)
        if config.results is not None:
            write_rows(pathlib.Path(config.results), rows)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
