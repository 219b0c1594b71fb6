"""Train several configs over several seeds and compare what they reach: the tables of README and of the config headers.

    python -m gem_jax.compare configs/gem_debug.py configs/ablations/*.py --seeds 0,1,2 --json configs/results/ablations.json
    python -m gem_jax.compare configs/ml1m.py --seeds 0,1,2 data.path=<folder>     overrides apply to every config
    python -m gem_jax.compare --table configs/results/ablations.json               prints the file as Markdown; trains nothing

The first config is the one that the others are compared with, seed by seed: a difference of pairs leaves out what a seed does to
both. Every run leaves its own run folder, as `gem_jax.train` does.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from gem_jax.config import ConfigError, load, override
from gem_jax.train import train
from gem_jax.report.console import format_number

MEASURES = ("ne", "bayes_ne", "auc", "gauc", "calibration", "logloss")


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 2 (the user's input is wrong), 130 (interrupted)."""
    try:
        options = _options(arguments)
        if options.table is not None:
            rows = json.loads(options.table.read_text())
        else:
            rows = []
            for row in measure(options.configs, options.seeds, options.overrides):
                rows.append(row)
                if options.json is not None:  # written as they come: a broken sweep keeps what it measured
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
        print(markdown(rows))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the rows of finished runs are kept", file=sys.stderr)
        return 130
    return 0


@dataclasses.dataclass(kw_only=True)
class _Options:
    configs: list[pathlib.Path]
    overrides: list[str]
    seeds: list[int]
    json: pathlib.Path | None
    table: pathlib.Path | None


def _options(arguments: list[str]) -> _Options:
    flags = {"--seeds": "0", "--json": "", "--table": ""}
    words, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
        elif word in flags and rest:
            flags[word] = rest.pop(0)
        else:
            raise ConfigError(
                f"unknown or incomplete option '{word}'; there are --seeds 0,1,2 --json FILE --table FILE"
            )
    configs = [pathlib.Path(w) for w in words if w.endswith(".py") and "=" not in w]
    if not configs and not flags["--table"]:
        raise ConfigError(
            "name the configs to compare, e.g. python -m gem_jax.compare configs/gem_debug.py --seeds 0,1,2"
        )
    if not all(seed.isdecimal() for seed in flags["--seeds"].split(",")):
        raise ConfigError(f"--seeds {flags['--seeds']} must be whole numbers with commas between them, e.g. 0,1,2")
    return _Options(
        configs=configs,
        overrides=[w for w in words if w not in map(str, configs)],
        seeds=[int(seed) for seed in flags["--seeds"].split(",")],
        json=pathlib.Path(flags["--json"]) if flags["--json"] else None,
        table=pathlib.Path(flags["--table"]) if flags["--table"] else None,
    )


def measure(configs: list[pathlib.Path], seeds: list[int], overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Trains every config with every seed; a row per run and task: config, seed, task, MEASURES, speed and circumstances.

    Raises:
      ConfigError, DataError: a config or its data is wrong; those of all configs are loaded before the first is trained.
    """
    loaded = [override(load(path), overrides) for path in configs]
    commit = _commit()
    for seed in seeds:
        for path, config in zip(configs, loaded, strict=True):
            result = train(override(config, [f"train.seed={seed}"]), console=Console(quiet=True))
            if result.interrupted:  # the run caught the signal to save itself; it was meant for the whole sweep
                raise KeyboardInterrupt
            summary = result.summary
            for task, measures in summary["eval"].items():
                row = {"config": config.name, "path": str(path), "seed": seed, "task": task}
                row |= {name: measures[name] for name in MEASURES}
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
    means = {m: _mean([row[m] for row in own]) for m in MEASURES}
    closed = None
    if means["bayes_ne"] is not None and means["ne"] is not None:
        closed = (1 - means["ne"]) / (1 - means["bayes_ne"])
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
