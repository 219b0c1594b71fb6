"""What a run would need on GPUs that are not there: the training step compiled for each mesh, as a table.

    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m gem_jax.scale configs/gem_base.py --meshes 2x8,32x8,256x8 [--json FILE] [a.b=c ...]
    python -m gem_jax.scale --table FILE                                                     a file as Markdown

A mesh is REPLICAxSHARD H200s in hosts of eight. Needs no GPU, driver or CUDA, only the wheels jax-cuda13-plugin and
jax-cuda13-pjrt. Per GPU: state (parameters, optimizer, tables, batch), temporaries of the step (with XLA's attention), and bytes
received a step: inside a group by dense parameters and by tables, between groups by sums and by touched rows.
"""

import dataclasses
import json
import pathlib
import re
import sys
import time
from typing import Any

import jax

from gem_jax.cli import Command, Request, run
from gem_jax.config import Config, ConfigError
from gem_jax.files import commit, read_rows, write_rows
from gem_jax.parallel import xla_flags
from gem_jax.parallel.mesh import REPLICA, SHARD, MeshConfig
from gem_jax.scale.aot import CompiledStep, compile_step, gpu_devices
from gem_jax.scale.hlo import total_received

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command takes beside a config and its fields."""

    meshes: tuple[str, ...] = ("2x8", "32x8", "256x8")
    """REPLICAxSHARD, with commas between them."""
    json: str | None = None
    """Write the rows there, after those it already has."""
    table: str | None = None
    """Print this file as Markdown; compiles nothing."""


COMMAND = Command(
    name="gem_jax.scale",
    about="What a run would need on GPUs that are not there.",
    options=Options,
    num_configs="none or some",
)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, or 2 where the user's input is wrong."""
    xla_flags.set_flags()  # as a run on GPUs has them
    return run(COMMAND, arguments, _body)


def _body(request: Request) -> int:
    options = request.options
    if options.table is not None:
        if request.configs or request.overrides:
            raise ConfigError("--table prints a file and compiles nothing; leave the configs and their fields away")
        print(markdown(read_rows(pathlib.Path(options.table))))
        return 0
    if not request.configs:
        raise ConfigError("name a config, e.g. python -m gem_jax.scale configs/gem_base.py --meshes 2x8,32x8")
    file = None if options.json is None else pathlib.Path(options.json)
    rows = read_rows(file) if file is not None and file.exists() else []
    for config in request.configs:
        for replica, shard in _meshes(options.meshes):
            rows.append(measure(config, list(request.overrides), replica, shard))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if file is not None:
                write_rows(file, rows)
    print(markdown(rows))
    return 0


def _meshes(words: tuple[str, ...]) -> list[tuple[int, int]]:
    meshes = []
    for word in words:
        match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", word)
        if match is None:
            raise ConfigError(f"--meshes has '{word}'; write REPLICAxSHARD, e.g. 32x8")
        meshes.append((int(match[1]), int(match[2])))
    return meshes


def measure(config: Config, overrides: list[str], replica: int, shard: int) -> dict[str, Any]:
    """One mesh's row, in bytes per GPU."""
    jax.config.update("jax_platforms", "cpu")  # the compiler is a plugin's, the process has no GPU
    config = config.replace(mesh=MeshConfig(replica=replica, shard=shard))
    start = time.perf_counter()
    step = compile_step(config, config.data.schema(), gpu_devices(replica * shard))
    row = {"config": config.name, "overrides": overrides, "replica": replica, "shard": shard}
    return (
        row
        | summary(step)
        | {"compile_s": round(time.perf_counter() - start, 1), "jax": jax.__version__, "commit": commit()}
    )


def summary(step: CompiledStep) -> dict[str, int]:
    """Bytes per GPU by purpose: over `shard` gathers and reductions are dense parameters', all-to-alls are tables'; over `replica`
    sums are dense gradients' (and tables' averages, where they are synchronised so), gathers are touched rows'."""

    def received(axes: tuple[str, ...], kinds: tuple[str, ...]) -> int:
        return sum(total_received(step.collectives, kind, axes) for kind in kinds)

    return {
        "state_bytes": step.state_bytes,
        "temporary_bytes": step.temporary_bytes,
        "predicted_bytes": step.predicted_bytes,
        "dense_shard_bytes": received((SHARD,), ("all-gather", "reduce-scatter")),
        "tables_shard_bytes": received((SHARD,), ("all-to-all", "ragged-all-to-all")),
        "sums_replica_bytes": received((REPLICA,), ("all-reduce",)),
        "rows_replica_bytes": received((REPLICA,), ("all-gather", "reduce-scatter")),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, MiB per GPU; overrides of the data's size are left out."""
    columns = ("state", "temporary", "dense_shard", "tables_shard", "sums_replica", "rows_replica")
    lines = [
        "| config | GPUs | replica x shard | state | temporaries | dense, in the group | tables, in the group "
        "| sums, between groups | rows, between groups |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = " ".join([row["config"], *(o for o in row["overrides"] if not o.startswith("data."))])
        cells = [f"{row[f'{column}_bytes'] / MIB:,.1f}" for column in columns]
        mesh = f"{row['replica']} x {row['shard']}"
        lines.append("| " + " | ".join([name, str(row["replica"] * row["shard"]), mesh, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
