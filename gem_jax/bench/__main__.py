"""A run's training step, measured: speed, model FLOPs, memory, where its time goes, start-up, and the reader's share.

    python -m gem_jax.bench step configs/gem_small.py [a.b=c ...] [--json FILE] [--trace DIR]
    python -m gem_jax.bench start configs/gem_small.py [a.b=c ...]        start-up of one process, by phase, as JSON
    python -m gem_jax.bench mesh configs/bench/gem_base.py [a.b=c ...] [--json FILE] [--seconds 240]     meshes of the GPUs at hand

Run `step` on a machine with nothing else to do. Start-up is measured in two processes of their own, before this one takes the
device: one with an empty compile cache, one with what the first left.
"""

import dataclasses
import json
import pathlib
import sys

from rich.console import Console
from rich.table import Table

from gem_jax.bench import mesh, mesh_variant, startup, step
from gem_jax.cli import Command, Request, run
from gem_jax.files import read_rows, write_rows
from gem_jax.parallel import xla_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `step` takes beside a config and its fields."""

    json: str | None = None
    """Write the row there, after those it already has."""
    trace: str | None = None
    """Keep the profiler's trace in this folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """`start` takes a config and its fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """What `mesh` takes beside a config and its fields."""

    json: str | None = None
    """Write the rows there, after those it already has."""
    trace: str | None = None
    """Keep the profiler's traces in this folder."""
    seconds: float = 240.0
    """For everything; what is not measured by then is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """What `mesh` starts its processes with."""

    variant: str
    """As JSON."""
    trace: str | None = None
    """Keep the profiler's trace in this folder."""


STEP = Command(name="gem_jax.bench step", about="Measure a run's training step.", options=Options)
START = Command(name="gem_jax.bench start", about="Measure a run's start-up, by phase.", options=NoOptions)
MESH = Command(name="gem_jax.bench mesh", about="Measure meshes of the GPUs at hand.", options=MeshOptions)
VARIANT = Command(name="gem_jax.bench mesh-variant", about="One variant of `mesh`.", options=VariantOptions)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, or 2 where the user's input is wrong."""
    xla_flags.set_flags()  # as a run has them
    bodies = {
        "step": (STEP, _step),
        "start": (START, _start),
        "mesh": (MESH, _mesh),
        "mesh-variant": (VARIANT, _variant),
    }
    if arguments[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    if not arguments or arguments[0] not in bodies:
        print("error: name what to measure, e.g. python -m gem_jax.bench step configs/gem_small.py", file=sys.stderr)
        return 2
    command, body = bodies[arguments[0]]
    return run(command, arguments[1:], body)


def _step(request: Request) -> int:
    options = request.options
    file = None if options.json is None else pathlib.Path(options.json)
    rows = read_rows(file) if file is not None and file.exists() else []
    cold, warm = startup.measure([*request.paths, *request.overrides])
    row = step.measure(request.config, request.overrides, cold, warm, options.trace)
    if file is not None:
        write_rows(file, [*rows, row])
    show(row, Console())
    return 0


def _start(request: Request) -> int:
    print(json.dumps(startup.Started(request.config).phases))
    return 0


def _mesh(request: Request) -> int:
    options = request.options
    file = None if options.json is None else pathlib.Path(options.json)
    before = read_rows(file) if file is not None and file.exists() else []
    words = [*request.paths, *request.overrides]
    rows = mesh.measure(words, list(request.overrides), request.config.name, options.seconds, options.trace)
    if file is not None:
        write_rows(file, [*before, *rows])
    mesh.show(rows, Console())
    return 0 if any("error" not in row for row in rows) else 1


def _variant(request: Request) -> int:
    variant = mesh_variant.from_json(request.options.variant)
    print(json.dumps(mesh_variant.measure(request.config, variant, request.options.trace)), flush=True)
    return 0


def show(row: step.Row, console: Console) -> None:
    """Prints a row as tables."""
    phases = [
        f"{name} {row['cold_phases_s'][name]:.1f}/{row['warm_phases_s'][name]:.1f}" for name in row["cold_phases_s"]
    ]
    lines = {
        "step": f"{row['ms']:.2f} ms",
        "examples/s": f"{row['examples_per_s']:,.0f}, fed by its reader {row['fed_examples_per_s']:,.0f}",
        "tokens/s": f"{row['tokens_per_s']:,.0f}",
        "model TFLOP/s": _model_flops(row),
        "peak memory": f"{row['peak_gib']:.2f} GiB",
        "first step, cold/warm, s": ", ".join(phases),
    }
    title = f"{row['config']} {' '.join(row['overrides'])} in {row['dtype']} on {row['devices']} x {row['device']}"
    table = Table(title=title, show_header=False)
    for name, text in lines.items():
        table.add_row(name, text)
    console.print(table)
    for what in ("by_scope", "by_kind"):
        times = Table("", "ms", title=what.replace("_", " "))
        for name, milliseconds in row[what].items():
            times.add_row(name, f"{milliseconds:.3f}")
        console.print(times)


def _model_flops(row: step.Row) -> str:
    if row["tflops"] is None:
        return f"no formula for this model; a large product reaches {row['ceiling_tflops']:.1f}"
    sheet = "" if row["mfu_datasheet"] is None else f", {row['mfu_datasheet']:.1%} of the datasheet's"
    return f"{row['tflops']:.3g}: {row['mfu']:.1%} of a large product's {row['ceiling_tflops']:.3g}{sheet}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
