"""How fast `gem_jax.predict` is beside an evaluation of the same rows in the same process, and whether its memory stays flat.

    python -m gem_jax.bench.predict --json gem_jax/bench/results/predict.json          10 million rows, minutes on 2 cores

A logistic regression is trained for a moment on random examples (`bench.data`), since the smaller the model, the more reading and
writing count. Then three things are done with one Parquet file, in turn: what the command does, from the rows to the file;
`evaluate`; and its pass over the data alone, without the metrics at its end, which sort all scores. The table shows the median of
their rates; the memory is the process's resident set, read from Linux while the first prediction runs.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import tyro
from rich.console import Console

from gem_jax.bench.data import BenchDataConfig
from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import write_parquet
from gem_jax.data.schema import Categorical, Dense, Schema, Table, Task
from gem_jax.data.source import Source
from gem_jax.errors import exit_code
from gem_jax.evaluation.evaluate import scored_batches
from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.files import write_rows
from gem_jax.models import LogisticRegressionConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.scoring.predictions import predictions, write_predictions
from gem_jax.scoring.run import Run, load_run
from gem_jax.train import train

SCHEMA = Schema(
    tables=(Table(name="user", rows=100_000), Table(name="ad", rows=10_000), Table(name="place", rows=100)),
    categoricals=(
        Categorical(name="user", table="user", role="user"),
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="place", table="place", role="context"),
    ),
    dense=(Dense(name="price", role="ad"), Dense(name="hour", role="context")),
    tasks=(Task(name="click"), Task(name="buy")),
    domains=("feed",),
)
BATCH = 4096
TRAINED_ON = 20_000
"""Examples; what the model knows does not matter here."""
ROWS_PER_GROUP = 65_536
SHARES = (0.1, 0.5, 1.0)
"""Of the rows, after which the memory is read."""
PAGE_MIB = 4096 / 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Rates of predict and evaluate on the same rows, and predict's memory."""

    rows: int = 10_000_000
    """Of the file."""
    repeats: int = 3
    """How often each is timed."""
    json: str | None = None
    """Write what was measured to this file."""


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, or 2 where the user's input is wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m gem_jax.bench.predict")

    def body() -> int:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(pathlib.Path(folder), options.rows, options.repeats)
        if options.json is not None:
            write_rows(pathlib.Path(options.json), [row])
        print(markdown(row))
        return 0

    return exit_code(body)


def measure(folder: pathlib.Path, num_rows: int, repeats: int) -> dict[str, Any]:
    """Seconds of each thing, of each time, and MiB of memory at each share of the rows."""
    run, file = trained_run(folder), folder / "rows.parquet"
    write_parquet(file, _data(num_rows).build().train, rows_per_group=ROWS_PER_GROUP)
    memory: dict[str, float] = {}
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        for share in SHARES:
            if done < share * num_rows <= done + count:
                memory.setdefault(f"{share:.0%}", round(resident_mib(), 1))
        done += count

    seconds: dict[str, list[float]] = {"predict": [], "evaluate": [], "evaluate's pass": []}
    for _ in range(repeats):  # in turn: the machine may be busier at one time than at another
        done = 0
        seconds["predict"].append(_timed(lambda: predict(run, run.source(file), folder / "out.parquet", advance)))
        seconds["evaluate"].append(_timed(lambda: run.evaluate(file)))
        seconds["evaluate's pass"].append(_timed(lambda: evaluation_pass(run, run.source(file))))
    return {
        "config": "predict",
        "rows": num_rows,
        "seconds": {name: [round(s, 2) for s in times] for name, times in seconds.items()},
        "resident_mib": memory,
        "device": f"{run.program.mesh.size} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def trained_run(folder: pathlib.Path) -> Run:
    """A logistic regression that has seen a few examples, on one device."""
    config = Config(
        name="bench_predict",
        data=_data(TRAINED_ON),
        model=LogisticRegressionConfig(),
        batch=BatchConfig(examples=BATCH),
        train=TrainConfig(),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(folder),
    )
    return load_run(train(config, console=Console(quiet=True)).run_dir, devices=jax.devices()[:1])


def predict(run: Run, source: Source, out: pathlib.Path, advance: Callable[[int], None]) -> None:
    """What the command does, without its bar."""
    places = run.places(None)
    parts = predictions(run.program, run.state, source, run.config.batch, places)
    write_predictions(parts, out, run.schema, places, advance)


def evaluation_pass(run: Run, source: Source) -> None:
    """An evaluation up to its metrics."""
    evaluator = Evaluator(run.schema)
    for logits, host in scored_batches(run.program, run.state, source, run.config.batch):
        evaluator.update(logits, host)


def resident_mib() -> float:
    """Memory that the process holds now; 0 where there is no Linux to ask."""
    status = pathlib.Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * PAGE_MIB if status.exists() else 0.0


def markdown(row: dict[str, Any]) -> str:
    """What was measured, as two Markdown tables."""
    rates = {name: row["rows"] / statistics.median(times) for name, times in row["seconds"].items()}
    lines = [f"| {row['rows']:,} rows | rows/s | of evaluate's pass |", "|---|---|---|"]
    base = rates["evaluate's pass"]
    lines += [f"| {name} | {rate:,.0f} | {rate / base:.2f} |" for name, rate in rates.items()]
    lines += ["", "| rows predicted | resident MiB |", "|---|---|"]
    lines += [f"| {share} | {mib:,.0f} |" for share, mib in row["resident_mib"].items()]
    return "\n".join(lines)


def _data(num_rows: int) -> BenchDataConfig:
    return BenchDataConfig(columns=SCHEMA, lengths={}, examples=num_rows)


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
