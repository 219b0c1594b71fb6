"""Train several configs over several seeds and compare what they reach: the tables of README and of the config headers.

    python -m gem_jax.compare configs/gem_debug.py configs/gem_debug.py:no_pyramid --seeds 0,1,2 --json results.json
    python -m gem_jax.compare configs/ml1m.py --seeds 0,1,2 data.path=<folder>     overrides apply to every config
    python -m gem_jax.compare --table results.json                                 prints the file as Markdown; trains nothing

The first config is the one that the others are compared with, seed by seed: a difference of pairs leaves out what a seed does to
both. Every run leaves its own run folder, as `gem_jax.train` does.
"""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from gem_jax.cli import Command, Request, run
from gem_jax.config import Config, ConfigError, override
from gem_jax.evaluation.metrics import METRICS, share_closed
from gem_jax.files import read_rows, write_rows
from gem_jax.report.formats import format_number
from gem_jax.train import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command takes beside configs and their fields."""

    seeds: tuple[int, ...] = (0,)
    """Train every config with each of these, e.g. 0,1,2."""
    json: str | None = None
    """Write the rows of all runs to this file."""
    table: str | None = None
    """Print this file of rows as Markdown, and train nothing."""


COMMAND = Command(
    name="gem_jax.compare",
    about="Train several configs over several seeds and compare them.",
    options=Options,
    num_configs="none or some",
)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 2 (the user's input is wrong), 130 (interrupted)."""
    return run(COMMAND, arguments, _body)


def _body(request: Request) -> int:
    options = request.options
    if options.table is not None:
        if request.configs or request.overrides:
            raise ConfigError("--table prints a file and trains nothing; leave the configs and their fields away")
        print(markdown(read_rows(pathlib.Path(options.table))))
        return 0
    if not request.configs:
        raise ConfigError(
            "name the configs to compare, e.g. python -m gem_jax.compare configs/gem_debug.py --seeds 0,1,2"
        )
    if any(assignment.startswith("train.seed=") for assignment in request.overrides):
        raise ConfigError("train.seed is what --seeds sets; write --seeds in its place, e.g. --seeds 0,1,2")
    rows = []
    for row in measure(request.paths, request.configs, options.seeds):
        rows.append(row)
        if options.json is not None:  # written as they come: a broken sweep keeps what it measured
            write_rows(pathlib.Path(options.json), rows)
    print(markdown(rows))
    return 0


def measure(paths: Sequence[str], configs: Sequence[Config], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Trains every config with every seed; a row per run and task: config, seed, task, all metrics, speed and circumstances.

    Raises:
      UserError: a config or its data is wrong.
    """
    commit = _commit()
    for seed in seeds:
        for path, config in zip(paths, configs, strict=True):
            result = train(override(config, [f"train.seed={seed}"]), console=Console(quiet=True))
            if result.interrupted:  # the run caught the signal to save itself; it was meant for the whole sweep
                raise KeyboardInterrupt
            summary = result.summary
            for task, measures in summary["eval"].items():
                row = {"config": config.name, "path": path, "seed": seed, "task": task}
                row |= {name: measures[name] for name in METRICS}
                row |= {"parameters": summary["parameters"], "examples": summary["examples"]}
                row |= {"examples_per_s": summary["examples_per_s"], "device": summary["device"]}
                row |= {"jax": summary["jax"], "commit": commit}
                shown = ", ".join(f"{m} {format_number(measures[m])}" for m in ("ne", "bayes_ne", "auc"))
                print(f"{config.name}, seed {seed}, {task}: {shown}", flush=True)
                yield row


def _commit() -> str | None:
    """The checkout's commit; None outside one."""
    here = pathlib.Path(__file__).parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, one line per task and config: means over the seeds, and the AUC and NE won over the first config."""
    lines = [
        "| task | config | NE | Bayes NE | closed | NE less the first's | AUC | gAUC | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        names = list(dict.fromkeys(row["config"] for row in of_task))
        known = [row for row in of_task if row["ne"] is not None]
        first = {row["seed"]: row["ne"] for row in known if row["config"] == names[0]}
        for name in names:
            own = [row for row in of_task if row["config"] == name]
            differences = [r["ne"] - first[r["seed"]] for r in known if r["config"] == name and r["seed"] in first]
            lines.append(_line(task, name, own, differences if name != names[0] else []))
    return "\n".join(lines)


def _line(task: str, name: str, own: list[dict[str, Any]], differences: list[float]) -> str:
    means = {m: _mean([row.get(m) for row in own]) for m in ("ne", "bayes_ne", "auc", "gauc")}
    closed = share_closed(means["ne"], means["bayes_ne"])
    lead = "" if not differences else f"{_mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"
    cells = [
        task,
        name,
        format_number(means["ne"]),
        format_number(means["bayes_ne"]),
        "" if closed is None else f"{closed:.0%}",
        lead,
    ]
    cells += [format_number(means["auc"]), format_number(means["gauc"]), str(len(own))]
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
