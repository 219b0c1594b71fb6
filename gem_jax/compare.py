"""Train several configs over several seeds and compare what they reach: the tables of README and of the config headers.

    python -m gem_jax.compare configs/gem_debug.py configs/gem_debug.py:no_pyramid --seeds 0,1,2 --json results.json
    python -m gem_jax.compare configs/ml1m.py --seeds 0,1,2 data.path=<folder>     overrides apply to every config
    python -m gem_jax.compare --table results.json                                 prints the file as Markdown; trains nothing

The first config is the one that the others are compared with, seed by seed and test example by test example: a difference of pairs
leaves out what a seed or an example does to both. Every run leaves its own run folder, as `gem_jax.train` does, and in it the
scores of its test examples (`evaluation.scores_file`).
"""

import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from gem_jax.cli import Command, Request, run
from gem_jax.config import Config, ConfigError, override
from gem_jax.evaluation.evaluate import scored_examples
from gem_jax.evaluation.intervals import Z
from gem_jax.evaluation.metrics import METRICS, Measures, Value, share_closed
from gem_jax.evaluation.paired import differences, margin_over_seeds
from gem_jax.evaluation.scores import Scores
from gem_jax.evaluation.scores_file import FILE_NAME, write_scores
from gem_jax.files import commit, read_rows, write_rows
from gem_jax.report.formats import format_margin, format_measure
from gem_jax.train import train

NOTE = """Differences are of pairs: the same seed, the same test examples. ± reaches 95 %: behind a difference for the draw of test
examples and of seeds together, in "± of test examples" for those alone (by user where users are known). One seed says nothing of
other seeds."""


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
    _check_names(request)
    rows = []
    for row in measure(request.paths, request.configs, options.seeds, request.overrides):
        rows.append(row)
        if options.json is not None:  # written as they come: a broken sweep keeps what it measured
            write_rows(pathlib.Path(options.json), rows)
    print(markdown(rows))
    return 0


def _check_names(request: Request) -> None:
    paths: dict[str, str] = {}
    for path, config in zip(request.paths, request.configs, strict=True):
        if config.name in paths:
            raise ConfigError(
                f"'{paths[config.name]}' and '{path}' are both named '{config.name}', which a table could not tell apart; "
                "give one another name"
            )
        paths[config.name] = path


def measure(
    paths: Sequence[str], configs: Sequence[Config], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Trains every config with every seed; a row per run and task, JSON-able.

    A row holds config, path, overrides, seed and task; all metrics and their `standard_error`; `difference` and `difference_se`, by
    metric, from the first config's run of the same seed (None for that run itself, and where the test examples are not the same);
    and the run's circumstances: parameters, speed, device, versions, run folder, identity of the data.

    Args:
      paths: the configs' files with their variants, for the rows.
      configs: with the overrides applied.
      seeds: of `train.seed`.
      overrides: for the rows.

    Raises:
      UserError: a config or its data is wrong.
    """
    version = commit()
    for seed in seeds:
        first: dict[str, Scores] | None = None
        for path, config in zip(paths, configs, strict=True):
            found = _run(override(config, [f"train.seed={seed}"]))
            for task, measures in found.result.items():
                row = {"config": config.name, "path": path, "overrides": list(overrides), "seed": seed, "task": task}
                row |= {name: measures[name] for name in (*METRICS, "standard_error")}
                row |= _paired(None if first is None else first.get(task), found.scores[task])
                row |= found.facts | {"commit": version}
                print(_said(row, is_first=first is None), flush=True)
                yield row
            first = found.scores if first is None else first


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What is kept of a run: its circumstances for the rows, and by task its measures and the scores of its test examples."""

    facts: dict[str, Any]
    result: dict[str, Measures]
    scores: dict[str, Scores]


def _run(config: Config) -> _Run:
    result = train(config, console=Console(quiet=True))
    if result.interrupted:  # the run caught the signal to save itself; it was meant for the whole sweep
        raise KeyboardInterrupt
    program, splits = result.program, config.data.build()
    state = program.in_step(result.state)
    scores = scored_examples(program, state, splits.test, config.batch, config.train.eval_examples)
    tasks = [task.name for task in program.schema.tasks]
    write_scores(result.run_dir / FILE_NAME, scores, tasks)
    facts = {name: result.summary[name] for name in ("parameters", "examples", "examples_per_s", "device", "jax")}
    facts |= {"run": str(result.run_dir), "data": splits.identity()}
    return _Run(
        facts=facts, result=result.summary["eval"], scores={task: scores.task(n) for n, task in enumerate(tasks)}
    )


def _paired(first: Scores | None, own: Scores) -> dict[str, dict[str, float | None] | None]:
    """By metric, the difference from the first config's run, and its standard error over the draw of the test examples."""
    found = None if first is None else differences(first, own)
    if found is None:
        return {"difference": None, "difference_se": None}
    return {
        "difference": {name: None if d is None else d.value for name, d in found.items()},
        "difference_se": {name: None if d is None else d.standard_error for name, d in found.items()},
    }


def _said(row: dict[str, Any], is_first: bool) -> str:
    """A row in one line, for who waits."""
    words = [
        f"{METRICS[name].heading} {format_measure(METRICS[name], row[name])}" for name in ("ne", "bayes_ne", "auc")
    ]
    if row["difference"] is not None:
        lead, error = row["difference"]["ne"], row["difference_se"]["ne"]
        words.append("NE less the first's " + ("-" if lead is None else f"{lead:+.4f} {format_margin(Z * error)}"))
    elif not is_first:
        words.append("not paired: its test examples are not the first's")
    return f"{row['config']}, seed {row['seed']}, {row['task']}: {', '.join(words)}"


# --- The table --------------------------------------------------------------------------------------------------------------------


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, one line per task and config: means over the seeds, and what they are less the first config's.

    Rows of older files lack differences and standard errors: the difference is then that of the seeds' NE, without a margin.
    Columns without any value are left out.
    """
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        first = [row for row in of_task if row["config"] == of_task[0]["config"]]
        lines.append(_line(first, []))
        for name in dict.fromkeys(row["config"] for row in of_task if row["config"] != first[0]["config"]):
            lines.append(_line([row for row in of_task if row["config"] == name], first))
    shown = [heading for heading in lines[0] if any(line[heading] for line in lines)]
    table = [shown, ["---"] * len(shown), *([line[heading] for heading in shown] for line in lines)]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    return f"{text}\n\n{NOTE}" if any("±" in cell for line in lines for cell in line.values()) else text


def _line(own: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, str]:
    """Cells by heading of one config's rows of a task; empty where there is no value."""
    means: dict[str, Any] = {name: _mean([row.get(name) for row in own]) for name in METRICS}
    means["closed"] = share_closed(means["ne"], means["bayes_ne"])
    if means["num_positives"] is not None:
        means["num_positives"] = round(means["num_positives"])
    text = {name: "" if means[name] is None else format_measure(METRICS[name], means[name]) for name in METRICS}
    ne, regret = _Lead.of("ne", own, first), _Lead.of("regret_ne", own, first)
    return {
        "task": own[0]["task"],
        "config": own[0]["config"],
        "positives": text["num_positives"],
        "NE": text["ne"],
        "Bayes NE": text["bayes_ne"],
        "regret NE": text["regret_ne"],
        "closed": text["closed"],
        "NE less the first's": ne.mean(),
        "± of test examples": ne.of_examples(),
        "seeds from, to": ne.range(),
        "regret NE less the first's": regret.mean(),
        "AUC": text["auc"],
        "gAUC": text["gauc"],
        "seeds": str(len(own)),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lead:
    """A metric less the first config's, seed by seed, and the standard errors over the draw of test examples; none if unknown."""

    values: list[float]
    errors: list[float]

    @classmethod
    def of(cls, metric: str, own: list[dict[str, Any]], first: list[dict[str, Any]]) -> "_Lead":
        of_first = {row["seed"]: row.get(metric) for row in first}
        values, errors = [], []
        for row in own if first else []:
            if "difference" in row:
                values.append((row["difference"] or {}).get(metric))
                errors.append((row["difference_se"] or {}).get(metric))
            else:  # of an older file
                mine, its = row.get(metric), of_first.get(row["seed"])
                values.append(None if mine is None or its is None else mine - its)
        known = [value for value in values if value is not None]
        sure = [error for error in errors if error is not None]
        return cls(values=known, errors=sure if len(sure) == len(known) else [])

    def mean(self) -> str:
        """The mean with the margin for test examples and seeds together."""
        if not self.values:
            return ""
        margin = f" {format_margin(margin_over_seeds(self.values, self.errors))}" if self.errors else ""
        return f"{statistics.fmean(self.values):+.4f}{margin}"

    def of_examples(self) -> str:
        """The margin for the test examples alone."""
        return format_margin(Z * statistics.fmean(self.errors)) if self.errors else ""

    def range(self) -> str:
        """What the seeds differ by."""
        return f"{min(self.values):+.4f}, {max(self.values):+.4f}" if len(self.values) > 1 else ""


def _mean(values: Sequence[Value]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
